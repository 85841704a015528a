"""Where each node of an ONNX file goes: into a layer, as a part of one, into the layout of an operand, into a constant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import Finding
from .graph import Graph
from .importer.load import Model
from .importer.nodes import label, needed, read_names
from .tensor import Program
from .timeline import CAUSES

# What only says how a value is walked through: it becomes the layout of who reads it.
MOVES = {
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Flatten", "Identity", "Expand", "Concat", "Gather"),
    *("Cast", "DepthToSpace", "SpaceToDepth", "Dropout", "Tile", "Pad"),
}
WHOLE = {"Route", "Experts", "Select"}  # layers of many nodes, which stand at one in the middle
SIZES = {"Shape", "Size"}  # known before there is an image
SCALES = {"Add", "Sub", "Mul", "Div", "BatchNormalization"}  # with a constant: bias and scale of the layer before
HOW = {
    "layer": "a layer of its own",
    "part": "part of a layer",
    "layout": "moves nothing: how an operand is walked through",
    "constant": "a constant, computed at build time",
    "unused": "no output needs it",
    "refused": "not supported",
}


@dataclass(frozen=True)
class Place:
    """One ONNX node and what became of it: `how` of HOW, at which level of the compiler, in which layers (kind and name)."""

    node: str
    op: str
    shape: tuple[int, ...] | None
    how: str
    level: str
    layers: tuple[tuple[str, str], ...] = ()
    reason: str = ""


def places(model: Model, tensors: Program | None, rows: Graph | None, findings: Iterable[Finding]) -> list[Place]:
    """Every node of a file, in its order. tensors, rows: level T and the row graph, where the compiler came so far.

    A layer stands at the node that it is named after. Of the others a bias or scale belongs to the layer that it follows, where
    nothing else reads what it changes, and so does what follows routers and experts; the rest belongs to the next layers.
    """
    nodes = list(model.graph.node)
    labels = [label(node, i) for i, node in enumerate(nodes)]
    refused = {finding.node: finding for finding in findings}
    heads: dict[int, list[tuple[str, str]]] = defaultdict(list)
    number = {name: i for i, name in enumerate(labels)}
    for layer in rows.nodes if rows is not None else ():
        if layer.source in number:
            heads[number[layer.source]].append((type(layer).__name__, layer.name))
    flow = _Flow(nodes, set(model.inputs), heads)
    shapes = {v.name: _shape(v.type) for v in (*model.graph.value_info, *model.graph.output)}
    computed = {node.source: node.shape for node in tensors.nodes()} if tensors is not None else {}
    wanted = set(needed(nodes, model.outputs)[0])
    found = []
    for i, node in enumerate(nodes):
        about = (labels[i], node.op_type, shapes.get(node.output[0]) or computed.get(labels[i]))
        if finding := refused.get(labels[i]):
            found.append(Place(*about, "refused", finding.level, reason=finding.why))
        elif i not in wanted:
            found.append(Place(*about, "unused", "file"))
        elif not flow.moves(i):
            found.append(Place(*about, "constant", "tensor"))
        elif i in heads:
            found.append(Place(*about, "layer", "rows", tuple(heads[i])))
        else:
            how, level = ("layout", "tensor") if node.op_type in MOVES else ("part", "layers")
            whole = {at for at in flow.behind[i] if any(kind in WHOLE for kind, _ in heads[at])}
            near = flow.scaled(i) or whole or flow.ahead[i] or flow.behind[i]
            found.append(Place(*about, how, level, tuple(x for at in sorted(near) for x in heads[at])))
    return found


class _Flow:
    """Which layers lie before and behind each node. `ahead`, `behind`: node -> the nearest nodes that are layers."""

    def __init__(self, nodes: Sequence[Any], inputs: set[str], heads: Mapping[int, Any]):
        self.nodes, self.heads = nodes, heads
        self.source: dict[str, int] = {name: i for i, node in enumerate(nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = defaultdict(list)
        self.live = set(inputs)  # values that depend on the image
        self._live_nodes: set[int] = set()
        for i, node in enumerate(nodes):
            for name in read_names(node):
                self.readers[name].append(i)
            if node.op_type not in SIZES and not self.live.isdisjoint(read_names(node)):
                self.live.update(node.output)
                self._live_nodes.add(i)
        self.behind: dict[int, frozenset[int]] = {}
        for i, node in enumerate(nodes):
            before = [self.source[name] for name in read_names(node) if name in self.source]
            self.behind[i] = self._near(before, self.behind)
        self.ahead: dict[int, frozenset[int]] = {}
        for i in reversed(range(len(nodes))):
            self.ahead[i] = self._near([r for name in nodes[i].output for r in self.readers[name]], self.ahead)

    def _near(self, others: Iterable[int], known: Mapping[int, frozenset[int]]) -> frozenset[int]:
        return frozenset().union(*({i} if i in self.heads else known[i] for i in others if i in self._live_nodes))

    def moves(self, i: int) -> bool:
        """Whether the node depends on the image."""
        return i in self._live_nodes

    def scaled(self, i: int) -> frozenset[int]:
        """The layer that ends in this node: its bias or scale, alone on the way from it; else none."""
        at = i
        while at not in self.heads:
            node = self.nodes[at]
            read = [name for name in read_names(node) if name in self.live]
            if len(read) != 1 or len(self.readers[read[0]]) != 1 or read[0] not in self.source:
                return frozenset()
            if node.op_type not in SCALES and not (at != i and node.op_type in MOVES):
                return frozenset()
            at = self.source[read[0]]
        return frozenset({at}) if at != i else frozenset()


def _shape(kind: Any) -> tuple[int, ...] | None:
    if not kind.tensor_type.HasField("shape"):
        return None
    sizes = kind.tensor_type.shape.dim
    return tuple(d.dim_value for d in sizes) if all(d.HasField("dim_value") for d in sizes) else None


def costs(listed: Sequence[Place], task: Mapping[str, Any]) -> tuple[list[dict[str, int]], dict[str, int]]:
    """What each node's layers cost, and what belongs to none: cycles of the array, busy cycles of the vector unit, products,
    bytes of DRAM, operations. task: of a report, numbers of one run."""
    names = {name: i for i, place in enumerate(listed) if place.how == "layer" for _, name in place.layers}
    empty = {"cycles": 0, "vector": 0, "macs": 0, "dram_bytes": 0, "operations": 0}
    found, rest = [dict(empty) for _ in listed], dict(empty)
    for entry in task["operations"]:
        at = names.get(_layer(entry["of"], names))
        sums = rest if at is None else found[at]
        sums["cycles"] += sum(entry.get(cause, 0) for cause in CAUSES)
        sums["vector"] += entry["end"] - entry["start"] if entry["unit"] == "vector" else 0
        for name in ("macs", "dram_bytes"):
            sums[name] += entry.get(name, 0)
        sums["operations"] += 1
    return found, rest


def _layer(name: str, names: Mapping[str, int]) -> str:
    """The layer that an operation was made for: the longest name that its own begins with."""
    while name not in names and "." in name:
        name = name.rpartition(".")[0]
    return name
