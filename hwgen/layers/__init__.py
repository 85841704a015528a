"""Level L of the compiler: layers, each defined by code that makes the same value of tensor IR (`Layer.define`)."""

from ..tensor import Layer
from .activation import Activation, Clip
from .attention import Attention, Rotate
from .linear import Conv, Embed, Linear, Scale
from .moe import Combine, Dispatch, Experts, Router, SlotExperts
from .norm import Length, Norm, Softmax
from .pool import Pool
from .scan import Scan
from .select import Hard, Received, Select

LAYERS: dict[str, type[Layer]] = {
    c.__name__.lower(): c
    for c in (
        *(Activation, Attention, Clip, Combine, Conv, Dispatch, Embed, Experts, Linear, Norm, Pool, Rotate, Router, Scale),
        *(Hard, Length, Received, Scan, Select, SlotExperts, Softmax),
    )
}

__all__ = ["LAYERS", "Activation", "Attention", "Clip", "Combine", "Conv", "Dispatch", "Embed", "Experts", "Hard", "Layer"]
__all__ += ["Length", "Linear", "Norm", "Pool", "Received", "Rotate", "Router", "Scale", "Scan", "Select", "SlotExperts"]
__all__ += ["Softmax"]
