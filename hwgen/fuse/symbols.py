"""Tensors known by formula.

Fusion runs the ONNX graph on these instead of on numbers. A `Sym` says what a tensor means (a linear layer of x, the
variance of x's rows, attention scores, ...); a `View` (views.py) says where each element of an ONNX tensor stands in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwgen.patches import Pads

if TYPE_CHECKING:
    from .views import View

Array = np.ndarray


@dataclass(eq=False, kw_only=True)
class Sym:
    """A tensor of `shape`; a token-by-channel one is [T, D]. `label` is a readable name, `source` the ONNX node."""

    shape: tuple[int, ...]
    label: str = ""
    source: str = ""


@dataclass(eq=False, kw_only=True)
class Image(Sym):
    """A network input [C, H, W], times `gain` plus `offset`, [C] each."""

    name: str
    gain: Array | None = None
    offset: Array | None = None


@dataclass(eq=False, kw_only=True)
class Opaque(Sym):
    """Stands for the result of an unsupported node, so that the nodes after it can be judged."""


@dataclass(eq=False, kw_only=True)
class Noise(Sym):
    """Random numbers; harmless only when multiplied by zero."""


@dataclass(eq=False, kw_only=True)
class Patches(Sym):
    """Patch embedding [P, D]; `stride` (None: the patch) and `pads` as in `hwgen.patches`."""

    image: Image
    weight: Array
    bias: Array | None
    stride: tuple[int, int] | None = None
    pads: Pads = (0, 0, 0, 0)


@dataclass(eq=False, kw_only=True)
class Embedding(Sym):
    """Concatenate(prefix, x, zeros) + position: [T, D]."""

    x: Sym
    prefix: Array
    position: Array


@dataclass(eq=False, kw_only=True)
class Lin(Sym):
    """x @ weight.T + bias: [T, N], or, for a stack of experts, [E, T, N] with weight [E, N, K], bias [E, N]."""

    x: Sym
    weight: Array
    bias: Array | None = None


@dataclass(eq=False, kw_only=True)
class Sum(Sym):
    """a + b, two views of one shape that are tokens by channels: [T, D]."""

    a: View
    b: View


@dataclass(eq=False, kw_only=True)
class Pooled(Sym):
    """Mean of rows start..stop of x: [1, D]."""

    x: Sym
    start: int
    stop: int


@dataclass(eq=False, kw_only=True)
class Joined(Sym):
    """Channels of several tensors side by side: [T, W]; each part is a view [.., its channels] of T tokens."""

    parts: list[View]


@dataclass(eq=False, kw_only=True)
class Branches(Sym):
    """Several tensors of one shape, where it is 1 on `axis`, one behind the other on that axis."""

    parts: list[View]
    axis: int


@dataclass(eq=False, kw_only=True)
class Padded(Sym):
    """x's columns at `place`, the same `constant` in every row elsewhere (zero at `place`): [T, W]."""

    x: Sym
    place: Array
    constant: Array


@dataclass(eq=False, kw_only=True)
class Mean(Sym):
    """Row means of x, or of `square`d deviations from them: [T, 1]."""

    x: Sym


@dataclass(eq=False, kw_only=True)
class Centred(Sym):
    """x minus its row means, times `gain` [D]."""

    x: Sym
    gain: Array | None = None


@dataclass(eq=False, kw_only=True)
class Square(Sym):
    """(x minus its row means) squared."""

    x: Sym


@dataclass(eq=False, kw_only=True)
class Variance(Sym):
    """(Row variance of x + epsilon) ** power, power 1, 1/2 or -1/2: [T, 1]. Not `centred`: mean of squares."""

    x: Sym
    epsilon: float
    power: float
    centred: bool = True


@dataclass(eq=False, kw_only=True)
class Norm(Sym):
    """LayerNorm of x, or, where it is not `centred`, RMSNorm."""

    x: Sym
    gamma: Array
    beta: Array
    epsilon: float
    centred: bool = True


@dataclass(eq=False, kw_only=True)
class Poly(Sym):
    """Elementwise polynomial: sum of coefficient * x ** power."""

    x: Sym
    terms: dict[int, float]


@dataclass(eq=False, kw_only=True)
class Phi(Sym):
    """offset + erf(x / sqrt 2), or for the tanh form offset + tanh(sqrt(2 / pi) (x + 0.044715 x^3)), or for the sigmoid
    form offset - 1 + 2 * sigmoid(slope * x), so that offset 1 makes x * Phi twice the activation in every form."""

    x: Sym
    form: str
    offset: float = 0.0
    slope: float = 1.0


@dataclass(eq=False, kw_only=True)
class Activated(Sym):
    """gelu(x) in `form` "none" (erf) or "tanh"; x * sigmoid(slope * x) where `form` is "sigmoid"; or "relu"."""

    x: Sym
    form: str
    slope: float = 1.0


@dataclass(eq=False, kw_only=True)
class Product(Sym):
    """a times b, element by element: [T, N]."""

    a: Sym
    b: Sym


@dataclass(eq=False, kw_only=True)
class Weighted(Sym):
    """Element i is the sum over terms t of factor[t, i] * x.flat[index[t, i]]; an index of -1 stands for no term."""

    x: Sym
    index: Array  # [terms, elements]
    factor: Array  # [terms, elements]


@dataclass(eq=False, kw_only=True)
class Rotated(Sym):
    """Rotary positions, see graph.Rotate: of x's rows from `start` on and its `columns` [heads, d], pairs side by side.

    `order` [d]: which column of a head stands where, of those that a view showed.
    """

    x: Sym
    columns: Array
    start: int
    cos: Array  # [T, d / 2]
    sin: Array  # [T, d / 2]
    order: Array


@dataclass(eq=False, kw_only=True)
class HeadNorm(Sym):
    """LayerNorm of the columns of each of `heads` heads by itself, or RMSNorm: [T, heads * d]."""

    x: Sym
    gamma: Array  # [heads * d]
    beta: Array
    epsilon: float
    heads: int
    centred: bool = True


@dataclass(eq=False)
class Heads:
    """Channels of a tensor by head: `columns` [heads, d] of x, rows start..stop.

    `windows` [W, N]: rows of each window, where tokens attend to those of their window; every row is in one.
    """

    x: Sym
    columns: Array
    start: int
    stop: int
    windows: Array | None = None


@dataclass(eq=False, kw_only=True)
class Scores(Sym):
    """q_h @ k_h.T + bias: [heads, Tq, Tk], or within windows [W, heads, N, N]."""

    q: Heads
    k: Heads
    bias: Array | None = None


@dataclass(eq=False, kw_only=True)
class Probabilities(Sym):
    """softmax(scores * scale)."""

    scores: Scores
    scale: float


@dataclass(eq=False, kw_only=True)
class Attended(Sym):
    """Multi-head attention, heads side by side: [Tq, heads * d]."""

    probabilities: Probabilities
    v: Heads


@dataclass(eq=False, kw_only=True)
class Gate(Sym):
    """softmax(logits) over all experts: [T, E]."""

    logits: Sym


@dataclass(eq=False, kw_only=True)
class TopValues(Sym):
    """The k largest of the logits, or (`gated`) of their softmax: [T, k]."""

    logits: Sym
    gated: bool
    ordered: bool


@dataclass(eq=False, kw_only=True)
class TopIndices(Sym):
    """The experts they belong to: [T, k]."""

    logits: Sym
    ordered: bool


@dataclass(eq=False, kw_only=True)
class SlotSum(Sym):
    """Sum of the first `slots` chosen gate scores: [T, 1]."""

    logits: Sym
    slots: int


@dataclass(eq=False, kw_only=True)
class Renormalised(Sym):
    """softmax over the k chosen logits: [T, k]."""

    logits: Sym
    ordered: bool = True


@dataclass(eq=False, kw_only=True)
class ChosenLogits(Sym):
    """The logits of the best `slots` experts, minus infinity for the others: [T, E]."""

    logits: Sym
    slots: int


@dataclass(eq=False, kw_only=True)
class Mixture(Sym):
    """Part of sum over s, e of score[t,s] * mask[t,s,e] * f_e(x)[t,d]; shape (T, K, E, D), 1 where an axis is absent.

    Slot s of token t goes to expert e where mask[t,s,e]. `score` is None, "gate" or "renormalised". `branches` maps
    expert to its last layer (None: not yet known which expert), `stacked` is the last layer of all experts in one Lin.
    `slots` is how many slots are summed (None: not summed); `summed` says that the experts in `branches`, or all, are.
    A mask whose slots are summed tells whether token t goes to expert e at all. Where slots and experts are added one by
    one, `cells` holds the pairs (slot, expert) that are in, of `chosen` slots.
    """

    logits: Sym | None = None
    score: str | None = None
    mask: bool = False
    ordered: bool = True
    branches: dict[int | None, Lin] | None = None
    stacked: Lin | None = None
    slots: int | None = None
    summed: bool = False
    cells: frozenset[tuple[int, int]] | None = None
    chosen: int = 0


@dataclass(eq=False, kw_only=True)
class Unmasked(Sym):
    """1 - mask, where the slots or experts that `mask` is about are not chosen; of its shape."""

    mask: Mixture


@dataclass(eq=False, kw_only=True)
class Updated(Sym):
    """base + part, two views of this shape: the rows of an expert read from the result so far, and its contribution."""

    base: View
    part: View


@dataclass(eq=False, kw_only=True)
class Mixed(Sym):
    """A complete mixture of experts: [T, D]."""

    logits: Sym
    top_k: int
    renormalise: bool
    x: Sym
    w1: Array
    b1: Array | None
    w2: Array
    b2: Array | None
    form: str
    slope: float = 1.0


@dataclass(eq=False, kw_only=True)
class SlotWeights(Sym):
    """Softmax of logits over the tokens: [T, N]."""

    logits: Lin


@dataclass(eq=False, kw_only=True)
class Dispatched(Sym):
    """Slots of a soft mixture: softmax(weight @ keys.T) @ x: [N, D]."""

    keys: Sym
    x: Sym
    weight: Array


@dataclass(eq=False, kw_only=True)
class SoftMixed(Sym):
    """softmax(logits) @ outputs, where `outputs` are those of experts of two layers on `Dispatched` slots: [T, D]."""

    logits: Sym
    outputs: Lin


# What the rules below may read as tokens by channels.
TENSORS = (
    *(Opaque, Patches, Embedding, Lin, Sum, Pooled, Padded, Norm, Activated, Product, HeadNorm),
    *(Attended, Mixed, Dispatched, SoftMixed),
)
