"""The input pipeline on JPEG files, beside Pillow in threads and torch's DataLoader."""

import contextlib
import functools
import itertools
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bvit import data
from bvit.benchmarks import torch_peers
from bvit.benchmarks.harness import Case, Function, Unavailable, cpu_cores
from bvit.data.decode import ASPECT_RATIO, draw_box

BATCH, SIZE = 32, 224
# Files, and different images among them: grain takes long to shuffle a few hundred.
FILES, PICTURES = 4096, 256
# Batches that fill the queues before the clock starts, and those that are timed.
WARM, TIMED = 4, 16
SCALE = (0.08, 1.0)
# ImageNet's usual size, and files that were made smaller once for all; as (height, width).
SHAPES = ((375, 500), (224, 224))
QUALITY = 95
# Colour photographs in scikit-image's wheel.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def cases(folder: Path) -> Iterator[Case]:
    """All rows of the suite; the files that are read are written to that folder first."""
    for height, width in SHAPES:
        root = folder / f"{width}x{height}"
        write_files(root, (height, width))
        name = f"{BATCH} crops of {SIZE}² from JPEGs of {width}×{height}"
        run = functools.partial(_bvit_seconds, root)
        threads = functools.partial(_pillow_seconds, root)
        yield Case("data", name, run, f"Pillow in {cpu_cores()} threads", threads)
        loader, why = None, ""
        try:
            loader = _torch_seconds(root)
        except Unavailable as reason:
            why = str(reason)
        peer = f"torchvision in torch's DataLoader, {cpu_cores()} processes"
        yield Case("data", name, run, peer, loader, why=why)


def write_files(root: Path, shape: tuple[int, int]) -> None:
    """Writes crops of photographs as JPEGs of that size, into class folders."""
    import skimage.data

    photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        label = i % len(photographs)
        photograph = photographs[label]
        box = draw_box(*photograph.shape[:2], rng, scale=(0.5, 1.0), ratio=ASPECT_RATIO)
        top, left, height, width = box
        crop = np.ascontiguousarray(photograph[top : top + height, left : left + width])
        pixels = cv2.resize(crop, shape[::-1], interpolation=cv2.INTER_CUBIC)
        file = root / "train" / PHOTOGRAPHS[label] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, quality=QUALITY)
        for copy in range(PICTURES + i, FILES, PICTURES):
            file.with_name(f"{copy}.jpg").hardlink_to(file)
        if not (root / "val" / PHOTOGRAPHS[label]).exists():
            (root / "val" / PHOTOGRAPHS[label]).mkdir(parents=True)
            Image.fromarray(pixels).save(root / "val" / PHOTOGRAPHS[label] / "0.jpg")


def seconds_a_batch(batches: Iterable[object]) -> float:
    """How long a batch takes once the queues are full."""
    batches = iter(batches)
    for _ in itertools.islice(batches, WARM):
        pass
    began = time.perf_counter()
    count = sum(1 for _ in itertools.islice(batches, TIMED))
    return (time.perf_counter() - began) / count


def _bvit_seconds(root: Path) -> float:
    source = data.open_source("folder", split="train", dir=root)
    options = {"batch_size": BATCH, "image_size": SIZE, "seed": 0, "scale": SCALE}
    with data.train_batches(source, **options) as batches:
        return seconds_a_batch(batches)


def _pillow_seconds(root: Path) -> float:
    tasks = zip(itertools.cycle(sorted(root.glob("train/*/*.jpg"))), itertools.count())
    with ThreadPoolExecutor(cpu_cores()) as pool:
        batches = _pillow_batches(pool, tasks)
        with contextlib.closing(batches):
            return seconds_a_batch(batches)


def _pillow_batches(pool: ThreadPoolExecutor, tasks: Iterator) -> Iterator[np.ndarray]:
    """Batches without end; the crops of the next two are under way while one is given out."""

    def start() -> list[Future]:
        return [pool.submit(pillow_crop, *task) for task in itertools.islice(tasks, BATCH)]

    under_way = [start(), start()]
    try:
        while True:
            under_way.append(start())
            yield np.stack([crop.result() for crop in under_way.pop(0)])
    finally:
        for crop in itertools.chain(*under_way):
            crop.cancel()


def pillow_crop(file: Path, seed: int) -> np.ndarray:
    """RandomResizedCrop and flip as torchvision does them to Pillow's images."""
    rng = np.random.default_rng(seed)
    with Image.open(file) as picture:
        mirror = rng.random() < 0.5
        box = draw_box(picture.height, picture.width, rng, scale=SCALE, ratio=ASPECT_RATIO)
        top, left, height, width = box
        crop = picture.convert("RGB").crop((left, top, left + width, top + height))
        crop = crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else crop)


def _torch_seconds(root: Path) -> Function:
    torch, torchvision = torch_peers.load("torch"), torch_peers.load("torchvision")
    steps = torchvision.transforms
    crop = [steps.RandomResizedCrop(SIZE, scale=SCALE), steps.RandomHorizontalFlip()]
    pictures = torchvision.datasets.ImageFolder(
        root / "train", steps.Compose([*crop, steps.PILToTensor()])
    )

    # JAX has threads, which a plain fork of this process would lose hold of.
    loader = torch.utils.data.DataLoader(
        pictures,
        batch_size=BATCH,
        sampler=torch.utils.data.RandomSampler(
            pictures, replacement=True, num_samples=(WARM + TIMED) * BATCH
        ),
        num_workers=cpu_cores(),
        multiprocessing_context="forkserver",
        persistent_workers=True,
    )
    return lambda: seconds_a_batch(loader)
