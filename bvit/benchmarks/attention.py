"""Ways to take token sizes into account in a ViT's fused attention, beside XLA's attention."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bvit.benchmarks.harness import Case, Kind, compute_dtype, on_accelerator
from bvit.models.attention import PADDING_BIAS, attend
from bvit.models.backends import over_queries

# Of a ViT-S.
TOKENS, HEADS, HEAD_DIM = 197, 6, 64
BATCH = {"cpu": 4, "accelerator": 256, "tiny": 2}


def cases(kind: Kind) -> Iterator[Case]:
    """All rows of the suite."""
    shape = BATCH[kind], TOKENS, HEADS, HEAD_DIM
    keys = jax.random.split(jax.random.key(0), 4)
    heads = [jax.random.normal(key, shape, compute_dtype()) for key in keys[:3]]
    bias = jnp.log(1 + jax.random.randint(keys[3], shape[:2], 0, 8))
    plain, fused = (partial(attend, implementation=name) for name in ("plain", "auto"))
    ways = {
        "fused": (fused, None),
        "fused, sizes as features": (fused, bias),
        "fused, sizes as a bias": (_with_bias, bias),
    }
    for name, (way, sizes) in ways.items():
        for title, make, times in (("forward", _forward, 1), ("forward and backward", _both, 3)):
            run, peer_run = (jax.jit(make(f)) for f in (way, plain))
            yield Case(
                "attention",
                f"{name}, {'×'.join(map(str, shape))}, {title}",
                partial(run, *heads, sizes),
                peer="plain" if sizes is None else "plain, with sizes",
                peer_run=partial(peer_run, *heads, sizes),
                bytes=4 * heads[0].nbytes,
                flops=times * 4.0 * shape[0] * shape[1] ** 2 * shape[2] * shape[3],
            )


def _with_bias(query: Array, key: Array, value: Array, *, bias: Array) -> Array:
    """cuDNN's kernel with a bias of [n, 1, t, t], and an even number of tokens for its gradient."""
    if not on_accelerator():
        return attend(query, key, value, bias=bias)
    tokens = query.shape[1]
    odd = tokens % 2
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (query, key, value)
    )
    bias = jnp.pad(bias.astype(query.dtype), ((0, 0), (0, odd)), constant_values=PADDING_BIAS)
    bias = jnp.broadcast_to(over_queries(bias), (len(bias), 1, tokens + odd, tokens + odd))
    mixed = jax.nn.dot_product_attention(query, key, value, bias=bias, implementation="cudnn")
    return mixed[:, :tokens]


def _forward(way: Callable) -> Callable:
    return lambda query, key, value, bias: way(query, key, value, bias=bias)


def _both(way: Callable) -> Callable:
    def loss(heads: tuple[Array, ...], bias: Array) -> Array:
        return jnp.sum(way(*heads, bias=bias).astype(jnp.float32) ** 2)

    return lambda query, key, value, bias: jax.grad(loss)((query, key, value), bias)
