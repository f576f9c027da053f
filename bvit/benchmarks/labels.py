"""A published ViT from files to labels, as `bvit.predict` reads and classifies, beside timm."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bvit import models
from bvit.benchmarks import apart, pipelines, torch_peers
from bvit.benchmarks.harness import Case, Unavailable
from bvit.data.listing import Photograph, read_ahead
from bvit.data.preprocessing import by_name
from bvit.evaluation.predictions import Predictor
from bvit.tokens import parse

NAME, SIZE, BATCH = "deit_tiny_patch16_224", 224, 32
FILES = 448
WORKERS = 2
POLICIES = ("keep", "cluster:0.5", "tome:0.5")


def cases(folder: Path) -> Iterator[Case]:
    """All rows of the suite; the files that are read are written to that folder first."""
    height, width = pipelines.SHAPES[0]
    pipelines.write_files(folder, (height, width))
    ours = apart.start(POLICIES, _predictors, sorted(folder.glob("train/*/*.jpg"))[:FILES])
    theirs, why = None, ""
    try:  # in this process, which may start those of the DataLoader
        theirs = torch_peers.labels(NAME, folder / "train", FILES, BATCH, WORKERS)
    except Unavailable as reason:
        why = str(reason)
    for policy, run in zip(POLICIES, ours, strict=True):
        yield Case(
            "predict",
            f"labels of {FILES} JPEGs of {width}×{height}, {NAME}, {policy}",
            run,
            f"timm, torch's DataLoader, {WORKERS} processes",
            theirs,
            why=why,
            images=FILES,
            group="predict",
        )


def _predictors(files: Sequence[Path]) -> apart.Peers:
    """Each policy labels the files; random weights take as long as published ones."""
    preprocess = by_name(NAME, "", SIZE)
    model = models.create(NAME, num_classes=torch_peers.CLASSES, image_size=SIZE)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))

    def label(predictor: Predictor) -> None:
        answers = None
        for group in read_ahead(map(str, files), BATCH, preprocess):
            pixels = np.stack([one.crop for one in group if isinstance(one, Photograph)])
            before, answers = answers, predictor.begin(pixels, 0)
            if before:
                before()
        if answers:
            answers()

    predictors = {
        name: Predictor(
            model,
            variables,
            parse(name),
            image_size=SIZE,
            mean=preprocess.mean,
            std=preprocess.std,
            batch_size=BATCH,
        )
        for name in POLICIES
    }
    functions = {name: functools.partial(label, one) for name, one in predictors.items()}
    return apart.Peers(functions, lambda: None, in_bursts=False)
