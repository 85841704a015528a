"""A loaded ONNX model -> tensor IR, with a finding for every node that no rule takes."""

from __future__ import annotations

from collections.abc import Set

import numpy as np

from ..errors import Finding
from ..tensor import BOOL, FLOAT, INT, Builder, Program, Ref
from . import operators  # noqa: F401  registers the rules
from .load import Model
from .nodes import ops
from .ragged import plain
from .rules import Context
from .walk import walk

KINDS = {"f": FLOAT, "i": INT, "u": INT, "b": BOOL}


def import_program(model: Model, whole: Set[str] = frozenset()) -> tuple[Program, list[Finding]]:
    """The model's outputs in tensor IR, and the findings; with findings, the program holds stand-ins (inputs named `?..`).

    An input of integers whose integers nothing needs is floating point here, as the image of a file that casts its pixels.
    whole: inputs that are not, since something needs them.
    """
    pixels = {name for name, kind in model.kinds.items() if kind.kind in "iu"}.difference(whole, model.numbers)
    t = Builder(pixels=pixels)
    c = Context(t, dict(model.opsets))
    c.kinds = {name: kind.name for name, kind in [*((n, v.dtype) for n, v in model.constants.items()), *model.kinds.items()]}
    for name, value in model.constants.items():
        c.values[name] = t.const(value, name)
    for name, shape in model.inputs.items():
        c.values[name] = t.input(name, shape, KINDS[model.kinds[name].kind])
    c.types = {v.name: v.type for v in [*model.graph.value_info, *model.graph.output]}
    nodes = ops(model.graph.node, model.outputs, c.opsets)
    walk(c, nodes)
    outputs = {name: plain(c, c.values[name]) for name in model.outputs if name in c.values}
    for name in [name for name, r in outputs.items() if not isinstance(r, Ref)]:
        c.findings.append(Finding(name, "output", "import", "has as many elements as the image says"))
        outputs.pop(name)
    program = Program(outputs, {"opsets": dict(model.opsets), "operators": c.operators})
    bytes_of = {n: np.iinfo(k) for n, k in model.kinds.items() if n in pixels and k.itemsize == 1}
    program.notes["types"] = {n: k.name for n, k in model.kinds.items() if n in model.inputs and k.kind in "iub"}
    if bytes_of:
        program.notes["ranges"] = {n: (float(limits.min), float(limits.max)) for n, limits in bytes_of.items()}
    names = [i.name for i in program.inputs()]
    both = {name for name in names if names.count(name) > 1}
    if both:
        return import_program(model, both | whole)
    needed = program.nodes() if c.unwanted else []
    return program, c.findings + [c.unwanted[node] for node in needed if node in c.unwanted]
