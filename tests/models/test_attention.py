"""Attention with its sizes and padding folded into the keys, and which implementation is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit import models
from bvit.models import attention, backends
from bvit.models.attention import attend

# An odd number of tokens, and heads of no multiple of 8 features.
SHAPE = (2, 7, 3, 12)
needs_cudnn = pytest.mark.skipif(not attention.has_cudnn(), reason="no NVIDIA GPU")


def heads(dtype, shape=SHAPE):
    return [
        jax.random.normal(key, shape).astype(dtype)
        for key in jax.random.split(jax.random.key(0), 3)
    ]


def extras(case):
    """The mask and the bias of a case: one image has padding, sizes are up to 49."""
    mask = jnp.arange(7) < jnp.array([[7], [4]])
    bias = jnp.log(jax.random.randint(jax.random.key(3), (2, 7), 1, 50))
    return {"mask": mask if "mask" in case else None, "bias": bias if "bias" in case else None}


def float64(query, key, value, *, mask, bias):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = np.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
    if bias is not None:
        logits += np.asarray(bias, np.float64)[:, None, None]
    if mask is not None:
        logits = np.where(np.asarray(mask)[:, None, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nhqk,nkhd->nqhd", weights, value)


def close(found, wanted, dtype):
    np.testing.assert_allclose(
        np.asarray(found, np.float64), wanted, atol=4 * float(jnp.finfo(dtype).eps)
    )


@pytest.fixture
def fused(monkeypatch):
    """The fused path: on a GPU cuDNN's kernel, elsewhere JAX's own in its place."""
    if not attention.has_cudnn():
        kernel = jax.nn.dot_product_attention
        monkeypatch.setattr(
            attention.jax.nn,
            "dot_product_attention",
            lambda *heads, **options: kernel(*heads, **{**options, "implementation": "xla"}),
        )
    return attention.fused


# XLA's CPU backend has no products of float16 with sums in float32.
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=needs_cudnn)])
@pytest.mark.parametrize("case", ["", "mask", "bias", "mask and bias"])
def test_both_are_the_formula_up_to_rounding(fused, case, dtype):
    wanted = float64(*heads(dtype), **extras(case))
    for way in (fused, backends.attention):
        found = jax.jit(way)(*heads(dtype), **extras(case))
        assert found.dtype == dtype
        close(found, wanted, dtype)


def test_the_fused_gradient_is_the_plain_one(fused):
    def gradient(way, dtype):
        def loss(*heads):
            return jnp.sum(way(*heads, **extras("mask and bias")).astype(jnp.float32) ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*heads(dtype))

    wanted = gradient(backends.attention, jnp.float32)
    for found, want in zip(gradient(fused, jnp.bfloat16), wanted, strict=True):
        np.testing.assert_allclose(found.astype(jnp.float32), want, atol=0.05)


@needs_cudnn
def test_auto_is_cudnns_in_half_precision():
    for dtype, is_fused in ((jnp.bfloat16, True), (jnp.float32, False)):
        text = jax.jit(attend).lower(*heads(dtype)).as_text()
        assert ("cudnn" in text) == is_fused


@pytest.mark.parametrize("case", ["", "mask and bias"])
def test_the_gradient_lowers_for_nvidia_gpus(monkeypatch, case):
    checks = jax._src.cudnn.fused_attention_stablehlo
    monkeypatch.setattr(checks, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(checks, "check_compute_capability", lambda version: True)

    def loss(*heads):
        return jnp.sum(attention.fused(*heads, **extras(case)).astype(jnp.float32))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    kernels = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
    allowed = [jax.export.DisabledSafetyCheck.custom_call(name) for name in kernels]
    exported = jax.export.export(gradient, platforms=["cuda"], disabled_checks=allowed)
    text = exported(*heads(jnp.bfloat16)).mlir_module()
    assert all(f"@{name}(" in text for name in kernels)


def test_without_a_gpu_auto_is_plain():
    exported = jax.export.export(jax.jit(attend), platforms=["cpu", "tpu"])(*heads(jnp.bfloat16))
    assert "custom_call" not in exported.mlir_module()


@pytest.mark.parametrize(
    "shape, dtype, why",
    [
        (SHAPE, jnp.float32, "needs bfloat16 or float16: got float32"),
        ((1, 4, 1, 136), jnp.bfloat16, "heads of up to 128 features here: got 136"),
    ],
)
def test_what_cudnn_does_not_take_is_refused(monkeypatch, shape, dtype, why):
    monkeypatch.setattr(attention, "has_cudnn", lambda: True)
    with pytest.raises(ValueError, match=why):
        attend(*heads(dtype, shape), implementation="cudnn")


def test_a_model_has_the_setting_and_refuses_others():
    with pytest.raises(ValueError, match="must be one of auto, plain, cudnn: got 'flash'"):
        models.create("vit_tiny_patch16_224", attention="flash")
    model = models.create("vit_tiny_patch16_224", attention="cudnn")
    with pytest.raises(ValueError, match="attention=cudnn needs .*; use attention=auto or plain"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("case", ["", "mask", "bias", "mask and bias"])
def test_the_weights_are_those_of_the_formula(case, dtype):
    query, key, value = heads(dtype)
    mixed, weights = jax.jit(backends.attention_with_weights)(query, key, value, **extras(case))
    assert (mixed.dtype, weights.dtype) == (dtype, jnp.float32)
    wanted = float64(query, key, value, **extras(case))
    close(mixed, wanted, dtype)
    close(jax.jit(backends.attention)(query, key, value, **extras(case)), wanted, dtype)
    identity = jnp.broadcast_to(jnp.eye(7)[:, None], (2, 7, 3, 7))
    close(jnp.moveaxis(weights, 2, 1), float64(query, key, identity, **extras(case)), dtype)


def test_the_gradient_is_that_of_xlas_attention():
    def gradient(way, **extras):
        def loss(*heads):
            return jnp.sum(jnp.sin(way(*heads, **extras)))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*heads(jnp.float32))

    given = extras("mask and bias")
    whole = {name: backends.over_queries(x) for name, x in given.items()}
    wanted = gradient(jax.nn.dot_product_attention, **whole)
    for found, one in zip(gradient(backends.attention, **given), wanted, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-6)
