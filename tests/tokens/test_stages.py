"""Policies that reduce in stages: their schedules, and each reduction against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from bvit.tokens import Attention, Tokens, ViTShape, operations, parse
from bvit.tokens.pitome import match

VIT = ViTShape((4, 6), depth=6, width=16)
N, T, D = 2, 24, 16
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def given():
    """Tokens with sizes, as some stage leaves them, and an attention."""
    x = RNG.normal(size=(N, 1 + T, D)).astype(np.float32)
    size = RNG.integers(1, 4, (N, 1 + T)).astype(np.float32)
    key = RNG.normal(size=(N, 1 + T, 2, 8)).astype(np.float32)
    weights = RNG.dirichlet(np.ones(1 + T), (N, 2, 1 + T)).astype(np.float32)
    return Tokens(jnp.asarray(x), jnp.asarray(size)), Attention(key, weights)


def reduced(text, given, block):
    policy = parse(text)
    return jax.jit(lambda t, a: policy.reduce(t, a, block, plan=None, vit=VIT))(*given)


def groups(where):
    return [np.flatnonzero(where == k) for k in range(where.max() + 1)]


def test_a_share_falls_geometrically_in_the_blocks_of_the_class():
    vit = ViTShape((14, 14))
    for text, blocks in (("cluster:0.5", (4, 5, 6, 7, 9)), ("atc:0.5", (4, 7, 10))):
        policy = parse(text)
        left = policy.left(vit)
        assert tuple(left) == blocks
        ratios = np.array(list(left.values())) / np.array([196, *list(left.values())[:-1]])
        assert np.ptp(ratios) < 0.03
        counts = policy.counts(vit)
        assert [counts[b] for b in blocks] == list(left.values()) and counts[3] == 196
    assert 0.49 < operations(policy, vit) / operations(parse("keep"), vit) <= 0.5


def test_stages_begin_earlier_so_that_a_tenth_of_the_patches_is_left():
    vit = ViTShape((14, 14))
    for text, first in (("cluster:0.5", 4), ("cluster:0.4", 3), ("cluster:0.33", 2)):
        left = parse(text).left(vit)
        assert tuple(left) == tuple(first + later for later in (0, 1, 2, 3, 5))
        assert left[first + 5] >= 19.6
    # What is typed stays.
    assert tuple(parse("cluster:8").left(vit)) == (4, 5, 6, 7, 9)
    assert tuple(parse("cluster:0.4@5+9").left(vit)) == (5, 9)


def test_what_is_typed_is_what_each_stage_leaves():
    vit = ViTShape((14, 14))
    assert parse("cluster:0.4+0.15@5+9").left(vit) == {5: 78, 9: 29}
    assert parse("cluster:80+30@5+9").left(vit) == {5: 80, 9: 30}
    assert parse("cluster:49@2+4").left(vit) == {2: 98, 4: 49}
    assert parse("cluster:0.4+0.15@5+9").label == "cluster:0.4+0.15@5+9"
    assert tuple(parse("cluster:12").left(VIT)) == (2, 3, 4)  # of six blocks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster:0.5+0.2", "2 budgets for 0 blocks: type one for each, as cluster:0.4"),
        ("cluster:9+5@2", "2 budgets for 1 blocks"),
        ("cluster:5@4+2", "must ascend"),
        ("cluster:5@7", "acts in blocks 7, and this ViT has blocks 1 to 6"),
        ("cluster:5+9@1+2", "must fall from stage to stage"),
        ("cluster:25", "must be 1 to 24"),
        ("drop:5@1+2", "acts in one block"),
        ("drop:5+4@2", "one budget"),
    ],
)
def test_a_schedule_that_can_not_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text).counts(VIT)


def test_evit_needs_a_class_token():
    with pytest.raises(ValueError, match="class token"):
        parse("evit:0.5").counts(VIT._replace(prefix=4, has_class_token=False))


def test_cluster_joins_by_ward_with_the_attention_received(given):
    tokens, attention = given
    got = reduced("cluster:9@2", given, 2)
    x, size = np.asarray(tokens.x, np.float64)[:, 1:], np.asarray(tokens.size, np.float64)[:, 1:]
    received = attention.weights.astype(np.float64).mean((1, 2))[:, 1:] / size
    received /= received.mean(1, keepdims=True)
    np.testing.assert_array_equal(got.x[:, 0], tokens.x[:, 0])
    for i in range(N):
        # Ward on points with weights, step by step.
        weight, points = size[i] * np.sqrt(received[i]), x[i].copy()
        clusters = [[k] for k in range(T)]
        while len(clusters) > 9:
            pairs = []
            for a in range(len(clusters)):
                for b in range(a):
                    wa, wb = weight[clusters[a]].sum(), weight[clusters[b]].sum()
                    ma = np.average(points[clusters[a]], axis=0, weights=weight[clusters[a]])
                    mb = np.average(points[clusters[b]], axis=0, weights=weight[clusters[b]])
                    pairs.append((wa * wb / (wa + wb) * ((ma - mb) ** 2).sum(), a, b))
            _, a, b = min(pairs)
            clusters[b] += clusters.pop(a)
        found = groups(np.asarray(got.where[i]))
        assert sorted(map(sorted, clusters)) == sorted(map(list, found))
        for k, members in enumerate(found):
            share = (size[i] * received[i])[members]
            mean = np.average(points[members], axis=0, weights=share)
            norm = np.average(np.linalg.norm(points[members], axis=1), weights=share)
            wanted = mean * norm / np.linalg.norm(mean)
            np.testing.assert_allclose(got.x[i, 1 + k], wanted, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(got.size[i, 1 + k], size[i, members].sum())


def test_atc_clusters_the_keys_by_average_cosine(given):
    tokens, attention = given
    got = reduced("atc:9@2", given, 2)
    for i in range(N):
        keys = attention.key[i, 1:].mean(1).astype(np.float64)
        labels = fcluster(linkage(pdist(keys, "cosine"), "average"), 9, "maxclust")
        found = groups(np.asarray(got.where[i]))
        assert sorted(map(list, found)) == sorted(map(list, groups(labels - 1)))
        for k, members in enumerate(found):
            size = np.asarray(tokens.size[i, 1:])[members]
            mean = np.average(np.asarray(tokens.x[i, 1:])[members], axis=0, weights=size)
            np.testing.assert_allclose(got.x[i, 1 + k], mean, rtol=1e-4, atol=1e-5)


def test_evit_keeps_what_the_class_token_looks_at_and_fuses_the_rest(given):
    tokens, attention = given
    got = reduced("evit:9@2", given, 2)
    for i in range(N):
        looked = attention.weights[i, :, 0, 1:].mean(0)
        order = np.argsort(-looked, kind="stable")
        x = np.asarray(tokens.x[i, 1:])
        np.testing.assert_allclose(got.x[i, 1:9], x[order[:8]])
        fused = (looked[order[8:], None] * x[order[8:]]).sum(0)
        np.testing.assert_allclose(got.x[i, 9], fused, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(got.where[i][order[:8]], np.arange(8))
        assert (got.where[i][order[8:]] == 8).all()


@pytest.mark.parametrize("protect", [True, False])
@pytest.mark.parametrize("r", [1, 5, 12])
def test_pitome_merges_by_energy(r, protect):
    keys = RNG.normal(size=(N, 1 + T, 8)).astype(np.float32)
    got = match(jnp.asarray(keys), r, margin=0.3, protect=protect, prefix=1)
    assert (got.rest[:, 0] == 0).all()
    for i, one in enumerate(keys[:, 1:].astype(np.float64)):
        unit = one / np.linalg.norm(one, axis=1, keepdims=True)
        cosine = unit @ unit.T
        energy = np.where(cosine >= 0.3, cosine - 0.3, np.exp(cosine - 0.3) - 1).mean(1)
        order = np.argsort(-energy, kind="stable")
        goes, stays, rest = order[: 2 * r : 2], order[1 : 2 * r : 2], order[2 * r :]
        if not protect:
            goes, stays = order[::2], order[1::2]
            goes = goes[np.argsort(-cosine[np.ix_(goes, stays)].max(1), kind="stable")]
            goes, rest = goes[:r], goes[r:]
        np.testing.assert_array_equal(got.goes[i], 1 + goes)
        np.testing.assert_array_equal(got.stays[i], 1 + stays)
        np.testing.assert_array_equal(got.rest[i, 1:], 1 + rest)
        np.testing.assert_array_equal(got.partner[i], cosine[np.ix_(goes, stays)].argmax(1))


@pytest.mark.parametrize("block", [1, 6])
def test_pitome_averages_by_size(given, block):
    tokens, _ = given
    got = reduced("pitome:5", given, block)
    np.testing.assert_array_equal(got.x[:, 0], tokens.x[:, 0])
    for i in range(N):
        found = groups(np.asarray(got.where[i]))
        assert len(found) == T - 5
        for k, members in enumerate(found):
            size = np.asarray(tokens.size[i, 1:])[members]
            mean = np.average(np.asarray(tokens.x[i, 1:])[members], axis=0, weights=size)
            np.testing.assert_allclose(got.x[i, 1 + k], mean, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(got.size[i, 1 + k], size.sum())


@pytest.mark.parametrize("text", ["cluster:9@2", "atc:9@2", "evit:9@2"])
def test_other_blocks_are_left_alone(given, text):
    np.testing.assert_array_equal(reduced(text, given, 3).x, given[0].x)
