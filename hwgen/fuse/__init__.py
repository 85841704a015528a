"""Matching of ONNX nodes into the nodes of `hwgen.graph`."""

from .fuse import fuse
from .op import Body, Finding, Op

__all__ = ["Body", "Finding", "Op", "fuse"]
