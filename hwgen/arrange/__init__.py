"""Passes over integer graphs that change no result, only how fast the machine gives it: batches, row blocks, order."""

from .batch import batched
from .blocks import row_blocks
from .order import Timing, reorder

__all__ = ["Timing", "batched", "reorder", "row_blocks"]
