"""A part of an ONNX file: the graph up to values that are named, and where to end it so that hwgen takes the rest."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from ..errors import UserError
from .nodes import label, needed, read_names

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
    places, names = needed(graph.node, outputs)
    names.difference_update(outputs)
    types = {v.name: v for v in [*graph.value_info, *graph.output]}
    ends = [copy.deepcopy(types.get(name) or onnx.ValueInfoProto(name=name)) for name in outputs]
    for field, kept in (
        (graph.node, set(places)),
        (graph.input, {i for i, v in enumerate(graph.input) if v.name in names}),
        (graph.initializer, {i for i, t in enumerate(graph.initializer) if t.name in names}),
        (graph.sparse_initializer, {i for i, t in enumerate(graph.sparse_initializer) if t.values.name in names}),
        (graph.value_info, {i for i, v in enumerate(graph.value_info) if v.name in names}),
        (graph.output, set[int]()),
    ):
        for i in reversed(range(len(field))):
            if i not in kept:
                del field[i]
    graph.output.extend(ends)


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
    behind, _ = needed(graph.node, [o.name for o in graph.output if o.name in tainted])
    read = set[str]().union(*(read_names(graph.node[i]) for i in behind if tainted.intersection(graph.node[i].output)))
    both = read & moving
    ends += [name for node in graph.node for name in node.output if name in both]
    outputs = tuple(dict.fromkeys(ends))
    kept, _ = needed(graph.node, outputs)
    if PRODUCTS.isdisjoint(graph.node[i].op_type for i in kept):
        return None
    return Cut(outputs, len(kept), len(graph.node))
