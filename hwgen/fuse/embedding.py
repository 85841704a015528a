"""Rules for the patch embedding and for joining tensors: class tokens, channels, experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwgen.patches import grid

from . import rotary, soft
from .emit import Context
from .layers import stacked
from .op import Op, Unsupported, constant_argument
from .params import label_of
from .pixels import patch_embedding
from .symbols import Branches, Embedding, Image, Joined, Padded
from .views import Const, View, need_rows, need_tensor, positions, token_layout, whole


def conv(ctx: Context, op: Op, values: list) -> View:
    """Conv of the image as patch embedding; patches may overlap, or reach over the border of the image."""
    x, w = values[0], values[1]
    if not isinstance(x.sym, Image):
        hint = "make the tokens by one convolution of the image, whose kernel may be larger than its stride"
        raise Unsupported("convolves something else than the image, as convolution stems do", hint)
    if x.index is not None:
        raise Unsupported("does not read the image as it is", "only the patch embedding may be a convolution")
    if not isinstance(w, Const) or len(w.shape) != 4:
        raise Unsupported("its weight is not a constant [D, C, height, width]")
    group = op.attribute("group", 1)
    if len(x.shape) != 4 or (w.shape[1] != x.shape[1] and group == 1):
        raise Unsupported(f"the image is {x.shape} but the weight is {w.shape}")
    if len(values) > 2 and values[2] is not None and not isinstance(values[2], Const):
        raise Unsupported("its bias is not constant")
    d, patch = w.shape[0], w.shape[2:]
    stride, pads = tuple(op.attribute("strides", [1, 1])), tuple(op.attribute("pads", [0] * 4))
    for name, value, wanted in (
        ("kernel_shape", tuple(op.attribute("kernel_shape", patch)), patch),
        ("dilations", tuple(op.attribute("dilations", [1, 1])), (1, 1)),
        ("group", group, 1),
    ):
        if value != wanted:
            raise Unsupported(f"{name} is {value}, must be {wanted}", "use a plain convolution as patch embedding")
    if op.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unsupported(f"auto_pad is {op.attribute('auto_pad')}", "export with the number of pixels to pad")
    if any(pads) and x.sym.offset is not None and np.any(x.sym.offset):
        hint = "pad nothing, or give the network an image of which the mean is subtracted already"
        raise Unsupported("pads an image to which a constant is added before", hint)
    down, across = grid(x.shape, patch, stride, pads)
    if not down or not across:
        raise Unsupported(f"the image {x.shape} is smaller than the kernel {patch}")
    bias = None if len(values) < 3 or values[2] is None else values[2].array.astype(np.float32)
    own = None if stride == patch else stride
    sym = patch_embedding(x.sym, w.array, bias, x.scale, op.name, label_of(op, w), own, pads)
    index = positions((down, across, d)).transpose(2, 0, 1)[None]
    patches = View(sym, index.shape, index)
    rest = (x.shape[2] % patch[0], x.shape[3] % patch[1])
    if own is None and not any(pads) and any(rest):
        # What goes on where a wrong convolution stands, so that the nodes after it can be judged.
        hint = "use an image of whole patches"
        raise Unsupported(f"image remainder is {rest}, must be (0, 0)", hint, patches)
    return patches


def pad(ctx: Context, op: Op, values: list) -> View:
    """Pad by nothing."""
    pads = constant_argument(op, values, 1, "pads")
    if pads is None or np.any(pads):
        raise Unsupported(f"pads by {np.asarray(pads).tolist()}", "use an image of whole patches or windows", values[0])
    return values[0]


def concat(ctx: Context, op: Op, values: list) -> View:
    """Concat: constant tokens before or after others, channels side by side, parts of one tensor, experts stacked."""
    views = [v for v in values if isinstance(v, View)]
    axis = op.attribute("axis") % len(views[0].shape)
    last = len(views[0].shape) - 1
    if len(views) == len(values) and all(v.sym is views[0].sym and v.scale == views[0].scale for v in views):
        index = np.concatenate([v.positions for v in views], axis=axis)
        return replace(views[0], shape=index.shape, index=index)
    if len(views) == len(values) and rotary.joins(views):
        return rotary.join(views, axis)
    if len(views) == len(values) and axis != last and soft.of_slots(views):
        return _stack(ctx, views, axis)
    if len(views) == len(values) and all(v.shape[axis] == 1 for v in views) and all(len(v.shape) > 2 for v in views):
        try:
            return _stack(ctx, views, axis)
        except Unsupported:
            if axis != last:
                return _branches(views, axis)
    if len(views) < len(values) and axis == last > 0 and token_layout(views[0]) is None:
        y = concat(ctx, replace(op, attributes={"axis": last - 1}), [_channels_last(v) for v in values])
        return _channels_last(y)
    tokens = axis < last and all(int(np.prod(v.shape[:-1])) == v.shape[axis] for v in values)
    if tokens and len(views) < len(values) and all(v.sym is views[0].sym for v in views):
        return _with_tokens(ctx, op, values, axis)
    if len(views) == 1 and axis == last:
        return _pad(ctx, values, views[0])
    if len(views) == len(values) and axis == last:
        return _join(ctx, views)
    if len(views) == len(values) and axis == last - 1 and len({v.shape[-1] for v in views}) == 1:
        hint = "let class, distilled and register tokens go through every layer with the others"
        raise Unsupported("joins tokens of several computed tensors", hint)
    raise Unsupported("joins tensors in a way that is neither constant tokens, nor channels, nor a stack of experts")


def _channels_last(v: View | Const) -> View | Const:
    """The last two axes, channels and tokens, the other way round."""
    if isinstance(v, Const):
        return Const(np.swapaxes(v.array, -1, -2), v.name)
    index = np.swapaxes(v.positions, -1, -2)
    return replace(v, shape=index.shape, index=index)


def _with_tokens(ctx: Context, op: Op, values: list, axis: int) -> View:
    """Constant tokens (class token, registers) before, after or between tokens of one tensor, which keep their order."""
    x = next(v for v in values if isinstance(v, View))
    width = x.sym.shape[-1]
    if any(v.shape[-1] != width for v in values):
        raise Unsupported("joins tokens of different widths")
    old = ctx.plain(x).sym
    need_tensor(x.of(old))
    if not isinstance(old, Embedding):
        zeros = np.zeros(old.shape, np.float32)
        old = Embedding(x=old, prefix=zeros[:0], position=zeros, shape=old.shape)
    # Row r of an embedding is position[r], with prefix[r] or row r - P of its x added.
    p, n = len(old.prefix), old.x.shape[0]
    fixed = old.position.copy()
    fixed[:p] += old.prefix
    rows, table = [], []
    for v in values:
        if isinstance(v, Const):
            rows += [-1] * v.shape[axis]
            table.append(v.array.reshape(-1, width))
        else:
            at = need_rows(v).reshape(-1)
            rows += [int(r) - p if p <= r < p + n else -1 for r in at]
            table.append(fixed[at])
    rows, table = np.array(rows), np.concatenate(table).astype(np.float32)
    start = int(np.argmax(rows >= 0))
    if not np.array_equal(rows[start : start + n], np.arange(n)) or np.count_nonzero(rows >= 0) != n:
        raise Unsupported("joins constant tokens to tokens that do not stay together")
    prefix = table[:start].copy()
    table[:start] = 0
    sym = Embedding(x=old.x, prefix=prefix, position=table, shape=table.shape, source=op.name)
    return whole(sym, (*x.shape[:axis], len(table), *x.shape[axis + 1 :]))


def _branches(views: list[View], axis: int) -> View:
    """Tensors of one shape on an axis of their own, over which the next node will sum."""
    shape = list(views[0].shape)
    shape[axis] = len(views)
    sym = Branches(parts=views, axis=axis, shape=tuple(shape), source=views[0].sym.source)
    return whole(sym)


def _join(ctx: Context, views: list[View]) -> View:
    lead = views[0].shape[:-1]
    for v in views:
        need_tensor(ctx.settle(v))
        if v.shape[:-1] != lead:
            raise Unsupported("joins channels of different tokens")
    shape = (int(np.prod(lead)), sum(v.shape[-1] for v in views))
    return View(Joined(parts=views, shape=shape), (*lead, shape[1]))


def _pad(ctx: Context, values: list, x: View) -> View:
    x = ctx.plain(x)
    rows = need_rows(x)
    parts, place, at = [], None, 0
    for v in values:
        n = v.shape[-1]
        if v is not x and isinstance(v, Const):
            flat = v.array.reshape(-1, n)
            if (flat != flat[:1]).any():
                raise Unsupported("joins channels that differ from token to token")
            parts.append(flat[0])
        else:
            place = np.arange(at, at + n)
            parts.append(np.zeros(n, np.float32))
        at += n
    shape = (*x.sym.shape[:-1], at)
    sym = Padded(x=x.sym, place=place, constant=np.concatenate(parts), shape=shape, source=x.sym.source)
    return View(sym, (*x.shape[:-1], at), rows[..., None] * at + positions((at,)))


def _stack(ctx: Context, views: list[View], axis: int) -> View:
    views = [ctx.plain(v) for v in views]
    if any(len(v.sym.shape) != 2 or v.sym.shape != views[0].sym.shape for v in views):
        raise Unsupported("joins tensors that are not experts of one shape")
    sym = stacked([v.sym for v in views])
    size = int(np.prod(views[0].sym.shape))
    index = np.concatenate([v.positions + np.int32(e * size) for e, v in enumerate(views)], axis=axis)
    return View(sym, index.shape, index)
