"""Float graph -> level Q of one task, node by node."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..errors import UserError
from ..isa import Convert
from ..numerics import INT16_MAX
from ..qgraph import UNIT_ROW, QGraph, verify
from . import maps, products, static
from .attention import attention
from .builder import LOGIT_RANGE, Builder, Held, chosen, clip, linear, linear_need, moved, own_scale, plain
from .experts import experts, experts_need
from .hard import hard, step
from .hidden import COARSER, activation, multiply
from .legal import Legal
from .norm import norm
from .options import Quantisation
from .plan import Plan, describe, product_side
from .received import received
from .scales import OutOfRange, quantise_weights, smallest_out_scale
from .scan import scan
from .soft import combine, dispatch, mean, slot_experts

Array = np.ndarray


def lower(legal: Legal, plan: Plan, task: str, options: Quantisation, wide: set[str]) -> QGraph:
    """The verified level-Q graph; `wide`: see `sensitive`. Raises UserError for a network that the machine cannot do."""
    graph = legal.graph
    exact, fine = legal.exact | wide, legal.fine | wide
    b = Builder(graph, plan, legal.stats, fg.shapes(graph), options, QGraph({}, [], [], task), exact, fine, wide)
    for node in plan.nodes.values():
        if node.name in plan.alone:
            try:
                _lower(b, node)
            except OutOfRange as error:
                raise UserError(f"{describe(node)}: {error}") from None
    b.made.outputs += [_output(b, o) for o in graph.outputs]
    b.made.trace |= {name: b.made.trace[x] for name, x in legal.aliases.items() if x in b.made.trace}
    verify(b.made)
    return b.made


def _lower(b: Builder, node: fg.Node) -> None:
    match node:
        case fg.PatchEmbed() | fg.Conv():
            static.alone(b, node)
        case fg.Embed():
            _embed(b, node)
        case fg.LayerNorm():
            norm(b, node)
        case fg.Linear():
            _linear_alone(b, node)
        case fg.Activation():
            _activation(b, node)
        case fg.Clip():
            clip(b, node)
        case fg.Multiply():
            multiply(b, node)
        case fg.Rotate():
            products.rotate(b, node)
        case fg.Mean():
            mean(b, node)
        case fg.Gather():
            maps.gather(b, node)
        case fg.Select():
            maps.select(b, node)
        case fg.Join():
            maps.join(b, node)
        case fg.Stack():
            maps.stack(b, node)
        case fg.Window():
            maps.window(b, node)
        case fg.Resample():
            maps.resample(b, node)
        case fg.Attention():
            attention(b, node)
        case fg.Add():
            _add(b, node)
        case fg.Experts():
            need = experts_need(b, node)
            scale, shape = own_scale(b, node, need), b.shapes[node.name]
            zero = b.table(f"{node.name}.zero", np.zeros(shape), scale, node.source)
            b.held[node.name] = experts(b, node, zero, scale, node.name)
        case fg.Dispatch():
            dispatch(b, node)
        case fg.SlotExperts():
            slot_experts(b, node)
        case fg.Combine():
            combine(b, node)
        case fg.Product():
            products.product(b, node)
        case fg.Transpose():
            products.transpose(b, node)
        case fg.Ratio():
            products.ratio(b, node)
        case fg.Scan():
            scan(b, node)
        case fg.Step():
            step(b, node)
        case fg.Hard():
            hard(b, node)
        case fg.Received():
            received(b, node)
        case fg.Softmax():
            products.softmax(b, node)
        case fg.Rows(x=x, start=start, stop=stop):
            held, of = b.held[x], slice(start - b.held[x].first_row, stop - b.held[x].first_row)
            scale = held.scale[of] if np.ndim(held.scale) == 2 else held.scale
            b.held[node.name] = replace(held, ref=held.ref.part(of.start, stop - start), scale=scale, first_row=0)
        case fg.Route():
            raise UserError(f"{describe(node)}: a routing can only be used by experts")


# --- embedding ---------------------------------------------------------------------------------------------------


def _embed(b: Builder, node: fg.Embed) -> None:
    """Constant tokens and positions are a table, to which the patches' or another layer's product is added."""
    source, prefix = b.plan.nodes[node.x], len(node.prefix)
    table = np.array(np.broadcast_to(node.position, b.shapes[node.name]), np.float64)
    table[:prefix] += node.prefix
    if isinstance(source, fg.PatchEmbed):
        x, step, offset = static.image(b, source)
        weight, bias = static.patch_weights(source, offset)
        table[prefix : prefix + x.rows] += bias
        need = float(smallest_out_scale(weight, step, None, UNIT_ROW).max())
    else:
        need = linear_need(b, source)
    scale = own_scale(b, node, max(need, float(np.abs(table).max()) / INT16_MAX))
    base = b.table(f"{node.name}.table", np.rint(table / scale), scale, node.source)
    if not isinstance(source, fg.PatchEmbed):
        b.held[node.name] = linear(b, source, scale, node.name, base, prefix)
        return
    weights = quantise_weights(weight, step, scale, None, UNIT_ROW)
    fields = {"layer": source.name, "source": source.source}
    product = q.Product(b.name(node.name), x, weights, Convert.STATIC, add=base, at=prefix, **fields)
    b.held[node.name] = Held(b.emit(product, *table.shape, scale, value=node.name), scale)


# --- rows by rows ------------------------------------------------------------------------------------------------


def _linear_alone(b: Builder, node: fg.Linear) -> None:
    if node.name in b.plan.logits:
        node = _logits_in_range(b, node)
    scale, offset = chosen(b, node, lambda o: linear_need(b, node, o))
    b.held[node.name] = linear(b, node, scale, node.name, offset=offset)


def _logits_in_range(b: Builder, node: fg.Linear) -> fg.Linear:
    """The router's layer, moved by a constant where its logits leave the machine's range.

    Routing does not see a constant added to all logits of a token, nor what becomes of logits far below the chosen.
    """
    chosen, seen = b.stats.chosen[node.name], b.stats.values[node.name]
    low, high = float(chosen.low[0]), float(chosen.high[0])
    whole = float(seen.magnitude().max())
    free = all(isinstance(user, fg.Route) for user in b.plan.readers(node.name)) and node.name not in b.plan.outputs
    if whole <= LOGIT_RANGE / 2 or (whole <= LOGIT_RANGE and not free):
        return node
    if not free or (high - low) / 2 > 0.9 * LOGIT_RANGE:
        reach = f"{low:.1f} to {high:.1f}, the machine holds +-{LOGIT_RANGE:.1f}"
        raise UserError(f"{describe(node)}: the router's chosen logits reach from {reach}")
    bias = np.zeros(len(node.weight)) if node.bias is None else np.asarray(node.bias, np.float64)
    centre = (low + high) / 2
    never = seen.high - centre < -LOGIT_RANGE / 2  # experts that are masked out by a bias of any size
    return replace(node, bias=np.where(never, np.maximum(bias - centre, -LOGIT_RANGE), bias - centre))


def _activation(b: Builder, node: fg.Activation) -> None:
    match b.plan.nodes[node.x]:
        case fg.Window() as source:
            maps.activated(b, node, source)
        case fg.Conv() | fg.PatchEmbed() as source:
            static.activated(b, node, source)
        case _:
            activation(b, node)


def _add(b: Builder, node: fg.Add) -> None:
    """The product is added to the stored operand, which is brought to the sum's scale first where its own is another."""
    name, stored = product_side(b.plan.nodes, node) or ("", "")
    product, old = b.plan.nodes[name], b.held[stored]
    made = static.static(b, product) if isinstance(product, fg.Conv) else None
    if made is not None:
        need = made.need()
    else:
        need = experts_need(b, product) if isinstance(product, fg.Experts) else linear_need(b, product)
    scale = own_scale(b, node, need)
    shared = b.plan.scales.get(b.plan.roots[stored])
    if old.common and (shared == b.plan.scales.get(node.name) or (shared is None and old.scale <= COARSER * scale)):
        scale = max(scale, float(old.scale))  # the operand needed more than its neighbours, or has steps of its own
    old = moved(b, stored, scale)
    if made is not None:
        b.held[node.name] = made.emit(b, node.name, scale, add=old)
    elif isinstance(product, fg.Experts):
        b.held[node.name] = replace(experts(b, product, old.ref, scale, node.name), first_row=old.first_row)
    else:
        b.held[node.name] = replace(linear(b, product, scale, node.name, old.ref), first_row=old.first_row)


def _output(b: Builder, output: fg.Output) -> q.Output:
    if output.value not in b.held:
        raise UserError(f"output {output.name!r}: {output.value!r} cannot be an output of the machine")
    return q.Output(output.name, plain(b, output.value).ref, tuple(output.shape), output.transposed)
