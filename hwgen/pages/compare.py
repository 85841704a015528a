"""The comparison with the float model as a page: errors of each layer, and its values on the grid of 8 bits."""

from __future__ import annotations

from ..compare import LIMIT_DB, Comparison
from ..distributions import REACH
from ..numerics import INT8_MAX
from ..version import __version__
from . import render, svg


def page(found: Comparison, model: str, bundle: str) -> str:
    """The HTML text of a comparison that was made with its distributions."""
    pictures = {
        d.name: svg.histogram(d.real, d.integer, REACH, (-INT8_MAX, INT8_MAX), f"Values of {d.name} in steps of 8 bits")
        for d in found.distributions
    }
    return render(
        "compare.html",
        title=f"hwgen compare: {model}",
        found=found,
        model=model,
        bundle=bundle,
        version=__version__,
        held={d.name: d for d in found.distributions},
        pictures=pictures,
        limit=LIMIT_DB,
        int8=INT8_MAX,
    )
