"""The rules: importing this package fills `rules.RULES`."""

from . import control, elementwise, movement, pools, products, reductions  # noqa: F401
