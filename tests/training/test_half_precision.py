"""Every family in bfloat16: it trains, evaluates and exports, close to float32."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax import export as jax_export
from safetensors.numpy import load_file
from small_runs import CLASSES, one_device

from bvit import export, models
from bvit.classify import classify
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD
from bvit.optimizer import make_optimizer
from bvit.run import Run
from bvit.tokens import parse
from bvit.training.state import create_state
from bvit.training.step import Hyperparameters, make_train_step
from configs.vit_mask import get_config

SIZE, BATCH = 32, 8
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {"patch_size": 8, "width": 32, "depth": 1, "num_heads": 2}),
    "resnet": ("resnet18", {"stem": "small", "depths": (1, 1), "width": 16}),
    "vgg": ("vgg11_bn", {"width": 8, "hidden": 16, "dropout": 0.0}),
    "googlenet": ("googlenet", {"width": 8, "dropout": 0.0, "aux_dropout": 0.0}),
}
# They take a minute to compile, and have no layers that the others lack.
SLOWLY = [
    pytest.param(family, marks=[pytest.mark.slow] * (family in ("vgg", "googlenet")))
    for family in FAMILIES
]
# A policy that computes with attention's weights and with distances between tokens.
POLICIES = {"vit": "cluster:8@1"}
# Softmax and loss, norms, Ward's distances: a sum of squares, the least of which is sought.
DELICATE = {"reduce_max", "log", "rsqrt", "sqrt", "reduce_min"}


def build(family, dtype):
    name, options = FAMILIES[family]
    if family == "vit":
        options = options | {"image_size": SIZE}
    return models.create(name, num_classes=CLASSES, dtype=jnp.dtype(dtype), **options)


def policy(family):
    return parse(POLICIES.get(family, "keep"))


def photographs():
    """Smooth images, unlike in contrast, and labels."""
    rng = np.random.default_rng(0)
    coarse = rng.random((BATCH, 4, 4, 3)).repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)
    image = 255 * np.clip(coarse + 0.1 * rng.standard_normal(coarse.shape), 0, 1)
    return {"image": image.astype(np.uint8), "label": np.arange(BATCH, dtype=np.int32) % CLASSES}


def update(family, dtype):
    """(state, batch) → (state, metrics), and a state."""
    model = build(family, dtype)
    optimizer = make_optimizer("sgd", optax.constant_schedule(0.05), weight_decay=1e-4)
    hyper = Hyperparameters(
        condition="sharp", policy=policy(family), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    step = make_train_step(model, optimizer, hyper, num_classes=CLASSES, mesh=one_device())
    create = functools.partial(create_state, model=model, optimizer=optimizer, image_size=SIZE)
    return step, jax.jit(create)(jax.random.key(0))


@functools.cache
def trained(family, dtype):
    step, state = update(family, dtype)
    after, metrics = jax.jit(step)(state, photographs())
    return state, after, metrics


def difference(before, after):
    """What a step changed, as one vector."""
    moved = jax.tree.map(lambda a, b: (a - b).ravel(), after, before)
    return np.concatenate(jax.tree.leaves(moved))


@pytest.mark.parametrize("family", SLOWLY)
def test_a_training_step_is_finite_and_close_to_float32(family):
    (before, rough, metrics), (_, exact, wanted) = (
        trained(family, dtype) for dtype in ("bfloat16", "float32")
    )
    for leaf in jax.tree.leaves(rough):
        assert np.isfinite(leaf).all() and leaf.dtype in (jnp.float32, jnp.int32)
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=0.02)
    np.testing.assert_allclose(metrics["grad_norm"], wanted["grad_norm"], rtol=0.1)
    one, other = (difference(before.params, after.params) for after in (rough, exact))
    assert one @ other / (np.linalg.norm(one) * np.linalg.norm(other)) > 0.9
    for name, average in traverse_util.flatten_dict(rough.model_state, sep="/").items():
        of_float32 = traverse_util.flatten_dict(exact.model_state, sep="/")[name]
        np.testing.assert_allclose(average, of_float32, rtol=0.03, atol=0.01, err_msg=name)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("family", SLOWLY)
def test_statistics_softmax_loss_and_distances_are_float32(family):
    step, state = update(family, "bfloat16")
    jaxpr = jax.make_jaxpr(step)(state, photographs()).jaxpr
    dtypes = {
        (equation.primitive.name, str(operand.aval.dtype))
        for equation in equations(jaxpr)
        if equation.primitive.name in DELICATE
        for operand in equation.invars
    }
    assert {name for name, _ in dtypes} >= {"reduce_max", "log", "rsqrt"}
    assert not {dtype for _, dtype in dtypes} & {"bfloat16", "float16"}


@pytest.mark.parametrize("family", SLOWLY)
def test_evaluation_and_export_are_close_to_float32(family, tmp_path):
    variables = trained(family, "float32")[1].eval_variables
    run = Run(tmp_path)
    run.config = get_config()
    run.config.data.image_size = SIZE
    run.model, run.variables, run.step = build(family, "bfloat16"), variables, 1
    run.class_names = tuple(map(str, range(CLASSES)))
    export.export(run, policy(family), tmp_path / "to")  # compares with the model in bfloat16
    program = jax_export.deserialize((tmp_path / "to" / export.PROGRAM).read_bytes())
    pixels = photographs()["image"].astype(np.float32) / 255
    found = program.call(load_file(tmp_path / "to" / export.PARAMETERS), pixels)
    options = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    float32 = functools.partial(classify, build(family, "float32"), policy=policy(family))
    wanted = jax.jit(functools.partial(float32, **options))(variables, pixels)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=0.03 * np.abs(wanted).max())
    assert not np.array_equal(found, wanted)
