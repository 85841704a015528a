"""A loaded ONNX model -> tensor IR, with a finding for every node that no rule takes."""

from __future__ import annotations

from ..errors import Finding
from ..tensor import BOOL, FLOAT, INT, Builder, Input, Map, Program, Ref, users
from . import operators  # noqa: F401  registers the rules
from .load import Model
from .nodes import ops
from .ragged import plain
from .rules import Context
from .walk import walk

KINDS = {"f": FLOAT, "i": INT, "u": INT, "b": BOOL}


def import_program(model: Model, pixels: frozenset[str] = frozenset()) -> tuple[Program, list[Finding]]:
    """The model's outputs in tensor IR, and the findings; with findings, the program holds stand-ins (inputs named `?..`).

    pixels: inputs of whole numbers that are floating point here, which are those that nothing reads but casts.
    """
    t = Builder()
    c = Context(t, dict(model.opsets))
    c.kinds = {name: kind.name for name, kind in [*((n, v.dtype) for n, v in model.constants.items()), *model.kinds.items()]}
    for name, value in model.constants.items():
        c.values[name] = t.const(value, name)
    for name, shape in model.inputs.items():
        c.values[name] = t.input(name, shape, FLOAT if name in pixels else KINDS[model.kinds[name].kind])
    c.types = {v.name: v.type for v in [*model.graph.value_info, *model.graph.output]}
    nodes = ops(model.graph.node, model.outputs, c.opsets)
    walk(c, nodes)
    outputs = {name: plain(c, c.values[name]) for name in model.outputs if name in c.values}
    for name in [name for name, r in outputs.items() if not isinstance(r, Ref)]:
        c.findings.append(Finding(name, "output", "import", "has as many elements as the image says"))
        outputs.pop(name)
    program = Program(outputs, {"opsets": dict(model.opsets), "operators": c.operators})
    read = {n: found for n, found in users(program.nodes()).items() if isinstance(n.op, Input) and n.dtype == INT}
    cast = {n.op.name for n, found in read.items() if all(r.op == Map("float") for r in found)} - set(model.numbers)
    if cast - pixels:
        return import_program(model, frozenset(cast | pixels))
    needed = program.nodes() if c.unwanted else []
    return program, c.findings + [c.unwanted[node] for node in needed if node in c.unwanted]
