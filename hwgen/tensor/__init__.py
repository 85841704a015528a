"""Tensor IR, level T of the compiler: `layout` (operands' walks), `ir` (nodes), `build`, `evaluate`, `text`."""

from .build import Builder
from .evaluate import evaluate
from .ir import (
    BOOL,
    FLOAT,
    INT,
    Concat,
    Const,
    Contract,
    Copy,
    Gather,
    Input,
    Map,
    Node,
    Op,
    Pad,
    Program,
    Reduce,
    Ref,
    Scatter,
    TopK,
    reached,
    users,
    verify,
)
from .layer import Layer
from .layout import LARGEST, Layout, TooLarge
from .text import parse, text

__all__ = [
    "BOOL", "Builder", "Concat", "Const", "Contract", "Copy", "FLOAT", "Gather", "INT", "Input", "LARGEST", "Layer", "Layout",
    "Map", "Node", "Op", "Pad", "Program", "Reduce", "Ref", "Scatter", "TopK", "TooLarge", "evaluate", "parse",
    "reached", "text", "users", "verify",
]
