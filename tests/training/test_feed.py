import multiprocessing
import os
import signal

import numpy as np
import pytest

from bvit import data
from bvit.training.feed import MAX_DEATHS, DataWorkerError, Feed


def open_at(step, num_workers=0):
    source = data.open_source("photos", split="train", image_size=16, seed=0)
    return data.train_batches(
        source, batch_size=4, image_size=16, seed=0, start_step=step, num_workers=num_workers
    )


class Breaking:
    """Stands for batches whose workers die before each step of `deaths`."""

    def __init__(self, batches, step, deaths):
        self._batches, self._step, self._deaths = batches, step, deaths
        self.skipped, self.closed = 1, False

    def __next__(self):
        if self._step in self._deaths:
            self._deaths.remove(self._step)
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -9.")
        self._step += 1
        return {"index": np.asarray(self._batches[self._step - 1])}

    def close(self):
        self.closed = True


def breaking_feed(deaths):
    opened = []

    def open_at(step):
        opened.append(Breaking(range(100), step, deaths))
        return opened[-1]

    return Feed(open_at, 3), opened


def test_a_dead_worker_is_replaced_and_no_batch_is_lost_or_repeated():
    feed, opened = breaking_feed([5, 5, 7])
    assert [next(feed)["index"] for _ in range(6)] == [3, 4, 5, 6, 7, 8]
    assert len(opened) == 4
    assert all(batches.closed for batches in opened[:-1])
    assert feed.skipped == 4


def test_workers_that_keep_dying_over_the_same_batch_are_an_error():
    feed, _ = breaking_feed([4] * MAX_DEATHS)
    assert next(feed)["index"] == 3
    with pytest.raises(DataWorkerError, match="died 3 times over the batch of step 5.*num_workers"):
        next(feed)


def test_a_worker_process_that_is_killed_is_replaced():
    with open_at(0) as batches:
        expected = [next(batches) for _ in range(12)]
    feed = Feed(lambda step: open_at(step, num_workers=1), 0)
    batches = [next(feed)]
    [worker] = [p for p in multiprocessing.active_children() if "prefetch" in p.name]
    os.kill(worker.pid, signal.SIGKILL)
    batches += [next(feed) for _ in range(11)]
    feed.close()
    for have, want in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(have["index"], want["index"])
        np.testing.assert_array_equal(have["image"], want["image"])
