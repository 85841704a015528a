"""The float graph in forms that lowering knows: products with the identity where it needs a product, and few limits."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np

from .. import graph as fg
from .calibrate import Range, Stats
from .plan import live, product_side

LEAST = {"Gelu": -0.17, "Silu": -0.2785, "Relu": 0.0}  # of an activation's values, Silu's with slope 1
INT8_STEPS = 255  # of the range of a quantised file: half a step more or less is its own rounding


@dataclass
class Legal:
    """
    exact    identities that must keep all 16 bits
    aliases  values of the graph before -> equal ones of `graph`
    """

    graph: fg.Graph
    stats: Stats
    exact: set[str] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)


def legal(graph: fg.Graph, stats: Stats, trusted: bool) -> Legal:
    """`graph` without what nothing reads, in forms that lowering knows, with the statistics of its values.

    trusted: the statistics are of real images, so that a limit which none of them reaches may be left to saturation.
    """
    done = Legal(replace(graph, nodes=[]), replace(stats, values=dict(stats.values)))
    nodes: dict[str, fg.Node] = {}

    def put(node: fg.Node) -> str:
        nodes[node.name] = node
        done.graph.nodes.append(node)
        return node.name

    def identity(reader: fg.Node, operand: str, exact: bool = False) -> str:
        """A product with the identity between a value and its reader."""
        x = getattr(reader, operand)
        name = f"{reader.name}.{operand}.as_is"
        if name not in nodes:
            done.stats.values[name] = done.stats.values[x]
            put(fg.Linear(name, x, np.eye(len(done.stats.values[x].low), dtype=np.float32), None, source=reader.source))
            done.exact |= {name} if exact else set()
        return name

    for node in live(graph).values():
        read = {f.name: getattr(node, f.name) for f in fields(node) if f.metadata.get("value")}
        node = replace(node, **{name: done.aliases.get(value, value) for name, value in read.items()})
        made = {name: nodes.get(getattr(node, name)) for name in read}
        changed = {}
        match node:
            case fg.Clip():
                _clip(node, nodes, done, put, trusted)
                continue
            case fg.Gelu() | fg.Silu() | fg.Relu():
                wanted = {"x": isinstance(made["x"], fg.Linear)}
            case fg.Rotate():
                wanted = {"x": isinstance(made["x"], fg.Linear | fg.LayerNorm)}
            case fg.LayerNorm(heads=heads) if heads > 1:
                wanted = {"x": isinstance(made["x"], fg.Linear)}
            case fg.Attention(heads=heads):
                wanted = {"v": isinstance(made["v"], fg.Linear)}
                for name in "qk":
                    turned = isinstance(made[name], fg.Rotate | fg.LayerNorm) and made[name].heads == heads
                    wanted[name] = turned or isinstance(made[name], fg.Linear)
            case fg.Embed():
                wanted = {"x": isinstance(made["x"], fg.PatchEmbed | fg.Linear)}
            case fg.Add() if product_side(nodes, node) is None:
                # What is no sum itself is more often the smaller part.
                wanted = {"a" if isinstance(made["b"], fg.Add | fg.Embed) and not isinstance(made["a"], fg.Add) else "b": False}
            case _:
                wanted = {}
        for name in (name for name, good in wanted.items() if not good):
            exact = isinstance(node, fg.Add | fg.Embed) and not isinstance(made[name], fg.Clip)
            changed[name] = identity(node, name, exact)
        put(replace(node, **changed))
    done.graph.outputs = [replace(o, value=done.aliases.get(o.value, o.value)) for o in graph.outputs]
    return done


def _clip(node: fg.Clip, nodes: dict[str, fg.Node], done: Legal, put, trusted: bool) -> None:
    """Keep of a Clip what limits something: nothing, ReLU, or one with finite limits only where values get there."""
    source, seen = nodes.get(node.x), done.stats.values[node.x]
    half = (node.high - node.low) / INT8_STEPS / 2
    half = half if np.isfinite(half) else 0.0
    least = LEAST.get(type(source).__name__, -np.inf) / (source.slope if isinstance(source, fg.Silu) else 1.0)
    least = max(least, float(seen.low.min()) if trusted else -np.inf)
    low = -np.inf if node.low <= least + half else node.low
    high = np.inf if trusted and node.high >= float(seen.high.max()) - half else node.high
    if abs(low) <= half and isinstance(source, fg.Linear):
        done.stats.values[f"{node.name}.relu"] = Range(np.maximum(seen.low, 0), np.maximum(seen.high, 0))
        node = replace(node, x=put(fg.Relu(f"{node.name}.relu", node.x, source=node.source)))
        low = -np.inf
    if np.isinf(low) and np.isinf(high):
        done.aliases[node.name] = node.x
    else:
        put(replace(node, low=low, high=high))
