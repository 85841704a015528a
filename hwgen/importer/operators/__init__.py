"""The rules: importing this package fills `rules.RULES`."""

from .. import ragged  # noqa: F401
from . import control, elementwise, indexing, movement, pools, products, reductions, resize, signal  # noqa: F401
