"""Rules for LayerNorm, as one operator or step by step."""

from __future__ import annotations

import numpy as np

from .emit import Context
from .op import Op, Unsupported
from .params import label_of
from .symbols import Centred, Norm, Variance
from .views import Const, View, need_rows, need_tensor


def root_of(a: View, exponent: float) -> View:
    if not (isinstance(a.sym, Variance) and a.sym.power == 1 and a.scale == 1):
        raise Unsupported("takes the root of something that is no variance")
    return a.of(variance_to(a.sym, exponent))


def variance_to(sym: Variance, exponent: float) -> Variance:
    return Variance(x=sym.x, epsilon=sym.epsilon, power=exponent, shape=sym.shape)


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


def layer_norm(ctx: Context, op: Op, values: list) -> View:
    """The LayerNormalization operator."""
    x = ctx.plain(values[0])
    if op.attribute("axis", -1) % len(x.shape) != len(x.shape) - 1:
        raise Unsupported("normalises over more than the channels")
    need_tensor(x)
    if x.shape[-1] < x.sym.shape[-1]:
        raise Unsupported("normalises some channels of a token, as QK-norm does", "normalise all channels of a token")
    gamma, beta = values[1], values[2] if len(values) > 2 else None
    if not isinstance(gamma, Const) or not (beta is None or isinstance(beta, Const)):
        raise Unsupported("its scale or bias is not constant")
    need_rows(x)
    width = x.shape[-1]
    g = np.broadcast_to(gamma.array, (width,)).astype(np.float32)
    b = np.broadcast_to(0 if beta is None else beta.array, (width,)).astype(np.float32)
    epsilon = float(op.attribute("epsilon", 1e-5))
    label = label_of(op, gamma, *([] if beta is None else [beta]))
    norm = Norm(x=x.sym, gamma=g, beta=b, epsilon=epsilon, shape=x.sym.shape, label=label, source=op.name)
    return x.of(norm)


