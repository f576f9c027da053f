"""Token merging against a loop in NumPy that follows the paper, and inside the ViT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.models.vit import VisionTransformer
from bvit.tokens import Tokens, Tome, ViTShape
from bvit.tokens.joining import join_pairs
from bvit.tokens.tome import match


def numpy_merge(x, size, metric, r, protected):
    """One image; section 3.2 of the paper, step by step."""
    x, size, metric = (np.asarray(a, np.float64) for a in (x, size, metric))
    metric = metric / np.linalg.norm(metric, axis=-1, keepdims=True)
    even = [a for a in range(0, len(x), 2) if a >= protected]
    odd = [b for b in range(1, len(x), 2) if b >= protected]
    edges = []
    for a in even:
        similarities = [metric[a] @ metric[b] for b in odd]
        edges.append((max(similarities), a, odd[int(np.argmax(similarities))]))
    edges.sort(key=lambda edge: -edge[0])
    groups = {b: [b] for b in odd}
    gone = set()
    for _, a, b in edges[: min(r, (len(x) - protected) // 2)]:
        groups[b].append(a)
        gone.add(a)
    alone = [*range(protected), *(a for a in even if a not in gone)]
    kept = [[a] for a in alone] + [groups[b] for b in odd]
    return (
        np.stack([(x[g] * size[g, None]).sum(0) / size[g].sum() for g in kept]),
        np.array([size[g].sum() for g in kept]),
    )


@pytest.mark.parametrize("protected", [0, 1, 2])
@pytest.mark.parametrize("tokens", [16, 17])
@pytest.mark.parametrize("r", [3, 100])
def test_merge_equals_numpy(protected, tokens, r):
    rng = np.random.default_rng(0)
    x, metric = rng.normal(size=(3, tokens, 6)), rng.normal(size=(3, tokens, 4))
    size = rng.integers(1, 5, (3, tokens)).astype(float)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, size, metric)]
    vit = ViTShape((1, tokens - protected), prefix=protected)
    r = min(r, vit.patches // 2)

    @jax.jit
    def merged(x, size, metric):
        return join_pairs(Tokens(x, size), match(metric, r, prefix=protected), vit)

    got = merged(*arrays)
    for i in range(3):
        expected, expected_size = numpy_merge(x[i], size[i], metric[i], r, protected)
        np.testing.assert_allclose(got.x[i], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(got.size[i], expected_size)
        for token, group in enumerate(np.asarray(got.where[i])):
            members = np.flatnonzero(got.where[i] == group) + protected
            np.testing.assert_allclose(got.size[i, group + protected], size[i, members].sum())
            assert token + protected in members
    np.testing.assert_allclose(got.size.sum(-1), size.sum(-1))
    np.testing.assert_array_equal(got.x[:, :protected], arrays[0][:, :protected])


OPTIONS = {"num_classes": 5, "image_size": 16, "patch_size": 4, "width": 12, "num_heads": 3}


def images():
    return jax.random.normal(jax.random.key(0), (2, 16, 16, 3))


def randomised(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images())
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.3, size=x.shape)), shapes)


def numpy_tome_vit(params, image, r, pool):
    """The whole forward pass of one image, with merging and proportional attention."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, q):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * q["scale"] + q["bias"]

    patches = image.astype(np.float64).reshape(4, 4, 4, 4, 3).swapaxes(1, 2).reshape(16, -1)
    x = patches @ p["patch_embed"]["kernel"].reshape(-1, 12) + p["patch_embed"]["bias"]
    protected = int(pool == "cls")
    if protected:
        x = np.concatenate([p["cls_token"][0], x])
    x = x + p["pos_embed"][0]
    size = np.ones(len(x))
    for layer in range(3):
        block = p[f"blocks_{layer}"]
        y = norm(x, block["norm1"])
        qkv = block["attn"]["qkv"]
        query, key, value = np.einsum("td,dphc->phtc", y, qkv["kernel"]) + qkv["bias"][:, :, None]
        logits = np.einsum("htc,hsc->hts", query, key) / 2 + np.log(size)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hts,hsc->thc", weights, value)
        proj = block["attn"]["proj"]
        x = x + np.einsum("thc,hcd->td", mixed, proj["kernel"]) + proj["bias"]
        x, size = numpy_merge(x, size, key.mean(0), r, protected)
        y = norm(x, block["norm2"]) @ block["mlp"]["fc1"]["kernel"] + block["mlp"]["fc1"]["bias"]
        y = np.asarray(jax.nn.gelu(y, approximate=False), np.float64)
        x = x + y @ block["mlp"]["fc2"]["kernel"] + block["mlp"]["fc2"]["bias"]
    pooled = x[0] if protected else (x * size[:, None]).sum(0) / size.sum()
    return norm(pooled, p["norm"]) @ p["head"]["kernel"] + p["head"]["bias"], len(x)


@pytest.mark.parametrize("r", [2, 8])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_vit_with_tome_equals_numpy(pool, r):
    model = VisionTransformer(**OPTIONS, depth=3, pool=pool)
    variables = randomised(model)
    logits = jax.jit(lambda v, x: model.apply(v, x, policy=Tome(r)))(variables, images())
    for image, got in zip(np.asarray(images()), logits, strict=True):
        expected, left = numpy_tome_vit(variables["params"], image, r, pool)
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)
        assert left == Tome(r).counts(model.shape)[-1] + (pool == "cls")
