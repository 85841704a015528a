"""A part of an ONNX file: the graph up to values that are named, and where to end it so that hwgen takes the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ..errors import UserError
from .external import bodies
from .nodes import label

PRODUCTS = {"Conv", "MatMul", "Gemm", "Einsum", "ConvTranspose", "FusedMatMul", "QLinearConv", "QLinearMatMul", "Attention"}
FIXED = {"Constant", "Shape", "Size"}  # nodes that know their result without the image


@dataclass(frozen=True)
class Cut:
    """Values that a file may end in: their names, and how many of its nodes they need, of how many."""

    outputs: tuple[str, ...]
    nodes: int
    of: int


def end_at(path: Path, proto: onnx.ModelProto, outputs: Sequence[str]) -> None:
    """Make the values called `outputs` those of the graph, in that order; what they do not need is left out, inputs too.

    Raises UserError naming a value that no node makes, or that is named twice.
    """
    graph = proto.graph
    made = {name for node in graph.node for name in node.output if name}
    for name in outputs:
        if name not in made:
            there = ", ".join(o.name for o in graph.output)
            raise UserError(f"{path}: --outputs: no node makes a value {name!r}; the file's own outputs are {there}")
        if list(outputs).count(name) > 1:
            raise UserError(f"{path}: --outputs names {name!r} twice")
    nodes, needed = _needed(graph.node, outputs)
    types = {v.name: v for v in [*graph.value_info, *graph.output]}
    ends = [types.get(name) or onnx.ValueInfoProto(name=name) for name in outputs]
    for kept, field in (
        ([graph.node[i] for i in nodes], graph.node),
        ([v for v in graph.input if v.name in needed], graph.input),
        ([t for t in graph.initializer if t.name in needed], graph.initializer),
        ([t for t in graph.sparse_initializer if t.values.name in needed], graph.sparse_initializer),
        ([v for v in graph.value_info if v.name in needed and v.name not in outputs], graph.value_info),
        (ends, graph.output),
    ):
        _replace(field, kept)


def _replace(field: Any, kept: list[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in kept]
    del field[:]
    field.extend(copies)


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> tuple[list[int], set[str]]:
    """The places of the nodes that `outputs` need, and every name that is read on the way."""
    needed, kept = set(outputs), []
    for i in range(len(nodes) - 1, -1, -1):
        if needed & {name for name in nodes[i].output if name}:
            kept.append(i)
            needed |= read_names(nodes[i])
    return kept[::-1], needed


def read_names(node: onnx.NodeProto) -> set[str]:
    """What a node reads, its branches included."""
    names = {name for name in node.input if name}
    for inner in bodies(node):
        names.update(o.name for o in inner.output)
        for n in inner.node:
            names |= read_names(n)
    return names


def before(graph: onnx.GraphProto, refused: Collection[str], inputs: Collection[str]) -> Cut | None:
    """The last values that none of the nodes named `refused` takes part in: outputs as they are, or what is read first
    behind. inputs: of the graph, what the image changes.

    None where a refused node is none of the graph's own, or no product is left before them.
    """
    labels = [label(node, i) for i, node in enumerate(graph.node)]
    if not refused or not set(refused) <= set(labels):
        return None
    tainted: set[str] = set()
    moving = set(inputs)  # what depends on the image
    for node, name in zip(graph.node, labels, strict=True):
        reads = read_names(node)
        if name in refused or reads & tainted:
            tainted.update(o for o in node.output if o)
        elif reads & moving and node.op_type not in FIXED:
            moving.update(o for o in node.output if o)
    ends = [o.name for o in graph.output if o.name in moving]
    behind = _needed(graph.node, [o.name for o in graph.output if o.name in tainted])[0]
    for i in behind:
        if tainted & set(graph.node[i].output):
            reads = read_names(graph.node[i])
            ends += [o for node in graph.node for o in node.output if o in reads & moving - set(inputs)]
    outputs = tuple(dict.fromkeys(ends))
    kept = _needed(graph.node, outputs)[0]
    if PRODUCTS.isdisjoint(graph.node[i].op_type for i in kept):
        return None
    return Cut(outputs, len(kept), len(graph.node))
