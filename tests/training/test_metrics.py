import errno
import json
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from bvit.run import Run
from bvit.training import metrics
from bvit.training.metrics import MetricsWriter


def curves(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_lines_and_curves_hold_the_same_numbers(tmp_path):
    writer = MetricsWriter(tmp_path)
    loss = float(np.float32(1) / 3)
    writer.scalars(1, {"loss": loss})
    writer.accuracies(2, {"sharp/keep": 0.5})
    writer.close()
    assert Run(tmp_path).metrics == [{"step": 1, "loss": loss}]
    evaluated = json.loads((tmp_path / "evaluations.jsonl").read_text())
    assert evaluated == {"step": 2, "sharp/keep": 0.5}
    [event] = curves(tmp_path).Scalars("train/loss")
    assert (event.step, np.float32(event.value)) == (1, np.float32(loss))
    assert curves(tmp_path).Tags()["scalars"] == ["train/loss", "test_sharp/keep"]


def test_an_evaluation_is_written_once_however_often_the_run_is_killed_after_it(tmp_path):
    for _ in range(2):
        writer = MetricsWriter(tmp_path, start_step=4)
        writer.accuracies(4, {"sharp/keep": 0.5})
        writer.close()
    assert (tmp_path / "evaluations.jsonl").read_text().count("\n") == 1


def test_curves_of_a_kind_are_a_group(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.scalars(1, {"loss": 1.0, "images_per_s": 2.0, "data_wait": 0.0})
    writer.accuracies(1, {"gaussian:1.5/keep": 0.5, "region/merge:31": 0.5})
    writer.close()
    assert set(curves(tmp_path).Tags()["scalars"]) == {
        "train/loss",
        "train_speed/images_per_s",
        "train_speed/data_wait",
        "test_gaussian/1.5/keep",
        "test_region/merge_31",
    }


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
    assert [line["loss"] for line in Run(tmp_path).metrics] == [1.0, 2.0, 30.0]
    assert (tmp_path / "evaluations.jsonl").read_text().count("\n") == 2
    assert [e.value for e in curves(tmp_path).Scalars("train/loss")] == [1.0, 2.0, 30.0]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = MetricsWriter(None)
    writer.scalars(1, {"loss": 1.0})
    writer.image(1, "samples", np.zeros((4, 4, 3), np.uint8))
    writer.hparams("vit", {"size": 1})
    writer.close()
    assert not list(tmp_path.iterdir())


def test_curves_that_cannot_be_written_do_not_stop_the_run(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(metrics, "SummaryWriter", full)
    writer = MetricsWriter(tmp_path)
    writer.scalars(1, {"loss": 1.0})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 1.0}


def test_validation_is_beside_training(tmp_path):
    writer = MetricsWriter(tmp_path)
    values = {"valid_loss": 1.0, "valid_accuracy": 0.5, "valid_accuracy/merge:7": 0.25}
    writer.validation(2, values)
    writer.close()
    assert Run(tmp_path).metrics == [{"step": 2, **values}]
    tags = {"valid/loss", "valid/accuracy", "valid_accuracy/merge_7"}
    assert set(curves(tmp_path).Tags()["scalars"]) == tags


def test_tensorboard_has_the_settings_as_text_and_a_chart_of_all_policies(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.config({"seed": 0, "train.condition": "mix"})
    writer.compare_policies(["sharp", "gaussian:1.5"])
    writer.close()
    events = curves(tmp_path)
    (event,) = events.Tensors("config/text_summary")
    assert b"| train.condition | `'mix'` |" in event.tensor_proto.string_val[0]
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts == {"sharp": ["test_sharp/.*"], "gaussian:1.5": ["test_gaussian/1.5/.*"]}


def test_images_reach_tensorboard(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.image(3, "samples/blur", np.zeros((4, 4, 3), np.uint8))
    writer.close()
    assert curves(tmp_path).Images("samples/blur")[0].step == 3


def test_the_hparams_tab_compares_runs_and_averages_seeds(tmp_path):
    """As TensorBoard's own backend reads them."""
    for run, rate, top1 in (("a0", 0.1, 0.5), ("a1", 0.1, 0.7), ("b0", 0.2, 0.9)):
        (tmp_path / run).mkdir()
        writer = MetricsWriter(tmp_path / run)
        writer.accuracies(10, {"sharp/merge:31": top1})
        writer.hparams("vit", {"rate": rate, "flip": True, "scale": [0.1, 1.0], "size": None})
        writer.close()
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path)).Reload()
    context = base_plugin.TBContext(
        data_provider=data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    )
    backend, request = backend_context.Context(context), RequestContext()
    metadata = backend.hparams_metadata(request, "")
    experiment = backend.experiment_from_metadata(request, "", True, metadata, None)
    assert [info.name for info in experiment.hparam_infos] == ["rate", "flip", "scale", "size"]
    assert [info.differs for info in experiment.hparam_infos] == [True, False, False, False]
    assert [info.name.tag for info in experiment.metric_infos] == ["test_sharp/merge_31"]
    groups = list_session_groups.Handler(
        request,
        backend,
        "",
        api_pb2.ListSessionGroupsRequest(
            aggregation_type=api_pb2.AGGREGATION_AVG,
            allowed_statuses=[api_pb2.STATUS_SUCCESS],
            slice_size=10,
            col_params=[{"metric": {"tag": "test_sharp/merge_31"}, "include_in_result": True}],
        ),
    ).run()
    found = {len(g.sessions): [m.value for m in g.metric_values] for g in groups.session_groups}
    assert found == {2: [pytest.approx(0.6)], 1: [pytest.approx(0.9)]}
    assert all(group.name.startswith("vit (") for group in groups.session_groups)


def test_a_disk_that_fills_up_ends_the_curves_and_nothing_else(tmp_path, monkeypatch, caplog):
    """Not even after the many events that would fill the queue of the thread that writes them."""
    writer = MetricsWriter(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    events = writer._events.file_writer.event_writer._ev_writer._py_recordio_writer._writer
    monkeypatch.setattr(events, "_file", types.SimpleNamespace(write=full, flush=full, close=full))
    caplog.set_level("WARNING", logger="absl")  # commands that other tests ran may have raised it
    for step in range(100):
        writer.scalars(step, {"loss": 1.0})
    writer.close()
    assert len(Run(tmp_path).metrics) == 100
    assert caplog.text.count("No more TensorBoard curves: [Errno 28] No space left") == 1
