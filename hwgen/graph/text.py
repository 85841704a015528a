"""The row graph as text, for people: a line a node, then the outputs.

    %q : f[17, 32] = Linear %norm weight[32, 32] bias[32]  # /blocks.0/attn/q/MatMul
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from .nodes import Graph, Node
from .shapes import shapes


def text(graph: Graph) -> str:
    """Inputs, nodes in execution order with the shapes of their values and parameters, outputs."""
    known = shapes(graph)
    lines = [f"%{name} : f{list(shape)} = input" for name, shape in graph.inputs.items()]
    for node in graph.nodes:
        note = f"  # {node.source}" if node.source else ""
        lines.append(f"%{node.name} : f{list(known[node.name])} = {type(node).__name__}{_fields(node)}{note}")
    for o in graph.outputs:
        lines.append(f"output {o.name} : f{list(o.shape)} = %{o.value}{' transposed' if o.transposed else ''}")
    return "\n".join(lines) + "\n"


def _fields(node: Node) -> str:
    words = []
    for f in fields(node):
        value = getattr(node, f.name)
        if f.name in ("name", "source") or value is None:
            continue
        if f.metadata.get("value"):
            words.append(f"%{value}")
        elif isinstance(value, np.ndarray):
            words.append(f"{f.name}{list(value.shape)}")
        else:
            words.append(f"{f.name}={value!r}".replace(" ", ""))
    return "".join(f" {word}" for word in words)
