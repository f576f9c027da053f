"""Data sets and their batches: from files to uint8 arrays on the host."""

from bvit.data.decode import UnreadableImageError
from bvit.data.pipeline import Batch, Batches, eval_batches, train_batches
from bvit.data.sources import Source, have_common_records, open_source

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
