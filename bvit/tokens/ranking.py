"""Ranks and selections of static size."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def ranks(values: Float[Array, "*b t"]) -> Int[Array, "*b t"]:
    """The rank of each value, 0 for the largest; equal values in order."""
    order = jnp.argsort(values, axis=-1, descending=True, stable=True)
    return jnp.argsort(order, axis=-1)


def best(values: Float[Array, "*b t"], count: int) -> Bool[Array, "*b t"]:
    """True for the `count` largest values; of equal ones the first."""
    return ranks(values) < count


def first(chosen: Bool[Array, "*b t"], count: int) -> Int[Array, "*b count"]:
    """The indices of the first `count` true values; then those of false ones, in order."""
    return jnp.argsort(~chosen, axis=-1, stable=True)[..., :count].astype(jnp.int32)
