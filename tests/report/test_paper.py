import re
from pathlib import Path

from made_results import result

from bvit.report import paper
from bvit.report.comparison import group
from bvit.report.tables import NOT_RUN
from bvit.run import Run


def cells(table, results):
    runs = [Run(Path("run")) for _ in results]
    for run, found in zip(runs, results, strict=True):
        run.results = found
    groups = group(runs)
    return {line[0]: line[1:] for line in paper.lines(table, groups)[1:]}


def test_cells_that_were_not_run_say_so():
    nothing = [result("resnet18", rows=[("sharp", "keep", 0.5)])]
    for table in paper.TABLES:
        for line in cells(table, nothing).values():
            assert line[1::2] == [NOT_RUN] * len(table.columns)
            assert all(re.fullmatch(r"\d\d\.\d+", number) for number in line[::2])


def test_each_run_fills_its_own_cells():
    weights = result(
        "resnet50",
        init_from="w.npz",
        steps=0,
        rows=[("sharp", "keep", 0.75), ("blur", "keep", 0.6)],
    )
    mixed = result("vgg19", condition="mix", rows=[("blur", "keep", 0.5), ("sharp", "keep", 0.9)])
    rows = [("blur", "keep", 0.4), ("region", "keep", 0.3)]
    small = result("resnet18", condition="blur", rows=rows)
    results = [weights, mixed, small]
    one, two, three, four, five = (cells(table, results) for table in paper.TABLES)
    assert one["resnet50"] == ["76.13", "75.00 [72.0, 78.0]", "63.16", "60.00 [57.0, 63.0]"]
    assert two["resnet50"] == ["92.86", "85.00", "85.08", "70.00"]
    assert three["vgg19"] == ["46.33", NOT_RUN, "48.19", "50.00 [47.0, 53.0]"]
    assert three["resnet18"] == ["–", "40.00 [37.0, 43.0]", "–", NOT_RUN]
    assert four["vgg19"][3] == "60.00"
    assert "resnet18" not in one and set(five) == {"vit"}


def test_table_5_compares_keeping_with_zeroing_by_the_threshold():
    rows = [("region", "keep", 0.6), ("region", "zero", 0.5), ("region", "zero", 0.55, 32)]
    line = cells(paper.TABLES[4], [result("vit_tiny_patch16_224", rows=rows)])["vit"]
    assert line == ["58.04", "60.00 [57.0, 63.0]", "51.75", "50.00 [47.0, 53.0]"]


def test_seeds_share_a_cell_and_other_settings_are_kept_apart():
    seeds = [result("vgg19", seed=s, rows=[("blur", "keep", 0.5 + s / 50)]) for s in range(3)]
    # 52 ± 4.303 × 2 / √3
    assert cells(paper.TABLES[2], seeds)["vgg19"][3] == "52.00 [47.0, 57.0] (3 seeds)"
    longer = result("vgg19", steps=20, rows=[("blur", "keep", 0.6)])
    both = cells(paper.TABLES[2], [*seeds, longer])["vgg19"][3]
    assert both == "52.00 [47.0, 57.0] (3 seeds, steps=10); 60.00 [57.0, 63.0] (steps=20)"
