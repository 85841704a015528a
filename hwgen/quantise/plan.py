"""What is known before lowering: which nodes are fused into which, which values are outputs, limited or a router's logits."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import graph as fg

MOVES = fg.Rows | fg.Gather | fg.Select  # whose values are rows of `x` as they are


@dataclass(frozen=True)
class Plan:
    """
    nodes    live nodes by name, in execution order
    users    value -> live nodes that read it
    roots    value -> the value whose rows it is (through what is in MOVES), itself for all others
    alone    values that are computed by themselves, not only inside the node that uses them
    outputs  roots that are read at the end
    logits   roots that a router reads
    limits   value -> the `Clip` that is all that reads it
    scales   value -> the step that a sum, or what is added to, shares with its neighbours (see `streams`)
    """

    nodes: dict[str, fg.Node]
    users: dict[str, list[fg.Node]]
    roots: dict[str, str]
    alone: set[str]
    outputs: set[str]
    logits: set[str]
    limits: dict[str, fg.Clip]
    scales: dict[str, float] = field(default_factory=dict)

    def linear(self, name: str) -> fg.Linear:
        """The `Linear` that makes the value: `legal` has put one there."""
        node = self.nodes[name]
        assert isinstance(node, fg.Linear), name
        return node

    def readers(self, name: str) -> list[fg.Node]:
        """Live nodes that read a value, directly or some rows of it."""
        found = []
        for user in self.users.get(name, []):
            found += self.readers(user.name) if isinstance(user, MOVES) and user.x == name else [user]
        return found

    def added_to(self, name: str) -> float:
        """The largest step of the sums that a value is stored for and something added to; 0 without one."""
        sums = [node for node in self.readers(name) if isinstance(node, fg.Add)]
        stored = {node.name: (product_side(self.nodes, node) or (node.b, node.a))[1] for node in sums}
        return max((self.scales.get(add, 0.0) for add, side in stored.items() if self.roots[side] == name), default=0.0)

    def stacked(self, name: str) -> fg.Stack | None:
        """The Stack that alone reads a value, all of it: it may be made in the Stack's steps, and in its place."""
        users = self.users.get(name, [])
        free = name not in self.scales and self.roots[name] not in self.outputs | self.logits
        return users[0] if free and len(users) == 1 and isinstance(users[0], fg.Stack) else None

    def only_multiplied(self, name: str) -> bool:
        """Whether all readers of the value multiply it with a matrix, so that scales and offsets fold into that."""
        return self.roots[name] not in self.outputs and all(
            isinstance(user, fg.Linear | fg.Experts | fg.Mean) for user in self.readers(name)
        )


def describe(node: fg.Node) -> str:
    return f"{type(node).__name__} {node.name!r}" + (f" (ONNX node {node.source!r})" if node.source else "")


def product_side(nodes: dict[str, fg.Node], add: fg.Add) -> tuple[str, str] | None:
    """(the operand that is computed and added on the fly, the operand that is stored); None where neither is a product.

    Of two products the one that less else reads: what others read, too, would be computed for them again.
    """
    pairs = ((add.b, add.a), (add.a, add.b))
    found = [(p, s) for p, s in pairs if isinstance(nodes.get(p), fg.Linear | fg.Experts | fg.Conv) and p != s]
    if len(found) < 2:
        return found[0] if found else None
    readers = {p: sum(p in node.inputs for node in nodes.values()) for p, _ in found}
    return min(found, key=lambda pair: readers[pair[0]])


def fused_values(nodes: dict[str, fg.Node], node: fg.Node) -> tuple[str, ...]:
    """Values that a node computes itself instead of reading them."""
    match node:
        case fg.Activation(x=x) | fg.Rotate(x=x):
            return (x,)
        case fg.LayerNorm(x=x, heads=heads) if heads > 1 and isinstance(nodes.get(x), fg.Linear):
            return (x,)  # of queries or keys
        case fg.Transpose(x=x) if isinstance(nodes.get(x), fg.Linear | fg.Product):
            return (x,)
        case fg.Scan(steps=steps):
            return (steps,)
        case fg.Attention(q=q, k=k, v=v):
            return q, k, v
        case fg.Embed(x=x) if isinstance(nodes.get(x), fg.PatchEmbed | fg.Linear):
            return (x,)
        case fg.Add():
            return (product_side(nodes, node) or ())[:1]
        case fg.Experts(routing=routing):
            return (routing,)
        case fg.Join(xs=xs) | fg.Stack(xs=xs):
            return tuple(name for name in xs if isinstance(nodes.get(name), fg.Gather))
    return ()


def live(graph: fg.Graph) -> dict[str, fg.Node]:
    """The nodes that outputs hang on, by name, in order."""
    found = {o.value for o in graph.outputs}
    for node in reversed(graph.nodes):
        if node.name in found:
            found.update(node.inputs)
    return {n.name: n for n in graph.nodes if n.name in found}


def plan(graph: fg.Graph) -> Plan:
    nodes = live(graph)
    users: dict[str, list[fg.Node]] = {}
    for node in nodes.values():
        for name in dict.fromkeys(node.inputs):
            users.setdefault(name, []).append(node)
    roots = {name: name for name in graph.inputs}
    for node in nodes.values():
        roots[node.name] = roots[node.x] if isinstance(node, MOVES) else node.name
    alone = {o.value for o in graph.outputs}
    for node in reversed(nodes.values()):
        alone.update(set(node.inputs) - set(fused_values(nodes, node)))
    outputs = {roots[o.value] for o in graph.outputs}
    logits = {roots[n.logits] for n in nodes.values() if isinstance(n, fg.Route)}
    limits = {
        node.x: node
        for node in nodes.values()
        if isinstance(node, fg.Clip) and users[node.x] == [node] and node.x not in outputs
    }
    return Plan(nodes, users, roots, alone, outputs, logits, limits)


MAP_SIDE = 4095  # the longest side of a map that a window's walk holds


def map_height(rows: int) -> int | None:
    """The height of a map of so many rows that a window's walk holds, if there is one."""
    return next((n for n in range(min(rows, MAP_SIDE), 0, -1) if rows % n == 0 and rows // n <= MAP_SIDE), None)


def int8_only(plan: Plan, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    """Layers whose result goes as int8 into a product of its own, in which more bits would be lost again.

    And those whose activation no window can compute by itself, for the number of its rows.
    """
    found: set[str] = set()
    for node in plan.nodes.values():
        if isinstance(node, fg.Attention | fg.Rotate | fg.Transpose | fg.Embed):
            found.update(node.inputs)
        if isinstance(node, fg.LayerNorm) and node.heads > 1:
            found.add(node.x)
        if isinstance(node, fg.Activation) and map_height(shapes[node.name][0]) is None:
            found.add(node.x)
    return found
