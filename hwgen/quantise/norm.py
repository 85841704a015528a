"""LayerNorm: only the rows that are read; where matrices alone read it, its columns centred and their ranges evened out."""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..errors import UserError
from ..numerics import INT16_MAX
from .builder import EPSILON_MAX, Builder, Held, limited, own_scale, plain, wide_scale
from .plan import describe
from .scales import whole_steps

Array = np.ndarray
EQUALISED = 0.5  # of the estimated noise: equalisation must leave no more than that
PEAK_TO_RMS = 4.0  # of a column
LEAST_SHARE = 1e-3  # a column's range or weight, of the largest, that equalisation takes for what it is


def norm(b: Builder, node: fg.LayerNorm) -> None:
    """Emit the rows that are read."""
    if node.heads > 1:
        raise UserError(f"{describe(node)}: a norm of each head can only be used by attention")
    x = b.held[node.x]
    if np.ndim(x.scale) or not (x.offset is None or (node.centred and np.ndim(x.offset) == 0)):
        x = plain(b, node.x)  # a constant in all columns is centred away
    start, stop = 0, x.ref.rows
    users = b.plan.users.get(node.name, [])
    if users and all(isinstance(u, fg.Rows) for u in users) and node.name not in b.plan.outputs:
        start = min(u.start for u in users) - x.first_row
        stop = max(u.stop for u in users) - x.first_row

    gamma, beta = np.asarray(node.gamma, np.float64), np.asarray(node.beta, np.float64)
    offset: Array | float | None = None
    factors, limit = 1.0, limited(b, node)
    if limit is not None and _need(gamma, beta - limit[1]) <= limit[0]:
        scale, offset = limit[0], limit[1] or None
        beta = beta - limit[1]
    elif (
        node.name not in b.plan.scales
        and b.plan.only_multiplied(node.name)
        and all(isinstance(user, fg.Linear | fg.Experts) for user in b.plan.readers(node.name))
    ):
        offset, factors = centred(b, node.name), equalised(b, node.name)
        gamma, beta = gamma / factors, (beta - offset) / factors
        scale = max(wide_scale(b.stats.values[node.name].magnitude(offset) / factors), _need(gamma, beta))
    else:
        scale = own_scale(b, node, _need(gamma, beta))
    columns = b.shapes[node.name][1]
    epsilon = round(node.epsilon * columns**2 / x.scale**2)
    if epsilon > EPSILON_MAX:
        raise UserError(f"{describe(node)}: epsilon={node.epsilon:g} for values in steps of {x.scale:g}")
    steps = (np.rint(a / scale).astype(np.int16) for a in (gamma, beta))
    ref, real = x.ref.part(start, stop - start), scale * factors
    made = q.Norm(b.name(node.name), ref, *steps, max(epsilon, 1), node.centred, source=node.source)
    value = node.name if ref.rows == b.shapes[node.name][0] else None
    out = b.emit(made, ref.rows, columns, real, offset, value=value)
    b.held[node.name] = Held(out, real, offset, x.first_row + start)


def _need(gamma: Array, beta: Array) -> float:
    """Least output step of a LayerNorm."""
    return float(max(np.abs(gamma).max(), np.abs(beta).max())) / INT16_MAX


def _matrices(b: Builder, name: str) -> list[Array]:
    """What multiplies a value, [matrices, N, columns] each. Without routers: a task's own must not part what tasks share."""
    readers = [reader for reader in b.plan.readers(name) if b.plan.roots[reader.name] not in b.plan.logits]
    return [reader.w1 if isinstance(reader, fg.Experts) else reader.weight[None] for reader in readers]


def centred(b: Builder, name: str) -> Array:
    """The middle of the range of each column [columns], which the biases of the readers can take.

    Zero where a router reads the value: the biases of its logits have no room.
    """
    seen = b.stats.values[name]
    routed = any(b.plan.roots[reader.name] in b.plan.logits for reader in b.plan.readers(name))
    return np.zeros_like(seen.low) if routed else (seen.low + seen.high) / 2


def equalised(b: Builder, name: str) -> Array:
    """Factors [columns], 1 in the mean, that share the range of a value between its columns and the matrices that read it.

    Column c is stored divided by factor c, and the weights that multiply it are multiplied: the factor is
    magnitude^equalise / weight^(1 - equalise), weight the largest of any reader (SmoothQuant, Xiao et al. 2022). Weights
    of a model that was quantised before stay as they are.
    """
    magnitude, matrices = b.stats.values[name].magnitude(centred(b, name)), _matrices(b, name)
    none, strength = np.ones(len(magnitude)), b.options.equalise
    if not strength or not matrices or any(whole_steps(m.reshape(-1, m.shape[-1])).any() for m in matrices):
        return none
    weight = np.max([np.abs(m).max(axis=(0, 1)) for m in matrices], axis=0).astype(np.float64)
    if not weight.any() or not magnitude.any():
        return none
    magnitude, weight = (np.maximum(a, a.max() * LEAST_SHARE) for a in (magnitude, weight))
    factors = magnitude**strength / weight ** (1 - strength)
    factors /= np.exp(np.log(factors).mean())
    rows = np.concatenate([np.asarray(m, np.float64).reshape(-1, m.shape[-1]) for m in matrices])
    worth = _noise(magnitude, rows, factors) < EQUALISED * _noise(magnitude, rows, none)
    return factors if worth else none


def _noise(magnitude: Array, weight: Array, factors: Array) -> float:
    """Estimated noise power of weight [N, K] times a value of columns up to `magnitude` [K], both rounded to int8."""
    x, w = magnitude / factors, weight * factors
    rounded = np.square(x.max()) * np.square(w).sum()
    return float(rounded + (np.square(np.abs(w).max(axis=1)).sum() * np.square(x / PEAK_TO_RMS).sum()))
