"""What keys receive of attention, as a score of more than the 7 bits that a probability has.

The array's softmax knows 127 values of a probability, and scores in steps of 1/16 octave. Here every row of scores goes through
it DITHER times, each time moved by another part of such a step, and the probabilities are added: of DITHER times as many values,
which rise with every 16-bit score; each is off by at most half a 127th of the largest.
"""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..isa import Convert, Reduce
from ..numerics import INT16_MAX, WINDOW_VALUE_BITS
from ..walks import window
from .attention import PROBABILITY_ONE
from .builder import Builder, Held, fitting, fraction, own_scale, piece, plain
from .products import SCORE, check_logits
from .scales import quantise_weights

DITHER = 16
ONE = 2.0**-14  # step of a probability: 1 keeps a bit of room


def received(b: Builder, node: fg.Received) -> None:
    """Softmax of each row of x, all rows added."""
    x = plain(b, node.x)
    rows, columns = b.shapes[node.x]
    check_logits(b, node, x)
    weights = quantise_weights(np.eye(columns), 1 / PROBABILITY_ONE, ONE, None)
    fields = {"layer": node.name, "source": node.source}
    made = q.Product(b.name(f"{node.name}.softmax"), _moved(b, node, x), weights, Convert.PROBABILITY, **fields)
    ref = b.emit(made, rows * DITHER, columns, ONE)
    scale = own_scale(b, node, 0.0)
    bits = int(np.ceil(np.log2(rows * DITHER * INT16_MAX))) + 1
    before = max(0, bits - WINDOW_VALUE_BITS)
    ratio = ONE / DITHER * 2.0**before / scale
    total = _sum(b, node, node.name, ref, (rows, DITHER), (rows, DITHER), ratio, before)
    b.held[node.name] = Held(b.emit(total, 1, columns, scale, value=node.name), scale)


def _moved(b: Builder, node: fg.Received, x: Held) -> q.Ref:
    """Each row DITHER times in score steps, moved by parts of a step that are 0 in the mean: [rows * DITHER, columns]."""
    rows, columns = b.shapes[node.x]
    parts = (np.arange(DITHER) + 0.5) / DITHER - 0.5
    table = np.broadcast_to(np.rint(parts * (SCORE / float(x.scale)))[:, None], (DITHER, columns))
    offsets = Held(b.table(f"{node.name}.parts", table, x.scale, node.source), x.scale)
    pieces = (
        piece(b, x, x.scale, None, np.repeat(np.arange(rows), DITHER)),
        piece(b, offsets, x.scale, None, np.tile(np.arange(DITHER), rows)),
    )
    count = rows * DITHER
    ref = b.emit(q.Stack(b.name(f"{node.name}.copies"), pieces, source=node.source), 2 * count, columns, x.scale)
    made = _sum(b, node, f"{node.name}.scores", ref, (2, count), (2, 1), float(x.scale) / SCORE)
    return b.emit(made, count, columns, SCORE)


def _sum(
    b: Builder, node: fg.Node, name: str, x: q.Ref, size: tuple[int, int], kernel: tuple[int, int], ratio: float, before: int = 0
) -> q.Window:
    """Sums of rows that lie as a map of `size`, times `ratio`; 2^-before of a sum fits WINDOW_VALUE_BITS."""
    columns, shift = b.made.values[x.value].cols, fraction(ratio)
    mult = np.full(columns, round(np.ldexp(ratio, shift)))
    walk, zero = fitting(node, window(size, kernel)), np.zeros(columns, np.int16)
    return q.Window(b.name(name), x, (walk,), (mult,), zero, Reduce.SUM, None, before, shift, layer=node.name, source=node.source)
