"""The images that a run draws."""

import jax
import numpy as np
from matplotlib.figure import Figure

from bvit.experiment import prepare
from bvit.training import results
from bvit.training.metrics import MetricsWriter
from bvit.training.state import create_state
from configs.vit_mask import get_config


def test_samples_have_a_row_for_each_policy_but_keep(monkeypatch, tmp_path):
    config = get_config("photos")
    config.model.depth = 1
    config.eval.conditions = "sharp"
    config.eval.policies = "keep,drop:9,cluster:0.5@1"
    experiment = prepare(config)
    drawn = []

    def sheet(image, where):
        drawn.append((image, where))
        return Figure()

    monkeypatch.setattr(results.overlays, "sheet", sheet)
    state = create_state(
        jax.random.key(0),
        model=experiment.model,
        optimizer=experiment.optimizer,
        image_size=config.data.image_size,
    )
    results.show_samples(experiment, state, MetricsWriter(None, start_step=0), tmp_path)
    ((image, where),) = drawn
    assert list(where) == ["drop:9", "cluster:0.5@1"]
    assert len(image) == results.SAMPLES == len(where["drop:9"])
    assert ((where["drop:9"] >= 0).sum((1, 2)) == 9).all()
    joined = where["cluster:0.5@1"]
    assert (joined >= 0).all() and all(len(np.unique(one)) < 64 for one in joined)
    assert (tmp_path / "samples_sharp.png").exists()
