import re

import numpy as np
import pytest

from bvit.evaluation.evaluator import EvalResult
from bvit.report import pairing
from bvit.report.comparison import group
from bvit.run import Run
from bvit.tokens import parse

IMAGES = 400
KEEP, MERGE = parse("keep"), parse("merge:7")


@pytest.fixture
def make_run(tmp_path):
    """Makes a run directory with answers, some of them right; `cells`: None keeps no answers."""

    def make(name, seed=0, cells=(("blur", KEEP), ("blur", MERGE)), index=None, **settings):
        index = np.arange(IMAGES) if index is None else index
        rng = np.random.default_rng([seed, *name.encode()])
        run = Run(tmp_path / name)
        run.path.mkdir()
        if cells is not None:
            outcomes = [
                EvalResult(*cell, index, rng.integers(0, 3, len(index)), *[index] * 4)
                for cell in cells
            ]
            run.write_answers(outcomes)
        config = {"seed": seed, "model": {"name": "vit"}, **settings}
        run.results = {"config": config, "seed": seed, "step": 1, "rows": []}
        return run

    return make


def compare(runs, against, policy="keep"):
    (one,) = group(runs)
    return pairing.rows(one, pairing.baseline_of(against), policy)


def right(run, condition, policy):
    return [int(rank == 0) for rank in run.answers.ranks[condition, policy]]


def by_hand(ours, theirs):
    """The mean difference and its 95 % interval, in a loop over images: [seeds][pictures]."""
    seeds = len(ours)
    each = [sum(ours[s][i] - theirs[s][i] for s in range(seeds)) / seeds for i in range(IMAGES)]
    mean = sum(each) / IMAGES
    variance = sum((value - mean) ** 2 for value in each) / (IMAGES - 1)
    half = 1.96 * (variance / IMAGES) ** 0.5
    return mean, [mean - half, mean + half]


def test_runs_meet_the_baseline_of_their_seed_on_the_same_images(make_run):
    runs = [make_run(f"run{seed}", seed) for seed in (2, 0, 1)]
    against = [make_run(f"base{seed}", seed) for seed in (0, 1, 2, 3)]
    found = compare(runs, against)
    assert [(row["condition"], row["policy"]) for row in found] == [
        ("blur", "keep"),
        ("blur", "merge:7"),
    ]
    for row in found:
        ours = {run.results["seed"]: right(run, "blur", row["policy"]) for run in runs}
        theirs = {run.results["seed"]: right(run, "blur", "keep") for run in against}
        mean, interval = by_hand([ours[s] for s in range(3)], [theirs[s] for s in range(3)])
        assert row["top1"] == pytest.approx(np.mean(list(ours.values())))
        assert row["difference"] == pytest.approx(mean) and row["n"] == IMAGES
        # Two added images move it by less than half a point.
        np.testing.assert_allclose(row["difference_ci95"], interval, atol=2e-3)
        assert list(row["by_seed"]) == [0, 1, 2]
        for seed, difference in row["by_seed"].items():
            assert difference == pytest.approx(np.mean(ours[seed]) - np.mean(theirs[seed]))


def test_another_policy_of_the_baseline_can_be_named(make_run):
    run = make_run("run")
    of_keep, of_merge = compare([run], [run], "merge:7")
    assert of_merge["difference"] == 0 and of_merge["difference_ci95"][0] < 0
    difference = np.mean(right(run, "blur", "keep")) - np.mean(right(run, "blur", "merge:7"))
    assert of_keep["difference"] == pytest.approx(difference) and difference != 0


def test_a_run_may_have_been_tested_on_more_later_and_counts_once(make_run):
    first, later = make_run("first"), make_run("later", cells=[("sharp", KEEP), ("blur", KEEP)])
    base = make_run("base", cells=[("sharp", KEEP), ("blur", KEEP)])
    rows = {(row["condition"], row["policy"]): row for row in compare([first, later], [base])}
    assert set(rows) == {("blur", "keep"), ("blur", "merge:7"), ("sharp", "keep")}
    assert rows["blur", "keep"]["top1"] == np.mean(right(first, "blur", "keep"))
    assert rows["sharp", "keep"]["top1"] == np.mean(right(later, "sharp", "keep"))


def test_evaluations_of_trained_runs_stand_for_these_on_both_sides(make_run):
    def evaluated(name, seed, condition):
        trained = {"seed": seed, "init_from": "", "train": {"condition": condition}}
        run = make_run(name, seed, init_from=f"runs/{name}", train={"steps": 0})
        run.results["ancestors"] = [trained]
        return run

    runs = [evaluated(f"mix{seed}", seed, "mix") for seed in (0, 1)]
    against = [evaluated(f"sharp{seed}", seed, "sharp") for seed in (0, 1)]
    assert list(compare(runs, against)[0]["by_seed"]) == [0, 1]
    both = group([*runs, *against])
    assert [one.label for one in both] == ["runs/mix0 …", "runs/sharp0 …"]
    assert [len(one.runs) for one in both] == [2, 2]


@pytest.mark.parametrize(
    "ours, theirs, message",
    [
        ({"cells": None}, {}, r"run holds no answers\.npz.*--config\.train\.steps=0\.$"),
        ({}, {"cells": None}, r"base holds no answers\.npz"),
        ({"seed": 4}, {"seed": 5}, "run has the seed 4, .* the baseline has 5: give --against"),
        ({}, {"index": np.arange(IMAGES) * 2}, "run and base .* same images: 400 of their"),
        ({"index": np.arange(9)}, {}, "391 of their 9 and 400 were tested by only one"),
        ({"data": {"image_size": 32}}, {}, "images: data.image_size is 32 and 64"),
        ({"data": {"dir": "/a/cats"}}, {"data": {"dir": "/a/dogs"}}, "data.dir is 'cats' and 'dog"),
        (
            {},
            {"cells": [("sharp", KEEP)]},
            "seed 0 was not tested on blur under keep, but on sharp",
        ),
        ({}, {"cells": [("blur", MERGE)]}, "on blur under keep, but on blur under merge:7: choose"),
    ],
)
def test_what_cannot_be_paired_is_an_error_of_one_line(make_run, ours, theirs, message):
    runs = [make_run("run", **ours)], [make_run("base", **theirs)]
    with pytest.raises(ValueError, match=message) as error:
        compare(*runs)
    assert "\n" not in str(error.value)


def test_a_folder_of_images_may_be_elsewhere(make_run):
    data = [{"dir": "/there/cats", "name": "folder"}, {"dir": "cats", "name": "folder"}]
    run, base = make_run("run", data=data[0]), make_run("base", data=data[1])
    assert len(compare([run], [base])) == 2


def test_seeds_of_a_group_must_be_tested_on_the_same_images_too(make_run):
    runs = [make_run(f"run{s}", s, index=np.arange(s, s + 50)) for s in (0, 1)]
    against = [make_run(f"base{s}", s, index=np.arange(s, s + 50)) for s in (0, 1)]
    with pytest.raises(ValueError, match="run0 and run1 were not tested on the same images: 2 "):
        compare(runs, against)


def test_a_baseline_differs_in_nothing_but_its_seed(make_run):
    against = [make_run(f"base{rate}", optimizer={"learning_rate": rate}) for rate in (0.1, 0.2)]
    with pytest.raises(ValueError, match=r"base0.1, base0.2 differ in optimizer\.learning_rate"):
        pairing.baseline_of(against)


def test_the_table_has_groups_side_by_side(make_run):
    groups = group(
        [make_run(f"{c}{s}", s, train={"condition": c}) for c in ("mix", "blur") for s in (0, 1)]
    )
    against = [make_run(f"base{seed}", seed) for seed in (0, 1)]
    head, *lines = pairing.table(groups, pairing.baseline_of(against))
    assert head[:5] == ["train.condition", "condition", "policy", "top-1 %", "vs baseline's keep"]
    assert head[5:] == ["95 % interval", "by seed", "interval over"]
    assert [line[:3] for line in lines] == [
        [trained, "blur", policy] for policy in ("keep", "merge:7") for trained in ("blur", "mix")
    ]
    row = pairing.rows(groups[0], pairing.baseline_of(against))[0]
    assert lines[0][3:5] == [f"{100 * row['top1']:.2f}", f"{100 * row['difference']:+.2f}"]
    low, high = (float(bound) for bound in re.findall(r"[+-][\d.]+", lines[0][5]))
    assert low < 100 * row["difference"] < high
    assert lines[0][6] == ", ".join(f"{s}: {100 * d:+.2f}" for s, d in row["by_seed"].items())
    assert lines[0][7] == "400 images"
