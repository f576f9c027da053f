import json
import re

import pytest
from absl.testing import flagsaver

from bvit import report
from bvit.evaluation import paper
from bvit.evaluation.report import draw_tradeoff


def result(model, *, condition="mix", init_from="", steps=10, seed=0, rows=()):
    return {
        "config": {
            "init_from": init_from,
            "model": {"name": model},
            "data": {"name": "folder", "image_size": 96},
            "train": {"condition": condition, "steps": steps, "batch_size": 64},
        },
        "step": steps,
        "seed": seed,
        "rows": [make_row(*row) for row in rows],
    }


def make_row(condition, policy, top1, budget=None):
    return {
        "condition": condition,
        "policy": policy,
        "budget": budget,
        "tokens": 64,
        "top1": top1,
        "top5": top1 + 0.1,
        "n": 1000,
        "ci95": [top1 - 0.03, top1 + 0.03],
        "difference": None,
        "difference_ci95": None,
        "gflops": 1.0,
        "images_per_s": 10.0,
    }


def cells(table, results):
    return {line[0]: line[1:] for line in paper.lines(table, results)[1:]}


def test_cells_that_were_not_run_say_so():
    for table in paper.TABLES:
        for line in cells(table, []).values():
            assert line[1::2] == [paper.NOT_RUN] * len(table.columns)
            assert all(re.fullmatch(r"\d\d\.\d+", number) for number in line[::2])


def test_each_run_fills_its_own_cells():
    weights = result(
        "resnet50",
        init_from="w.npz",
        steps=0,
        rows=[("sharp", "keep", 0.75), ("blur", "keep", 0.6)],
    )
    mixed = result("vgg19", condition="mix", rows=[("blur", "keep", 0.5), ("sharp", "keep", 0.9)])
    small = result("resnet18", condition="blur", rows=[("blur", "keep", 0.4)])
    results = [weights, mixed, small]
    one, two, three, four, five = (cells(table, results) for table in paper.TABLES)
    assert one["resnet50"] == ["76.13", "75.00 [72.0, 78.0]", "63.16", "60.00 [57.0, 63.0]"]
    assert two["resnet50"] == ["92.86", "85.00", "85.08", "70.00"]
    assert three["vgg19"] == ["46.33", paper.NOT_RUN, "48.19", "50.00 [47.0, 53.0]"]
    assert three["resnet18"] == ["–", "40.00 [37.0, 43.0]", "–", paper.NOT_RUN]
    assert four["vgg19"][3] == "60.00"
    assert "resnet18" not in one and set(five) == {"vit"}


def test_table_5_compares_keeping_with_zeroing_by_the_threshold():
    rows = [("region", "keep", 0.6), ("region", "zero", 0.5), ("region", "zero", 0.55, 32)]
    line = cells(paper.TABLES[4], [result("vit_tiny_patch16_224", rows=rows)])["vit"]
    assert line == ["58.04", "60.00 [57.0, 63.0]", "51.75", "50.00 [47.0, 53.0]"]


def test_runs_of_several_seeds_are_averaged():
    runs = [result("vgg19", seed=s, rows=[("blur", "keep", 0.5 + s / 50)]) for s in range(3)]
    assert cells(paper.TABLES[2], runs)["vgg19"][3] == "52.00 (of 3 runs, 50.00 to 54.00)"


@pytest.fixture
def runs(tmp_path):
    """Two run directories."""
    for name, offset in (("one", 0.0), ("two", 0.1)):
        rows = [(f"gaussian:{s:g}", "keep", 0.8 - s / 10 - offset) for s in (0, 1, 2.5)]
        rows += [("region", "keep", 0.6), ("region", "zero", 0.5)]
        (tmp_path / name).mkdir()
        saved = result("vit_tiny_patch16_224", rows=rows)
        (tmp_path / name / "results.json").write_text(json.dumps(saved))
    return tmp_path


def call(capsys, *arguments, **options):
    with flagsaver.flagsaver(**options):
        report.main(["report", *map(str, arguments)])
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def parsed_flags():
    if not report.flags.FLAGS.is_parsed():
        report.flags.FLAGS.mark_as_parsed()


def test_markdown_and_csv_hold_the_same_cells(runs, capsys):
    markdown = call(capsys, runs / "one", runs / "two")
    comma = call(capsys, runs / "one", runs / "two", format="csv")
    for text in (markdown, comma):
        assert (
            "vit_tiny_patch16_224 on folder at 96 px, mix, 10 steps of 64, seed 0, n = 1000" in text
        )
        assert "Table 5" in text and "60.00 (of 2 runs, 60.00 to 60.00)" in text
    assert markdown.count("\n| ") > 20
    assert "| " not in comma


def test_the_plot_against_sigma_is_drawn(runs, capsys):
    call(capsys, runs / "one", runs / "two", sigma=str(runs / "sigma.png"))
    assert (runs / "sigma.png").stat().st_size > 5000


def test_the_tradeoff_is_drawn_with_a_line_for_each_policy(runs, capsys):
    call(capsys, runs / "one", tradeoff=str(runs / "tradeoff.png"))
    assert (runs / "tradeoff.png").stat().st_size > 5000
    figure = draw_tradeoff(report.read_results(runs / "one")["rows"])
    conditions = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert conditions == ["gaussian:0", "gaussian:1", "gaussian:2.5", "region"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"keep", "zero"}


def test_what_is_no_finished_run_is_told(tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    for run, message in ((tmp_path / "begun", "not finished"), (tmp_path, "no run directory")):
        with pytest.raises(SystemExit) as stop:
            call(capsys, run)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
