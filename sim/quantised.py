"""Executes level Q with NumPy, a node at a time: what `hwgen.select` must keep, bit for bit, by `hwgen.numerics`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwgen import numerics as num
from hwgen import patches, qgraph
from hwgen.isa import Convert, Reduce
from hwgen.qgraph import UNIT_ROW, Matrix, QGraph, Ref
from hwgen.walks import taken

Array = np.ndarray
Values = dict[str, Array]


def evaluate(graph: QGraph, images: Values) -> Values:
    """Every value of one image. `images`: ONNX input name -> float [C, H, W]."""
    values = dict(images)
    for node in graph.nodes:
        values[node.name] = NODES[type(node)](node, values)
    return values


def outputs(graph: QGraph, values: Values) -> Values:
    """The ONNX outputs, in float32, from what `evaluate` returned."""
    found = {}
    for o in graph.outputs:
        rows = _rows(o.x, values) * np.float64(graph.values[o.x.value].scale)
        found[o.name] = (rows.T if o.transposed else rows).astype(np.float32).reshape(o.shape)
    return found


def _rows(ref: Ref, values: Values) -> Array:
    return values[ref.value][ref.row : ref.row + ref.rows]


def _converted(x: Array, convert: Convert) -> tuple[Array, Array, Array]:
    """int8 operand of int16 rows, each row's multiplier (none for STATIC) and the exponent that goes with it."""
    none = np.zeros(len(x), np.int64)
    if convert == Convert.STATIC:
        return num.quantise_static(x), none, none
    if convert == Convert.ROW:
        return *num.quantise_rows(x, num.row_max_abs(x)), none
    p = num.probabilities(x, x.max(axis=1))
    return p, *num.reciprocal(p.sum(axis=1))


def _times(x: Array, m: Matrix, convert: Convert, values: Values, gate: Array | None = None) -> Array:
    """int16 [R, N] of int16 x [R, K]."""
    x8, row, exponent = _converted(x, convert)
    w8, col = m.w, m.col_mult
    if isinstance(w8, Ref):
        w8, scales, _ = _converted(_rows(w8, values), Convert.ROW if col is None else Convert.STATIC)
        col = scales if col is None else col
    if m.row is not None:
        row, exponent = np.broadcast_to(np.int64(m.row), len(x)), np.zeros(len(x), np.int64)
    row = row if gate is None else num.gated_scale(row, gate)
    bias = 0 if m.bias is None else np.asarray(m.bias, np.int64)
    return num.requantise(num.product(x8, w8), np.asarray(col, np.int64), row[:, None], m.shift + exponent[:, None], bias)


def _image(node: qgraph.Image, values: Values) -> Array:
    pixels = patches.pad(values[node.image].astype(np.float64), node.pads)
    return patches.patchify(num.quantise_image(pixels, node.step, node.offset, node.fine), node.patch, node.stride)


def _product(node: qgraph.Product, values: Values) -> Array:
    x = _rows(node.x, values)
    if node.walk is not None:
        x = np.concatenate([taken(x, rows) for rows in node.walk.x_rows()], axis=1)
    y = _times(x, node.matrix, node.convert, values)
    y = y if node.act is None else num.gelu(y, *node.act)
    if node.add is None:
        return y
    whole = _rows(node.add, values).copy()
    rows = slice(node.at, node.at + len(y))
    whole[rows] = num.add_residual(whole[rows], y)
    return whole


def _piece(piece: qgraph.Piece, values: Values) -> Array:
    x = _rows(piece.x, values)
    y = num.window_post(x.astype(np.int64), piece.mult, 0, piece.shift, piece.bias)
    return y if piece.rows is None else taken(y, piece.rows)


def _window(node: qgraph.Window, values: Values) -> Array:
    x = _rows(node.x, values)
    y = np.empty((sum(walk.rows for walk, _, _ in node.parts), x.shape[1]), np.int16)
    for walk, mult, weights in node.parts:
        taps = walk.x_rows()
        total = num.reduce_window(taken(x, taps), weights, taps >= 0 if node.reduce == Reduce.MAX else None)
        y[walk.y_rows()] = num.window_post(total, mult, node.before, node.shift, node.bias)
    return y if node.act is None else num.gelu(y, *node.act)


def _select(node: qgraph.Select, values: Values) -> Array:
    order = num.ranked(_rows(node.scores, values).reshape(-1))
    return _rows(node.x, values)[order[node.first : node.first + node.count]]


def _norm(node: qgraph.Norm, values: Values) -> Array:
    heads = zip(*(np.split(a, node.heads, axis=-1) for a in (_rows(node.x, values), node.gamma, node.beta)), strict=True)
    return np.concatenate([num.layer_norm(*head, node.epsilon, node.centred) for head in heads], axis=1)


def _multiply(node: qgraph.Multiply, values: Values) -> Array:
    x, factor = _rows(node.x, values), _rows(node.factor, values)
    return num.turn(x, factor) if node.pairs else num.multiply(x, factor, node.shift)


def _attention(node: qgraph.Attention, values: Values) -> Array:
    heads = len(node.factors)
    sides = {r: np.split(num.quantise_static(_rows(r, values)), heads, axis=1) for r in (node.q, node.k, *node.low)}
    across = [np.split(_rows(_stationary(node, h), values), node.windows, axis=1) for h in range(heads)]
    found = []
    for w in range(node.windows):
        parts = []
        for h in range(heads):
            bias = node.bias(w, h)
            scores = None if bias is None else _rows(bias, values)
            for q, k, (col, shift) in node.scores(h):
                a, b = (np.split(sides[r][h], node.windows)[w] for r in (q, k))
                more = num.requantise(num.product(a, b), col, UNIT_ROW, shift, 0)
                scores = more if scores is None else num.add_residual(scores, more)
            parts.append(_weighted(scores, node.head(h), across[h][w]))
        found.append(np.concatenate(parts, axis=1))
    return np.concatenate(found)


def _stationary(node: qgraph.Attention, h: int) -> Ref:
    w = node.head(h).w
    assert isinstance(w, Ref)
    return w


def _weighted(scores: Array, m: Matrix, across: Array) -> Array:
    """The softmax of the scores times one window's values [columns, tokens]."""
    x8, row, exponent = _converted(scores, Convert.PROBABILITY)
    col, bias = np.asarray(m.col_mult, np.int64), np.asarray(m.bias, np.int64)
    total = num.product(x8, num.quantise_static(across))
    return num.requantise(total, col, row[:, None], m.shift + exponent[:, None], bias)


def _experts(node: qgraph.Experts, values: Values) -> Array:
    x = _rows(node.x, values)

    def expert(e: int, rows: Array, gate: Array | None = None) -> Array:
        h = num.gelu(_times(rows, node.first[e], Convert.ROW, values), *node.act)
        return _times(h, node.second[e], Convert.ROW, values, gate)

    if node.route is None:
        return np.concatenate([expert(e, rows) for e, rows in enumerate(np.split(x, len(node.first)))])
    y, (experts, scores) = _rows(node.add, values).copy(), values[node.route.value]
    if node.gates is not None:
        dense = np.zeros((len(x), len(node.first)), np.int64)
        np.put_along_axis(dense, experts, num.saturate(scores, num.INT16_MAX), axis=1)
        y = num.add_residual(y, _times(dense.astype(np.int16), node.gates, Convert.STATIC, values))
    for e in node.turns:
        tokens, slot = np.nonzero(experts == e)
        if len(tokens) and node.second[e] is not None:
            y[tokens] = num.add_residual(y[tokens], expert(e, x[tokens], scores[tokens, slot]))
    return y


NODES: dict[type, Callable] = {
    qgraph.Image: _image,
    qgraph.Table: lambda node, values: node.data,
    qgraph.Product: _product,
    qgraph.Stack: lambda node, values: np.concatenate([_piece(piece, values) for piece in node.pieces]),
    qgraph.Join: lambda node, values: np.concatenate([_piece(piece, values) for piece in node.pieces], axis=1),
    qgraph.Select: _select,
    qgraph.Scan: lambda node, values: num.scan(*(_rows(r, values) for r in node.reads()), node.shifts, node.backwards),
    qgraph.Window: _window,
    qgraph.Shift: lambda node, values: num.add_residual(_rows(node.x, values), node.bias),
    qgraph.Norm: _norm,
    qgraph.Multiply: _multiply,
    qgraph.Attention: _attention,
    qgraph.Route: lambda node, values: num.route(_rows(node.logits, values), node.top_k, node.renormalise),
    qgraph.Experts: _experts,
}
