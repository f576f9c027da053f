"""Clustering in rounds, against SciPy's step-by-step linkage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from bvit import sharding
from bvit.tokens.agglomerate import assign

N, T, D = 3, 40, 6
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(N, T, D)).astype(np.float32)
ONES = np.ones((N, T), np.float32)


def same_partition(a, b):
    return ((a[:, None] == a) == (b[:, None] == b)).all()


def scipy_tree(features, name):
    if name == "ward":
        return linkage(features, "ward")
    return linkage(pdist(features, "cosine"), name)


@pytest.mark.parametrize("name", ["ward", "average", "complete", "single"])
def test_the_clusters_are_scipys(name):
    for count in (1, 2, 20, 39, 40):
        got = np.asarray(assign(FEATURES, ONES, count, linkage=name))
        for features, row in zip(FEATURES, got, strict=True):
            assert set(row) == set(range(count))
            first = [np.flatnonzero(row == k)[0] for k in range(count)]
            assert first == sorted(first)
            tree = scipy_tree(features.astype(np.float64), name)
            assert same_partition(row, fcluster(tree, count, "maxclust")), count


def test_a_weight_counts_a_token_as_often():
    copies = RNG.integers(1, 4, T)
    repeated = np.repeat(np.arange(T), copies)
    once = np.asarray(assign(FEATURES[:1], copies[None].astype(np.float32), 15))[0]
    ones = np.ones((1, len(repeated)), np.float32)
    often = np.asarray(assign(FEATURES[:1, repeated], ones, 15))[0]
    assert same_partition(once[repeated], often)


def test_equal_tokens_are_joined_all_the_same():
    got = np.asarray(assign(np.ones((2, 12, 4), np.float32), np.ones((2, 12), np.float32), 5))
    assert all(set(row) == set(range(5)) for row in got)


def test_eager_is_jit_is_vmap_is_shard_map_and_x64():
    want = np.asarray(assign(FEATURES, ONES, 20))
    jitted = jax.jit(lambda x, w: assign(x, w, 20))
    np.testing.assert_array_equal(jitted(FEATURES, ONES), want)
    mapped = jax.vmap(lambda x, w: assign(x[None], w[None], 20)[0])(FEATURES, ONES)
    np.testing.assert_array_equal(mapped, want)
    mesh = sharding.make_mesh(devices=jax.devices()[:3])
    spec = PartitionSpec(("data", "fsdp"))
    sharded = jax.shard_map(jitted, mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_array_equal(jax.jit(sharded)(FEATURES, ONES), want)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(assign(FEATURES.astype(np.float64), ONES, 20), want)


def test_bfloat16_and_no_images():
    rough = assign(jnp.asarray(FEATURES, jnp.bfloat16), ONES, 20)
    assert rough.shape == (N, T) and int(rough.max()) == 19
    assert assign(np.zeros((0, T, D), np.float32), np.zeros((0, T), np.float32), 5).shape == (0, T)


def test_what_can_not_be_is_refused():
    with pytest.raises(ValueError, match="linkage must be one of ward, average"):
        assign(FEATURES, ONES, 5, linkage="median")
    for count in (0, 41):
        with pytest.raises(ValueError, match="count must be 1 to 40"):
            assign(FEATURES, ONES, count)
