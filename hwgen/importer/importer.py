"""A loaded ONNX model -> tensor IR, with a finding for every node that no rule takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import Finding
from ..tensor import BOOL, FLOAT, INT, Builder, Program
from . import operators  # noqa: F401  registers the rules
from .load import Model
from .nodes import ops
from .rules import Context
from .walk import walk

KINDS = {"f": FLOAT, "i": INT, "u": INT, "b": BOOL}


def import_program(model: Model, fixed: Mapping[str, Any] = {}) -> tuple[Program, list[Finding]]:  # noqa: B006
    """The model's outputs in tensor IR, and the findings; with findings, the program holds stand-ins (inputs named `?..`).

    A leading dimension that the file leaves open is 1. fixed: inputs that are numbers here, for example of a task.
    """
    t = Builder()
    c = Context(t, dict(model.opsets))
    c.raw = dict(model.constants)
    for name, value in [*model.constants.items(), *fixed.items()]:
        c.values[name] = t.const(value, name)
    for name, shape in model.inputs.items():
        if name not in c.values:
            full = tuple(1 if n is None and i == 0 else n for i, n in enumerate(shape))
            c.values[name] = t.input(name, full, KINDS[np.dtype(getattr(model, "kinds", {}).get(name, np.float32)).kind])
    walk(c, ops(model.graph.node, model.outputs, c.opsets))
    outputs = {name: c.values[name] for name in model.outputs if name in c.values}
    return Program(outputs, {"opsets": dict(model.opsets)}), c.findings
