"""Traces of training steps."""

import jax
import jax.numpy as jnp

from bvit.training.profile import StepTrace


def run(steps, folder, *, last=5):
    trace, x = StepTrace(steps, folder), jnp.zeros(())
    update = jax.jit(lambda x: x + 1)
    for step in range(1, last + 1):
        x = trace.run(step, update, x)
    trace.close()
    assert x == last


def traces(folder):
    return list(folder.glob("plugins/profile/*/*.xplane.pb"))


def test_the_steps_asked_for_are_traced(tmp_path):
    run((2, 4), tmp_path)
    (trace,) = traces(tmp_path)
    seen = {step for step in range(7) if _mentions(trace, step)}
    assert seen == {2, 3, 4}
    assert list(tmp_path.glob("plugins/profile/*/perfetto_trace.json.gz"))


def _mentions(trace, step):
    data = jax.profiler.ProfileData.from_file(str(trace))
    events = (event for plane in data.planes for line in plane.lines for event in line.events)
    return any(event.name == "train" and dict(event.stats)["step_num"] == step for event in events)


def test_a_run_that_ends_early_leaves_what_it_traced(tmp_path):
    run((4, 9), tmp_path)
    assert len(traces(tmp_path)) == 1


def test_by_default_nothing_is_written(tmp_path):
    run((), tmp_path)
    assert not list(tmp_path.iterdir())
