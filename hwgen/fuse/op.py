"""What passes between the front end and fusion: one ONNX node with its attributes decoded, and how a rule says no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto


@dataclass(frozen=True)
class Finding:
    """One ONNX node that hwgen cannot build: its name, its operator, why, and what would help."""

    node: str
    op: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.op} node {self.node!r}: {self.reason}" + (f" ({self.hint})" if self.hint else "")


class Unsupported(Exception):
    """Raised by a rule. `recover` is what to continue with so that later nodes can still be judged."""

    def __init__(self, reason: str, hint: str = "", recover: Any = None):
        super().__init__(reason)
        self.reason, self.hint, self.recover = reason, hint, recover


@dataclass(eq=False)
class Op:
    """An ONNX node. `type` carries the domain unless it is the standard one; an absent optional input is ""."""

    type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int
    proto: NodeProto = field(repr=False)

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)


@dataclass(frozen=True, eq=False)
class Body:
    """A graph inside a node (a branch of an If): it reads the values around it, its constants and its own."""

    ops: list[Op]
    constants: dict[str, np.ndarray]
    outputs: tuple[str, ...]


def constant_argument(op: Op, values: Sequence[Any], position: int, name: str, default: Any = None) -> Any:
    """An argument that older opsets hold as attribute `name` and newer ones as constant input `position`."""
    if name in op.attributes:
        return np.asarray(op.attributes[name])
    if position < len(values) and values[position] is not None:
        array = getattr(values[position], "array", None)
        if array is None:
            raise Unsupported(f"{name} is computed from the image", "export with static shapes")
        return array
    return default
