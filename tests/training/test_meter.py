import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bvit.run import Run
from bvit.training.meter import Meter, NonFiniteLossError
from bvit.training.metrics import MetricsWriter


def make_meter(folder, *, skip_nonfinite=0, log_every=2):
    return Meter(
        MetricsWriter(folder),
        optax.linear_schedule(1.0, 0.0, 10),
        start_step=0,
        total_steps=10,
        batch_size=4,
        log_every=log_every,
        skip_nonfinite=skip_nonfinite,
    )


def metrics(loss, signal=0):
    return {
        "loss": jnp.float32(loss),
        "accuracy": jnp.float32(0.5),
        "grad_norm": jnp.float32(1.0),
        "finite": jnp.isfinite(loss).astype(jnp.float32),
        "signal": jnp.int32(signal),
    }


def test_every_so_many_steps_there_is_a_line(tmp_path):
    meter = make_meter(tmp_path)
    for step in range(1, 6):
        assert meter.read(step, metrics(1 / (step + 2))) == 0
    meter.close()
    lines = Run(tmp_path).metrics
    assert [line["step"] for line in lines] == [2, 4]
    # The loss to its last bit; the rate that was used for the step: that of the count before it.
    assert lines[0]["loss"] == float(np.float32(0.25))
    np.testing.assert_allclose([line["learning_rate"] for line in lines], [0.9, 0.7], rtol=1e-6)
    assert all(line["images_per_s"] > 0 for line in lines)


def test_a_loss_that_is_not_finite_stops_at_once_and_names_the_step(tmp_path):
    meter = make_meter(tmp_path)
    meter.read(1, metrics(1.0))
    with pytest.raises(NonFiniteLossError, match="loss nan .* at step 2 "):
        meter.read(2, metrics(jnp.nan))


def test_so_many_in_a_row_may_be_skipped(tmp_path):
    meter = make_meter(tmp_path, skip_nonfinite=2)
    for step, loss in enumerate([jnp.inf, jnp.nan, 1.0, jnp.nan, jnp.nan], start=1):
        meter.read(step, metrics(loss))
    with pytest.raises(NonFiniteLossError, match="at step 6 "):
        meter.read(6, metrics(jnp.nan))
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert [line["loss"] for line in Run(tmp_path).metrics] == [None, None]


def test_a_signal_is_handed_on(tmp_path):
    assert make_meter(tmp_path).read(1, metrics(1.0, signal=15)) == 15
