"""The algebra of a mixture of experts: y[t] = sum over s, e of score[t,s] * mask[t,s,e] * f_e(x)[t].

Exporters write it as batched experts and GatherElements, as Where over masks, as gather and scatter of the tokens of
each expert, or as dense gate weights. All of them multiply the three factors and sum over slots s and experts e in some
order; `Mixture` keeps book of which factors are in and which sums are done, and is complete when all are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..numerics import MAX_EXPERTS, MAX_TOP_K
from .layers import GATED_EXPERT, GATED_HINT, nothing, same_layers, stacked
from .op import Unsupported
from .params import parent
from .symbols import (
    Activated,
    Array,
    Branches,
    Gate,
    Lin,
    Mixed,
    Mixture,
    Phi,
    Product,
    Renormalised,
    SlotSum,
    TopValues,
)
from .views import View, broadcast, reshaped, same_elements, uniform

if TYPE_CHECKING:
    from .emit import Context


def as_mixture(ctx: Context, view: View) -> View:
    """Read scores, masks and expert outputs as parts of a mixture."""
    sym = view.sym
    match sym:
        case Mixture():
            return view
        case Gate():
            part = Mixture(
                logits=sym.logits, score="gate", mask=True, slots=sym.shape[1], shape=(sym.shape[0], 1, sym.shape[1], 1)
            )
            return view.of(part)
        case TopValues(gated=True) | Renormalised():
            kind = "gate" if isinstance(sym, TopValues) else "renormalised"
            return view.of(Mixture(logits=sym.logits, score=kind, ordered=sym.ordered, shape=(*sym.shape, 1, 1)))
        case Lin(x=Product()):
            raise Unsupported(GATED_EXPERT, GATED_HINT)
        case Branches(parts=parts) if any(isinstance(getattr(part.sym, "x", None), Product) for part in parts):
            raise Unsupported(GATED_EXPERT, GATED_HINT)
        case Lin(shape=(tokens, width)):
            view = ctx.plain(view)
            return view.of(Mixture(branches={None: view.sym}, shape=(tokens, 1, 1, width)))
        case Lin(shape=(experts, tokens, width)):
            view = ctx.plain(view)
            e, rest = view.positions // (tokens * width), view.positions % (tokens * width)
            index = (rest // width * experts + e) * width + rest % width
            part = Mixture(stacked=view.sym, shape=(tokens, 1, experts, width))
            return View(part, view.shape, index, tainted=view.tainted)
    raise Unsupported("combines gate scores with something that is no expert's output")


def multiply(ctx: Context, a: View, b: View) -> View:
    """Product of two parts of one shape."""
    a, b = (ctx.plain(v) if isinstance(v.sym, Lin) else v for v in (a, b))
    scale = a.scale * b.scale
    a, b = as_mixture(ctx, a), as_mixture(ctx, b)
    p, q = a.sym, b.sym
    if p.logits is not None and q.logits is not None and p.logits is not q.logits:
        raise Unsupported("combines the gates of different routers")
    if (p.score and q.score) or (has_outputs(p) and has_outputs(q)) or p.cells or q.cells:
        raise Unsupported("multiplies two parts of a mixture of experts that do not belong together")
    coordinates, shape = _aligned(a, b)
    if p.mask and q.mask:
        return replace(_masked_again(a, b), scale=scale)
    if 1 < max(_open_slots(p), _open_slots(q)) and not (p.slots is None and q.slots is None):
        raise Unsupported("weights experts by the scores of slots that are summed already")
    merged = Mixture(
        logits=p.logits or q.logits,
        score=p.score or q.score,
        mask=p.mask or q.mask,
        ordered=p.ordered and q.ordered,
        branches=p.branches or q.branches,
        stacked=p.stacked or q.stacked,
        slots=p.slots if p.slots is not None else q.slots,
        summed=p.summed or q.summed,
        shape=shape,
    )
    if merged.mask and merged.branches and None in merged.branches:
        e = uniform(coordinates[2])
        if e is None:
            raise Unsupported("gives the output of one expert to several")
        merged.branches = {int(e): merged.branches[None]}
        merged.summed = True
        merged.shape = (*shape[:2], 1, shape[3])
        coordinates[2] = np.zeros_like(coordinates[2])
    return replace(placed(merged, coordinates, a.shape), scale=scale)


def _open_slots(m: Mixture) -> int:
    """Over how many slots a factor that depends on them is still to be summed."""
    return m.shape[1] if m.slots is None and (m.score or m.mask) else 1


def _masked_again(a: View, b: View) -> View:
    """Product of two masked parts: one is the mask of the other once more, or cuts the softmax to the chosen experts."""
    for x, y in ((a, b), (b, a)):
        p, q = x.sym, y.sym
        if p.score or has_outputs(p):
            continue
        if q.summed and q.branches is not None and p.shape[2] > 1:
            experts = np.unique(np.unravel_index(x.positions, p.shape)[2])
            if set(experts) != set(q.branches):
                continue
        same = p.slots == q.slots and p.shape[1] == q.shape[1]
        if same or {p.slots, q.slots} == {None, 1} and p.shape[1] == q.shape[1] == 1:
            return y
        slots = 1 if p.slots is None and p.shape[1] == 1 else p.slots
        if q.score == "gate" and q.slots == q.logits.shape[-1] and slots is not None:
            return y.of(replace(q, slots=slots))
    raise Unsupported("multiplies two parts of a mixture of experts that do not belong together")


def has_outputs(m: Mixture) -> bool:
    """True where experts' outputs are a factor."""
    return m.branches is not None or m.stacked is not None


def _aligned(a: View, b: View) -> tuple[list[Array], tuple[int, ...]]:
    """Coordinates (t, s, e, d) of the product of two views of one shape, and the shape of their space."""
    ca, cb = (list(np.unravel_index(v.positions, v.sym.shape)) for v in (a, b))
    coordinates, shape = [], []
    for axis, name in enumerate(("tokens", "slots", "experts", "channels")):
        n, m = a.sym.shape[axis], b.sym.shape[axis]
        if n > 1 and m > 1 and not np.array_equal(ca[axis], cb[axis]):
            raise Unsupported(f"combines gate and experts of different {name}")
        coordinates.append(ca[axis] if n >= m else cb[axis])
        shape.append(max(n, m))
    return coordinates, tuple(shape)


def placed(sym: Mixture, coordinates: list[Array], shape: tuple[int, ...]) -> View:
    """View of `shape` on the given coordinates (t, s, e, d) of a mixture."""
    return View(sym, shape, np.ravel_multi_index(coordinates, sym.shape).astype(np.int32).reshape(shape))


def add(a: View, b: View) -> View:
    """Sum of two parts that hold different experts."""
    p, q = a.sym, b.sym
    alike = p.logits is q.logits and (p.score, p.mask, p.slots) == (q.score, q.mask, q.slots)
    if a.scale != b.scale:
        raise Unsupported("adds experts with different factors")
    if alike and p.slots is None and p.mask and p.score and p.summed and q.summed:
        if p.cells or q.cells or not _same_slots(a, b):
            return _add_cells(a, b)
    if not (alike and p.shape == q.shape and p.summed and q.summed and p.branches and q.branches and same_elements(a, b)):
        raise Unsupported("adds parts of a mixture of experts that do not belong together")
    twice = p.branches.keys() & q.branches.keys()
    if twice:
        raise Unsupported(f"adds expert {min(twice)} twice")
    return a.of(replace(p, branches=p.branches | q.branches))


def _slot(view: View) -> Array:
    return np.unravel_index(view.positions, view.sym.shape)[1]


def _same_slots(a: View, b: View) -> bool:
    return a.shape == b.shape and np.array_equal(_slot(a), _slot(b))


def _cells(view: View) -> frozenset[tuple[int, int]]:
    m = view.sym
    if m.cells is not None:
        return m.cells
    slot = uniform(_slot(view))
    if slot is None:
        raise Unsupported("adds parts of a mixture of experts that do not belong together")
    return frozenset((int(slot), e) for e in (m.branches or range(m.logits.shape[-1])))


def _add_cells(a: View, b: View) -> View:
    """Sum of two parts that each hold some experts in one slot, or several such pairs."""
    p, q = a.sym, b.sym
    ours, theirs = _cells(a), _cells(b)
    if p.stacked is not q.stacked or ours & theirs:
        raise Unsupported("adds parts of a mixture of experts that do not belong together")
    coordinates = [np.unravel_index(v.positions, v.sym.shape) for v in (a, b)]
    if not all(np.array_equal(*pair) for i, pair in enumerate(zip(*coordinates, strict=True)) if i != 1):
        raise Unsupported("adds parts of a mixture of experts that do not belong together")
    branches = p.branches
    if branches is not None:
        both = branches.keys() & q.branches.keys()
        if not all(same_layers(branches[e], q.branches[e]) for e in both):
            raise Unsupported("gives an expert other weights in another slot")
        branches = branches | q.branches
    chosen = max(p.chosen, q.chosen, p.shape[1], q.shape[1])
    sym = replace(p, branches=branches, cells=ours | theirs, chosen=chosen, shape=(p.shape[0], 1, 1, p.shape[3]))
    first = [c if i in (0, 3) else np.zeros_like(c) for i, c in enumerate(coordinates[0])]
    return replace(placed(sym, first, a.shape), scale=a.scale)


def total(ctx: Context, view: View, axis: int) -> View:
    """Sum over one axis of a view, which must be all experts or the first slots; the axis is dropped."""
    if isinstance(view.sym, TopValues):
        return _slot_sum(view, axis)
    view = as_mixture(ctx, view)
    sym, shape = view.sym, view.shape[:axis] + view.shape[axis + 1 :]
    coordinates = [np.moveaxis(c, axis, -1) for c in np.unravel_index(view.positions, sym.shape)]
    n = view.shape[axis]
    if n == 1:  # a sum over one element; `settle` knows a top-1 gate without sum
        return reshaped(view, shape)
    moving = [i for i, c in enumerate(coordinates) if np.any(c != c[..., :1])]
    of_mask = sym.mask and not has_outputs(sym)
    if moving == [2] and of_mask and sym.score == "gate" and sym.slots is not None and n == sym.shape[2]:
        rows = coordinates[0][..., 0]
        return View(SlotSum(logits=sym.logits, slots=sym.slots, shape=(sym.shape[0], 1)), shape, rows, view.scale)
    if moving == [1] and (sym.score or of_mask) and sym.slots is None:
        _need_slots(sym, coordinates[1], n)
        changed = {"slots": n, "shape": (sym.shape[0], 1, *sym.shape[2:])}
    elif moving == [2] and sym.stacked is not None and sym.mask and not sym.summed:
        if not (np.sort(coordinates[2], axis=-1) == np.arange(sym.shape[2])).all():
            raise Unsupported("does not sum over all experts")
        changed = {"summed": True, "shape": (*sym.shape[:2], 1, sym.shape[3])}
    else:
        raise Unsupported("sums over something that is neither the chosen nor all experts")
    first = [c[..., 0] for c in coordinates]
    first[moving[0]] = np.zeros_like(first[moving[0]])
    done = placed(replace(sym, **changed), first, shape)
    return replace(done, scale=view.scale)


def _need_slots(sym: Mixture, slot: Array, n: int) -> None:
    if not (np.sort(slot, axis=-1) == np.arange(n)).all():
        raise Unsupported("does not sum over the best slots")
    if sym.score == "renormalised" and n != sym.shape[1]:
        raise Unsupported("sums fewer slots than the gate scores were normalised over")
    if not sym.ordered and n != sym.shape[1]:
        raise Unsupported("uses the first of unsorted scores")


def _slot_sum(view: View, axis: int) -> View:
    top = view.sym
    flat = np.moveaxis(view.positions, axis, -1)
    rows, slot = flat // top.shape[1], flat % top.shape[1]
    n = flat.shape[-1]
    if view.scale != 1 or not ((rows == rows[..., :1]).all() and (np.sort(slot, axis=-1) == np.arange(n)).all()):
        raise Unsupported("does not sum the best scores of a token")
    return View(SlotSum(logits=top.logits, slots=n, shape=(top.shape[0], 1)), flat.shape[:-1], rows[..., 0])


def contract(ctx: Context, a: View, b: View) -> View:
    """Matrix product of two parts: [.., M, S] @ [.., S, N]."""
    if a.shape[-1] != b.shape[-2]:
        raise Unsupported(f"shapes {a.shape} and {b.shape} do not match")
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*lead, a.shape[-2], a.shape[-1], b.shape[-1])
    left = replace(a, shape=(*a.shape, 1), index=a.positions[..., None])
    right = replace(b, shape=(*b.shape[:-2], 1, *b.shape[-2:]), index=b.positions[..., None, :, :])
    return total(ctx, multiply(ctx, broadcast(left, shape), broadcast(right, shape)), len(shape) - 2)


# --- completion --------------------------------------------------------------------------------------------------


def missing(m: Mixture) -> str:
    """What a mixture lacks, or "" if it is complete but for the sum over a single slot.

    The best expert alone needs no score: normalised over one expert it is 1.
    """
    if m.score is None and not (m.mask and m.shape[1] == 1 and m.slots in (None, 1) and not m.cells):
        return "the outputs of experts are not weighted by a gate"
    if not m.mask or not has_outputs(m):
        return "gate scores are used without experts"
    if not m.summed:
        return "the outputs of the experts are not summed"
    absent = [] if m.branches is None else sorted(set(range(m.logits.shape[-1])) - set(m.branches))
    if absent:
        return f"no branch for expert {', '.join(map(str, absent))} of {m.logits.shape[-1]}"
    if m.cells is not None:
        slots = {s for s, _ in m.cells}
        wanted = {(s, e) for s in range(len(slots)) for e in range(m.logits.shape[-1])}
        if m.cells != wanted:
            return "some slots lack some experts"
    if m.stacked is not None and m.stacked.shape[0] != m.logits.shape[-1]:
        return f"{m.stacked.shape[0]} experts for a gate of {m.logits.shape[-1]}"
    return ""


def settle(ctx: Context, view: View) -> View:
    """The view itself, or that of the finished mixture where only the sum over one slot (top-1) was left out."""
    sym = view.sym
    if not isinstance(sym, Mixture) or missing(sym):
        return view
    coordinates = list(np.unravel_index(view.positions, sym.shape))
    if sym.cells is not None:
        slots = len({s for s, _ in sym.cells})
        if not (sym.ordered or slots == sym.chosen):
            raise Unsupported("uses the first of unsorted scores")
        return view.of(ctx.once(("cells",), sym, lambda: _mixed(replace(sym, slots=slots))))
    if np.any(coordinates[1]):
        return view
    if sym.slots is None:
        _need_slots(sym, np.zeros((1, 1)), 1)
    shape = (sym.shape[0], 1, *sym.shape[2:])
    done = ctx.once(("mixed",), sym, lambda: _mixed(replace(sym, slots=sym.slots or 1, shape=shape)))
    places = np.ravel_multi_index(coordinates, shape).reshape(view.shape)
    return View(done, view.shape, places, view.scale, view.tainted)


def _mixed(m: Mixture) -> Mixed:
    last = m.stacked if m.stacked is not None else stacked([m.branches[e] for e in sorted(m.branches)])
    hidden = last.x
    if not isinstance(hidden, Activated) or not isinstance(hidden.x, Lin):
        raise Unsupported("an expert is not linear, activation, linear", "only experts of two linear layers are supported")
    experts = last.shape[0]
    check_size(m.slots, experts)
    first = hidden.x
    if len(first.shape) != 3 or len(first.x.shape) != 2:
        raise Unsupported("experts do not read the same tokens")
    return Mixed(
        logits=m.logits,
        top_k=m.slots,
        renormalise=m.score != "gate",
        x=first.x,
        w1=first.weight,
        b1=first.bias,
        w2=last.weight,
        b2=last.bias,
        form=hidden.form,
        slope=hidden.slope,
        shape=(last.shape[1], last.shape[2]),
        label=parent(first.label),
        source=last.source,
    )


def check_size(top_k: int, experts: int) -> None:
    """Raise Unsupported where the router cannot choose so many of so many."""
    if top_k > MAX_TOP_K or experts > MAX_EXPERTS:
        most = f"at most the best {MAX_TOP_K} of at most {MAX_EXPERTS} are supported"
        raise Unsupported(f"combines the best {top_k} of {experts} experts, {most}")


def sigmoid_gated(gate: View, output: View) -> View | None:
    """sigmoid(logit of a token) * f(x): a mixture of f and of an expert that gives zero, of which both are chosen.

    None where the product is none of an expert's output.
    """
    phi, last = gate.sym, output.sym
    if not (isinstance(phi, Phi) and phi.form == "sigmoid" and phi.offset == 1 and phi.shape[-1] == 1):
        return None
    logit = phi.x
    if not (isinstance(logit, Lin) and len(logit.shape) == 2 and isinstance(last, Lin) and len(last.shape) == 2):
        return None
    if not np.array_equal(gate.positions, output.positions // last.shape[1]):
        raise Unsupported("weights an expert's output by the gate of another token")
    weight, bias = phi.slope * logit.weight, None if logit.bias is None else phi.slope * logit.bias
    both = replace(
        logit,
        weight=np.concatenate([weight, 0 * weight]),
        bias=None if bias is None else np.concatenate([bias, 0 * bias]),
        shape=(logit.shape[0], 2),
    )
    parts = stacked([last, nothing(last)])
    shape = (last.shape[0], 1, 1, last.shape[1])
    whole = Mixture(logits=both, score="gate", mask=True, stacked=parts, slots=2, summed=True, shape=shape)
    return View(_mixed(whole), output.shape, output.index, 2 * gate.scale * output.scale)
