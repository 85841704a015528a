"""The rules: importing this package fills `rules.RULES`."""

from . import elementwise, indexing, movement, pools, products, reductions, resize, signal  # noqa: F401
