"""The float graph in forms that lowering knows: products with the identity where it needs a product, and few limits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .. import graph as fg
from .calibrate import Range, Stats
from .plan import live, map_height, product_side

GRID = np.linspace(-50, 50, 20001)  # on which the least value of an activation is found
INT8_STEPS = 255  # of the range of a quantised file: half a step more or less is its own rounding


@dataclass
class Legal:
    """
    exact    identities that must keep all 16 bits, and linear layers that must read as many, or are a gain of one row
    fine     of these the ones whose weights have more than 8 bits: scores of rows
    aliases  values of the graph before -> equal ones of `graph`
    """

    graph: fg.Graph
    stats: Stats
    exact: set[str] = field(default_factory=set)
    fine: set[str] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)


def legal(graph: fg.Graph, stats: Stats, trusted: bool) -> Legal:
    """`graph` without what nothing reads, in forms that lowering knows, with the statistics of its values.

    trusted: the statistics are of real images, so that a limit which none of them reaches may be left to saturation.
    """
    own = replace(stats, values=dict(stats.values), chosen=dict(stats.chosen), load=dict(stats.load))
    done = Legal(replace(graph, nodes=[]), own)
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

    known, windows = fg.shapes(graph), any(isinstance(node, fg.Window) for node in graph.nodes)

    def as_stored(reader: fg.Activation) -> str:
        """A window of one tap between a value and its activation, which keeps all 16 bits, in a graph that has windows anyhow; a
        product where none holds the rows."""
        rows = known[reader.name][0]
        if not windows or (height := map_height(rows)) is None:
            return identity(reader, "x")
        name, size = f"{reader.name}.x.as_is", (height, rows // height)
        done.stats.values[name] = done.stats.values[reader.x]
        return put(fg.Window(name, reader.x, "mean", size, (1, 1), source=reader.source))

    for node in live(graph).values():
        node = node.reading(done.aliases)
        made = {name: nodes.get(value) for name, value in node.reads.items()}
        changed = {}
        match node:
            case fg.Clip():
                _clip(node, nodes, done, put, trusted, costs(graph, node))
                continue
            case fg.Linear() if is_identity(node) and isinstance(made["x"], fg.Linear):
                done.aliases[node.name] = node.x
                continue
            case fg.Mean(start=start, stop=stop) if stop - start == 1:
                node, wanted = fg.Rows(node.name, node.x, start, stop, source=node.source), {}
            case fg.Activation(form="exp"):  # which moves what the layer gives
                wanted = {"x": isinstance(made["x"], fg.Linear)}
            case fg.Activation():
                wanted = {}
                if not isinstance(made["x"], fg.Linear | fg.Conv | fg.Window | fg.PatchEmbed):
                    changed["x"] = as_stored(node)
            case fg.Gather() if _is_before(node, made["x"], graph, done.aliases):
                put(_gathered_before(node, made["x"], nodes, done, put, graph))
                continue
            case fg.Select() | fg.Step() | fg.Hard():
                wanted, scored = {}, node.scores if isinstance(node, fg.Select) else node.x
                while isinstance(nodes.get(scored), fg.Rows):
                    scored = nodes[scored].x
                if isinstance(nodes.get(scored), fg.Linear):
                    done.exact.add(scored)
                    done.fine.add(scored)
            case fg.Scan():
                wanted = {"steps": isinstance(made["steps"], fg.Linear)}
            case fg.Rotate(heads=heads):
                normed = isinstance(made["x"], fg.LayerNorm) and made["x"].heads == heads > 1
                wanted = {"x": normed or isinstance(made["x"], fg.Linear)}
            case fg.LayerNorm(heads=heads) if heads > 1:
                wanted = {"x": isinstance(made["x"], fg.Linear)}
            case fg.Attention(heads=heads):
                wanted = {"v": isinstance(made["v"], fg.Linear)}
                for name in "qk":
                    turned = isinstance(made[name], fg.Rotate | fg.LayerNorm) and made[name].heads == heads
                    turned = turned and (heads > 1 or isinstance(made[name], fg.Rotate))
                    wanted[name] = turned or isinstance(made[name], fg.Linear)
            case fg.Embed():
                wanted = {"x": isinstance(made["x"], fg.PatchEmbed | fg.Linear)}
            case fg.Add() if product_side(nodes, node) is None:
                # What is no sum itself is more often the smaller part.
                wanted = {"a" if isinstance(made["b"], fg.Add | fg.Embed) and not isinstance(made["a"], fg.Add) else "b": False}
            case _:
                wanted = {}
        for name in (name for name, good in wanted.items() if not good):
            whole = isinstance(node, fg.Add | fg.Embed) or (isinstance(node, fg.Activation) and node.form == "exp")
            exact = whole and not isinstance(made[name], fg.Clip)
            changed[name] = identity(node, name, exact)
        put(replace(node, **changed))
        if known[node.name][0] == 1 and is_gain(node):  # of a pooled or a class token
            done.exact.add(node.name)
        if isinstance(node, fg.Add | fg.Embed):  # an identity that stood there before keeps all bits too
            done.exact |= {m.name for m in made.values() if is_identity(m) and not isinstance(nodes.get(m.x), fg.Clip)}
    done.graph.outputs = [replace(o, value=done.aliases.get(o.value, o.value)) for o in graph.outputs]
    return done


def _is_before(node: fg.Gather, source: fg.Node | None, graph: fg.Graph, aliases: dict[str, str]) -> bool:
    """Whether rows may be gathered in front of a linear layer, or a norm of each head, instead of behind it: where nothing else
    reads it, under its own name or another."""
    if not (isinstance(source, fg.Linear) or (isinstance(source, fg.LayerNorm) and source.heads > 1)):
        return False
    names = {source.name, *(name for name, of in aliases.items() if of == source.name)}
    kept = any(o.value in names for o in graph.outputs)
    users = [user for name in names for user in graph.users(name) if user.name not in names]
    return not kept and len(users) == 1 and bool((node.rows >= 0).all())


def _gathered_before(
    node: fg.Gather, source: fg.Linear | fg.LayerNorm, nodes: dict[str, fg.Node], done: Legal, put, graph: fg.Graph
) -> fg.Node:
    """The layer of gathered rows: a walk of the product costs nothing, and a sum can take it. Equal lists are gathered once."""
    del nodes[source.name]
    done.graph.nodes.remove(source)
    name = f"{node.name}.rows"
    inner, before = fg.Gather(name, source.x, node.rows, source=node.source), nodes.get(source.x)
    if isinstance(source, fg.LayerNorm) and _is_before(inner, before, graph, done.aliases):
        done.stats.values[name] = done.stats.values[source.x]
        put(_gathered_before(inner, before, nodes, done, put, graph))
        return replace(source, name=node.name, x=name)
    for other in nodes.values():
        if isinstance(other, fg.Gather) and other.x == source.x and np.array_equal(other.rows, node.rows):
            return replace(source, name=node.name, x=other.name)
    done.stats.values[name] = done.stats.values[source.x]
    put(inner)
    return replace(source, name=node.name, x=name)


def is_identity(node: fg.Node | None) -> bool:
    """Whether a layer leaves its input as it is."""
    if not isinstance(node, fg.Linear) or node.bias is not None or len(node.weight) != node.weight.shape[1]:
        return False
    return bool(node.weight[0, 0] == 1 and np.array_equal(node.weight, np.eye(len(node.weight))))


def is_gain(node: fg.Node) -> bool:
    """Whether a layer does no more than multiply each channel, such as a BatchNorm that stands alone in a quantised file."""
    if not isinstance(node, fg.Linear) or len(node.weight) != node.weight.shape[1]:
        return False
    return 0 < np.count_nonzero(node.weight) == np.count_nonzero(np.diagonal(node.weight))


def is_relu(node: fg.Node | None) -> bool:
    return isinstance(node, fg.Activation) and node.form == "relu"


def costs(graph: fg.Graph, clip: fg.Clip) -> bool:
    """Whether a Clip needs operations of its own: saturation does it for a value that matrices read."""
    source = next((n for n in graph.nodes if n.name == clip.x), None)
    simple = isinstance(source, fg.Linear | fg.PatchEmbed | fg.LayerNorm | fg.Attention | fg.Conv) or is_relu(source)
    users = [user for user in graph.users(clip.name) if not isinstance(user, fg.Rows)]
    matrices = fg.Linear | fg.Experts | fg.Mean | fg.Conv | fg.Window
    read = all(isinstance(u, matrices | fg.Clip) and not is_identity(u) for u in users)
    kept = any(o.value in (clip.name, clip.x) for o in graph.outputs)
    return kept or not (simple and read and len(graph.users(clip.x)) == 1)


def _clip(node: fg.Clip, nodes: dict[str, fg.Node], done: Legal, put, trusted: bool, costly: bool) -> None:
    """Keep of a Clip what limits something.

    That is not what the values of an activation, or of calibration images, never reach; nor what takes away less from
    images than the file's own rounding does, and from noise where it would cost operations: ranges of quantised files
    are most often those of the values that were seen, and the int16 of the machine holds what is beyond.
    """
    source, values = nodes.get(node.x), done.stats.values
    seen, step = values[node.x], (node.high - node.low) / INT8_STEPS
    half = step / 2 if np.isfinite(step) else 0.0
    least = -np.inf
    if isinstance(source, fg.Activation):
        with np.errstate(over="ignore"):
            least = float(fg.FORMS[source.form](GRID, source.slope).min())
    # The ranges of what was seen may be cut to the file's: what a Clip takes away from the values themselves is counted.
    below, above, little = done.stats.below[node.name], done.stats.above[node.name], half**2 / 3
    low = -np.inf if node.low <= least + half or (trusted and below <= little) else node.low
    high = np.inf if trusted and above <= little else node.high
    if costly and below + above <= little:
        low, high = -np.inf, np.inf
    if not trusted:  # the file's range is all that is known
        limits = [np.full_like(seen.low, b) if np.isfinite(b) else a for a, b in ((seen.low, node.low), (seen.high, node.high))]
        values[node.name] = Range(*limits)
        if np.isinf(low) and np.isinf(high):
            values[node.x] = values[node.name]
    if isinstance(source, fg.LayerNorm) and source.heads > 1:  # on its way into scores: their int8 operand ends there
        values[node.x], low, high = values[node.name], -np.inf, np.inf
    if abs(low) <= half and isinstance(source, fg.Linear):
        seen = values[node.x]
        values[f"{node.name}.relu"] = Range(np.maximum(seen.low, 0), np.maximum(seen.high, 0), seen.seen)
        node = replace(node, x=put(fg.Activation(f"{node.name}.relu", node.x, "relu", source=node.source)))
        low = -np.inf
    if node.name in done.stats.chosen:  # logits
        done.stats.chosen[node.x] = done.stats.chosen[node.name]
        if node.name in done.stats.load:
            done.stats.load[node.x] = done.stats.load[node.name]
    if np.isinf(low) and np.isinf(high):
        done.aliases[node.name] = node.x
    else:
        put(replace(node, low=low, high=high))
