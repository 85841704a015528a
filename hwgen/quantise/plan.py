"""What is known before lowering: which nodes are fused into which, who reads a value last, what scale it must have."""

from __future__ import annotations

from dataclasses import dataclass

from .. import graph as fg
from ..errors import UserError

NEVER = 1 << 60  # later than any node: outputs are read at the end


@dataclass(frozen=True)
class Plan:
    """
    nodes       live nodes by name, in execution order
    users       value -> live nodes that read it
    roots       value -> the value whose rows it is (through `Rows`), itself for all others
    alone       values that are computed by themselves, not only inside the node that uses them
    last_read   root -> index of the last moment at which something reads it, NEVER for outputs
    stream      roots that must have the scale of the residual stream
    logits      roots that a router reads
    """

    nodes: dict[str, fg.Node]
    users: dict[str, list[fg.Node]]
    roots: dict[str, str]
    alone: set[str]
    last_read: dict[str, int]
    stream: set[str]
    logits: set[str]

    def linear(self, name: str, reader: fg.Node) -> fg.Linear:
        """The `Linear` that makes the value, or UserError naming its reader."""
        node = self.nodes.get(name)
        if not isinstance(node, fg.Linear):
            kind = type(node).__name__ if node else "an input"
            raise UserError(f"{describe(reader)}: needs a linear layer in front of it, {name!r} is {kind}")
        return node

    def readers(self, name: str) -> list[fg.Node]:
        """Live nodes that read a value, directly or some rows of it."""
        found = []
        for user in self.users.get(name, []):
            found += self.readers(user.name) if isinstance(user, fg.Rows) else [user]
        return found

    def only_multiplied(self, name: str) -> bool:
        """Whether all readers of the value multiply it with a matrix, so that scales and offsets fold into that."""
        return self.last_read.get(name, 0) != NEVER and all(
            isinstance(user, fg.Linear | fg.Experts | fg.Mean) for user in self.readers(name)
        )


def describe(node: fg.Node) -> str:
    return f"{type(node).__name__} {node.name!r}" + (f" (ONNX node {node.source!r})" if node.source else "")


def product_side(nodes: dict[str, fg.Node], add: fg.Add) -> tuple[str, str]:
    """(the operand that is computed and added on the fly, the operand that is stored)."""
    for product, stored in ((add.b, add.a), (add.a, add.b)):
        if isinstance(nodes.get(product), fg.Linear | fg.Experts) and product != stored:
            return product, stored
    raise UserError(f"{describe(add)}: one operand must be a linear layer or experts, not {add.a!r} + {add.b!r}")


def fused_values(nodes: dict[str, fg.Node], node: fg.Node) -> tuple[str, ...]:
    """Values that a node computes itself instead of reading them."""
    match node:
        case fg.Gelu(x=x) | fg.Silu(x=x) | fg.Relu(x=x) | fg.Rotate(x=x):
            return (x,)
        case fg.LayerNorm(x=x, heads=heads) if heads > 1 and isinstance(nodes.get(x), fg.Linear):
            return (x,)  # of queries or keys
        case fg.Attention(q=q, k=k, v=v):
            return q, k, v
        case fg.Embed(x=x) if isinstance(nodes.get(x), fg.PatchEmbed | fg.Linear):
            return (x,)
        case fg.Add():
            return (product_side(nodes, node)[0],)
        case fg.Experts(routing=routing):
            return (routing,)
    return ()


def plan(graph: fg.Graph) -> Plan:
    """Raises UserError for an `Add` that the machine cannot do."""
    live = {o.value for o in graph.outputs}
    for node in reversed(graph.nodes):
        if node.name in live:
            live.update(node.inputs)
    nodes = {n.name: n for n in graph.nodes if n.name in live}
    index = {name: i for i, name in enumerate(nodes)}
    users: dict[str, list[fg.Node]] = {}
    for node in nodes.values():
        for name in dict.fromkeys(node.inputs):
            users.setdefault(name, []).append(node)
    roots = {name: name for name in graph.inputs}
    for node in nodes.values():
        roots[node.name] = roots[node.x] if isinstance(node, fg.Rows) else node.name

    alone = {o.value for o in graph.outputs}
    moments: dict[str, list[int]] = {name: [] for name in nodes}
    for node in reversed(nodes.values()):
        if node.name in alone:
            moments[node.name].append(index[node.name])
        fused = fused_values(nodes, node)
        for name in node.inputs:
            if name in fused and not (isinstance(node, fg.Add) and name == product_side(nodes, node)[1]):
                if name in moments:
                    moments[name] += moments[node.name]
            else:
                alone.add(name)

    last_read: dict[str, int] = {}
    for node in nodes.values():
        fused = fused_values(nodes, node)
        for name in node.inputs:
            if name not in fused and not isinstance(node, fg.Rows):
                root = roots[name]
                last_read[root] = max(last_read.get(root, 0), *moments[node.name])
    for output in graph.outputs:
        last_read[roots[output.value]] = NEVER

    stream = set()
    for node in nodes.values():
        if isinstance(node, fg.Embed | fg.Add):
            stream.add(node.name)
        if isinstance(node, fg.Embed) and node.x not in fused_values(nodes, node):
            stream.add(roots[node.x])
        if isinstance(node, fg.Add):
            stream.add(roots[product_side(nodes, node)[1]])
    logits = {roots[n.logits] for n in nodes.values() if isinstance(n, fg.Route)}
    return Plan(nodes, users, roots, alone, last_read, stream, logits)
