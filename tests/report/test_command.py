import csv
import io
import json
import re
import statistics
from html.parser import HTMLParser

import numpy as np
import pytest
from made_results import result

from bvit.data.imagenet import class_names
from bvit.evaluation.evaluator import EvalResult
from bvit.report import __main__ as report
from bvit.report import paper
from bvit.report.tables import NOT_RUN
from bvit.run import Run
from bvit.tokens import parse as parse_policy

CALIBRATION = "Cross-entropy and expected calibration error (15 bins)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run directories: two trainings with two seeds each."""
    top = tmp_path_factory.mktemp("runs")
    for condition, loss in (("mix", 0.1), ("blur", 0.2)):
        for seed in (0, 1):
            top1 = 0.8 - loss + seed / 100
            rows = [(f"gaussian:{s:g}", "keep", top1 - s / 10) for s in (0, 1, 2.5)]
            rows += [("region", "keep", 0.6), ("region", "drop", 0.5, 8)]
            saved = result("vit_tiny_patch16_224", condition=condition, seed=seed, rows=rows)
            folder = top / f"{condition}{seed}"
            folder.mkdir()
            (folder / "results.json").write_text(json.dumps(saved))
            (folder / "config.json").write_text(json.dumps(saved["config"]))
            (folder / "classes.json").write_text('["n01440764", "dog", "cow"]')
            lines = [{"step": s, "loss": 1 / s, "accuracy": s / 10} for s in range(1, 10)]
            lines.append({"step": 10, "loss": None, "accuracy": 1.0})
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return top


@pytest.fixture
def call(capsys):
    def run(*arguments):
        report.main([str(argument) for argument in arguments])
        return capsys.readouterr()

    return run


def parse(text):
    """Title → lines of a report in Markdown."""
    tables = {}
    for part in text.strip().split("### ")[1:]:
        title, _, table = part.partition("\n\n")
        lines = [re.split(r" *\| ", f"{line} ")[1:-1] for line in table.strip().splitlines()]
        tables[title] = [line for line in lines if not set("".join(line)) <= {"-"}]
    return tables


def parse_csv(text):
    """Lines of a CSV report, as mappings."""
    return list(csv.DictReader(io.StringIO(text)))


class Cells(HTMLParser):
    """The tables and images of a page."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.images, self.links, self.text = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.text = ""
        elif tag == "img":
            self.images.append(dict(attributes)["src"])
        self.links += [value for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data):
        if self.text is not None:
            self.text += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.text)
            self.text = None


def test_both_formats_for_people_hold_the_same_cells(runs, call, tmp_path):
    paths = sorted(runs.iterdir())
    call(*paths, f"--to={tmp_path / 'report.html'}")
    page = Cells((tmp_path / "report.html").read_text())
    tables = parse(call(*paths).out)
    assert page.tables == list(tables.values())
    assert len(page.images) == 4
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert list(tables) == ["Runs", "Top-1 in % with its 95 % interval", "Results", CALIBRATION]
    assert [len(lines) for lines in tables.values()] == [3, 5, 11, 11]


def test_the_csv_has_a_line_for_each_run_condition_and_policy(runs, call):
    lines = parse_csv(call(*sorted(runs.iterdir()), "--format=csv").out)
    assert len(lines) == 4 * 5
    one = lines[-1]
    assert (one["run"], one["train.condition"], one["seed"]) == ("mix1", "mix", "1")
    assert (one["condition"], one["policy"], float(one["top1"])) == ("region", "drop:8", 0.5)
    assert (float(one["top1_low"]), float(one["top1_high"])) == (0.47, 0.53)
    assert one["difference"] == one["difference_low"] == "" and one["n"] == "1000"
    assert float(one["ece"]) == 0.05


def test_the_papers_tables_come_when_asked_for_and_without_other_data(runs, call):
    tables = parse(call(runs / "mix0", "--paper").out)
    (title,) = (title for title in tables if title.startswith("Table 5"))
    assert tables[title][1] == ["vit", "58.04", NOT_RUN, "51.75", NOT_RUN]
    other = Run(runs / "mix0")
    assert not paper.is_imagenet(other)
    other.class_names = tuple(class_names())
    assert paper.is_imagenet(other)


def test_only_what_differs_is_shown_and_seeds_are_averaged(runs, call):
    tables = parse(call(*sorted(runs.iterdir())).out)
    overview = tables["Runs"]
    assert [line[:3] for line in overview] == [
        ["runs", "train.condition", "seeds"],
        ["blur0, blur1", "blur", "0, 1"],
        ["mix0, mix1", "mix", "0, 1"],
    ]
    caption = "vit_tiny_patch16_224 on folder at 96 px, mix, 10 steps of 64, n = 1000"
    assert overview[2][-1] == caption
    row = tables["Results"][2]
    # 12.706 standard errors of two seeds
    half = 12.706 * statistics.stdev([70, 71]) / 2**0.5
    low, high = 70.5 - half, 70.5 + half
    assert row[:6] == ["mix", "gaussian:0", "keep", "64", "70.50", f"[{low:.1f}, {high:.1f}]"]
    assert row[-1] == "2 seeds"


def test_a_single_seed_has_its_interval_over_images(runs, call):
    row = parse(call(runs / "mix0").out)["Results"][1]
    assert row[0] == "gaussian:0" and row[3:5] == ["70.00", "[67.0, 73.0]"]
    assert row[-1] == "1000 images"


def test_the_matrix_has_a_row_for_what_differs_and_a_column_for_a_condition(runs, call):
    ((title, lines),) = parse(call(runs / "mix0", runs / "blur0", "--matrix").out).items()
    assert "Top-1" in title
    assert lines[0][:5] == ["train.condition", "policy", "gaussian:0", "gaussian:1", "gaussian:2.5"]
    assert lines[1][:3] == ["blur", "keep", "60.00 [57.0, 63.0]"]
    assert lines[2][:3] == ["blur", "drop:8", NOT_RUN]
    assert lines[2][5] == "50.00 [47.0, 53.0]"


def test_a_page_of_the_matrix_has_no_figures_where_they_are_written_too(runs, call, tmp_path):
    page = tmp_path / "matrix.html"
    call(runs / "mix0", "--matrix", f"--to={page}", f"--figures={tmp_path / 'figures'}")
    assert not Cells(page.read_text()).images
    assert (tmp_path / "figures" / "tradeoff.png").exists()


@pytest.fixture(scope="module")
def answered(runs):
    """The same runs, with answers: under keep mix is right on 6 of 10 images, blur on 5."""
    for path in runs.iterdir():
        policies = {parse_policy("keep"): 6 if "mix" in path.name else 5, parse_policy("drop:8"): 4}
        ranks = {policy: np.arange(1000) % 10 >= right for policy, right in policies.items()}
        index, label = np.arange(1000), np.arange(1000) % 2
        Run(path).write_answers(
            [
                EvalResult("region", policy, index, r, label, np.where(r, 2, label), index, index)
                for policy, r in ranks.items()
            ]
        )
    return runs


def test_runs_are_paired_with_a_baseline_in_all_formats(answered, call, tmp_path):
    mixed = [*sorted(answered.glob("mix*")), "--against", *sorted(answered.glob("blur*"))]
    tables = parse(call(*mixed).out)
    title = "Paired with blur0, blur1"
    assert list(tables) == ["Runs", "Results", CALIBRATION, title]
    lines = tables[title]
    keep = ["region", "keep", "60.00", "+10.00", "[+8.1, +11.8]", "0: +10.00, 1: +10.00"]
    assert lines[1] == [*keep, "1000 images"]
    assert lines[2][:4] == ["region", "drop:8", "40.00", "-10.00"]
    assert lines[0][3] == "vs baseline's keep"
    call(*mixed, f"--to={tmp_path / 'report.html'}")
    assert lines in Cells((tmp_path / "report.html").read_text()).tables
    markdown = call(*mixed, "--against_policy=drop:8", "--matrix").out
    assert "vs baseline's drop:8" in markdown and "+20.00" in markdown
    assert "### Results" not in markdown
    line = parse_csv(call(*mixed, "--format=csv").out)[3]
    assert (line["run"], line["condition"], line["policy"]) == ("mix0", "region", "keep")
    assert float(line["vs_baseline"]) == pytest.approx(0.1)
    assert float(line["vs_baseline_low"]) < 0.1 < float(line["vs_baseline_high"])


def test_classes_have_their_accuracies_and_what_they_are_taken_for(answered, call):
    tables = parse(call(answered / "mix0", "--classes").out)
    assert tables["mix0: accuracy of each class under keep"] == [
        ["class", "images", "region %", "most often taken for"],
        ["tench", "500", "60.0", "cow (40 %)"],
        ["dog", "500", "60.0", "cow (40 %)"],
    ]
    assert "drop:8" in call(answered / "mix0", "--classes=drop:8").out
    with pytest.raises(SystemExit):
        call(answered / "mix0", "--classes=zero")


def test_plots_are_written_where_they_are_asked_for(runs, call, tmp_path):
    files = [tmp_path / "sigma.png", tmp_path / "tradeoff.png"]
    folder = tmp_path / "figures"
    call(*runs.iterdir(), f"--sigma={files[0]}", f"--tradeoff={files[1]}", f"--figures={folder}")
    names = ["accuracy", "curves", "sigma", "tradeoff"]
    assert sorted(file.name for file in folder.glob("*.png")) == [f"{n}.png" for n in names]
    files += [folder / f"{name}.pdf" for name in names]
    assert all(file.stat().st_size > 5000 for file in files)


def test_what_is_no_finished_run_is_named_and_the_others_are_reported(runs, tmp_path, call, capsys):
    begun, damaged, file = tmp_path / "begun", tmp_path / "damaged", tmp_path / "a.log"
    for folder in (begun, damaged):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    (begun / "metrics.jsonl").write_text('{"step": 30, "loss": 1.0}\n')
    file.write_text("")
    whole = json.loads((runs / "mix0" / "results.json").read_text())
    lacking = [json.dumps({k: v for k, v in whole.items() if k != key}) for key in whole]
    for content in ("{", "[]", *lacking):
        (damaged / "results.json").write_text(content)
        printed = call(runs / "mix0", begun, damaged, file, tmp_path)
        assert "not finished (it has logged step 30)" in printed.err
        assert "damaged" in printed.err and "a.log is no run" in printed.err
        assert len(printed.err.splitlines()) == 4
        assert "### Left out" in printed.out and "70.00" in printed.out
    with pytest.raises(SystemExit) as stop:
        call(begun)
    assert stop.value.code == 2
    assert "no finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--formt=csv"], "did you mean --format?"),
        ([], "RUN"),
        (["--to=report.pdf"], "must end in .md, .csv, .html"),
        (["--to=nowhere/report.md"], "there is no folder nowhere"),
        (["--against_policy=keep"], "give --against too"),
        (["--against=nowhere"], "nowhere is no run directory"),
    ],
)
def test_wrong_arguments_are_an_error_of_one_line(runs, call, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        call(*arguments, *([runs / "mix0"] if arguments else []))
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in printed and printed.startswith("bvit: ") and len(printed.splitlines()) == 1
