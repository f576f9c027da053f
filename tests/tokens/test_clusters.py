"""Joining tokens, against SciPy's Ward linkage and inside the ViT."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.cluster.hierarchy import linkage

from bvit.models.vit import VisionTransformer
from bvit.tokens import clusters
from bvit.tokens import plans as tokens

assign = jax.jit(clusters.assign, static_argnames=("grid", "count"))


# Rows and columns of the regions of each grid.
REGIONS = {(12, 12): (6, 6), (14, 14): (7, 7), (8, 8): (8, 8), (5, 9): (5, 5), (13, 4): (7, 4)}


def features(grid, width=8, n=3, seed=0):
    """Random, but alike where they are neighbours in raster order."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, grid[0] * grid[1], width)).cumsum(1).astype(np.float32)


def scipy_clusters(features, grid, count):
    """One image: SciPy's tree of every region, cut where the joins of all of them together say."""
    places = np.arange(grid[0] * grid[1]).reshape(grid)
    height, width = REGIONS[grid]
    regions = [
        places[row : row + height, column : column + width].ravel()
        for row in range(0, grid[0], height)
        for column in range(0, grid[1], width)
    ]
    trees = [linkage(features[r].astype(float), "ward") if len(r) > 1 else [] for r in regions]
    joins = sorted((join[2], i) for i, tree in enumerate(trees) for join in tree)
    taken = [i for _, i in joins[: places.size - count]]
    found = set()
    for i, (region, tree) in enumerate(zip(regions, trees, strict=True)):
        groups = {k: [place] for k, place in enumerate(region)}
        for step, join in enumerate(tree[: taken.count(i)]):
            groups[len(region) + step] = groups.pop(int(join[0])) + groups.pop(int(join[1]))
        found |= {frozenset(map(int, group)) for group in groups.values()}
    return found


@pytest.mark.parametrize(
    ("grid", "count"),
    [
        ((12, 12), 48),
        ((12, 12), 4),
        ((14, 14), 98),
        ((8, 8), 20),
        ((5, 9), 20),
        ((5, 9), 44),
        ((13, 4), 3),
    ],
)
def test_clusters_are_those_of_scipy(grid, count):
    x = features(grid)
    got = np.asarray(assign(x, grid=grid, count=count))
    for image, cluster in zip(x, got, strict=True):
        groups = {frozenset(np.flatnonzero(cluster == k).tolist()) for k in range(count)}
        assert groups == scipy_clusters(image, grid, count)


def test_all_tokens_stay_apart_and_one_a_region_is_the_least():
    x = features((5, 9))
    assert set(np.sort(assign(x, grid=(5, 9), count=45))[0]) == set(range(45))
    column = np.arange(45) % 9
    regions = assign(x, grid=(5, 9), count=2)
    np.testing.assert_array_equal(regions, np.tile(column // 5, (3, 1)))


def test_what_is_alike_is_joined_first():
    x = features((8, 8)).reshape(3, 8, 8, 8)
    x[:, :4, 4:] = 1.0  # like a blurred quarter
    cluster = np.asarray(assign(x.reshape(3, 64, 8), grid=(8, 8), count=49)).reshape(3, 8, 8)
    for one in cluster:
        assert len(np.unique(one[:4, 4:])) == 1
        assert len(np.unique(one)) == 49


def test_each_image_is_joined_by_itself():
    x = features((8, 8))
    together = assign(x, grid=(8, 8), count=30)
    alone = [assign(one[None], grid=(8, 8), count=30)[0] for one in x]
    np.testing.assert_array_equal(alone, together)
    mapped = jax.vmap(lambda one: clusters.assign(one[None], grid=(8, 8), count=30)[0])(x)
    np.testing.assert_array_equal(mapped, together)


def test_devices_that_share_a_batch_send_each_other_nothing():
    x = features((5, 4), n=8)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    shards = NamedSharding(mesh, PartitionSpec("data"))
    compiled = assign.lower(jax.device_put(x, shards), grid=(5, 4), count=7).compile()
    assert not re.search("all-gather|all-reduce|all-to-all|collective", compiled.as_text())
    got = compiled(jax.device_put(x, shards))
    assert got.sharding == shards
    np.testing.assert_array_equal(got, assign(x, grid=(5, 4), count=7))


def test_merged_tokens_are_means_by_size():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    size = rng.integers(1, 5, (2, 6)).astype(np.float32)
    cluster = np.array([[0, 1, 0, 2, 1, 0], [2, 2, 2, 1, 0, 0]])
    got, total = clusters.merge(*map(jnp.asarray, (x, size, cluster)), 3)
    for image in range(2):
        for k in range(3):
            own = cluster[image] == k
            wanted = np.average(x[image, own], axis=0, weights=size[image, own])
            np.testing.assert_allclose(got[image, k], wanted, rtol=1e-5, atol=1e-6)
            assert total[image, k] == size[image, own].sum()


OPTIONS = {"num_classes": 5, "image_size": 32, "patch_size": 4, "width": 12, "num_heads": 3}


def images(n=2):
    return jax.random.normal(jax.random.key(0), (n, 32, 32, 3))


def randomised(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images())
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.3, size=x.shape)), shapes)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_vit_of_as_many_clusters_as_patches_changes_nothing(pool):
    options = {**OPTIONS, "depth": 3, "pool": pool}
    variables = randomised(VisionTransformer(**options))
    whole = jax.jit(VisionTransformer(**options).apply)(variables, images())
    for after in (0, 2):
        joined = VisionTransformer(**options, cluster_to=64, plan_after=after)
        got = jax.jit(joined.apply)(variables, images())
        np.testing.assert_allclose(got, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_patches_that_are_the_same_lose_nothing_by_being_joined(pool):
    """As 33 tokens with their sizes or as 64: attention and pooling must give the same."""
    options = {**OPTIONS, "depth": 3, "pool": pool, "plan_after": 1}
    model = VisionTransformer(**options)
    variables = randomised(model)
    params = dict(variables["params"])
    own = int(pool == "cls")
    params["pos_embed"] = params["pos_embed"].at[:, own:].set(0.0)
    x = images().reshape(2, 8, 4, 8, 4, 3)
    x = x.at[:, :, :, 4:].set(x[:, :1, :, 4:5]).reshape(2, 32, 32, 3)  # 32 patches that are one
    joined = model.clone(cluster_to=33)  # the one, and all of the others
    whole = jax.jit(model.apply)({"params": params}, x)
    got = jax.jit(joined.apply)({"params": params}, x)
    np.testing.assert_allclose(got, whole, rtol=1e-4, atol=1e-4)
    further = jax.jit(model.clone(cluster_to=8).apply)({"params": params}, x)
    assert np.abs(further - whole).max() > 2e-3


def test_tokens_fall_after_the_first_blocks_and_so_does_the_work():
    def flops(count, after=0):
        model = VisionTransformer(
            **{**OPTIONS, "width": 96}, depth=4, cluster_to=count, plan_after=after
        )
        variables = jax.eval_shape(model.init, jax.random.key(0), images())
        return jax.jit(model.apply).lower(variables, images()).cost_analysis()["flops"]

    assert 0.2 * flops(0) < flops(16) < flops(16, 1) < flops(16, 2) < 0.75 * flops(0)


def test_gradients_are_finite_and_reach_every_parameter():
    model = VisionTransformer(**OPTIONS, depth=2, cluster_to=20, plan_after=1)
    variables = randomised(model)
    grads = jax.jit(jax.grad(lambda v: model.apply(v, images())[:, 0].sum()))(variables)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


def test_equal_features_give_finite_gradients():
    """As those of a picture of one colour."""

    def total(x):
        cluster = clusters.assign(x, grid=(4, 4), count=5)
        return jnp.sum(clusters.merge(x, jnp.ones((1, 16)), cluster, 5)[0] ** 2)

    assert np.isfinite(jax.grad(total)(jnp.zeros((1, 16, 3)))).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: clusters.assign(jnp.zeros((1, 196, 2)), grid=(14, 14), count=3),
            "14×14 patches can be joined into 4 to 196 clusters, .* region of 7×7: got 3; use 4",
        ),
        (
            lambda: clusters.assign(jnp.zeros((1, 64, 2)), grid=(8, 8), count=65),
            "got 65; use 64",
        ),
        (
            lambda: clusters.assign(jnp.zeros((1, 65, 2)), grid=(8, 8), count=9),
            r"all 8×8 patches, \[n, 64, d\]: got shape \(1, 65, 2\)",
        ),
        (lambda: VisionTransformer(**OPTIONS, cluster_to=65), "1 to 64 clusters"),
        (
            lambda: VisionTransformer(**OPTIONS, cluster_to=9, tome_r=3),
            "cluster_to=9, tome_r=3; set one of them to 0",
        ),
    ],
)
def test_what_the_grid_cannot_give_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_plan_is_refused():
    model = VisionTransformer(**OPTIONS, depth=2, cluster_to=20)
    plan = tokens.plan(jnp.zeros((2, 32, 32, 3)), patch_size=4, policy="drop", budget=3)
    with pytest.raises(ValueError, match="cluster_to=20 .* takes no plan"):
        model.init(jax.random.key(0), images(), plan=plan)
