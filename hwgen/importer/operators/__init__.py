"""The rules: importing this package fills `rules.RULES`."""

from .. import ragged  # noqa: F401
from . import attention, contrib, control, elementwise, indexing, moe, movement  # noqa: F401
from . import pools, products, quantised, reductions, resize, signal  # noqa: F401
