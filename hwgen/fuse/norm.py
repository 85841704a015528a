"""Rules for LayerNorm, as one operator or step by step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .emit import Context
from .op import Op, Unsupported
from .params import label_of
from .symbols import Array, Centred, HeadNorm, Lin, Norm, Variance
from .views import Const, View, need_rows, need_tensor


def root_of(a: View, exponent: float) -> View:
    if not (isinstance(a.sym, Variance) and a.sym.power == 1 and a.scale == 1):
        raise Unsupported("takes the root of something that is no variance")
    return a.of(variance_to(a.sym, exponent))


def variance_to(sym: Variance, exponent: float) -> Variance:
    return replace(sym, power=exponent)


def root(ctx: Context, op: Op, values: list) -> View:
    return root_of(values[0], 0.5)


def normalised(op: Op, x: View, y: View, centred: Centred, epsilon: float) -> View:
    if not np.array_equal(x.positions // centred.shape[-1], y.positions):
        raise Unsupported("normalises by the variance of another row")
    width = centred.shape[-1]
    gamma = np.ones(width, np.float32) if centred.gain is None else centred.gain
    norm = Norm(x=centred.x, gamma=gamma, beta=np.zeros(width, np.float32), epsilon=epsilon, shape=centred.shape, source=op.name)
    norm.label = label_of(op)
    return x.of(norm, x.scale * y.scale)


def rms_normalised(op: Op, x: View, y: View) -> View:
    """x by the root of the mean of its squares, y."""
    width = x.sym.shape[-1]
    if not np.array_equal(x.positions // width, y.positions):
        raise Unsupported("normalises by the mean square of another row")
    need_tensor(x)
    need_rows(x)
    one, zero = np.ones(width, np.float32), np.zeros(width, np.float32)
    common = {"shape": x.sym.shape, "label": label_of(op), "source": op.name}
    norm = Norm(x=x.sym, gamma=one, beta=zero, epsilon=y.sym.epsilon, centred=False, **common)
    return x.of(norm, x.scale * y.scale)


def layer_norm(ctx: Context, op: Op, values: list, centred: bool = True) -> View:
    """The LayerNormalization operator, over all channels of a token or over those of each head."""
    x = ctx.plain(values[0])
    if op.attribute("axis", -1) % len(x.shape) != len(x.shape) - 1:
        raise Unsupported("normalises over more than the channels")
    need_tensor(x)
    gamma, beta = values[1], values[2] if len(values) > 2 else None
    if not isinstance(gamma, Const) or not (beta is None or isinstance(beta, Const)):
        raise Unsupported("its scale or bias is not constant")
    width = x.shape[-1]
    g = np.broadcast_to(gamma.array, (width,)).astype(np.float32)
    b = np.broadcast_to(0 if beta is None else beta.array, (width,)).astype(np.float32)
    epsilon = float(op.attribute("epsilon", 1e-5))
    label = label_of(op, gamma, *([] if beta is None else [beta]))
    common = {"epsilon": epsilon, "centred": centred, "label": label, "source": op.name}
    if width < x.sym.shape[-1]:
        return _of_heads(ctx, x, g, b, common)
    need_rows(x)
    return x.of(Norm(x=x.sym, gamma=g, beta=b, shape=x.sym.shape, **common))


def rms_norm(ctx: Context, op: Op, values: list) -> View:
    """RMSNormalization: a LayerNorm that leaves the mean in."""
    return layer_norm(ctx, op, values, centred=False)


def _of_heads(ctx: Context, x: View, gamma: Array, beta: Array, common: dict) -> View:
    """Norms of queries or keys: every row of x is some channels of a token, the same ones in all tokens."""
    width, d = x.sym.shape[-1], x.shape[-1]
    flat = x.positions.reshape(-1, d)
    rows, columns = flat[:, :1] // width, flat % width
    heads, which = np.unique(columns, axis=0, return_inverse=True)
    apart = len(np.unique(heads)) == heads.size and np.array_equal(flat, rows * width + columns)
    if not apart or not isinstance(x.sym, Lin) or len(x.sym.shape) != 2:
        hint = "normalise all channels of a token, or those of each head of queries and keys"
        raise Unsupported("normalises some channels of a token", hint)
    linear = ctx.columns(x.sym, heads.reshape(-1))
    gamma, beta = (np.tile(a, len(heads)) for a in (gamma, beta))
    sym = HeadNorm(x=linear, gamma=gamma, beta=beta, heads=len(heads), shape=linear.shape, **common)
    index = rows * sym.shape[1] + which.reshape(-1, 1) * d + np.arange(d)
    return View(sym, x.shape, index.astype(np.int32).reshape(x.shape))
