"""Scaled dot-product attention: cuDNN's fused kernel where there is one, and XLA's otherwise."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from bvit.models import backends
from bvit.models.backends import Heads, Keys

IMPLEMENTATIONS = ("auto", "plain", "cudnn")

# cuDNN's kernel takes heads of a multiple of 8 features, and up to 128 on every GPU that has it.
HEAD_MULTIPLE, MOST_HEAD = 8, 128
HALF = (jnp.bfloat16, jnp.float16)
# What is added to the logits of padding. exp(-1000) is 0 in every dtype, and 1000 times the square
# root of MOST_HEAD is within float16.
PADDING_BIAS = -1000.0


def attend(
    query: Heads,
    key: Keys,
    value: Keys,
    *,
    mask: Bool[Array, "n s"] | None = None,
    bias: Float[Array, "n s"] | None = None,
    implementation: str = "auto",
) -> Heads:
    """softmax(query·key / √head_dim + bias) · value, for each head; the softmax is in float32.

    Args:
      query: of the tokens that attend.
      key: of the tokens that are attended to.
      value: of the same tokens; what is averaged.
      mask: False for keys that are padding, which get no weight.
      bias: finite; added to the logits of each key.
      implementation: "plain": XLA's. "cudnn": cuDNN's fused kernel, for half precision on NVIDIA
        GPUs of compute capability 8.0 or newer. "auto": cuDNN's where it can be used. Static.

    Raises:
      ValueError: cuDNN's kernel is asked for and does not take such arrays.
    """
    heads = (query, key, value)
    problem = _problem(query, folds=mask is not None or bias is not None)
    if implementation == "cudnn" and problem:
        raise ValueError(f"attention=cudnn {problem}; use attention=auto or plain.")
    if implementation == "plain" or problem:
        return backends.attention(*heads, mask=mask, bias=bias)
    # A program may still be for another device, as where its operations are counted.
    return lax.platform_dependent(
        *heads,
        cuda=functools.partial(fused, mask=mask, bias=bias),
        default=functools.partial(backends.attention, mask=mask, bias=bias),
    )


@functools.cache
def has_cudnn() -> bool:
    """Whether JAX's default device is an NVIDIA GPU with cuDNN's fused attention."""
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    return float(device.compute_capability) >= 8.0


def _problem(query: Heads, *, folds: bool) -> str:
    """Why cuDNN's kernel can't be used; "" if it can."""
    if not has_cudnn():
        return "needs an NVIDIA GPU of compute capability 8.0 or newer"
    if query.dtype not in HALF:
        return f"needs bfloat16 or float16: got {query.dtype}"
    if (size := query.shape[-1]) + 2 * folds > MOST_HEAD:
        return f"takes heads of up to {MOST_HEAD - 2 * folds} features here: got {size}"
    return ""


def fused(
    query: Heads, key: Heads, value: Heads, *, mask: Array | None = None, bias: Array | None = None
) -> Heads:
    """cuDNN's kernel; what is added to the logits becomes two more features of the keys.

    As an array of its own, [n, heads, t, s], cuDNN would read it once a head.
    """
    size = query.shape[-1]
    scale = float(1 / np.sqrt(size))
    if mask is not None:
        bias = jnp.where(mask, 0 if bias is None else bias, PADDING_BIAS)
    more = 0 if bias is None else 2
    more += -(size + more) % HEAD_MULTIPLE
    query, key, value = (jnp.pad(x, [(0, 0)] * 3 + [(0, more)]) for x in (query, key, value))
    if bias is not None:
        # What rounding leaves of the first is in the second, so that their sum is as good as bias.
        bias = bias.astype(jnp.float32)[:, :, None] / scale
        high = bias.astype(key.dtype)
        low = (bias - high.astype(jnp.float32)).astype(key.dtype)
        query = query.at[..., size : size + 2].set(1)
        key = key.at[..., size].set(high).at[..., size + 1].set(low)
    return _kernel(query, key, value, scale)[..., :size]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _kernel(query: Heads, key: Heads, value: Heads, scale: float) -> Heads:
    return jax.nn.dot_product_attention(query, key, value, scale=scale, implementation="cudnn")


def _kernel_of_even(query: Heads, key: Heads, value: Heads, scale: float) -> Heads:
    """The same with one more token, as padding, where their number is odd."""
    count, queries, keys = *query.shape[:2], key.shape[1]
    lengths = {}
    if queries % 2 or keys % 2:
        lengths = {
            "query_seq_lengths": jnp.full(count, queries, jnp.int32),
            "key_value_seq_lengths": jnp.full(count, keys, jnp.int32),
        }
    query, key, value = (
        jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)]) for x in (query, key, value)
    )
    mixed = jax.nn.dot_product_attention(
        query, key, value, scale=scale, implementation="cudnn", **lengths
    )
    return mixed[:, :queries]


def _forward(query: Heads, key: Heads, value: Heads, scale: float) -> tuple[Heads, Any]:
    # In JAX the gradient of cuDNN's kernel takes even numbers of tokens alone.
    return jax.vjp(functools.partial(_kernel_of_even, scale=scale), query, key, value)


def _backward(scale: float, pull: Any, mixed: Heads) -> tuple[Heads, Heads, Heads]:
    del scale
    return pull(mixed)


_kernel.defvjp(_forward, _backward)
