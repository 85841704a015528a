"""The ViT-level graph: what a network computes for one image, in floating point.

The front end produces it, the quantiser consumes it. A value is a 2-D array `[rows, columns]` (tokens by channels)
except the image `[C, H, W]` and the result of `Route`. Every node makes one value, named like the node. Nodes stand in
execution order. `evaluate` is the definition of every node and what calibration observes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from scipy.special import erf, expit

from . import patches

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. `name` names the node and its value; `source` the ONNX node it came from, for messages."""

    name: str
    source: str = field(default="", kw_only=True)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values this node reads, in the order of its fields."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.metadata.get("value"))


def value():
    """Mark a dataclass field as the name of a value that the node reads."""
    return field(metadata={"value": True})


@dataclass(frozen=True, eq=False)
class PatchEmbed(Node):
    """Patches, row-major, each times `weight` plus `bias`: image [C,H,W] -> [patches, D].

    `stride` pixels from one to the next (None: patches side by side), of an image with a border of zeros, see `patches`.
    """

    image: str = value()
    weight: Array  # [D, C, ph, pw]
    bias: Array | None  # [D]
    stride: tuple[int, int] | None = None
    pads: patches.Pads = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Embed(Node):
    """Constant tokens and positions: concatenate(`prefix`, x, zeros) + position -> [T, D].

    `prefix` [P, D] may have no row (P = 0). Rows of `position` beyond those of prefix and x are tokens of their own.
    """

    x: str = value()
    prefix: Array
    position: Array  # [T, D]; zeros where the model adds none


@dataclass(frozen=True, eq=False)
class LayerNorm(Node):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, over columns."""

    x: str = value()
    gamma: Array  # [D]
    beta: Array  # [D]
    epsilon: float


@dataclass(frozen=True, eq=False)
class Linear(Node):
    """x @ weight.T + bias: [R, K] -> [R, N]."""

    x: str = value()
    weight: Array  # [N, K]
    bias: Array | None  # [N]


@dataclass(frozen=True, eq=False)
class Gelu(Node):
    """GELU; `approximate` is "none" (erf) or "tanh"."""

    x: str = value()
    approximate: str


@dataclass(frozen=True, eq=False)
class Silu(Node):
    """x * sigmoid(slope * x): SiLU (Swish) with slope 1, QuickGELU with slope 1.702."""

    x: str = value()
    slope: float


@dataclass(frozen=True, eq=False)
class Relu(Node):
    """max(x, 0)."""

    x: str = value()


@dataclass(frozen=True, eq=False)
class Attention(Node):
    """softmax(q_h @ k_h.T * scale + bias_h) @ v_h for each of `heads` heads, heads side by side in the columns."""

    q: str = value()
    k: str = value()
    v: str = value()
    heads: int
    scale: float
    bias: Array | None = None  # [heads, Tq, Tk], at most zero in every row: a relative position bias or a mask


@dataclass(frozen=True, eq=False)
class Add(Node):
    """Elementwise sum of two values of one shape."""

    a: str = value()
    b: str = value()


@dataclass(frozen=True, eq=False)
class Route(Node):
    """Choose `top_k` experts per token from `logits` [T, E]; ties go to the lower index.

    The gate scores are softmax over all experts, or, where `renormalise`, over the chosen ones (the same as dividing the
    chosen softmax scores by their sum). Value: (experts int [T, top_k], best first; scores float [T, top_k]).
    """

    logits: str = value()
    top_k: int
    renormalise: bool


@dataclass(frozen=True, eq=False)
class Experts(Node):
    """Sum over a token's chosen experts e of score * (act(x @ w1[e].T + b1[e]) @ w2[e].T + b2[e]): [T, D]."""

    x: str = value()
    routing: str = value()
    w1: Array  # [E, H, D]
    b1: Array | None  # [E, H]
    w2: Array  # [E, D, H]
    b2: Array | None  # [E, D]
    form: str  # of act: "none" or "tanh" for GELU, "sigmoid" for x * sigmoid(slope * x), "relu"
    slope: float = 1.0


@dataclass(frozen=True, eq=False)
class Dispatch(Node):
    """Slots of a soft mixture of experts: softmax over the tokens of (weight @ keys.T), times x: [N, D]."""

    keys: str = value()
    x: str = value()
    weight: Array  # [N, K]


@dataclass(frozen=True, eq=False)
class SlotExperts(Node):
    """Expert e on rows e*S .. (e+1)*S of x, S = N / E: act(x @ w1[e].T + b1[e]) @ w2[e].T + b2[e]: [N, D]."""

    x: str = value()
    w1: Array  # [E, H, D]
    b1: Array | None  # [E, H]
    w2: Array  # [E, D, H]
    b2: Array | None  # [E, D]
    form: str  # as in Experts
    slope: float = 1.0


@dataclass(frozen=True, eq=False)
class Combine(Node):
    """Tokens of a soft mixture of experts: softmax over the slots of (x @ weight.T + bias), times y: [T, D]."""

    x: str = value()
    y: str = value()
    weight: Array  # [N, K]
    bias: Array | None  # [N]


@dataclass(frozen=True, eq=False)
class Rows(Node):
    """Rows start..stop of x."""

    x: str = value()
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Mean(Node):
    """Mean of rows start..stop of x: [1, D]."""

    x: str = value()
    start: int
    stop: int


@dataclass(frozen=True)
class Output:
    """One output of the ONNX model: `value`, transposed first where `transposed` (channels before tokens, as in a feature
    map), reshaped to `shape` (without the batch axis)."""

    name: str
    value: str
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass
class Graph:
    """`inputs` maps an ONNX input name to its shape without the batch axis.

    `ranges`, of a model that is quantised already: value -> the smallest and largest number [columns] that its file lets
    it hold, infinite in columns without limit; of an input [1].
    """

    inputs: dict[str, tuple[int, ...]]
    nodes: list[Node]
    outputs: list[Output]
    ranges: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def node(self, name: str) -> Node:
        """The node that makes value `name`; StopIteration where none does (an input)."""
        return next(n for n in self.nodes if n.name == name)

    def users(self, name: str) -> list[Node]:
        """The nodes that read value `name`, in order."""
        return [n for n in self.nodes if name in n.inputs]


def without_range(graph: Graph) -> list[str]:
    """Inputs and values that `graph.ranges` does not limit in all columns: only images can tell what they hold."""
    made = [n.name for n in graph.nodes if not isinstance(n, Rows | Route)]
    limited = {name for name, limits in graph.ranges.items() if np.isfinite(limits).all()}
    return [name for name in [*graph.inputs, *made] if name not in limited]


# --- shapes ------------------------------------------------------------------------------------------------------


def shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Shape of every value (of `Route`: its experts array). Raises ValueError naming the node whose operands misfit."""
    known: dict[str, tuple[int, ...]] = dict(graph.inputs)
    for node in graph.nodes:
        missing = [name for name in node.inputs if name not in known]
        if missing:
            raise ValueError(f"{node.name}: reads {missing[0]!r}, which no earlier node makes")
        if node.name in known:
            raise ValueError(f"{node.name}: a value of this name exists already")
        try:
            known[node.name] = _shape(node, *(known[name] for name in node.inputs))
        except ValueError as error:
            raise ValueError(f"{node.name} ({type(node).__name__}): {error}") from None
    for output in graph.outputs:
        if output.value not in known:
            raise ValueError(f"output {output.name!r}: no node makes {output.value!r}")
        if np.prod(known[output.value]) != np.prod(output.shape):
            raise ValueError(f"output {output.name!r}: {known[output.value]} does not reshape to {output.shape}")
    return known


def verify(graph: Graph) -> None:
    """Raise ValueError unless the graph is well formed: names, order, shapes, finite constants."""
    shapes(graph)
    for node in graph.nodes:
        for f in fields(node):
            constant = getattr(node, f.name)
            if isinstance(constant, np.ndarray) and not np.isfinite(constant).all():
                raise ValueError(f"{node.name}: {f.name} holds NaN or infinity")


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _shape(node: Node, *s: tuple[int, ...]) -> tuple[int, ...]:
    match node:
        case PatchEmbed(weight=w, bias=b):
            _need(len(s[0]) == 3 and s[0][0] == w.shape[1], f"image {s[0]} against weight {w.shape}")
            _need(b is None or b.shape == w.shape[:1], "bias shape")
            down, across = patches.grid(s[0], w.shape[2:], node.stride, node.pads)
            _need(down > 0 and across > 0, f"image {s[0]} is smaller than a patch {w.shape[2:]}")
            return down * across, w.shape[0]
        case Embed(prefix=prefix, position=position):
            fits = prefix.shape[1] == position.shape[1] == s[0][1] and s[0][0] + len(prefix) <= len(position)
            _need(fits, f"x {s[0]}, prefix {prefix.shape}, position {position.shape}")
            return position.shape
        case LayerNorm(gamma=g, beta=b):
            _need(g.shape == b.shape == s[0][1:], f"x {s[0]} against gamma {g.shape}, beta {b.shape}")
            return s[0]
        case Linear(weight=w, bias=b):
            _need(s[0][1] == w.shape[1], f"x {s[0]} against weight {w.shape}")
            _need(b is None or b.shape == w.shape[:1], "bias shape")
            return s[0][0], w.shape[0]
        case Gelu():
            _need(node.approximate in ("none", "tanh"), f"approximate={node.approximate!r}")
            return s[0]
        case Silu() | Relu():
            _need(not isinstance(node, Silu) or node.slope > 0, "slope")
            return s[0]
        case Attention(heads=h, bias=bias):
            _need(s[0][1] == s[1][1] and s[1][0] == s[2][0], f"q {s[0]}, k {s[1]}, v {s[2]}")
            _need(s[0][1] % h == 0 and s[2][1] % h == 0, f"{h} heads do not divide the width")
            _need(bias is None or bias.shape == (h, s[0][0], s[1][0]), "bias shape")
            return s[0][0], s[2][1]
        case Add():
            _need(s[0] == s[1], f"{s[0]} + {s[1]}")
            return s[0]
        case Route(top_k=k):
            _need(1 <= k <= s[0][1], f"top {k} of {s[0][1]} experts")
            return s[0][0], k
        case Experts(w1=w1, b1=b1, w2=w2, b2=b2):
            _need(node.form in FORMS and node.slope > 0, f"form={node.form!r}, slope={node.slope}")
            e, h, d = w1.shape
            _need(s[0][1] == d and w2.shape == (e, w2.shape[1], h), f"x {s[0]}, w1 {w1.shape}, w2 {w2.shape}")
            _need(b1 is None or b1.shape == (e, h), "b1 shape")
            _need(b2 is None or b2.shape == (e, w2.shape[1]), "b2 shape")
            return s[0][0], w2.shape[1]
        case Dispatch(weight=w):
            _need(s[0][1] == w.shape[1] and s[0][0] == s[1][0], f"keys {s[0]}, x {s[1]}, weight {w.shape}")
            return w.shape[0], s[1][1]
        case SlotExperts(w1=w1, b1=b1, w2=w2, b2=b2):
            e, h, d = w1.shape
            _need(node.form in FORMS and node.slope > 0, f"form={node.form!r}, slope={node.slope}")
            _need(s[0][1] == d and w2.shape == (e, w2.shape[1], h), f"x {s[0]}, w1 {w1.shape}, w2 {w2.shape}")
            _need(s[0][0] % e == 0, f"{s[0][0]} slots for {e} experts")
            _need(b1 is None or b1.shape == (e, h), "b1 shape")
            _need(b2 is None or b2.shape == (e, w2.shape[1]), "b2 shape")
            return s[0][0], w2.shape[1]
        case Combine(weight=w, bias=b):
            _need(s[0][1] == w.shape[1] and s[1][0] == w.shape[0], f"x {s[0]}, y {s[1]}, weight {w.shape}")
            _need(b is None or b.shape == w.shape[:1], "bias shape")
            return s[0][0], s[1][1]
        case Rows(start=a, stop=b):
            _need(0 <= a < b <= s[0][0], f"rows {a}..{b} of {s[0][0]}")
            return b - a, s[0][1]
        case Mean(start=a, stop=b):
            _need(0 <= a < b <= s[0][0], f"rows {a}..{b} of {s[0][0]}")
            return 1, s[0][1]
    raise ValueError("unknown node type")


# --- evaluation --------------------------------------------------------------------------------------------------


def evaluate(graph: Graph, images: dict[str, Array], dtype=np.float32) -> dict[str, Array]:
    """Every value for one image. `images` maps input names to arrays in the shapes of `graph.inputs`."""
    values = {name: np.asarray(images[name], dtype).reshape(shape) for name, shape in graph.inputs.items()}
    for node in graph.nodes:
        values[node.name] = _evaluate(node, *(values[name] for name in node.inputs))
    return values


def outputs(graph: Graph, values: dict[str, Array]) -> dict[str, Array]:
    """The ONNX outputs, in ONNX shapes without the batch axis, from what `evaluate` returned."""
    return {o.name: (values[o.value].T if o.transposed else values[o.value]).reshape(o.shape) for o in graph.outputs}


def gelu(x: Array, approximate: str) -> Array:
    """Gaussian error linear unit (Hendrycks & Gimpel 2016), exact or in the tanh form."""
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + erf(x / np.sqrt(2).astype(x.dtype)))


FORMS = ("none", "tanh", "sigmoid", "relu")


def activate(x: Array, form: str, slope: float) -> Array:
    """An activation by the name that `Experts` knows it by."""
    if form == "sigmoid":
        return x * expit(np.asarray(slope, x.dtype) * x)
    return np.maximum(x, 0) if form == "relu" else gelu(x, form)


def softmax(x: Array) -> Array:
    """Softmax along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def top_k(logits: Array, k: int) -> Array:
    """Indices [T, k] of the k largest, best first, ties to the lower index."""
    return np.argsort(-logits, axis=-1, kind="stable")[:, :k]


def _linear(x: Array, w: Array, b: Array | None) -> Array:
    y = x @ w.T.astype(x.dtype)
    return y if b is None else y + b.astype(x.dtype)


def evaluate_node(node: Node, values: dict[str, Array]) -> Array:
    """The value of one node, from those of its inputs."""
    return _evaluate(node, *(values[name] for name in node.inputs))


def slot_hidden(node: SlotExperts, x: Array, activated: bool = True) -> list[Array]:
    """Hidden layer [S, H] of every expert; without `activated` what goes into the activation."""
    parts = x.reshape(len(node.w1), -1, x.shape[1])
    hidden = [_linear(part, node.w1[e], None if node.b1 is None else node.b1[e]) for e, part in enumerate(parts)]
    return [activate(h, node.form, node.slope) for h in hidden] if activated else hidden


def _second(node: SlotExperts) -> list[tuple[Array, Array | None]]:
    return [(w, None if node.b2 is None else node.b2[e]) for e, w in enumerate(node.w2)]


def _evaluate(node: Node, *v: Array) -> Array:
    match node:
        case PatchEmbed(weight=w, bias=b):
            rows = patches.patchify(patches.pad(v[0], node.pads), w.shape[2:], node.stride)
            return _linear(rows, w.reshape(w.shape[0], -1), b)
        case Embed(prefix=prefix, position=position):
            y = position.astype(v[0].dtype)
            y[: len(prefix)] += prefix
            y[len(prefix) : len(prefix) + len(v[0])] += v[0]
            return y
        case LayerNorm(gamma=g, beta=b, epsilon=eps):
            x = v[0].astype(np.float64)
            x = x - x.mean(axis=1, keepdims=True)
            return (x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps) * g + b).astype(v[0].dtype)
        case Linear(weight=w, bias=b):
            return _linear(v[0], w, b)
        case Gelu(approximate=form):
            return gelu(v[0], form)
        case Silu(slope=slope):
            return activate(v[0], "sigmoid", slope)
        case Relu():
            return activate(v[0], "relu", 1.0)
        case Attention(heads=h, scale=scale, bias=bias):
            q, k, x = (a.reshape(a.shape[0], h, -1).transpose(1, 0, 2) for a in v)
            scores = q @ k.transpose(0, 2, 1) * np.asarray(scale, q.dtype)
            p = softmax(scores if bias is None else scores + bias.astype(q.dtype))
            return (p @ x).transpose(1, 0, 2).reshape(v[0].shape[0], -1)
        case Add():
            return v[0] + v[1]
        case Route(top_k=k, renormalise=again):
            chosen = top_k(v[0], k)
            scores = np.take_along_axis(softmax(v[0]), chosen, axis=1)
            return chosen, scores / scores.sum(axis=1, keepdims=True) if again else scores
        case Experts(w1=w1, b1=b1, w2=w2, b2=b2):
            x, (chosen, scores) = v
            y = np.zeros((x.shape[0], w2.shape[1]), x.dtype)
            for e in np.unique(chosen):
                t, slot = np.nonzero(chosen == e)
                h = activate(_linear(x[t], w1[e], None if b1 is None else b1[e]), node.form, node.slope)
                y[t] += scores[t, slot, None] * _linear(h, w2[e], None if b2 is None else b2[e])
            return y
        case Dispatch(weight=w):
            return softmax(w.astype(v[0].dtype) @ v[0].T) @ v[1]
        case SlotExperts():
            return np.concatenate([_linear(h, *second) for h, second in zip(slot_hidden(node, v[0]), _second(node), strict=True)])
        case Combine(weight=w, bias=b):
            return softmax(_linear(v[0], w, b)) @ v[1]
        case Rows(start=a, stop=b):
            return v[0][a:b]
        case Mean(start=a, stop=b):
            return v[0][a:b].mean(axis=0, keepdims=True)
    raise ValueError(f"{node.name}: unknown node type {type(node).__name__}")
