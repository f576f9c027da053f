"""Batches of images: shard, shuffle, decode, crop, stack.

A batch is a function of (seed, step): which records are in it, how they are cropped and mirrored.
So a run can stop and resume at any step, on any number of processes, with the same batches. grain
does the shuffling, the threads and the worker processes.
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Literal

import cv2
import grain
import numpy as np
from absl import flags, logging

from bvit import interrupt
from bvit.data.decode import Pixels, UnreadableImageError, random_resized_crop
from bvit.data.preprocessing import RESIZE_RATIO, Preprocessing
from bvit.data.sources import Source

Batch = dict[str, np.ndarray]
Example = dict[str, np.ndarray | np.generic]
OnError = Literal["raise", "skip"]

# Examples of an endless training; grain's own endless repetition overflows when batched.
ENDLESS = 2**48
# Batches kept ready, besides those in the making.
PREFETCH = 2
MAX_THREADS = 16
# So many unreadable images in a row are an error.
MAX_UNREADABLE = 100
# This many unreadable images are named in the log; the rest are only counted.
NAMED_UNREADABLE = 20
IGNORED_WARNING = "ignore:resource_tracker:UserWarning"


def train_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    start_step: int = 0,
    num_steps: int | None = None,
    rows: Sequence[int] | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: bool = True,
    num_workers: int = 0,
    num_threads: int | None = None,
    on_error: OnError = "raise",
) -> "Batches":
    """Random crops of shuffled images, without end.

    Each pass over the source has a new order; a batch may hold the end of one pass and the start of
    the next. The batch of a step is a function of (seed, step, batch_size) alone, and `rows` only
    chooses which part of it is loaded.

    Args:
      source: of `open_source`.
      batch_size: rows of a whole batch.
      image_size: side of the square crops, in pixels.
      seed: of order, crops and mirroring; not negative.
      start_step: the first step, from 0; nothing before it is read.
      num_steps: how many batches to give; None for no end.
      rows: which rows of each batch to load, ascending, as `bvit.sharding.local_rows` says for a
        process; None: all.
      scale: range of a crop's share of the area of its image, within (0, 1].
      flip: whether to mirror half of the crops.
      num_workers: processes that make batches; 0: threads of this one.
      num_threads: threads that make batches, in this process or in each worker; None: one for each
        core, but one in a worker. OpenCV is set to use no threads of its own.
      on_error: "raise", or "skip": the next readable record replaces an unreadable one, which is
        counted in `Batches.skipped`.

    Returns:
      An iterator of {"image": uint8 [b, s, s, 3], "label": int32 [b], "index": int32 [b] (of the
      record), "mask": bool [b] (True)}, where b is the number of `rows`; close it after use.

    Raises:
      ValueError: arguments out of range. While iterating: `UnreadableImageError`, naming the file.
    """
    rows = _check(source, batch_size, image_size, rows)
    _check_choice(on_error)
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale must be a range within (0, 1], such as (0.08, 1.0): got {scale}.")
    if seed < 0 or start_step < 0:
        raise ValueError(
            f"seed and start_step must not be negative: got {seed} and {start_step}; use 0 or more."
        )
    # grain's order of pass e is keyed with seed + e: unmixed, the second pass of seed 0 would be
    # the first of seed 1.
    order_seed, crop_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    passes = -(-ENDLESS // len(source))
    order = grain.MapDataset.range(len(source)).shuffle(order_seed).repeat(passes)
    example = _TrainExample(source, image_size, scale, flip, on_error == "skip")
    # random_map keys its generator with the position in the (endless) order: (seed, position).
    batches = _batch(order.random_map(example, seed=crop_seed), batch_size, rows)
    stop = None if num_steps is None else start_step + num_steps
    return Batches(batches[start_step:stop], num_workers, num_threads)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    resize: int | None = None,
    interpolation: str = "bilinear",
    rows: Sequence[int] | None = None,
    num_workers: int = 0,
    num_threads: int | None = None,
    on_error: OnError = "raise",
) -> "Batches":
    """The central crop of every image, each exactly once, in order.

    The last batch is padded with rows whose mask is False, so the number of batches is the same for
    any `rows`.

    Args:
      source: of `open_source`.
      batch_size: rows of a whole batch.
      image_size: side of the square crops, in pixels.
      resize: short side before the crop, in pixels; None: 256/224 times `image_size`.
      interpolation: as in `bvit.data.decode.center_crop`.
      rows: as in `train_batches`.
      num_workers: as in `train_batches`.
      num_threads: as in `train_batches`.
      on_error: "raise", or "skip": the row of an unreadable image has the mask False, and is
        counted in `Batches.skipped`.

    Returns:
      An iterator like that of `train_batches`; "index" is the record's, 0 in rows of padding.

    Raises:
      ValueError: arguments out of range. While iterating: `UnreadableImageError`, naming the file.
    """
    rows = _check(source, batch_size, image_size, rows)
    _check_choice(on_error)
    short_side = round(image_size * RESIZE_RATIO) if resize is None else resize
    if short_side < image_size:
        raise ValueError(
            f"resize, the short side before the crop, must be at least image_size={image_size}: "
            f"got {short_side}."
        )
    padded = -(-len(source) // batch_size) * batch_size
    preprocess = Preprocessing(image_size, short_side, interpolation)
    example = _EvalExample(source, preprocess, on_error == "skip")
    examples = grain.MapDataset.range(padded).map(example)
    return Batches(_batch(examples, batch_size, rows), num_workers, num_threads)


class Batches(Iterator[Batch]):
    """Batches that are made ahead of time, in threads or processes.

    Close it, or use it in a `with` statement, if you stop before its end.

    Attributes:
      skipped: unreadable images that were skipped in the batches so far.
    """

    def __init__(
        self, dataset: grain.MapDataset, num_workers: int, num_threads: int | None
    ) -> None:
        """Sets OpenCV to one thread in this process and in the workers."""
        if num_workers < 0 or (num_threads is not None and num_threads < 1):
            raise ValueError(
                "num_workers must not be negative and num_threads at least 1: got "
                f"{num_workers} and {num_threads}."
            )
        if num_threads is None:
            num_threads = 1 if num_workers else min(MAX_THREADS, os.cpu_count() or 1)
        cv2.setNumThreads(1)
        options = grain.ReadOptions(num_threads, prefetch_buffer_size=num_threads + PREFETCH)
        batches = dataset.to_iter_dataset(options)
        if num_workers:
            # grain reads absl's flags to decide whether to profile its workers, which fails in
            # programs that do not parse flags.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            # The process that frees what workers leave need not report it.
            if IGNORED_WARNING not in sys.warnoptions:
                sys.warnoptions.append(IGNORED_WARNING)
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers), worker_init_fn=_start_worker
            )
        self._batches = iter(batches)
        self.skipped = 0

    def __next__(self) -> Batch:
        """The next batch."""
        batch = next(self._batches)
        self.skipped += int(batch.pop("skipped").sum())
        return batch

    def close(self) -> None:
        """Stops the worker processes and, after their current batches, the threads."""
        self._batches.close()

    def __enter__(self) -> "Batches":
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes it."""
        self.close()


@dataclasses.dataclass(frozen=True)
class _TrainExample(grain.transforms.RandomMap):
    """Record index, generator → example: a random crop."""

    source: Source
    image_size: int
    scale: tuple[float, float]
    flip: bool
    skip: bool

    def random_map(self, index: int, rng: np.random.Generator) -> Example:
        def crop(image: bytes | Pixels) -> Pixels:
            return random_resized_crop(
                image, rng, size=self.image_size, scale=self.scale, flip=self.flip
            )

        for skipped in range(MAX_UNREADABLE if self.skip else 1):
            record = (index + skipped) % len(self.source)
            try:
                return _example(*_read(self.source, record, crop), record, skipped=skipped)
            except UnreadableImageError as error:
                if not self.skip:
                    raise
                _log(error)
        raise UnreadableImageError(
            f"{MAX_UNREADABLE} images in a row can't be read, the first of them "
            f"{self.source.record_name(index)}; check that their disk is mounted."
        )


@dataclasses.dataclass(frozen=True)
class _EvalExample(grain.transforms.Map):
    """Row → example: the central crop of a record, or padding."""

    source: Source
    preprocess: Preprocessing
    skip: bool

    def map(self, row: int) -> Example:
        nothing = np.zeros((*[self.preprocess.image_size] * 2, 3), np.uint8)
        if row >= len(self.source):
            return _example(nothing, 0, 0, mask=False)
        try:
            return _example(*_read(self.source, row, self.preprocess.crop), row)
        except UnreadableImageError as error:
            if not self.skip:
                raise
            _log(error)
            return _example(nothing, 0, row, mask=False, skipped=1)


def _read(
    source: Source, index: int, crop: Callable[[bytes | Pixels], Pixels]
) -> tuple[Pixels, int]:
    """The crop of a record and its label; errors carry the record's name."""
    try:
        record = source[index]
        return crop(record["image"]), record["label"]
    except (UnreadableImageError, OSError) as error:
        raise UnreadableImageError(
            f"{source.record_name(index)}: {error}. Remove or replace the image, or skip such "
            "images with data.on_error=skip."
        ) from error


def _example(
    image: Pixels, label: int, index: int, *, mask: bool = True, skipped: int = 0
) -> Example:
    return {
        "image": image,
        "label": np.int32(label),
        "index": np.int32(index),
        "mask": np.bool_(mask),
        "skipped": np.int32(skipped),
    }


def _log(error: UnreadableImageError) -> None:
    logging.log_first_n(logging.WARNING, "Skipped: %s", NAMED_UNREADABLE, error)


def _start_worker(index: int, count: int) -> None:
    del index, count
    cv2.setNumThreads(1)
    # Ctrl-C goes to the whole group of processes; the one that started the workers ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.end_with_parent()


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The given rows of each whole batch of examples, batch by batch."""

    examples: grain.MapDataset
    batch_size: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.examples) // self.batch_size * len(self.rows)

    def __getitem__(self, index: int) -> Example:
        step, row = divmod(index, len(self.rows))
        return self.examples[step * self.batch_size + self.rows[row]]


def _batch(examples: grain.MapDataset, batch_size: int, rows: tuple[int, ...]) -> grain.MapDataset:
    return grain.MapDataset.source(_Rows(examples, batch_size, rows)).batch(len(rows))


def _check(
    source: Source, batch_size: int, image_size: int, rows: Sequence[int] | None
) -> tuple[int, ...]:
    """Checks the arguments; returns the rows of a batch to load."""
    if not len(source):
        raise ValueError("the source has no records: give it at least one.")
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel: got {image_size}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1: got {batch_size}.")
    rows = tuple(range(batch_size) if rows is None else map(int, rows))
    if not rows or sorted({*rows} & {*range(batch_size)}) != list(rows):
        raise ValueError(
            f"rows must be some of 0 … {batch_size - 1}, ascending, for batch_size={batch_size}: "
            f"got {list(rows)}; None takes all."
        )
    return rows


def _check_choice(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be raise or skip: got {on_error!r}.")
