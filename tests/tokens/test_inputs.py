import jax
import numpy as np
import pytest

from bvit.image.focus import mask_patches, patch_mask
from bvit.image.focus_measures import FOCUS_MEASURES, THRESHOLDS
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from bvit.models.vit import VisionTransformer
from bvit.tokens.inputs import Policy, for_policy, parse_policy, prepare, shown_levels

COUNT, SIZE, PATCH = 3, 32, 4
OPTIONS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


@pytest.fixture(scope="module")
def pictures():
    """Pictures whose patches have all sorts of contrast, and a key for each."""
    noise = jax.random.uniform(jax.random.key(0), (COUNT, SIZE, SIZE, 3))
    image = noise * np.linspace(0, 0.3, SIZE)[:, None]
    return image, jax.random.split(jax.random.key(1), COUNT)


@pytest.mark.parametrize("zero_at", ["pixels", "normalized"])
def test_zero_blanks_before_or_after_normalisation(pictures, zero_at):
    image, keys = pictures
    keep = patch_mask(image, patch_size=PATCH, threshold=100.0)
    assert 0 < keep.sum() < keep.size
    got, plan = prepare(image, Policy("zero", PATCH, zero_at=zero_at), keys=keys, **OPTIONS)
    assert plan is None
    black = normalize(mask_patches(image, keep, patch_size=PATCH), *OPTIONS.values())
    mean_colour = mask_patches(normalize(image, *OPTIONS.values()), keep, patch_size=PATCH)
    np.testing.assert_array_equal(got, black if zero_at == "pixels" else mean_colour)


def test_zero_with_a_budget_leaves_the_best_patches(pictures):
    image, keys = pictures
    levels = np.asarray(shown_levels(image, Policy("zero", PATCH, budget=10), keys=keys))
    scores = np.asarray(FOCUS_MEASURES["relative"](image, patch_size=PATCH))
    for level, score in zip(levels, scores, strict=True):
        assert (level == 0).sum() == 10 and (level == -1).sum() == level.size - 10
        assert score[level == 0].min() >= score[level == -1].max()


def test_zero_by_a_threshold_goes_by_the_score(pictures):
    image, keys = pictures
    for score in ("relative", "reblur"):
        policy = Policy("zero", PATCH, score=score, threshold=THRESHOLDS[score])
        blank = np.asarray(shown_levels(image, policy)) < 0
        assert 0 < blank.sum() < blank.size
        np.testing.assert_array_equal(
            blank, FOCUS_MEASURES[score](image, patch_size=PATCH) < THRESHOLDS[score]
        )


def test_a_budget_with_a_threshold_is_a_capacity(pictures):
    image, keys = pictures
    policy = Policy("drop", PATCH, budget=40, threshold=THRESHOLDS["relative"])
    _, plan = prepare(image, policy, keys=keys, **OPTIONS)
    reach = (FOCUS_MEASURES["relative"](image, patch_size=PATCH) >= policy.threshold).sum((1, 2))
    assert plan.num_tokens == 40 and reach.min() < 40 < reach.max()
    np.testing.assert_array_equal(plan.mask.sum(1), np.clip(reach, 1, 40))
    np.testing.assert_array_equal(plan.level_map, shown_levels(image, policy))


def test_a_policy_that_chooses_is_drawn_at_the_budget_that_each_picture_gets(pictures):
    image, keys = pictures
    image = image.at[0].set(0.5)  # nothing in it is sharp
    auto = parse_policy("drop:auto", grid=(8, 8), patch_size=PATCH)
    assert auto.budgets == (16, 32, 48, 64)
    needed = (FOCUS_MEASURES["relative"](image, patch_size=PATCH) >= auto.threshold).sum((1, 2))
    budgets = [min(b for b in auto.budgets if b >= n) for n in needed]
    assert len(set(budgets)) > 1
    shown = np.asarray(shown_levels(image, auto))
    np.testing.assert_array_equal((shown == 0).sum((1, 2)), budgets)
    static = {policy.budget: np.asarray(shown_levels(image, policy)) for policy in auto.static}
    for one, level, budget in zip(range(COUNT), shown, budgets, strict=True):
        np.testing.assert_array_equal(level, static[budget][one])
    with pytest.raises(ValueError, match="drop:auto gives each picture.*as drop:16"):
        prepare(image, auto, keys=keys, **OPTIONS)


@pytest.mark.parametrize("name", ["keep", "tome", "cluster"])
def test_policies_that_show_everything_have_no_plan(pictures, name):
    image, keys = pictures
    policy = Policy(name, PATCH, budget=None if name == "keep" else 12)
    got, plan = prepare(image, policy, keys=keys, **OPTIONS)
    assert plan is None
    np.testing.assert_array_equal(got, normalize(image, *OPTIONS.values()))
    assert not np.asarray(shown_levels(image, policy, keys=keys)).any()


@pytest.mark.parametrize(("name", "budget"), [("drop", 20), ("random", 20), ("merge", 31)])
def test_plans_have_their_budget_and_are_drawn_as_they_are(pictures, name, budget):
    image, keys = pictures
    policy = Policy(name, PATCH, budget=budget)
    _, plan = prepare(image, policy, keys=keys, **OPTIONS)
    assert plan.num_tokens == budget
    np.testing.assert_array_equal(plan.level_map, shown_levels(image, policy, keys=keys))


def test_only_what_merges_between_layers_changes_the_model():
    model = VisionTransformer(image_size=SIZE, patch_size=PATCH)
    assert for_policy(model, Policy("drop", PATCH, budget=3)) is model
    assert for_policy(model, Policy("tome", PATCH, budget=3)).tome_r == 3
    alone = for_policy(model.clone(depth=1), Policy("cluster", PATCH, budget=20))
    assert (alone.cluster_to, alone.plan_after) == (20, 0)
    for after, wanted in ((0, 1), (1, 1), (2, 2)):
        got = for_policy(model.clone(plan_after=after), Policy("cluster", PATCH, budget=20))
        assert (got.cluster_to, got.plan_after) == (20, wanted)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("keep", None),
        ("zero", None),
        ("drop", 12),
        ("drop:32", 32),
        ("drop:0.5", 32),
        ("zero:0.25", 16),
        ("merge:31", 31),
        ("merge:0.5", 31),
        ("merge:0.3", 19),
        ("merge:0.01", 16),
        ("merge:1.0", 64),
        ("merge2:0.25", 16),
        ("tome:8", 8),
        ("cluster:20", 20),
        ("cluster:0.5", 32),
        ("cluster:0.01", 1),
    ],
)
def test_budgets_as_tokens_and_as_shares(text, budget):
    policy = parse_policy(text, grid=(8, 8), default_budget=12, patch_size=PATCH)
    assert policy.budget == budget
    assert policy.label == text.partition(":")[0] + ("" if budget is None else f":{budget}")
    assert policy.threshold is None and policy.score == "relative"


@pytest.mark.parametrize(
    ("text", "label", "threshold"),
    [
        ("drop:0.5:threshold", "drop:threshold:32", 0.07),
        ("pool:threshold:20", "pool:threshold:20", 0.07),
        ("merge:31:threshold=0.2", "merge:threshold=0.2:31", 0.2),
        ("merge:threshold", "merge:threshold", 0.07),
        ("zero:threshold", "zero:threshold", 0.07),
        ("zero", "zero", None),
        ("merge:auto", "merge:auto", 0.07),
        ("merge:threshold=0.2:auto", "merge:auto:threshold=0.2", 0.2),
    ],
)
def test_thresholds_are_the_score_s_own_or_named(text, label, threshold):
    policy = parse_policy(text, grid=(8, 8), patch_size=PATCH)
    assert (policy.label, policy.threshold) == (label, threshold)
    assert parse_policy(label, grid=(8, 8), patch_size=PATCH) == policy


def test_auto_chooses_between_budgets_near_shares():
    merge = parse_policy("merge:auto", grid=(8, 8), patch_size=PATCH, default_budget=31)
    assert merge.budgets == (16, 31, 46, 64) and merge.budget is None
    assert [policy.label for policy in merge.static][:2] == ["merge:16", "merge:31"]
    drop = parse_policy("drop:auto", grid=(14, 14), patch_size=16, shares=(1.0, 0.5))
    assert drop.budgets == (98, 196)


def test_a_configured_threshold_is_of_the_configured_score():
    options = {"grid": (8, 8), "patch_size": PATCH}
    drop = parse_policy("drop:9:threshold", threshold=0.3, **options)
    assert drop.threshold == 0.3
    for threshold, label in ((None, "zero"), (100.0, "zero"), (50.0, "zero:threshold=50")):
        zero = parse_policy("zero", score="laplacian", threshold=threshold, **options)
        assert zero.label == label
    with pytest.raises(ValueError, match="score=laplacian.*zero:threshold"):
        parse_policy("zero", threshold=0.3, **options)


def test_half_of_a_grid_of_14():
    assert parse_policy("merge:0.5", grid=(14, 14), patch_size=16).budget == 97


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drop:half", "drop:32"),
        ("drop:", "drop:32"),
        ("drop:1.5", "share"),
        ("drop:-0.5", "share"),
        ("drop:nan", "drop:32"),
        ("tome:0.5", "but for tome"),
        ("tome", "tome:8"),
        ("cluster:many", "drop:32"),
        ("cluster:20:threshold", "ranks no patches"),
        ("cluster:auto", "needs one of drop, pool, merge, merge2: got cluster:auto"),
        ("dropp:0.5", "did you mean 'drop'"),
        ("dropp", "did you mean 'drop'"),
        ("drop:32:treshold", "at most one budget"),
        ("drop:32:threshold:threshold", "at most one budget"),
        ("drop:32:threshold=low", "threshold=0.1"),
        ("keep:threshold", "ranks no patches"),
        ("zero:auto", "needs one of drop, pool, merge, merge2: got zero:auto"),
        ("random:3:threshold", "ranks no patches"),
    ],
)
def test_what_is_no_policy_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        parse_policy(text, grid=(8, 8), patch_size=PATCH)


def test_the_score_is_checked():
    with pytest.raises(ValueError, match="did you mean relative"):
        parse_policy("keep", grid=(8, 8), score="relativ")


def test_zero_at_is_checked():
    with pytest.raises(ValueError, match="pixels, normalized"):
        Policy("zero", PATCH, zero_at="pixel")
