"""Data sets and their batches: from files to uint8 arrays on the host."""

import importlib
from typing import TYPE_CHECKING, Any

from bvit.data.decode import UnreadableImageError
from bvit.data.sources import Source, have_common_records, open_source

if TYPE_CHECKING:
    from bvit.data.pipeline import Batch, Batches, eval_batches, train_batches

__all__ = [
    "Batch",
    "Batches",
    "Source",
    "UnreadableImageError",
    "eval_batches",
    "have_common_records",
    "open_source",
    "train_batches",
]


def __getattr__(name: str) -> Any:
    """What needs grain, which takes half a second to load and prediction does without."""
    if name in __all__:
        return vars(importlib.import_module("bvit.data.pipeline"))[name]
    raise AttributeError(f"module 'bvit.data' has no attribute {name!r}")
