import pytest

from bvit.evaluation.imagenet_c import summarize, table_lines
from bvit.image.conditions import IMAGENET_C
from bvit.image.corruptions import ALEXNET_ERROR


def rows(policy="keep", budget=None, share=0.5):
    """Accuracies that fall with the severity, and differ between the blurs."""
    shift = {name: i / 100 for i, name in enumerate(ALEXNET_ERROR)}
    return [
        {
            "condition": name,
            "policy": policy if budget is None else f"{policy}:{budget}",
            "top1": share + shift[name.split(":")[1]] - int(name[-1]) / 20,
        }
        for name in IMAGENET_C
    ]


def test_ce_is_the_sum_of_errors_over_that_of_alexnet():
    (found,) = summarize([{**rows()[0], "condition": "sharp"}, *rows()])
    # defocus: 0.45, 0.40, … 0.25 are right; AlexNet's error is 0.81988 on the mean.
    assert found["blurs"]["defocus_blur"]["top1"] == pytest.approx([0.45, 0.4, 0.35, 0.3, 0.25])
    expected = (0.55 + 0.6 + 0.65 + 0.7 + 0.75) / (5 * 0.81988)
    assert found["blurs"]["defocus_blur"]["ce"] == pytest.approx(expected)
    ces = [blur["ce"] for blur in found["blurs"].values()]
    assert len(ces) == 4 and found["mce"] == pytest.approx(sum(ces) / 4)
    assert found["mean_top1"] == pytest.approx(0.35 + 0.015)


def test_alexnet_itself_has_an_error_of_one():
    own = [{**row, "top1": 1 - ALEXNET_ERROR[row["condition"].split(":")[1]]} for row in rows()]
    assert summarize(own)[0]["mce"] == pytest.approx(1)


def test_each_policy_that_was_tested_on_all_is_summed_up():
    several = rows() + rows("merge", 31, 0.6) + rows("zero")[:-1]
    assert [found["policy"] for found in summarize(several)] == ["keep", "merge:31"]
    lines = table_lines(several)
    assert len(lines) == 1 + 2 * 5 and len({len(line) for line in lines}) == 1
    assert lines[5][:2] == ["keep", "mean of the blurs"] and lines[5][-2] == "36.5"


def test_without_them_there_is_no_table():
    assert table_lines(rows()[1:]) == []
