"""How much of the range of a value its int8 step should cover: calibration by mean square error or entropy.

Both work on a histogram of magnitudes, divided by the largest. What lies beyond the part that is covered saturates.
"""

from __future__ import annotations

import numpy as np

from ..numerics import INT8_MAX

Array = np.ndarray
BINS = 2048
LEVELS = INT8_MAX + 1  # magnitudes of an int8 value
FIRST = 512  # the smallest part tried, in bins: a quarter
STEP = 16
CANDIDATES = np.arange(FIRST, BINS + 1, STEP)


def histogram(magnitudes: Array, peak: Array) -> Array:
    """Counts [groups, BINS] of the magnitudes [groups, n] from 0 to each group's peak [groups]."""
    share = magnitudes / np.where(peak > 0, peak, 1.0)[:, None]
    index = np.minimum((share * BINS).astype(np.int64), BINS - 1)
    flat = index + np.arange(len(index))[:, None] * BINS
    return np.bincount(flat.ravel(), minlength=len(index) * BINS).reshape(-1, BINS)


def covered(counts: Array, method: str) -> Array:
    """For each histogram [groups, BINS] the part of the range, 0..1 [groups], that the method chooses."""
    cost = _square_errors(counts) if method == "mse" else _divergences(counts)
    # The largest of equal parts: where nothing is lost by it, nothing is cut off.
    best = cost.shape[1] - 1 - np.argmin(cost[:, ::-1], axis=1)
    return CANDIDATES[best] / BINS


def _square_errors(counts: Array) -> Array:
    """[groups, candidates]: sum of squared rounding and saturation errors."""
    centre = (np.arange(BINS) + 0.5) / BINS
    step = CANDIDATES[:, None] / BINS / INT8_MAX
    error = centre - np.minimum(np.rint(centre / step), INT8_MAX) * step
    return counts @ np.square(error).T


def _divergences(counts: Array) -> Array:
    """[groups, candidates]: Kullback-Leibler divergence of the values in LEVELS steps from the values cut off there.

    As TensorRT calibrates (Migacz, GTC 2017).
    """
    return np.stack([_divergence(counts, int(end)) for end in CANDIDATES], axis=1)


def _divergence(counts: Array, end: int) -> Array:
    inside = counts[:, :end].astype(np.float64)
    reference = inside.copy()
    reference[:, -1] += counts[:, end:].sum(axis=1)
    level = np.arange(end) * LEVELS // end
    starts = np.searchsorted(level, np.arange(LEVELS))
    total = np.add.reduceat(inside, starts, axis=1)
    filled = np.add.reduceat((inside > 0).astype(np.float64), starts, axis=1)
    spread = np.where(inside > 0, (total / np.maximum(filled, 1))[:, level], 0.0)
    p = reference / np.maximum(reference.sum(axis=1, keepdims=True), 1)
    q = spread / np.maximum(spread.sum(axis=1, keepdims=True), 1)
    floor = 1e-9
    return np.where(p > 0, p * np.log(np.maximum(p, floor) / np.maximum(q, floor)), 0.0).sum(axis=1)
