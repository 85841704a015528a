"""The cycle model: what each instruction costs on a Config, and how the decoupled units overlap.

`estimate` follows a program as the hardware does, from event to event: the sequencer dispatches into queues, units take an
instruction when its counts are reached, a Matmul goes tile by tile, and all transfers share DRAM. Instructions are
described in `units` and `matmul`, memory in `traffic`, the run in `simulation`.
"""

from .simulation import Estimate, balanced, estimate
from .units import vector_cycles

__all__ = ["Estimate", "balanced", "estimate", "vector_cycles"]
