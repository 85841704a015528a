"""Float graph -> integer graph of one task, node by node."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .. import graph as fg
from ..errors import UserError
from ..intgraph import Constant, Input, IntGraph, Norm, Output, RowMax, View, verify
from ..numerics import INT8_MAX, INT16_MAX, STATIC_SHIFT
from . import tokens
from .attention import attention
from .builder import (
    EPSILON_MAX,
    LOGIT_SCALE,
    Builder,
    Held,
    centred,
    copy,
    equalised,
    linear,
    linear_need,
    own_scale,
    read_by_array,
    static_product,
    wide_scale,
)
from .calibrate import Stats
from .experts import experts, experts_need
from .hidden import activation, multiply
from .options import Quantisation
from .plan import NEVER, describe, plan, product_side
from .scales import UNIT_ROW, ScaleTooSmall, quantise_weights, smallest_out_scale
from .soft import combine, dispatch, slot_experts

Array = np.ndarray
LOGIT_RANGE = LOGIT_SCALE * INT16_MAX


def stream_scale(graph: fg.Graph, stats: Stats) -> float:
    """Step of the residual stream as far as the calibrated values ask for it."""
    return max((wide_scale(stats.values[name].magnitude()) for name in plan(graph).stream), default=0.0)


def lower(graph: fg.Graph, stats: Stats, scale: float, task: str, options: Quantisation) -> IntGraph:
    """The verified integer graph; `scale` is the step of the residual stream.

    Raises UserError for a network that the machine cannot do, ScaleTooSmall where `scale` is.
    """
    b = Builder(graph, plan(graph), stats, scale, fg.shapes(graph), options)
    for i, node in enumerate(b.plan.nodes.values()):
        if node.name in b.plan.alone:
            try:
                _lower(b, node, i)
            except ScaleTooSmall as error:
                error.node = node
                raise
    result = b.finish([_output(b, o) for o in graph.outputs], task)
    verify(result)
    return result


def _lower(b: Builder, node: fg.Node, moment: int) -> None:
    match node:
        case fg.PatchEmbed():
            _patches_alone(b, node)
        case fg.Embed():
            _embed(b, node)
        case fg.LayerNorm():
            _norm(b, node)
        case fg.Linear():
            _linear_alone(b, node)
        case fg.Gelu() | fg.Silu() | fg.Relu():
            activation(b, node)
        case fg.Multiply():
            multiply(b, node)
        case fg.Rotate():
            raise UserError(f"{describe(node)}: rotary positions can only be used by attention")
        case fg.Mean():
            tokens.mean(b, node)
        case fg.Attention():
            attention(b, node)
        case fg.Add():
            _add(b, node, moment)
        case fg.Experts():
            _experts_alone(b, node)
        case fg.Dispatch():
            dispatch(b, node)
        case fg.SlotExperts():
            slot_experts(b, node)
        case fg.Combine():
            combine(b, node)
        case fg.Rows(x=x, start=start, stop=stop):
            held = b.held[x]
            view = held.view
            view = View(view.buffer, view.row + start - held.first_row, stop - start, view.col, view.cols)
            b.held[node.name] = Held(view, held.scale, held.offset, held.row_max)
        case fg.Route():
            raise UserError(f"{describe(node)}: a routing can only be used by experts")


# --- embedding ---------------------------------------------------------------------------------------------------


def _image(b: Builder, node: fg.PatchEmbed) -> tuple[View, float, float]:
    """Emit the quantised patches [patches, C*ph*pw]; their view, step and offset."""
    pixels = b.stats.values[node.image]
    low, high = float(pixels.low[0]), float(pixels.high[0])
    if any(node.pads):
        low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 2 / INT8_MAX * float(np.max(b.stats.part(node.image))) or max(abs(high), 1.0) / INT8_MAX
    offset = (low + high) / 2
    shape, patch = b.graph.inputs[node.image], node.weight.shape[2:]
    rows, cols = b.shapes[node.name][0], int(np.prod(node.weight.shape[1:]))
    out = b.buffer(f"{node.name}.patches", rows, cols, scale=step / (1 << STATIC_SHIFT))
    name = b.op_name(f"{node.name}.image")
    cut = {"stride": node.stride, "pads": node.pads}
    b.emit(Input(name, out, node.image, tuple(shape), tuple(patch), step, offset, node.source, **cut))
    return out, step, offset


def _patch_weights(node: fg.PatchEmbed, offset: float) -> tuple[Array, Array]:
    """Weight [D, K] and bias [D] with the image's offset folded in."""
    weight = np.asarray(node.weight, np.float64).reshape(len(node.weight), -1)
    return weight, weight.sum(axis=1) * offset + (0.0 if node.bias is None else node.bias)


def _embed(b: Builder, node: fg.Embed) -> None:
    patches = b.plan.nodes[node.x]
    if not isinstance(patches, fg.PatchEmbed):
        return tokens.embed(b, node)
    x, step, offset = _image(b, patches)
    weight, bias = _patch_weights(patches, offset)
    prefix = len(node.prefix)
    table = np.array(np.broadcast_to(node.position, b.shapes[node.name]), np.float64)
    table[:prefix] += node.prefix
    table[prefix : prefix + x.rows] += bias
    peak = float(np.abs(table).max()) / INT16_MAX
    need = max(peak, float(smallest_out_scale(weight, step, None, UNIT_ROW).max()))
    if need > b.stream_scale:
        raise ScaleTooSmall(need)
    out = b.buffer(node.name, *table.shape, scale=b.stream_scale)
    table = np.rint(table / b.stream_scale).astype(np.int16)
    b.emit(Constant(b.op_name(f"{node.name}.table"), out, table, node.source))
    q = quantise_weights(weight, step, b.stream_scale, None, UNIT_ROW)
    rows = View(out.buffer, prefix, x.rows, 0, out.cols)
    op = static_product(b, patches.name, rows, x, q, residual=rows, source=patches.source)
    b.trace[node.name] = out, op.name
    b.held[node.name] = Held(out, b.stream_scale)


def _patches_alone(b: Builder, node: fg.PatchEmbed) -> None:
    x, step, offset = _image(b, node)
    weight, bias = _patch_weights(node, offset)
    scale = own_scale(b, node, float(smallest_out_scale(weight, step, bias, UNIT_ROW).max()))
    q = quantise_weights(weight, step, scale, bias, UNIT_ROW)
    out = b.buffer(node.name, *b.shapes[node.name], scale=scale)
    static_product(b, node.name, out, x, q, node.name, row_max=RowMax.ABS, source=node.source)
    b.held[node.name] = Held(out, scale, row_max=True)


# --- rows by rows ------------------------------------------------------------------------------------------------


def _norm(b: Builder, node: fg.LayerNorm) -> None:
    """Only the rows that are read. Where matrices alone read it, its columns are centred and their ranges evened out."""
    if node.heads > 1:
        raise UserError(f"{describe(node)}: a norm of each head can only be used by attention")
    x = b.held[node.x]
    if np.ndim(x.scale) or x.offset is not None:
        raise UserError(f"{describe(node)}: {node.x!r} has no common scale")
    start, stop = 0, x.view.rows
    users = b.plan.users.get(node.name, [])
    if users and all(isinstance(u, fg.Rows) for u in users) and node.name not in {o.value for o in b.graph.outputs}:
        start = min(u.start for u in users) - x.first_row
        stop = max(u.stop for u in users) - x.first_row
    view = View(x.view.buffer, x.view.row + start, stop - start, x.view.col, x.view.cols)

    gamma, beta = np.asarray(node.gamma, np.float64), np.asarray(node.beta, np.float64)
    need = float(max(np.abs(gamma).max(), np.abs(beta).max())) / INT16_MAX
    offset, factors = None, 1.0
    if node.name in b.plan.stream:
        scale = b.stream_scale
        if need > scale:
            raise ScaleTooSmall(need)
    elif b.plan.only_multiplied(node.name) and all(
        isinstance(user, fg.Linear | fg.Experts) for user in b.plan.readers(node.name)
    ):
        offset, factors = centred(b, node.name), equalised(b, node.name)
        gamma, beta = gamma / factors, (beta - offset) / factors
        need = float(max(np.abs(gamma).max(), np.abs(beta).max())) / INT16_MAX
        scale = max(wide_scale(b.stats.values[node.name].magnitude(offset) / factors), need)
        b.offsets[node.name] = offset
    else:
        scale = max(wide_scale(b.stats.values[node.name].magnitude()), need)
    columns = b.shapes[node.name][1]
    epsilon = round(node.epsilon * columns**2 / x.scale**2)
    if epsilon > EPSILON_MAX:
        raise ScaleTooSmall(x.scale * (epsilon / EPSILON_MAX) ** 0.5 * 1.001)
    real = scale * factors
    out = b.buffer(node.name, view.rows, columns, scale=real if np.ndim(real) == 0 else real[None])
    b.emit(
        Norm(
            b.op_name(node.name),
            out,
            view,
            np.rint(gamma / scale).astype(np.int16),
            np.rint(beta / scale).astype(np.int16),
            max(epsilon, 1),
            node.source,
            node.centred,
        ),
        node.name if view.rows == b.shapes[node.name][0] else None,
    )
    b.held[node.name] = Held(out, real, offset, row_max=True, first_row=x.first_row + start)


def _linear_alone(b: Builder, node: fg.Linear) -> None:
    if node.name in b.plan.logits:
        node = _logits_in_range(b, node)
    scale = own_scale(b, node, linear_need(b, node))
    x = b.held[node.x]
    out = b.buffer(node.name, x.view.rows, len(node.weight), scale=scale)
    row_max = RowMax.ABS if read_by_array(b, node.name) else RowMax.NONE
    linear(b, node, out, scale, node.name, row_max=row_max)
    b.held[node.name] = Held(out, scale, row_max=row_max == RowMax.ABS, first_row=x.first_row)


def _logits_in_range(b: Builder, node: fg.Linear) -> fg.Linear:
    """The router's layer, moved by a constant where its logits leave the machine's range.

    Routing does not see a constant added to all logits of a token, nor what becomes of logits far below the chosen.
    """
    chosen, seen = b.stats.chosen[node.name], b.stats.values[node.name]
    low, high = float(chosen.low[0]), float(chosen.high[0])
    whole = float(seen.magnitude().max())
    free = (
        all(isinstance(user, fg.Route) for user in b.plan.readers(node.name)) and b.plan.last_read[node.name] != NEVER
    )
    if whole <= LOGIT_RANGE / 2 or (whole <= LOGIT_RANGE and not free):
        return node
    if not free or (high - low) / 2 > 0.9 * LOGIT_RANGE:
        reach = f"{low:.1f} to {high:.1f}, the machine holds +-{LOGIT_RANGE:.1f}"
        raise UserError(f"{describe(node)}: the router's chosen logits reach from {reach}")
    bias = np.zeros(len(node.weight)) if node.bias is None else np.asarray(node.bias, np.float64)
    centre = (low + high) / 2
    never = seen.high - centre < -LOGIT_RANGE / 2  # experts that are masked out by a bias of any size
    return replace(node, bias=np.where(never, np.maximum(bias - centre, -LOGIT_RANGE), bias - centre))


def _add(b: Builder, node: fg.Add, moment: int) -> None:
    """The product goes into the stored operand: in place where nothing reads that later, else into a new buffer."""
    product, stored = (b.plan.nodes.get(name) for name in product_side(b.plan.nodes, node))
    assert product is not None and stored is not None
    old = b.held[stored.name]
    root = b.plan.roots[stored.name]
    in_place = b.plan.last_read[root] <= moment and b.plan.roots[product.x] != root
    out = old.view if in_place else b.buffer(node.name, old.view.rows, old.view.cols, scale=b.stream_scale)
    row_max = RowMax.NONE
    if isinstance(product, fg.Experts):
        need = experts_need(b, product)
        if need > b.stream_scale:
            raise ScaleTooSmall(need)
        if not in_place:
            copy(b, f"{node.name}.copy", old.view, out)
        experts(b, product, out, b.stream_scale, node.name)
    else:
        need = linear_need(b, product)
        if need > b.stream_scale:
            raise ScaleTooSmall(need)
        row_max = RowMax.ABS if read_by_array(b, node.name) else RowMax.NONE
        linear(b, product, out, b.stream_scale, node.name, residual=old.view, row_max=row_max)
    b.held[node.name] = Held(out, b.stream_scale, row_max=row_max == RowMax.ABS, first_row=old.first_row)


def _experts_alone(b: Builder, node: fg.Experts) -> None:
    scale = own_scale(b, node, experts_need(b, node))
    rows, cols = b.shapes[node.name]
    out = b.buffer(node.name, rows, cols, scale=scale)
    b.emit(Constant(b.op_name(f"{node.name}.zero"), out, np.zeros((rows, cols), np.int16), node.source))
    experts(b, node, out, scale, node.name)
    b.held[node.name] = Held(out, scale)


def _output(b: Builder, output: fg.Output) -> Output:
    held = b.held.get(output.value)
    if held is None or np.ndim(held.scale) or held.offset is not None:
        raise UserError(f"output {output.name!r}: {output.value!r} cannot be an output of the machine")
    return Output(output.name, held.view, float(held.scale), tuple(output.shape), output.transposed)
