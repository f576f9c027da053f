import math

import jax
import numpy as np
import pytest

from bvit import sharding
from bvit.evaluation.evaluator import EvalResult, make_corrupt
from bvit.studies import deblurring, deblurring_report
from bvit.tokens import parse

KEEP = parse("keep")
CONDITIONS = ("noisy:blur", "wiener:noisy:blur", "sharp", "richardson_lucy:stored:blur")
COSTS = {
    "direct": {"ms": 1.0, "gflops": 0.1},
    "wiener": {"ms": 2.0, "gflops": 0.2},
    "richardson_lucy": {"ms": 9.0, "gflops": 0.9},
}


def rows(better=0):
    """Of 100 pictures 40 are right directly, 60 deblurred: 30 gained, 10 lost."""
    direct = np.arange(100) >= 60 - better
    deblurred = np.arange(100) % 100 < 60
    deblurred[:10] = direct[:10]
    right = {"noisy:blur": direct, "wiener:noisy:blur": deblurred, "sharp": direct}
    right["richardson_lucy:stored:blur"] = direct
    outcomes = [
        EvalResult(name, KEEP, np.arange(100), (~right[name]).astype(np.int32))
        for name in CONDITIONS
    ]
    return deblurring.make_rows(outcomes, COSTS)


def results(seed=0, **options):
    data = {"name": "folder", "dir": "d", "test_split": "", "image_size": 72, "resize": 0}
    return {"seed": seed, "config": {"data": data}, "deblurring": rows(**options)}


def test_deblurred_pictures_are_compared_with_themselves():
    direct, wiener, lonely = rows()
    assert [row["method"] for row in (direct, wiener, lonely)] == [*COSTS]
    assert direct["difference"] is None and direct["pictures"] == "noisy:blur"
    assert wiener["difference"] == pytest.approx(wiener["top1"] - direct["top1"]) != 0
    assert wiener["difference_ci95"][0] < wiener["difference"] < wiener["difference_ci95"][1]
    assert wiener["ms"] == 2.0 and wiener["n"] == 100
    # These were not classified directly.
    assert lonely["pictures"] == "stored:blur" and lonely["difference"] is None
    np.testing.assert_array_equal(deblurring.unpack(direct), np.arange(100) >= 60)


def test_a_stored_picture_is_blurred_as_one_that_is_not():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    image = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    stored, exact = (
        make_corrupt(name, seed=0, mesh=mesh)(image, np.arange(2))
        for name in ("stored:blur", "blur")
    )
    np.testing.assert_allclose(stored, np.round(np.asarray(exact) * 255) / 255, atol=1e-6)


def test_several_models_stand_in_one_table_beside_the_first():
    ((_, lines),) = deblurring_report.tables(
        {"a": results(), "none": {"deblurring": []}, "old": {}, "b": results(better=20)}
    )
    header, first, *_ = lines
    assert header == ["run", "method", "ms", "GFLOPs", "noisy:blur", "stored:blur"]
    assert first[:4] == ["a", "direct", "1.00", "0.100"] and first[4].startswith("40.0 [")
    by_name = {tuple(line[:2]): line[4:] for line in lines[1:]}
    assert len(by_name) == 6 and {len(line) for line in lines} == {6}
    assert by_name["b", "direct"][0].startswith("60.0: +20.0 [+")
    assert by_name["a", "direct"][1] == "not run"


def test_pictures_of_another_seed_get_a_table_of_their_own():
    found = deblurring_report.tables({"a": results(), "b": results(seed=1)})
    assert [lines[0][0] for _, lines in found] == ["method", "method"]


def test_the_plot_has_a_panel_for_each_kind_of_picture():
    figure = deblurring_report.draw({"a": results(), "b": results()})
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == ["noisy:blur", "stored:blur"]
    assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 60 for axes in figure.axes)
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"a, direct", "b, wiener"} <= labels and len(labels) == 6
    with pytest.raises(ValueError, match="no run deblurred"):
        deblurring_report.draw({"old": {}})


def transforms(count, side):
    """Operations of real transforms of side×side values."""
    return count * 2.5 * side**2 * math.log2(side**2) / 1e9


def test_operations_are_those_of_the_transforms_and_little_else():
    # The kernel and three channels, there and back. Margins are 18 and 9 pixels: 72 + 36 = 108.
    wiener = deblurring.gflops("wiener", 72)
    assert 1 < wiener / transforms(7, 108) < 1.2
    assert wiener < deblurring.gflops("wiener_blind", 72) < 1.4 * wiener
    # 30 steps of two filters; all are counted.
    assert 1 < deblurring.gflops("richardson_lucy", 72) / transforms(30 * 12 + 1, 90) < 1.2


def test_methods_are_those_of_the_conditions():
    assert deblurring.methods(CONDITIONS) == ("wiener", "richardson_lucy")
    assert deblurring.methods(["sharp", "blur"]) == ()
