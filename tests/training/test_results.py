"""The images that a run draws."""

import jax
import numpy as np
from matplotlib.figure import Figure

from bvit.evaluation.evaluator import EvalResult
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

    def sheet(image, where, answers, truth):
        drawn.append((image, where, answers, truth))
        return Figure()

    monkeypatch.setattr(results.overlays, "sheet", sheet)
    state = create_state(
        jax.random.key(0),
        model=experiment.model,
        optimizer=experiment.optimizer,
        image_size=config.data.image_size,
    )
    index = np.arange(1, 1024)  # the first image could not be read
    label = index % 16
    found = [
        EvalResult("sharp", policy, index, label, label, label, label, label)
        for policy in experiment.policies
    ]
    results.show_samples(experiment, state, MetricsWriter(None), tmp_path, found)
    ((image, where, answers, truth),) = drawn
    assert list(answers) == ["keep", "drop:9", "cluster:0.5@1"]
    assert answers["keep"] == ["", *truth[1:]]
    assert list(where) == ["drop:9", "cluster:0.5@1"]
    assert len(image) == results.SAMPLES == len(where["drop:9"])
    assert ((where["drop:9"] >= 0).sum((1, 2)) == 9).all()
    joined = where["cluster:0.5@1"]
    assert (joined >= 0).all() and all(len(np.unique(one)) < 64 for one in joined)
    assert {path.name for path in tmp_path.iterdir()} == {"samples_sharp.png", "samples_sharp.pdf"}
