"""Matching of ONNX nodes into the nodes of `hwgen.graph`."""

from .fuse import fuse
from .op import Finding, Op

__all__ = ["Finding", "Op", "fuse"]
