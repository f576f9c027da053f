import json

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bvit.training.metrics import MetricsWriter, read_metrics


def curves(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_lines_and_curves_hold_the_same_numbers(tmp_path):
    writer = MetricsWriter(tmp_path)
    loss = float(np.float32(1) / 3)
    writer.scalars(1, {"loss": loss})
    writer.accuracies(2, {"sharp/keep": 0.5})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": loss}]
    evaluated = json.loads((tmp_path / "evaluations.jsonl").read_text())
    assert evaluated == {"step": 2, "sharp/keep": 0.5}
    [event] = curves(tmp_path).Scalars("train/loss")
    assert (event.step, np.float32(event.value)) == (1, np.float32(loss))
    assert curves(tmp_path).Tags()["scalars"] == ["train/loss", "sharp/keep"]


def test_a_resumed_run_drops_what_its_checkpoint_does_not_hold(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (1, 2, 3, 4):
        writer.scalars(step, {"loss": float(step)})
        writer.accuracies(step, {"sharp/keep": step / 10})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    writer = MetricsWriter(tmp_path, start_step=2)
    writer.scalars(3, {"loss": 30.0})
    writer.close()
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0, 2.0, 30.0]
    assert (tmp_path / "evaluations.jsonl").read_text().count("\n") == 2
    assert [e.value for e in curves(tmp_path).Scalars("train/loss")] == [1.0, 2.0, 30.0]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = MetricsWriter(None)
    writer.scalars(1, {"loss": 1.0})
    writer.image(1, "samples", np.zeros((4, 4, 3), np.uint8))
    writer.hparams({"seed": 1}, {"sharp/keep": 0.5})
    writer.close()
    assert not list(tmp_path.iterdir())


def test_curves_that_cannot_be_written_do_not_stop_the_run(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    writer = MetricsWriter(tmp_path)
    writer.scalars(1, {"loss": 1.0})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 1.0}


def test_hparams_and_pictures_reach_tensorboard(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.image(3, "samples/blur", np.zeros((4, 4, 3), np.uint8))
    writer.hparams({"seed": 1, "eval.policies": ["keep"]}, {"sharp/keep": 0.5})
    writer.close()
    events = curves(tmp_path)
    assert events.Images("samples/blur")[0].step == 3
    assert events.PluginTagToContent("hparams")
