"""ImageNet-C's summary of its blurs: mean accuracy, and the corruption error against AlexNet.

Hendrycks and Dietterich 2019, section 4. The published mCE is over fifteen corruptions; here it is
over the four blurs among them, so it can't be compared with published ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bvit.evaluation.rows import Row
from bvit.image.conditions import IMAGENET_C
from bvit.image.corruptions import ALEXNET_ERROR, SEVERITIES, corruption_error

TITLE = (
    "ImageNet-C's blurs, made here: top-1 in % by severity; CE, the error over AlexNet's on "
    "ImageNet, in %, and its mean over these four blurs alone"
)


def summarize(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Summarises the rows of `IMAGENET_C`, for each policy that was tested on all twenty.

    Args:
      rows: of `rows.make_rows`, or means of them over seeds; other conditions are ignored.

    Returns:
      For each policy: "policy" with its budget; "blurs", name → its "top1" by severity, their
      "mean_top1" and "ce"; and "mean_top1" and "mce" over the blurs. All are shares: a CE of 1 is
      AlexNet's.
    """
    by_policy: dict[str, dict[str, float]] = {}
    for row in rows:
        by_policy.setdefault(row["policy"], {})[row["condition"]] = row["top1"]
    return [
        {"policy": policy, **_summary(top1)}
        for policy, top1 in by_policy.items()
        if top1.keys() >= set(IMAGENET_C)
    ]


def _summary(top1: dict[str, float]) -> dict[str, Any]:
    blurs = {}
    for name in ALEXNET_ERROR:
        right = [top1[f"imagenet_c:{name}:{severity}"] for severity in SEVERITIES]
        error = corruption_error(name, [1 - share for share in right])
        blurs[name] = {"top1": right, "mean_top1": float(np.mean(right)), "ce": error}
    return {
        "blurs": blurs,
        "mean_top1": float(np.mean([blur["mean_top1"] for blur in blurs.values()])),
        "mce": float(np.mean([blur["ce"] for blur in blurs.values()])),
    }


def table_lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each policy and blur, and one for their means; [] if not all were tested."""
    lines = []
    for found in summarize(rows):
        for name, blur in found["blurs"].items():
            cells = [*blur["top1"], blur["mean_top1"], blur["ce"]]
            lines.append([found["policy"], name, *map(_percent, cells)])
        means = [_percent(found[key]) for key in ("mean_top1", "mce")]
        lines.append([found["policy"], "mean of the blurs", *[""] * len(SEVERITIES), *means])
    header = ["policy", "blur", *map(str, SEVERITIES), "mean", "CE"]
    return [header, *lines] if lines else []


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
