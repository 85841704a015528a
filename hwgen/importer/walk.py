"""Importing nodes in order: a rule makes each node's values; behind a node without one, stand-ins of its shapes go on."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import Finding
from ..tensor import BOOL, FLOAT, INT, LARGEST, Ref, TooLarge
from . import ragged
from .nodes import ops
from .rules import ANY_VALUE, RULES, Context, Op, Unsupported

ELEMENT = {FLOAT: TensorProto.FLOAT, INT: TensorProto.INT64, BOOL: TensorProto.BOOL}

SAME_TYPE = set("Identity Reshape Squeeze Unsqueeze Transpose Flatten Expand Slice Gather Split Concat Clip MaxPool Relu".split())
INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.INT8)


def walk(c: Context, nodes: list[Op], source: str = "") -> None:
    """Import `nodes` into `c.values`; what cannot be taken joins `c.findings`. Nodes that read unknown values are skipped.

    source: the ONNX node that the nodes stand for, where that is one.
    """
    for op in nodes:
        if any(name and name not in c.values for name in op.inputs):
            continue
        operands = [c.values[name] if name else None for name in op.inputs]
        c.t.source = source or op.name
        c.operators.setdefault(c.t.source, op.type)
        try:
            made = _rule(c, op, operands)
        except Unsupported as no:
            refuse(c, op, no.reason, no.hint)
        except TooLarge as error:
            refuse(c, op, f"makes {error}, too many to import")
        except MemoryError:
            refuse(c, op, "takes more memory to compute while importing than there is")
        except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
            refuse(c, op, f"its operands do not fit: {error}")
        else:
            results = made if isinstance(made, list | tuple) else [made]
            c.values.update((name, r) for name, r in zip(op.outputs, results, strict=False) if name and r is not None)
            if op.type in SAME_TYPE and op.inputs[0] in c.kinds:
                c.kinds.update(dict.fromkeys(op.outputs, c.kinds[op.inputs[0]]))
            if op.unread:
                c.findings.append(Finding(op.name, op.type, "import", f"attribute {', '.join(op.unread)} is not known"))
            missing = [n for i, n in enumerate(op.outputs) if n and (i >= len(results) or results[i] is None)]
            if missing:
                refuse(c, op, f"output {missing[0]!r} is not computed", outputs=missing)


def refuse(c: Context, op: Op, reason: str, hint: str = "", outputs: list[str] | None = None) -> None:
    """A finding, and stand-ins of the shapes that ONNX's inference gives, so that nodes behind are judged too."""
    c.findings.append(Finding(op.name, op.type, "import", reason, hint))
    for name, (shape, dtype) in _shapes(c, op).items():
        if (outputs is None or name in outputs) and prod(shape) <= LARGEST:
            c.values[name] = c.t.input(f"?{name}", shape, dtype)


def _rule(c: Context, op: Op, operands: list[Any]) -> Any:
    if op.type not in ANY_VALUE and not all(v is None or isinstance(v, Ref) for v in operands):
        return ragged.run(c, op, operands, _plain)
    return _plain(c, op, operands)


def _plain(c: Context, op: Op, operands: list[Any]) -> Any:
    function = RULES.get(op.type)
    if function is not None:
        return function(c, op, *operands)
    return _expanded(c, op, operands)


def _expanded(c: Context, op: Op, operands: list[Any]) -> list[Any]:
    """An operator that ONNX itself defines by others."""
    domain, _, kind = op.type.rpartition(".")
    if not onnx.defs.has(kind, domain):
        raise Unsupported("is not an operator that hwgen knows")
    schema = _schema(kind, op.opset, domain)
    try:
        version = max(v for v in schema.function_opset_versions + schema.context_dependent_function_opset_versions)
        text = schema.get_function_with_opset_version(version) if schema.has_function else None
        types = [_type(r).SerializeToString() if r is not None else b"" for r in operands]
        if text is None:
            text = schema.get_context_dependent_function_with_opset_version(version, op.proto.SerializeToString(), types)
    except (ValueError, AttributeError, RuntimeError):  # an onnx without these, or an operator without a function
        raise Unsupported("has no rule in hwgen") from None
    function = onnx.FunctionProto.FromString(text)
    inner = Context(c.t, {o.domain: o.version for o in function.opset_import}, kinds=c.kinds)
    inner.values = dict(zip(function.input, operands, strict=False))
    given = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.type}
    given |= {a.name: a for a in [*function.attribute_proto, *op.proto.attribute]}
    nodes = [_bound(node, given) for node in function.node]
    op.ignore(*op.attributes)
    walk(inner, ops(nodes, function.output, inner.opsets), c.t.source)
    if inner.findings:
        first = inner.findings[0]
        raise Unsupported(f"its {first.op}: {first.reason}", first.hint)
    return [inner.values.get(name) for name in function.output]


def _schema(kind: str, opset: int, domain: str) -> Any:
    try:
        return onnx.defs.get_schema(kind, opset, domain)
    except onnx.defs.SchemaError:  # written by an optimiser into a file of an older opset
        return onnx.defs.get_schema(kind, domain)


def _bound(node: onnx.NodeProto, given: dict[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """A function's node with attributes of the caller in place of references."""
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for a in node.attribute:
        if not a.ref_attr_name:
            bound.attribute.append(a)
        elif a.ref_attr_name in given:
            value = onnx.AttributeProto()
            value.CopyFrom(given[a.ref_attr_name])
            value.name = a.name
            bound.attribute.append(value)
    return bound


def _type(r: Ref) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(ELEMENT[r.dtype], r.shape)


def _shapes(c: Context, op: Op) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and kind of a node's outputs as far as ONNX infers them or the file says; a first axis left open is 1."""
    kinds: dict[int, str] = {TensorProto.BOOL: BOOL, **dict.fromkeys(INTEGERS, INT)}
    found = {}
    for name, proto in ({n: c.types[n] for n in op.outputs if n in c.types} | _inferred(c, op)).items():
        tensor = proto.tensor_type
        shape = [d.dim_value or (0 if i or d.HasField("dim_value") else 1) for i, d in enumerate(tensor.shape.dim)]
        if tensor.HasField("shape") and 0 not in shape:
            found[name] = tuple(shape), kinds.get(tensor.elem_type, FLOAT)
    return found


def _inferred(c: Context, op: Op) -> dict[str, onnx.TypeProto]:
    domain, _, kind = op.type.rpartition(".")
    if not onnx.defs.has(kind, domain):
        return {}
    types, data = {}, {}
    for name in op.inputs:
        if name:
            r = c.values[name]
            if not isinstance(r, Ref):
                return {}
            types[name] = _type(r)
            if r.constant is not None and r.layout.size < 1024:
                data[name] = numpy_helper.from_array(np.asarray(r.constant))
    try:
        sets = [helper.make_opsetid(*o) for o in c.opsets.items()]
        schema = _schema(kind, op.opset, domain)
        return dict(onnx.shape_inference.infer_node_outputs(schema, op.proto, types, data, opset_imports=sets))
    except Exception:  # onnx raises types of its own for whatever it cannot infer
        return {}
