"""The images that a run draws."""

import numpy as np
from matplotlib.figure import Figure

from bvit.experiment import prepare
from bvit.training import results
from configs.vit_mask import get_config


class Writer:
    def image(self, step, name, pixels):
        pass


def test_samples_have_a_row_for_each_policy_that_hides_something(monkeypatch, tmp_path):
    config = get_config("photos")
    config.eval.conditions = "sharp"
    config.eval.policies = "keep,drop:0.5,merge:0.5,tome:2,cluster:0.5"
    drawn = []

    def sheet(image, levels):
        drawn.append(levels)
        return Figure()

    monkeypatch.setattr(results.overlays, "sheet", sheet)
    results.show_samples(prepare(config), Writer(), tmp_path)
    (levels,) = drawn
    assert list(levels) == ["drop:32", "merge:31"]
    assert all(np.any(level) for level in levels.values())
    assert (tmp_path / "samples_sharp.png").exists()
