"""Axes of maps that are resampled."""

import numpy as np

from hwgen import resampling as rs


def linear(tokens, outputs, corners=False):
    """Linear resampling between the middles of tokens, or with the corners in their places."""
    at = np.arange(outputs)
    at = at * (tokens - 1) / max(1, outputs - 1) if corners else (at + 0.5) * tokens / outputs - 0.5
    return rs.axis_of(np.maximum(0, 1 - np.abs(np.clip(at, 0, tokens - 1)[:, None] - np.arange(tokens))).astype(np.float32))
