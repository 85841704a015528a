"""Operands of attention: channels by head, tokens by window.

Attention within windows is attention among all tokens with a mask: the machine adds a constant to the scores anyhow. The
price is the scores of all pairs of tokens, so that it is for networks of some hundred tokens.
"""

from __future__ import annotations

import numpy as np

from .op import Unsupported
from .symbols import Array, Heads, Scores
from .views import View, need_tensor

# A score this far below the others has no probability left in any number format.
NEVER = -1e4
MOST_TOKENS = 1024  # of windows: their scores are computed among all tokens
SMALLER = f"windows are computed as masks over all tokens, at most {MOST_TOKENS}: use a smaller image or larger patches"


def head_layout(view: View) -> Heads:
    """Read a view [..., T, d] as heads of a [T, D] Sym, or [..., N, d] as heads within windows, heads last."""
    flat = view.positions.reshape(-1, *view.shape[-2:])
    width = view.sym.shape[-1]
    need_tensor(view)
    rows = flat[:, :, 0] // width
    unknown = view.tainted and (rows != rows[0]).any()  # an unsupported node is behind it: whose rows these are is a guess
    if unknown or len(view.sym.shape) != 2 or (flat // width != rows[:, :, None]).any():
        raise Unsupported("an operand is not tokens by channels")
    heads = len(rows)
    if (rows != rows[0]).any():
        heads = int(np.argmax((rows != rows[0]).any(axis=1)))
    columns = flat[:heads, 0, :] % width
    windows = rows[::heads]
    if len(rows) % heads or not np.array_equal(rows, np.repeat(windows, heads, axis=0)):
        raise Unsupported("attends within windows, but not all heads of a window after another")
    if not np.array_equal(flat, rows[..., None] * width + np.tile(columns, (len(windows), 1))[:, None, :]):
        raise Unsupported("an operand is not a split of the channels into heads")
    start, stop = int(rows[0, 0]), int(rows[0, 0]) + rows.shape[1]
    if len(windows) == 1 and np.array_equal(rows[0], np.arange(start, stop)):
        return Heads(view.sym, columns, start, stop)
    _need_partition(windows, view.sym.shape[0])
    return Heads(view.sym, columns, 0, view.sym.shape[0], windows)


def _need_partition(windows: Array, tokens: int) -> None:
    if not np.array_equal(np.sort(windows, axis=None), np.arange(tokens)):
        hint = "let every token attend to all tokens, or cut all of them into windows of equal size"
        raise Unsupported("attends within windows that do not hold every token once", hint)
    if tokens > MOST_TOKENS:
        raise Unsupported(f"attends within windows of {tokens} tokens", SMALLER)


def need_same_windows(a: Heads, b: Heads) -> None:
    """Raise Unsupported where two operands of one product are cut into different windows."""
    if (a.windows is None) != (b.windows is None) or (a.windows is not None and not np.array_equal(a.windows, b.windows)):
        raise Unsupported("attends from one window to another", "let tokens attend to the tokens of their own window")


def bias_of(scores: Scores, scale: float) -> Array | None:
    """What is added to scale * scores, [heads, Tq, Tk], with NEVER between tokens of different windows."""
    bias = None if scores.bias is None else scores.bias * np.float32(scale)
    windows = scores.q.windows
    if windows is None:
        return bias
    tokens, heads = scores.q.stop, scores.shape[1]
    full = np.full((heads, tokens, tokens), NEVER, np.float32)
    for w, rows in enumerate(windows):
        full[:, rows[:, None], rows] = 0.0 if bias is None else bias[w]
    return full
