"""hwgen: FPGA accelerators for Vision Transformers, generated and simulated with open tools.

    import hwgen

    bundle = hwgen.build("vit.onnx", board="zcu104", calibrate="images.npz")
    logits = bundle.run(images).outputs["logits"]

`build`, `check`, `inspect` and `Bundle` are described in docs/python.md; everything raised on purpose is in `hwgen.errors`.
Importing this package loads none of its libraries: they come with the first name that is asked for.
"""

from typing import TYPE_CHECKING, Any

from .checkout import find_folders
from .version import __version__

if TYPE_CHECKING:
    from .api import Bundle, build, check, inspect

__all__ = ["Bundle", "__version__", "build", "check", "inspect"]


find_folders()


def __getattr__(name: str) -> Any:
    if name in ("Bundle", "build", "check", "inspect"):
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module 'hwgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
