"""The rules: importing this package fills `rules.RULES`."""

from . import elementwise, movement, pools, products, reductions  # noqa: F401
