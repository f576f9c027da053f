from pathlib import Path

import pytest

from bvit.report import comparison
from bvit.report.comparison import MANY_COLUMNS, group
from bvit.run import Run


def make_run(name="run", seed=0, top1=0.5, difference=None, **settings):
    row = {
        "condition": "sharp",
        "policy": "keep",
        "tokens": 10 + seed,
        "top1": top1,
        "top5": 0.9,
        "n": 100,
        "ci95": [top1 - 0.1, top1 + 0.1],
        "difference": difference,
        "difference_ci95": None,
        "gflops": 1.0,
        "images_per_s": 1.0,
        "loss": 1.5,
        "ece": 0.05 + seed / 100,
    }
    config = {"seed": seed, "model": {"name": "vit"}, **settings}
    run = Run(Path(name))
    run.results = {"config": config, "seed": seed, "step": 1, "rows": [row]}
    return run


def test_how_a_run_was_computed_and_tested_tells_no_runs_apart():
    one = make_run(mesh={"fsdp": 2}, eval={"conditions": "sharp"}, log={"every_steps": 1})
    (found,) = group([one, make_run(seed=1)])
    assert found.settings == {} and found.label == "" and len(found.runs) == 2


def test_groups_are_sorted_by_their_settings_numbers_as_numbers():
    rates = (0.1, 1e-3, 0.02)
    found = group([make_run(optimizer={"learning_rate": rate}) for rate in rates])
    assert [one.settings["optimizer.learning_rate"] for one in found] == sorted(rates)
    assert [one.label for one in found] == [f"learning_rate={rate}" for rate in sorted(rates)]
    found = group([make_run(train={"steps": steps}) for steps in (None, 10, 9)])
    assert [one.label for one in found] == ["steps=9", "steps=10", "steps=–"]


def test_a_setting_that_an_older_run_does_not_know_has_its_default():
    (found,) = group([make_run(), make_run(seed=1, train={"mixup": 0.0})])
    assert found.settings == {}
    first, second = group([make_run(), make_run(train={"mixup": 0.2})])
    assert (first.settings, second.settings) == ({"train.mixup": 0.0}, {"train.mixup": 0.2})


def test_of_many_settings_those_are_shown_that_tell_runs_apart():
    def run(name, condition):
        model = {"name": name, **{f"option{i}": f"of {name}" for i in range(MANY_COLUMNS)}}
        return make_run(model=model, train={"condition": condition})

    found = group([run(name, c) for name in ("vit", "vgg11") for c in ("mix", "blur")])
    shown = comparison.telling([one.settings for one in found])
    assert shown == ["model.name", "train.condition"]
    assert len(found[0].settings) == MANY_COLUMNS + 2
    assert [one.label for one in found] == ["vgg11, blur", "vgg11, mix", "vit, blur", "vit, mix"]


def test_runs_that_differ_in_too_much_go_by_their_names():
    def run(name, changed, seed=0):
        values = {str(i): i in changed for i in range(MANY_COLUMNS + 1)}
        return make_run(name, seed=seed, model={"name": "vit", **values})

    runs = [run(f"run{i}", [i]) for i in range(MANY_COLUMNS + 2)]
    found = group([*runs, run("again", [0], seed=1)])
    assert found[0].label == "run0 …" and len(found[0].runs) == 2
    assert [one.shown for one in found][1:] == [{"run": run.name} for run in runs[1:]]


def test_rows_of_seeds_are_averaged_and_a_seed_that_was_run_twice_counts_once():
    runs = [make_run(seed=s, top1=t, difference=d) for s, t, d in ((0, 0.4, -0.1), (1, 0.5, -0.2))]
    (found,) = group([*runs, make_run(seed=1, top1=0.9)])
    (row,) = found.rows
    assert row["seeds"] == 2 and row["tokens"] == 10.5
    assert row["top1"] == pytest.approx(0.45)
    assert row["ci95"] == [0.0, 1.0]  # 45 ± 64 %, as far as there are accuracies
    assert row["difference"] == pytest.approx(-0.15)
    assert row["difference_ci95"][0] < -0.7


def test_a_single_seed_keeps_its_row():
    run = make_run()
    assert group([run])[0].rows == [{**run.results["rows"][0], "seeds": 1}]


def test_runs_that_started_from_runs_of_their_own_seeds_are_one_group():
    def tuned(seed, before, condition="mix"):
        run = make_run(seed=seed, init_from=f"runs/{condition}{before}")
        train = {"train": {"condition": condition}, "eval": {"batch_size": seed}}
        first = {"seed": before, "init_from": f"runs/first{before}", **train}
        start = {"seed": before, "init_from": "w.npz", "model": {"name": "vit"}}
        run.results["ancestors"] = [first, start]
        return run

    (found,) = group([tuned(0, 0), tuned(1, 1)])
    assert found.settings == {} and len(found.runs) == 2
    found = group([tuned(0, 0), tuned(1, 1), tuned(0, 0, "blur"), tuned(1, 1, "blur")])
    assert [one.label for one in found] == ["runs/blur0 …", "runs/mix0 …"]
    found = group([tuned(0, 0), tuned(0, 1)])  # two trainings, tested with one seed
    assert [one.label for one in found] == ["runs/mix0", "runs/mix1"]
    other = tuned(1, 1)
    other.results["ancestors"][1]["init_from"] = "other.npz"
    assert len(group([tuned(0, 0), other])) == 2
