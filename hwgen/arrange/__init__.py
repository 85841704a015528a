"""Passes over integer graphs that change no result, only how fast the machine gives it and how much room it takes:
batches, row blocks, token blocks, order."""

from .batch import batched
from .blocks import row_blocks
from .order import Timing, reorder
from .token_blocks import Limits, token_blocks

__all__ = ["Limits", "Timing", "batched", "reorder", "row_blocks", "token_blocks"]
