"""Published weights become variables whole, or the error says what does not fit."""

import cnn_oracle
import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file
from scipy.special import erf

from bvit import models
from bvit.models import pretrained

RESNET = {"width": 4, "depths": (1, 1), "num_classes": 5}
GOOGLENET = {"width": 8, "num_classes": 5}
WIDTH, HEADS, DEPTH, PATCH, CLASSES = 8, 2, 2, 4, 5
VIT = {
    "image_size": 16,
    "patch_size": PATCH,
    "width": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "num_classes": CLASSES,
}
VIT_NAME = "vit_tiny_patch16_224"


def _resnet_state():
    net = cnn_oracle.Network()
    cnn_oracle.resnet(
        net, np.zeros((1, 3, 16, 16)), bottleneck=False, depths=(1, 1), width=4, classes=5
    )
    return net.state


def _googlenet_state():
    net = cnn_oracle.Network()
    cnn_oracle.googlenet(net, np.zeros((1, 3, 32, 32)), width=8, classes=5)
    return net.state


def _vit_state(pool="cls", distilled=False, scaled=False, registers=0, pre_norm=False):
    rng = np.random.default_rng(0)
    norm = "fc_norm" if pool == "mean" else "norm"  # timm's, where tokens are averaged
    own = 0 if registers else (pool == "cls") + distilled
    shapes = {
        "pos_embed": (1, 16 + own, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        f"{norm}.weight": (WIDTH,),
        f"{norm}.bias": (WIDTH,),
        "head.weight": (CLASSES, WIDTH),
        "head.bias": (CLASSES,),
    }
    if pool == "cls":
        shapes["cls_token"] = (1, 1, WIDTH)
    if registers:
        shapes["reg_token"] = (1, registers, WIDTH)
    if pre_norm:
        shapes |= {"norm_pre.weight": (WIDTH,), "norm_pre.bias": (WIDTH,)}
    else:
        shapes["patch_embed.proj.bias"] = (WIDTH,)
    if pool == "attention":
        shapes["attn_pool.latent"] = (1, 1, WIDTH)
        for name, shape in {
            "q": (WIDTH, WIDTH),
            "kv": (2 * WIDTH, WIDTH),
            "proj": (WIDTH, WIDTH),
            "norm": (WIDTH,),
            "mlp.fc1": (4 * WIDTH, WIDTH),
            "mlp.fc2": (WIDTH, 4 * WIDTH),
        }.items():
            shapes |= {f"attn_pool.{name}.weight": shape, f"attn_pool.{name}.bias": shape[:1]}
    if distilled:
        shapes |= {"dist_token": (1, 1, WIDTH), "head_dist.weight": (CLASSES, WIDTH)}
        shapes["head_dist.bias"] = (CLASSES,)
    for i in range(DEPTH):
        for name, shape in {
            "norm1": (WIDTH,),
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "norm2": (WIDTH,),
            "mlp.fc1": (4 * WIDTH, WIDTH),
            "mlp.fc2": (WIDTH, 4 * WIDTH),
        }.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        if scaled:
            shapes |= {f"blocks.{i}.{name}.gamma": (WIDTH,) for name in ("ls1", "ls2")}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def _layer_norm(state, name, x):
    epsilon = 1e-5 if "norm_pre.weight" in state else 1e-6
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def _dense(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _attention(state, name, x):
    """timm's, one image, one head and one token at a time."""
    query, key, value = np.split(_dense(state, f"{name}.qkv", x), 3, axis=1)
    return _dense(state, f"{name}.proj", _mixed(query, key, value))


def _mixed(query, key, value):
    mixed, size = np.zeros(query.shape), WIDTH // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for token in range(len(query)):
            weights = np.exp(key[:, part] @ query[token, part] / np.sqrt(size))
            mixed[token, part] = weights @ value[:, part] / weights.sum()
    return mixed


def _mlp(state, name, x, activation):
    hidden = _dense(state, f"{name}.fc1", x)
    hidden *= {
        "gelu": lambda: (1 + erf(hidden / np.sqrt(2))) / 2,
        "gelu_tanh": lambda: (
            (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3))) / 2
        ),
        "quick_gelu": lambda: 1 / (1 + np.exp(-1.702 * hidden)),
    }[activation]()
    return _dense(state, f"{name}.fc2", hidden)


def _vit(state, image, pool="cls", activation="gelu"):
    """timm's ViT on one image, channels last, in float64 loops."""
    state = {name: array.astype(np.float64) for name, array in state.items()}
    tokens = []
    for i in range(0, image.shape[0], PATCH):
        for j in range(0, image.shape[1], PATCH):
            patch = image[i : i + PATCH, j : j + PATCH].astype(np.float64)
            kernel = state["patch_embed.proj.weight"]
            bias = state.get("patch_embed.proj.bias", 0)
            tokens.append(np.einsum("hwc,ochw->o", patch, kernel) + bias)
    names = ("cls_token", "dist_token", "reg_token")
    prefix = [token for name in names for token in state.get(name, [[]])[0]]
    positions = state["pos_embed"][0]
    if "reg_token" in state:
        positions = np.concatenate([np.zeros((len(prefix), WIDTH)), positions])
    x = np.stack(prefix + tokens) + positions
    if "norm_pre.weight" in state:
        x = _layer_norm(state, "norm_pre", x)
    for i in range(DEPTH):
        scales = [state.get(f"blocks.{i}.{name}.gamma", 1) for name in ("ls1", "ls2")]
        mixed = _attention(state, f"blocks.{i}.attn", _layer_norm(state, f"blocks.{i}.norm1", x))
        x = x + scales[0] * mixed
        normed = _layer_norm(state, f"blocks.{i}.norm2", x)
        x = x + scales[1] * _mlp(state, f"blocks.{i}.mlp", normed, activation)
    if "dist_token" in state:
        first, second = _layer_norm(state, "norm", x[:2])
        return (_dense(state, "head", first) + _dense(state, "head_dist", second)) / 2
    patches = x[len(prefix) :]
    if pool == "cls":
        pooled = _layer_norm(state, "norm", x[0])
    elif pool == "mean":
        pooled = _layer_norm(state, "fc_norm", patches.mean(0))
    else:
        query = _dense(state, "attn_pool.q", state["attn_pool.latent"][0])
        keys = _dense(state, "attn_pool.kv", _layer_norm(state, "norm", patches))
        pooled = _dense(state, "attn_pool.proj", _mixed(query, *np.split(keys, 2, axis=1)))
        normed = _layer_norm(state, "attn_pool.norm", pooled)
        pooled = (pooled + _mlp(state, "attn_pool.mlp", normed, activation))[0]
    return _dense(state, "head", pooled)


@pytest.mark.parametrize(
    "options",
    [
        {"scaled": True},
        {"pool": "mean"},
        {"distilled": True},
        {"registers": 3, "scaled": True},
        {"registers": 2, "pool": "mean"},
        {"pre_norm": True, "norm_epsilon": 1e-5},
        {"pre_norm": True, "norm_epsilon": 1e-5, "activation": "quick_gelu"},
        {"pool": "attention"},
        {"pool": "attention", "registers": 1, "activation": "gelu_tanh"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_vits_names_in_logits_out(options):
    of_state = {"pool", "distilled", "scaled", "registers", "pre_norm"} & options.keys()
    state = _vit_state(**{name: options[name] for name in of_state})
    options = VIT | {name: value for name, value in options.items() if name != "scaled"}
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables = pretrained.convert(VIT_NAME, state, **options)
    logits = models.create(VIT_NAME, **options).apply(variables, images, train=False)
    pool, activation = options.get("pool", "cls"), options.get("activation", "gelu")
    wanted = [_vit(state, image, pool, activation) for image in images]
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)


def _google(state, *, big_vision=False, stacked=False):
    """timm's names and axes to Google's."""
    attention, norm2, mlp = (0, 1, 0) if big_vision else (1, 2, 3)
    named = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        ("" if big_vision else "Transformer/posembed_input/") + "pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    blocks = []
    for i in range(DEPTH):
        get = {
            name.removeprefix(f"blocks.{i}."): array
            for name, array in state.items()
            if name.startswith(f"blocks.{i}.")
        }
        heads = (HEADS, WIDTH // HEADS)
        block = {
            "LayerNorm_0/scale": get["norm1.weight"],
            "LayerNorm_0/bias": get["norm1.bias"],
            f"LayerNorm_{norm2}/scale": get["norm2.weight"],
            f"LayerNorm_{norm2}/bias": get["norm2.bias"],
        }
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * WIDTH, (part + 1) * WIDTH)
            prefix = f"MultiHeadDotProductAttention_{attention}/{name}"
            block[f"{prefix}/kernel"] = get["attn.qkv.weight"][rows].T.reshape(WIDTH, *heads)
            block[f"{prefix}/bias"] = get["attn.qkv.bias"][rows].reshape(heads)
        prefix = f"MultiHeadDotProductAttention_{attention}/out"
        block[f"{prefix}/kernel"] = get["attn.proj.weight"].T.reshape(*heads, WIDTH)
        block[f"{prefix}/bias"] = get["attn.proj.bias"]
        for k in (0, 1):
            block[f"MlpBlock_{mlp}/Dense_{k}/kernel"] = get[f"mlp.fc{k + 1}.weight"].T
            block[f"MlpBlock_{mlp}/Dense_{k}/bias"] = get[f"mlp.fc{k + 1}.bias"]
        blocks.append(block)
    if stacked:
        for name in blocks[0]:
            named[f"Transformer/encoderblock/{name}"] = np.stack([block[name] for block in blocks])
        return named
    for i, block in enumerate(blocks):
        named |= {f"Transformer/encoderblock_{i}/{name}": array for name, array in block.items()}
    return named


@pytest.mark.parametrize("root", ["", "params/", "opt/target/"])
@pytest.mark.parametrize("style", [{}, {"big_vision": True}, {"big_vision": True, "stacked": True}])
def test_googles_names_mean_what_timms_do(root, style):
    state = _vit_state()
    google = {root + name: array for name, array in _google(state, **style).items()}
    if root:
        google["opt/step"] = np.int32(3)  # the optimiser's, beside the weights
    ours = pretrained.convert(VIT_NAME, state, **VIT)
    theirs = pretrained.convert(VIT_NAME, google, **VIT)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_googles_heads_are_not_split_anew():
    # As many numbers, but in four heads.
    with pytest.raises(ValueError, match="of another shape.*attn/qkv"):
        pretrained.convert(VIT_NAME, _google(_vit_state()), **VIT | {"num_heads": 4})


def test_a_vits_embeddings_are_resampled_for_other_sizes():
    overrides = VIT | {"image_size": (24, 40), "patch_size": 8}
    variables = pretrained.convert(VIT_NAME, _vit_state(), **overrides)
    assert variables["params"]["pos_embed"].shape == (1, 1 + 3 * 5, WIDTH)
    assert variables["params"]["patch_embed"]["kernel"].shape == (8, 8, 3, WIDTH)
    model = models.create(VIT_NAME, **overrides)
    assert model.apply(variables, np.zeros((1, 24, 40, 3), np.float32)).shape == (1, CLASSES)


@pytest.mark.parametrize(
    "name, state, overrides",
    [("resnet18", _resnet_state, RESNET), ("googlenet", _googlenet_state, GOOGLENET)],
)
def test_variables_are_those_that_init_makes(name, state, overrides):
    variables = pretrained.convert(name, state(), **overrides)
    model = models.create(name, **overrides)
    made = jax.eval_shape(model.init, jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)))
    assert jax.tree.structure(variables) == jax.tree.structure(made)
    for ours, wanted in zip(jax.tree.leaves(variables), jax.tree.leaves(made), strict=True):
        assert (ours.shape, ours.dtype) == (wanted.shape, wanted.dtype)


def test_whatever_does_not_fit_is_listed():
    state = _resnet_state()
    del state["layer1.0.bn2.running_var"], state["layer2.0.conv2.weight"]
    state |= {"layer9.0.conv1.weight": np.ones((4, 4, 3, 3)), "mask_token": np.ones(3)}
    state["conv1.weight"] = np.ones((4, 3, 3, 3))
    with pytest.raises(ValueError, match="not those of resnet18") as error:
        pretrained.convert("resnet18", state, **RESNET)
    summary, unused, missing, misshapen = str(error.value).split("\n")
    assert "replace_head=True" in summary
    assert unused.startswith("2 arrays") and missing.startswith("2 parameters")
    assert "layer9.0.conv1.weight" in unused and "mask_token" in unused
    assert "batch_stats/layer1_0/bn2/var" in missing and "layer2_0/conv2/kernel" in missing
    assert "conv1.weight as (3, 3, 3, 4) for params/conv1/kernel (7, 7, 3, 4)" in misshapen


def test_another_models_weights_are_refused():
    with pytest.raises(ValueError, match="not those of resnet50"):
        pretrained.convert("resnet50", _resnet_state(), **RESNET)


def test_what_is_not_supported_has_a_name():
    state = _vit_state() | {
        "blocks.0.attn.q_norm.weight": np.ones(WIDTH // HEADS),
    }
    with pytest.raises(ValueError, match="normalised queries.*\n1 arrays"):
        pretrained.convert(VIT_NAME, state, **VIT)


def test_integers_are_refused():
    state = _resnet_state() | {"fc.bias": np.ones(5, np.int8)}
    with pytest.raises(ValueError, match="floating point: got int8 in fc.bias"):
        pretrained.convert("resnet18", state, **RESNET)


def test_a_head_for_other_classes_is_drawn_when_asked_for():
    state, overrides = _resnet_state(), RESNET | {"num_classes": 3}
    with pytest.raises(ValueError, match="fc.weight as .*, 5.*, 3"):
        pretrained.convert("resnet18", state, **overrides)
    variables = pretrained.convert("resnet18", state, replace_head=True, **overrides)
    model = models.create("resnet18", **overrides)
    images = np.zeros((1, 32, 32, 3), np.float32)
    drawn = jax.jit(lambda key: model.init(key, images)["params"]["fc"])(jax.random.key(0))
    np.testing.assert_allclose(variables["params"]["fc"]["kernel"], drawn["kernel"], rtol=1e-6)
    other = pretrained.convert("resnet18", state, replace_head=True, seed=1, **overrides)
    assert np.any(other["params"]["fc"]["kernel"] != drawn["kernel"])
    np.testing.assert_array_equal(
        variables["params"]["conv1"]["kernel"], state["conv1.weight"].transpose(2, 3, 1, 0)
    )


def test_a_file_without_a_head_needs_a_new_one():
    headless = {k: v for k, v in _vit_state().items() if not k.startswith("head.")}
    with pytest.raises(ValueError, match="params/head/"):
        pretrained.convert(VIT_NAME, headless, **VIT)
    variables = pretrained.convert(VIT_NAME, headless, replace_head=True, **VIT)
    assert variables["params"]["head"]["kernel"].shape == (WIDTH, CLASSES)


def test_auxiliary_heads_may_be_missing_on_either_side():
    state = _googlenet_state()
    bare = {name: array for name, array in state.items() if not name.startswith("aux")}
    without = pretrained.convert("googlenet", state, aux_heads=False, **GOOGLENET)
    assert not {"aux1", "aux2"} & set(without["params"])
    drawn = pretrained.convert("googlenet", bare, **GOOGLENET)
    full = pretrained.convert("googlenet", state, **GOOGLENET)
    assert jax.tree.structure(drawn) == jax.tree.structure(full)
    flat = traverse_util.flatten_dict(drawn, sep="/")
    for path, array in traverse_util.flatten_dict(full, sep="/").items():
        assert path.split("/")[1].startswith("aux") or np.array_equal(array, flat[path])
    # Half a head is a broken file.
    del state["aux1.fc1.weight"]
    with pytest.raises(ValueError, match="params/aux1/fc1/kernel"):
        pretrained.convert("googlenet", state, **GOOGLENET)


@pytest.mark.parametrize(
    ("name", "state", "overrides"),
    [("resnet18", _resnet_state, RESNET), (VIT_NAME, _vit_state, VIT)],
)
def test_bvits_own_names_are_taken_as_they_are(name, state, overrides):
    variables = pretrained.convert(name, state(), **overrides)
    own = traverse_util.flatten_dict(variables, sep="/")
    jax.tree.map(
        np.testing.assert_array_equal, pretrained.convert(name, own, **overrides), variables
    )
    lost = own.popitem()[0]
    with pytest.raises(ValueError, match=f"1 parameters that no array fills: {lost}"):
        pretrained.convert(name, own, **overrides)


def test_load_reads_what_convert_takes(tmp_path):
    state = _resnet_state()
    save_file({k: np.asarray(v) for k, v in state.items()}, tmp_path / "w.safetensors")
    loaded = pretrained.load("resnet18", tmp_path / "w.safetensors", **RESNET)
    jax.tree.map(
        np.testing.assert_array_equal, loaded, pretrained.convert("resnet18", state, **RESNET)
    )
