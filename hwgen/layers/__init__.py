"""Level L of the compiler: layers, each defined by code that makes the same value of tensor IR (`Layer.define`)."""

from ..tensor import Layer
from .activation import Activation, Clip
from .attention import Attention, Rotate
from .linear import Conv, Embed, Linear, Scale
from .norm import Norm, Softmax
from .pool import Pool

LAYERS: dict[str, type[Layer]] = {
    c.__name__.lower(): c for c in (Activation, Attention, Clip, Conv, Embed, Linear, Norm, Pool, Rotate, Scale, Softmax)
}

__all__ = ["LAYERS", "Activation", "Attention", "Clip", "Conv", "Embed", "Layer", "Linear", "Norm", "Pool", "Rotate", "Scale", "Softmax"]
