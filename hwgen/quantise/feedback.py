"""Int8 weights on coarser grids in groups along the inputs, with error feedback.

After GPTQ (Frantar, Ashkboos, Hoefler, Alistarh, 2022, arXiv:2210.17323): inputs are rounded one after another, and what one of
them loses is made good by those that are still to come, as far as the second moments of the layer's inputs let them stand for it.
"""

from __future__ import annotations

import numpy as np

from .. import numerics as num

Array = np.ndarray
GROUP = 16  # inputs that share a factor: what a port of 128 bits delivers of a weight word in a beat
FINER = 4  # factors that are tried: the one that cuts nothing off and smaller ones
DAMPING = 0.01  # of the mean second moment, added to all: what calibration images do not tell


def narrowed(weights: Array, moments: Array, bits: int) -> Array:
    """Weights int8 [N, K] as numerics.widen makes them of codes of `bits` bits; moments [K, K]: mean of x.T @ x of the inputs."""
    w = weights.astype(np.float64)
    inputs = w.shape[1]
    damped = moments + max(DAMPING * float(np.trace(moments)) / inputs, 1e-30) * np.eye(inputs)
    # Upper triangular, its square the inverse: row k says how the inputs behind k stand for it.
    spread = np.linalg.cholesky(np.linalg.inv(damped)).T
    made = np.empty(w.shape, np.int8)
    for first in range(0, inputs, GROUP):
        group = slice(first, min(first + GROUP, inputs))
        own, left = np.diag(spread)[group], np.empty((len(w), group.stop - first))
        factors, low, high = _factors(w[:, group], own, bits)
        for i, k in enumerate(range(first, group.stop)):
            made[:, k] = num.widen(np.clip(np.rint(w[:, k] / factors), low, high).astype(np.int64), factors)
            left[:, i] = (w[:, k] - made[:, k]) / own[i]
            w[:, k + 1 : group.stop] -= left[:, i, None] * spread[k, k + 1 : group.stop]
        w[:, group.stop :] -= left @ spread[group, group.stop :]
    return made


def _factors(w: Array, own: Array, bits: int) -> tuple[Array, Array, Array]:
    """(factor, least code, largest code) of each row of a group [N, G]: those that lose least where input g weighs 1 / own^2."""
    every, most = np.array(num.NARROW_FACTORS[1:]), (1 << bits - 1) - 1
    whole = np.minimum(np.searchsorted(every, np.abs(w).max(axis=1) / most), len(every) - 1)  # cuts nothing off
    least, best = np.full(len(w), np.inf), np.ones((3, len(w)), np.int64)
    for less in range(FINER):
        factor = every[np.maximum(whole - less, 0)]
        reach = num.INT8_MAX // factor
        low, high = -np.minimum(most + 1, reach), np.minimum(most, reach)
        rounded = np.clip(np.rint(w / factor[:, None]), low[:, None], high[:, None]) * factor[:, None]
        loss = np.square((w - rounded) / own).sum(axis=1)
        better = loss < least
        least[better] = loss[better]
        best[:, better] = np.stack([factor, low, high])[:, better]
    return best[0], best[1], best[2]
