"""Data sets and their batches: from files to uint8 arrays on the host."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bvit.data.decode import UnreadableImageError
    from bvit.data.pipeline import Batch, Batches, eval_batches, train_batches
    from bvit.data.sources import Source, have_common_records, open_source

# The module of each name. They load when they are first used: grain takes half a second, which
# prediction does without, and published weights are converted without a decoder.
_MODULES = {
    "Batch": "pipeline",
    "Batches": "pipeline",
    "Source": "sources",
    "UnreadableImageError": "decode",
    "eval_batches": "pipeline",
    "have_common_records": "sources",
    "open_source": "sources",
    "train_batches": "pipeline",
}

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
    """Loads the module of a public name."""
    if name in _MODULES:
        return vars(importlib.import_module(f"bvit.data.{_MODULES[name]}"))[name]
    raise AttributeError(f"module 'bvit.data' has no attribute {name!r}")
