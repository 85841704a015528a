"""The rules: importing this package fills `rules.RULES`."""

from . import (  # noqa: F401
    attention,
    contrib,
    control,
    elementwise,
    indexing,
    moe,
    movement,
    pools,
    products,
    quantised,
    ragged,
    reductions,
    resize,
    signal,
)
