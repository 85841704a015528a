"""Micro forms of published systems, from timm, vit-pytorch, transformers and by hand: name, maker, shape of its images."""

from __future__ import annotations

from collections.abc import Callable

from by_hand import SYSTEMS_BY_HAND
from by_hand_mixers import MIXERS
from by_hand_systems import SHAPES as WHOLE_SHAPES
from by_hand_systems import WHOLE
from from_timm import TIMM_SYSTEMS
from from_timm import shape as timm_shape
from from_transformers import SHAPES as TRANSFORMERS_SHAPES
from from_transformers import TRANSFORMERS_SYSTEMS
from from_vit_pytorch import SHAPES as VIT_PYTORCH_SHAPES
from from_vit_pytorch import VIT_PYTORCH_SYSTEMS
from torch import nn

OWN = SYSTEMS_BY_HAND | MIXERS | WHOLE
SYSTEMS: dict[str, Callable[[], nn.Module]] = {
    **{f"timm.{name}": maker for name, maker in TIMM_SYSTEMS.items()},
    **{f"vp.{name}": maker for name, maker in VIT_PYTORCH_SYSTEMS.items()},
    **{f"hf.{name}": maker for name, maker in TRANSFORMERS_SYSTEMS.items()},
    **{f"own.{name}": maker for name, maker in OWN.items()},
}
SHAPES: dict[str, tuple[int, ...]] = {
    **{f"timm.{name}": timm_shape(maker) for name, maker in TIMM_SYSTEMS.items()},
    **{f"vp.{name}": VIT_PYTORCH_SHAPES.get(name, (3, 64, 64)) for name in VIT_PYTORCH_SYSTEMS},
    **{f"hf.{name}": TRANSFORMERS_SHAPES.get(name, (3, 64, 64)) for name in TRANSFORMERS_SYSTEMS},
    **{f"own.{name}": WHOLE_SHAPES.get(name, (3, 64, 64)) for name in OWN},
}
