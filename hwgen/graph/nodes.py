"""Nodes of the ViT-level graph, and the graph itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from .. import patches
from ..resampling import Resampling

Array = np.ndarray
NAMES = ("name", "source")  # fields of every node


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. `name` names the node and its value; `source` the ONNX node it came from, for messages."""

    name: str
    source: str = field(default="", kw_only=True)

    @property
    def reads(self) -> dict[str, str | tuple[str, ...]]:
        """By field, the name of the value that it reads there, or the names."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("value")}

    @property
    def parameters(self) -> dict[str, Any]:
        """By field, what the node is beside its name and what it reads."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.metadata.get("value") and f.name not in NAMES}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values this node reads, in the order of its fields."""
        found: list[str] = []
        for held in self.reads.values():
            found += held if isinstance(held, tuple) else (held,)
        return tuple(found)

    def reading(self, names: Mapping[str, str]) -> Node:
        """The node with what `names` has in place of the values that it reads."""
        reads = self.reads.items()
        made = {k: tuple(names.get(x, x) for x in v) if isinstance(v, tuple) else names.get(v, v) for k, v in reads}
        return replace(self, **made)


def value():
    """Mark a dataclass field as the name of a value that the node reads."""
    return field(metadata={"value": True})


@dataclass(frozen=True, eq=False)
class PatchEmbed(Node):
    """Patches, row-major, each times `weight` plus `bias`: image, video or volume -> [patches, D].

    A patch is as long along each axis of the input, channels among them, as `weight` is: [D, C, ph, pw] of an image [C, H, W].
    `stride` pixels from one to the next (None: patches side by side), of an input with a border of zeros, see `patches`.
    """

    image: str = value()
    weight: Array  # [D, *patch]
    bias: Array | None  # [D]
    stride: patches.Patch | None = None
    pads: patches.Pads = ()

    @property
    def patch(self) -> patches.Patch:
        return tuple(self.weight.shape[1:])


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
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, over columns.

    Without `centred` it is RMSNorm: x / sqrt(mean of squares + epsilon) * gamma + beta. `heads`: over the columns of each
    head by itself, heads side by side.
    """

    x: str = value()
    gamma: Array  # [D / heads], or [D] where each head has its own
    beta: Array  # as gamma
    epsilon: float
    centred: bool = True
    heads: int = 1


@dataclass(frozen=True, eq=False)
class Linear(Node):
    """x @ weight.T + bias: [R, K] -> [R, N]."""

    x: str = value()
    weight: Array  # [N, K]
    bias: Array | None  # [N]


@dataclass(frozen=True, eq=False)
class Activation(Node):
    """`evaluate.FORMS[form]` of every element; `slope` 1 but for "silu", x * sigmoid(slope * x): QuickGELU with 1.702."""

    x: str = value()
    form: str
    slope: float = 1.0


@dataclass(frozen=True, eq=False)
class Clip(Node):
    """min(max(x, low), high); either bound may be infinite. What a QuantizeLinear/DequantizeLinear pair does to its readers."""

    x: str = value()
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Attention(Node):
    """softmax(q_h @ k_h.T * scale * factor_h + bias_h) @ v_h for each of `heads` heads, heads side by side in the columns.

    With `windows` W > 1 the rows of q, k and v are W windows one after another, each of which attends to itself alone:
    queries w*I .. (w+1)*I to keys w*J .. (w+1)*J.
    """

    q: str = value()
    k: str = value()
    v: str = value()
    heads: int
    scale: float
    # [heads, I, J], or [W, heads, I, J] where windows differ; at most zero in every row: a relative position bias or a mask
    bias: Array | None = None
    windows: int = 1
    factors: Array | None = None  # [heads], above zero: by which the scores of each head are multiplied beside `scale`
    balanced: bool = False  # columns of q and k are numbers of different kinds: those of q may be made larger, of k smaller


@dataclass(frozen=True, eq=False)
class Add(Node):
    """Elementwise sum of two values of one shape."""

    a: str = value()
    b: str = value()


@dataclass(frozen=True, eq=False)
class Multiply(Node):
    """Elementwise product of two values of one shape, or of a and one row b [1, C]. Of fewer columns, b is used again for as many
    of a."""

    a: str = value()
    b: str = value()


@dataclass(frozen=True, eq=False)
class Rotate(Node):
    """Rotary position: each pair of columns (2i, 2i + 1) of every head turned by the token's angle i, [R, heads * d].

    (x0, x1) becomes (x0 * cos - x1 * sin, x1 * cos + x0 * sin) (RoFormer, Su et al. 2021).
    """

    x: str = value()
    cos: Array  # [R, d / 2]
    sin: Array  # [R, d / 2]
    heads: int


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
    form: str  # of act, as in Activation
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
    form: str  # of act, as in Activation
    slope: float = 1.0


@dataclass(frozen=True, eq=False)
class Combine(Node):
    """Tokens of a soft mixture of experts: softmax over the slots of (x @ weight.T + bias), times y: [T, D]."""

    x: str = value()
    y: str = value()
    weight: Array  # [N, K]
    bias: Array | None  # [N]


@dataclass(frozen=True, eq=False)
class Product(Node):
    """a @ b.T * scale, of two values [R, K] and [N, K]: scores of queries and keys, or weights times values: [R, N]."""

    a: str = value()
    b: str = value()
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Transpose(Node):
    """x.T: [R, C] -> [C, R]."""

    x: str = value()


@dataclass(frozen=True, eq=False)
class Ratio(Node):
    """Rows divided by their last column, x[:, :-1] / (x[:, -1:] + epsilon), weights with their sum: [R, C + 1] -> [R, C]."""

    x: str = value()
    epsilon: float = 0.0


@dataclass(frozen=True, eq=False)
class Softmax(Node):
    """Softmax of every row."""

    x: str = value()


@dataclass(frozen=True, eq=False)
class Gather(Node):
    """y[r] = x[rows[r]], a row of zeros where rows[r] is -1: window partition, cyclic shift, nearest resampling, dilation."""

    x: str = value()
    rows: Array  # int64 [R]


@dataclass(frozen=True, eq=False)
class Select(Node):
    """Rows first .. first + count of x [N, C] in the order of their scores, best first, ties to the lower row. `scores` [N, 1]
    or [1, N]."""

    x: str = value()
    scores: str = value()
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Step(Node):
    """1 where x > 0, with `at_zero` also where x is 0; else 0."""

    x: str = value()
    at_zero: bool = False


@dataclass(frozen=True, eq=False)
class Hard(Node):
    """1 where a column of x has its largest element but for `place` larger ones, ties to the lower row, else 0: [R, C]."""

    x: str = value()
    place: int = 0


@dataclass(frozen=True, eq=False)
class Scan(Node):
    """A selective scan over the rows, `layers.Scan`: x, steps [T, C], mix [T, 2 N] with what is fed and what is read to [T, C].

    `backwards`: from the last row to the first."""

    x: str = value()
    steps: str = value()
    mix: str = value()
    rates: Array  # [C, N], at most zero: a state decays by exp(softplus(steps) * rate)
    skip: Array  # [C]
    backwards: bool = False


@dataclass(frozen=True, eq=False)
class Received(Node):
    """Column sums of the softmax of every row: what each key receives of some queries' attention, [R, N] -> [1, N]."""

    x: str = value()


@dataclass(frozen=True, eq=False)
class Join(Node):
    """Values of as many rows side by side: [R, sum of their columns]."""

    xs: tuple[str, ...] = value()


@dataclass(frozen=True, eq=False)
class Stack(Node):
    """Values of as many columns one below the other: [sum of their rows, C]."""

    xs: tuple[str, ...] = value()


@dataclass(frozen=True, eq=False)
class Conv(Node):
    """Convolution without groups of a map [height * width, C], row-major: y[p, n] = sum over a, b, c of
    x[row(p, a, b), c] * weight[n, a, b, c] + bias[n], zeros beyond the border: [positions, N]. Rows as `hwgen.walks.window`
    has them."""

    x: str = value()
    weight: Array  # [N, kernel height, kernel width, C]
    bias: Array | None  # [N]
    size: tuple[int, int]  # height, width of the map
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, eq=False)
class Window(Node):
    """A window slides over each column of a map [height * width, C] by itself: [positions, C].

    form "weighted": sum of the taps times `weight`, plus `bias` (depthwise convolution); "mean": their mean, over the taps
    within the map, or with `count_pads` over all; "max": the largest within the map.
    """

    x: str = value()
    form: str
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    weight: Array | None = None  # [kernel height, kernel width, C]
    bias: Array | None = None  # [C]
    count_pads: bool = True


@dataclass(frozen=True, eq=False)
class Resample(Node):
    """A map [height * width, C] made larger by whole numbers, the same in every channel."""

    x: str = value()
    resampling: Resampling


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
    it hold, infinite in columns without limit; of an input [1]. `types`: of inputs that are no floats, as NumPy calls them.
    """

    inputs: dict[str, tuple[int, ...]]
    nodes: list[Node]
    outputs: list[Output]
    ranges: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    def type_of(self, name: str) -> str:
        """The type of an input's numbers in the file, as NumPy calls it."""
        return self.types.get(name, "float32")

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
