"""Alone; several processes are tested in tests/test_processes.py and tests/test_main.py."""

import io
import sys
import time

import jax
import pytest

from bvit import distributed
from bvit.sharding import make_mesh


@pytest.fixture
def joined(monkeypatch):
    """What JAX was asked to join; nothing is."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    return calls


def test_all_flags_or_none(joined):
    with pytest.raises(ValueError, match="go together: got host:1, 2 and None"):
        distributed.initialize("host:1", 2, None)
    assert not joined
    distributed.initialize("host:1", 2, 0)
    [((*given,), options)] = joined
    assert given == ["host:1", 2, 0]
    # The environment of a cluster would take devices away.
    assert options == {"cluster_detection_method": "deactivate"}


def test_one_process_looks_for_no_others(joined):
    distributed.initialize(None, 1, None)
    assert not joined


def test_where_jax_finds_no_cluster_the_process_is_alone(monkeypatch):
    def initialize():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    distributed.initialize(None, None, None)


def test_a_cluster_that_cannot_be_used_is_told_with_the_way_out(monkeypatch):
    def initialize():
        raise RuntimeError("In K8s, cluster automatic bootstrap only supports Job/JobSet.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="JobSet.*--num_processes=1 to run alone"):
        distributed.initialize(None, None, None)


def test_jax_still_says_so_where_it_finds_no_cluster():
    # `initialize` knows it by these words.
    from jax._src.distributed import State

    with pytest.raises(ValueError, match="coordinator_address should be defined"):
        State().initialize()


def test_alone_the_greatest_is_the_own():
    assert int(distributed.greatest(15, make_mesh())) == 15
    assert distributed.is_main()


@pytest.mark.parametrize("watched", [True, False])
def test_a_log_file_does_not_keep_every_state_of_a_progress_bar(monkeypatch, watched):
    stderr = io.StringIO()
    stderr.isatty = lambda: watched
    monkeypatch.setattr(sys, "stderr", stderr)
    bar = distributed.progress_bar("training", "step", 4)
    for _ in range(4):
        time.sleep(2 * distributed.ON_TERMINAL)
        bar.update()
    bar.close()
    states = stderr.getvalue().count("training:")
    assert states > 4 if watched else states == 2
    assert "4/4" in stderr.getvalue()
