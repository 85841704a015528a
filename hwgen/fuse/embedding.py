"""Rules for the patch embedding and for joining tensors: class tokens, channels, experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import mixture
from .emit import Context
from .op import Op, Unsupported
from .params import label_of
from .symbols import (
    Const,
    Embedding,
    Image,
    Joined,
    Padded,
    Patches,
    View,
    need_rows,
    need_tensor,
    positions,
    whole,
)


def conv(ctx: Context, op: Op, values: list) -> View:
    """Conv as patch embedding: kernel equals stride, nothing padded, whole patches."""
    x, w = values[0], values[1]
    if not isinstance(x.sym, Image) or x.index is not None or x.scale != 1:
        raise Unsupported("does not read the image", "only the patch embedding may be a convolution")
    if not isinstance(w, Const) or len(w.shape) != 4:
        raise Unsupported("its weight is not a constant [D, C, height, width]")
    if len(x.shape) != 4 or w.shape[1] != x.shape[1]:
        raise Unsupported(f"the image is {x.shape} but the weight is {w.shape}")
    d, _, ph, pw = w.shape
    h, width = x.shape[2:]
    # What goes on where a wrong convolution stands, so that the nodes after it can be judged.
    sym = Patches(image=x.sym, weight=w.array, bias=None, shape=((h // ph) * (width // pw), d), source=op.name)
    sym.label = label_of(op, w)
    index = positions((h // ph, width // pw, d)).transpose(2, 0, 1)[None]
    patches = View(sym, index.shape, index)
    strides = tuple(op.attribute("strides", [1, 1]))
    for name, value, wanted in (
        ("kernel_shape", tuple(op.attribute("kernel_shape", [ph, pw])), (ph, pw)),
        ("strides", strides, (ph, pw)),
        ("pads", tuple(op.attribute("pads", [0] * 4)), (0,) * 4),
        ("dilations", tuple(op.attribute("dilations", [1, 1])), (1, 1)),
        ("group", op.attribute("group", 1), 1),
        ("image remainder", (h % ph, width % pw), (0, 0)),
    ):
        if value != wanted:
            hint = "the patch embedding must cut the image into whole patches, kernel equal to stride"
            raise Unsupported(f"{name} is {value}, must be {wanted}", hint, patches)
    if op.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unsupported(f"auto_pad is {op.attribute('auto_pad')}", "export without padding", patches)
    if len(values) > 2 and values[2] is not None:
        if not isinstance(values[2], Const):
            raise Unsupported("its bias is not constant")
        sym.bias = values[2].array.astype(np.float32)
    return patches


def concat(ctx: Context, op: Op, values: list) -> View:
    """Concat: constant tokens before or after others, channels side by side, parts of one tensor, experts stacked."""
    views = [v for v in values if isinstance(v, View)]
    axis = op.attribute("axis") % len(views[0].shape)
    last = len(views[0].shape) - 1
    if len(views) == len(values) and all(v.sym is views[0].sym and v.scale == views[0].scale for v in views):
        index = np.concatenate([v.positions for v in views], axis=axis)
        return replace(views[0], shape=index.shape, index=index)
    if len(views) == len(values) and all(v.shape[axis] == 1 for v in views) and all(len(v.shape) > 2 for v in views):
        try:
            return _stack(ctx, views, axis)
        except Unsupported:
            if axis != last:
                raise
    if len(views) == 1 and axis == last - 1:
        return _with_tokens(ctx, op, values, views[0])
    if len(views) == 1 and axis == last:
        return _pad(ctx, values, views[0])
    if len(views) == len(values) and axis == last:
        return _join(ctx, views)
    raise Unsupported("joins tensors in a way that is neither constant tokens, nor channels, nor a stack of experts")


def _with_tokens(ctx: Context, op: Op, values: list, x: View) -> View:
    """Constant tokens before (class token, registers) or after the tokens of x."""
    place = values.index(x)
    width = x.sym.shape[-1]
    if any(int(np.prod(v.shape[:-2])) != 1 or v.shape[-1] != width for v in values):
        raise Unsupported("joins tokens of different widths")
    x = x if isinstance(x.sym, Embedding) and x.scale == 1 else ctx.plain(x)
    need_tensor(x)
    if not np.array_equal(need_rows(x).reshape(-1), np.arange(x.sym.shape[0])):
        raise Unsupported("joins constant tokens to rearranged tokens")
    before, after = (
        np.concatenate([np.zeros((0, width)), *(v.array.reshape(-1, width) for v in part)]).astype(np.float32)
        for part in (values[:place], values[place + 1 :])
    )
    own, prefix, position = x.sym, np.zeros((0, width), np.float32), np.zeros(x.sym.shape, np.float32)
    if isinstance(x.sym, Embedding):
        own, prefix, position = x.sym.x, x.sym.prefix, x.sym.position
    position = np.concatenate([np.zeros_like(before), position, after])
    prefix = np.concatenate([before, prefix])
    sym = Embedding(x=own, prefix=prefix, position=position, shape=position.shape, source=op.name)
    return whole(sym, (*x.shape[:-2], *position.shape))


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
    sym = mixture.stacked([v.sym for v in views])
    size = int(np.prod(views[0].sym.shape))
    index = np.concatenate([v.positions + np.int32(e * size) for e, v in enumerate(views)], axis=axis)
    return View(sym, index.shape, index)
