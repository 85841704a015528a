"""ONNX graphs for tests, written node by node: a mixture of experts in the many ways in which exporters write it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Writer:
    """Collects nodes and constants of an ONNX graph; every method returns the names of what it made."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants = [], []

    def normal(self, *shape, scale=0.7):
        return self.rng.normal(0, scale, shape)

    def op(self, kind, *inputs, outputs=1, **attributes):
        def const(array):
            array = np.asarray(array)
            array = array.astype(np.float32) if array.dtype.kind == "f" else array
            self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
            return self.constants[-1].name

        inputs = [i if isinstance(i, str) else const(i) for i in inputs]
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, f"n{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def write(self, path, image, y, shape, opset=20):
        """Save a model of input `image` [1, C, H, W] and output `y` of `shape`."""
        inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, *image])]
        body = helper.make_graph(
            self.nodes, "g", inputs, [helper.make_tensor_value_info(y, TensorProto.FLOAT, shape)], self.constants
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(body, opset_imports=opsets, ir_version=9), path)
        return path


class Moe:
    """A mixture of experts that reads `tokens` [tokens, width]: weights, gate, and the pieces that forms are made of.

    `gate` is the softmax of `logits` over all experts; `k` experts are chosen.
    """

    def __init__(self, writer, tokens, size, experts, hidden, k, bias=True, gate=None, act=None):
        self.w, self.tokens, self.k, self.experts = writer, tokens, k, experts
        self.count, self.width = size
        self.hidden, self.act = hidden, act or (lambda x: writer.op("Gelu", x))
        normal = writer.normal
        self.w1 = normal(experts, self.width, hidden, scale=self.width**-0.5)
        self.w2 = normal(experts, hidden, self.width, scale=hidden**-0.5)
        self.b1 = normal(experts, hidden, scale=0.3) if bias else None
        self.b2 = normal(experts, self.width, scale=0.3) if bias else None
        self.logits = self.op("MatMul", tokens, normal(self.width, experts) if gate is None else gate)
        self.gate = self.op("Softmax", self.logits, axis=-1)

    def op(self, *arguments, **attributes):
        return self.w.op(*arguments, **attributes)

    def top(self, of=None, k=None):
        return self.op("TopK", of or self.gate, [k or self.k], outputs=2, axis=-1)

    def plus(self, x, bias):
        return x if bias is None else self.op("Add", x, bias)

    def expert(self, e, x=None):
        b1, b2 = (None if b is None else b[e] for b in (self.b1, self.b2))
        hidden = self.act(self.plus(self.op("MatMul", x or self.tokens, self.w1[e]), b1))
        return self.plus(self.op("MatMul", hidden, self.w2[e]), b2)

    def all_experts(self):
        """Outputs of all experts, [E, T, D]."""
        b1, b2 = (None if b is None else b[:, None] for b in (self.b1, self.b2))
        x = self.op("Expand", self.op("Unsqueeze", self.tokens, [0]), [self.experts, self.count, self.width])
        hidden = self.act(self.plus(self.op("MatMul", x, self.w1), b1))
        return self.plus(self.op("MatMul", hidden, self.w2), b2)

    def by_token(self):
        """Outputs of all experts, [T, E, D]."""
        return self.op("Transpose", self.all_experts(), perm=[1, 0, 2])

    def zeros(self, *shape):
        return np.zeros(shape, np.float32)

    def sum_of(self, terms):
        y = terms[0]
        for term in terms[1:]:
            y = self.op("Add", y, term)
        return y


# --- forms: each gives the name of the layer's result [T, D] ------------------------------------------------------


def gathered(moe, values, indices, k=None):
    """Pick by GatherElements, weight by MatMul."""
    k = k or moe.k
    index = moe.op("Expand", moe.op("Unsqueeze", indices, [2]), [moe.count, k, moe.width])
    picked = moe.op("GatherElements", moe.by_token(), index, axis=1)
    return moe.op("Reshape", moe.op("MatMul", moe.op("Unsqueeze", values, [1]), picked), [moe.count, moe.width])


def gather_elements(moe):
    return gathered(moe, *moe.top())


def gather_elements_and_sum(moe):
    values, indices = moe.top()
    stacked = moe.op("Concat", *(moe.op("Unsqueeze", moe.expert(e), [1]) for e in range(moe.experts)), axis=1)
    index = moe.op("Tile", moe.op("Unsqueeze", indices, [2]), [1, 1, moe.width])
    picked = moe.op("GatherElements", stacked, index, axis=1)
    return moe.op("ReduceSum", moe.op("Mul", picked, moe.op("Unsqueeze", values, [-1])), [1], keepdims=0)


def more_chosen_than_used(moe):
    more = min(moe.k + 1, moe.experts)
    values, indices = (moe.op("Slice", v, [0], [moe.k], [1]) for v in moe.top(k=more))
    return gathered(moe, values, indices)


def renormalised_by_division(moe):
    values, indices = moe.top()
    total = moe.op("Add", moe.op("ReduceSum", values, [-1]), 1e-9)
    return gathered(moe, moe.op("Div", values, total), indices)


def renormalised_by_softmax(moe):
    values, indices = moe.top(of=moe.logits)
    return gathered(moe, moe.op("Softmax", values, axis=-1), indices)


def renormalised_above_a_bound(moe):
    values, indices = moe.top()
    total = moe.op("Clip", moe.op("ReduceSum", values, [-1]), np.float32(1e-9))
    return gathered(moe, moe.op("Div", values, total), indices)


def scaled_scores(moe):
    values, indices = moe.top()
    return gathered(moe, moe.op("Mul", values, 2.5), indices)


def where_chain(moe):
    values, indices = moe.top()
    buffer = moe.zeros(moe.count, moe.k, moe.width)
    for e in range(moe.experts):
        mask = moe.op("Unsqueeze", moe.op("Equal", indices, e), [2])
        buffer = moe.op("Where", mask, moe.op("Unsqueeze", moe.expert(e), [1]), buffer)
    y = moe.op("MatMul", moe.op("Unsqueeze", values, [1]), buffer)
    return moe.op("Reshape", y, [moe.count, moe.width])


def where_chain_for_each_slot(moe):
    values, indices = moe.top()
    slots = []
    for s in range(moe.k):
        y = moe.zeros(moe.count, moe.width)
        mine = moe.op("Slice", indices, [s], [s + 1], [1])
        for e in range(moe.experts):
            y = moe.op("Where", moe.op("Equal", mine, e), moe.expert(e), y)
        slots.append(moe.op("Mul", moe.op("Slice", values, [s], [s + 1], [1]), y))
    return moe.sum_of(slots)


def masked_weights(moe):
    """One weight per token and expert: the chosen score or zero."""
    values, indices = moe.top()
    terms = []
    for e in range(moe.experts):
        mask = moe.op("Cast", moe.op("Equal", indices, e), to=TensorProto.FLOAT)
        weight = moe.op("ReduceSum", moe.op("Mul", mask, values), [1], keepdims=1)
        terms.append(moe.op("Mul", moe.expert(e), weight))
    return moe.sum_of(terms)


def weighted_by(moe, gates):
    """All experts weighted by gates [T, E], most of which are zero."""
    y = moe.op("MatMul", moe.op("Unsqueeze", gates, [1]), moe.by_token())
    return moe.op("Reshape", y, [moe.count, moe.width])


def dense_weights(moe):
    """Scores scattered into [T, E]."""
    values, indices = moe.top()
    return weighted_by(moe, moe.op("ScatterElements", moe.zeros(moe.count, moe.experts), indices, values, axis=1))


def renormalised_by_masked_softmax(moe):
    """The chosen logits scattered into minus infinity."""
    values, indices = moe.top(of=moe.logits)
    empty = np.full((moe.count, moe.experts), -np.inf, np.float32)
    return weighted_by(moe, moe.op("Softmax", moe.op("ScatterElements", empty, indices, values, axis=1), axis=-1))


def renormalised_by_filled_softmax(moe):
    """Ones scattered into a mask, where the logits are kept."""
    _, indices = moe.top(of=moe.logits)
    ones = np.ones((moe.count, moe.k), np.float32)
    mask = moe.op("ScatterElements", moe.zeros(moe.count, moe.experts), indices, ones, axis=1)
    chosen = moe.op("Where", moe.op("Equal", mask, np.float32(0)), np.float32(-np.inf), moe.logits)
    return weighted_by(moe, moe.op("Softmax", chosen, axis=-1))


def masked_softmax(moe):
    """The softmax times the sum of the one-hot indices."""
    _, indices = moe.top()
    mask = moe.op("ReduceSum", moe.op("OneHot", indices, moe.experts, np.float32([0, 1])), [1], keepdims=0)
    return weighted_by(moe, moe.op("Mul", moe.gate, mask))


def renormalised_masked_softmax(moe):
    _, indices = moe.top()
    mask = moe.op("ReduceSum", moe.op("OneHot", indices, moe.experts, np.float32([0, 1])), [1], keepdims=0)
    gates = moe.op("Mul", moe.gate, mask)
    return weighted_by(moe, moe.op("Div", gates, moe.op("ReduceSum", gates, [-1], keepdims=1)))


def threshold(moe):
    """Scores that are at least the k-th best."""
    values, _ = moe.top()
    least = moe.op("Slice", values, [moe.k - 1], [moe.k], [1])
    return weighted_by(moe, moe.op("Where", moe.op("GreaterOrEqual", moe.gate, least), moe.gate, np.float32(0)))


def one_hot_weights(moe):
    values, indices = moe.top()
    hot = moe.op("OneHot", indices, moe.experts, np.array([0.0, 1.0], np.float32))
    gates = moe.op("ReduceSum", moe.op("Mul", hot, moe.op("Unsqueeze", values, [2])), [1], keepdims=0)
    columns = (moe.op("Slice", gates, [e], [e + 1], [1]) for e in range(moe.experts))
    return moe.sum_of([moe.op("Mul", column, moe.expert(e)) for e, column in enumerate(columns)])


def rows_of_slots(moe):
    """Gather the rows of each expert, scatter them to token and slot."""
    values, indices = moe.top()
    flat = moe.op("Reshape", indices, [-1])
    buffer = moe.zeros(moe.count * moe.k, moe.width)
    for e in range(moe.experts):
        places = moe.op("Squeeze", moe.op("NonZero", moe.op("Equal", flat, e)), [0])
        rows = moe.op("Gather", moe.tokens, moe.op("Div", places, moe.k), axis=0)
        where = moe.op("Unsqueeze", places, [1])
        buffer = moe.op("ScatterND", buffer, where, moe.expert(e, rows), reduction="add")
    picked = moe.op("Reshape", buffer, [moe.count, moe.k, moe.width])
    return moe.op("Reshape", moe.op("MatMul", moe.op("Unsqueeze", values, [1]), picked), [moe.count, moe.width])


def rows_of_tokens(moe):
    """Gather the rows of each expert, weight them, add them to the tokens."""
    values, indices = moe.top()
    y = moe.zeros(moe.count, moe.width)
    for e in range(moe.experts):
        places = moe.op("Transpose", moe.op("NonZero", moe.op("Equal", indices, e)), perm=[1, 0])
        token = moe.op("Slice", places, [0], [1], [1])
        weight = moe.op("Unsqueeze", moe.op("GatherND", values, places), [1])
        rows = moe.op("Mul", weight, moe.expert(e, moe.op("GatherND", moe.tokens, token)))
        y = moe.op("ScatterND", y, token, rows, reduction="add")
    return y


def index_add(moe):
    """Hugging Face's loop: a one-hot mask [E, k, T], its places split in slot and token, sums by ScatterElements."""
    values, indices = moe.top()
    hot = moe.op("Transpose", moe.op("OneHot", indices, moe.experts, np.int64([0, 1]), axis=-1), perm=[2, 1, 0])
    terms = []
    for e in range(moe.experts):
        mine = moe.op("Cast", moe.op("Gather", hot, e, axis=0), to=TensorProto.BOOL)
        places = moe.op("Transpose", moe.op("NonZero", mine), perm=[1, 0])
        slot, token = (moe.op("Squeeze", part, [1]) for part in moe.op("Split", places, [1, 1], outputs=2, axis=1))
        rows = moe.op("Reshape", moe.op("Gather", moe.op("Unsqueeze", moe.tokens, [0]), token, axis=1), [-1, moe.width])
        flat = moe.op("Reshape", values, [-1])
        weight = moe.op("Gather", flat, moe.op("Add", moe.op("Mul", token, moe.k), slot), axis=0)
        rows = moe.op("Mul", moe.expert(e, rows), moe.op("Unsqueeze", weight, [1]))
        index = moe.op("Expand", moe.op("Unsqueeze", token, [1]), moe.op("Shape", rows))
        terms.append(moe.op("ScatterElements", moe.zeros(moe.count, moe.width), index, rows, axis=0))
    return moe.sum_of(terms)


def boolean_masks(moe):
    """out[mask] += gate * expert(x[mask]): what is there is read, added to and written back, element by element."""
    _, indices = moe.top()
    y = moe.zeros(moe.count, moe.width)
    for e in range(moe.experts):
        held = moe.op("Cast", moe.op("Equal", indices, e), to=TensorProto.INT64)
        mask = moe.op("Greater", moe.op("ReduceSum", held, [-1], keepdims=0), 0)
        places = moe.op("Transpose", moe.op("NonZero", mask), perm=[1, 0])
        score = moe.op("GatherND", moe.op("Gather", moe.gate, e, axis=1), places)
        rows = moe.op("Mul", moe.expert(e, moe.op("GatherND", moe.tokens, places)), moe.op("Unsqueeze", score, [1]))
        rows = moe.op("Add", moe.op("GatherND", y, places), rows)
        everywhere = moe.op("NonZero", moe.op("Expand", moe.op("Unsqueeze", mask, [1]), [moe.count, moe.width]))
        everywhere = moe.op("Transpose", everywhere, perm=[1, 0])
        count = moe.op("Gather", moe.op("Shape", everywhere), [0], axis=0)
        y = moe.op("ScatterND", y, everywhere, moe.op("Slice", moe.op("Reshape", rows, [-1]), [0], count, [0]))
    return y


def gathered_weights(moe):
    """The weights of each token's experts, gathered."""
    values, indices = moe.top()
    x = moe.op("Reshape", moe.tokens, [moe.count, 1, 1, moe.width])
    hidden = moe.op("MatMul", x, moe.op("Gather", moe.w1, indices, axis=0))
    if moe.b1 is not None:
        hidden = moe.op("Add", hidden, moe.op("Unsqueeze", moe.op("Gather", moe.b1, indices, axis=0), [2]))
    y = moe.op("Squeeze", moe.op("MatMul", moe.act(hidden), moe.op("Gather", moe.w2, indices, axis=0)), [2])
    if moe.b2 is not None:
        y = moe.op("Add", y, moe.op("Gather", moe.b2, indices, axis=0))
    return moe.op("ReduceSum", moe.op("Mul", y, moe.op("Unsqueeze", values, [2])), [1], keepdims=0)


def einsum_of_gathered_weights(moe):
    values, indices = moe.top()
    hidden = moe.op("Einsum", moe.tokens, moe.op("Gather", moe.w1, indices, axis=0), equation="td,tkdh->tkh")
    if moe.b1 is not None:
        hidden = moe.op("Add", hidden, moe.op("Gather", moe.b1, indices, axis=0))
    y = moe.op("Einsum", moe.act(hidden), moe.op("Gather", moe.w2, indices, axis=0), equation="tkh,tkhd->tkd")
    if moe.b2 is not None:
        y = moe.op("Add", y, moe.op("Gather", moe.b2, indices, axis=0))
    return moe.op("Einsum", y, values, equation="tkd,tk->td")


def einsum(moe):
    """Batched experts and dense gates, all by Einsum."""
    values, indices = moe.top()
    gates = moe.op("ScatterElements", moe.zeros(moe.count, moe.experts), indices, values, axis=1)
    hidden = moe.act(moe.plus(moe.op("Einsum", moe.tokens, moe.w1, equation="td,edh->teh"), moe.b1))
    y = moe.plus(moe.op("Einsum", hidden, moe.w2, equation="teh,ehd->ted"), moe.b2)
    return moe.op("Einsum", y, gates, equation="ted,te->td")


def noisy_gate(moe):
    """M3ViT's: one expert more is chosen than used, and the noise of training is multiplied by zero."""
    noise = moe.op("Add", moe.op("Softplus", moe.op("MatMul", moe.tokens, moe.w.normal(moe.width, moe.experts))), 0.01)
    logits = moe.op("Add", moe.logits, moe.op("Mul", moe.w.normal(moe.count, moe.experts), moe.op("Mul", noise, 0.0)))
    more = min(moe.k + 1, moe.experts)
    values, indices = (moe.op("Slice", v, [0], [moe.k], [1]) for v in moe.top(of=logits, k=more))
    return gathered(moe, moe.op("Softmax", values, axis=1), indices)


def floor_divide(moe, a, b):
    """a // b as the exporter writes it for any signs."""
    signs = moe.op("Xor", moe.op("Less", a, 0), moe.op("Less", b, 0))
    rest = moe.op("Not", moe.op("Equal", moe.op("Mod", a, b), 0))
    whole = moe.op("Div", a, b)
    return moe.op("Where", moe.op("And", signs, rest), moe.op("Sub", whole, 1), whole)


def places_of_slots(moe):
    """FastMoE without CUDA: rows of tokens and slots, whose token a division tells; each expert writes zeros first."""
    values, indices = moe.top()
    flat = moe.op("Reshape", indices, [-1])
    y = moe.zeros(moe.count * moe.k, moe.width)
    for e in range(moe.experts):
        places = moe.op("Squeeze", moe.op("Transpose", moe.op("NonZero", moe.op("Equal", flat, e)), perm=[1, 0]), [1])
        rows = moe.expert(e, moe.op("Gather", moe.tokens, floor_divide(moe, places, np.int64(moe.k)), axis=0))
        index = moe.op("Expand", moe.op("Unsqueeze", places, [1]), moe.op("Shape", rows))
        y = moe.op("Add", y, moe.op("ScatterElements", moe.zeros(moe.count * moe.k, moe.width), index, rows, axis=0))
    return moe.op("MatMul", moe.op("Unsqueeze", values, [1]), moe.op("Reshape", y, [moe.count, moe.k, moe.width]))


def buffer_of_slots(moe):
    """y[token, slot] = expert(x[token])."""
    values, indices = moe.top()
    y = moe.zeros(moe.count, moe.k, moe.width)
    for e in range(moe.experts):
        places = moe.op("Transpose", moe.op("NonZero", moe.op("Equal", indices, e)), perm=[1, 0])
        token = moe.op("Squeeze", moe.op("Slice", places, [0], [1], [1]), [1])
        y = moe.op("ScatterND", y, places, moe.expert(e, moe.op("Gather", moe.tokens, token, axis=0)))
    return moe.op("ReduceSum", moe.op("Mul", y, moe.op("Unsqueeze", values, [2])), [1], keepdims=0)


def repeated_tokens(moe):
    """y[chosen == e] = expert(x repeated[chosen == e])."""
    values, indices = moe.top()
    repeated = moe.op("Reshape", moe.op("Tile", moe.op("Unsqueeze", moe.tokens, [1]), [1, moe.k, 1]), [-1, moe.width])
    flat, y = moe.op("Reshape", indices, [-1]), moe.zeros(moe.count * moe.k, moe.width)
    for e in range(moe.experts):
        places = moe.op("Transpose", moe.op("NonZero", moe.op("Equal", flat, e)), perm=[1, 0])
        y = moe.op("ScatterND", y, places, moe.expert(e, moe.op("GatherND", repeated, places)))
    return moe.op("MatMul", moe.op("Unsqueeze", values, [1]), moe.op("Reshape", y, [moe.count, moe.k, moe.width]))


def index_put(moe, elements=False):
    """y[token] += weight * expert(x[token]), as read, add and write."""
    (values, indices), y = moe.top(), moe.zeros(moe.count, moe.width)
    for e in range(moe.experts):
        places = moe.op("Transpose", moe.op("NonZero", moe.op("Equal", indices, e)), perm=[1, 0])
        token = moe.op("Slice", places, [0], [1], [1])
        weight = moe.op("Unsqueeze", moe.op("GatherND", values, places), [1])
        rows = moe.op("Mul", weight, moe.expert(e, moe.op("GatherND", moe.tokens, token)))
        rows, at = moe.op("Add", moe.op("GatherND", y, token), rows), token
        if elements:
            columns = np.arange(moe.width)
            shape = moe.op("Shape", moe.op("Add", token, columns))
            shape = moe.op("Where", moe.op("Equal", shape, np.int64([-1, -1])), np.int64([1, 1]), shape)
            both = [moe.op("Unsqueeze", moe.op("Expand", part, shape), [-1]) for part in (token, columns)]
            at = moe.op("Concat", *both, axis=-1)
        y = moe.op("ScatterND", y, at, rows)
    return y


def index_put_of_elements(moe):
    """The same by the places of all elements of a row, as TorchScript writes y[token, :]."""
    return index_put(moe, elements=True)


def masked_tokens(moe):
    """Every expert reads all tokens, those of others as zeros; what it makes of the zeros does not count."""
    values, indices = moe.top()
    terms = []
    for e in range(moe.experts):
        mine = moe.op("Equal", indices, e)
        weight = moe.op("ReduceSum", moe.op("Where", mine, values, np.float32(0)), [1], keepdims=1)
        x = moe.op("Where", moe.op("Greater", weight, np.float32(0)), moe.tokens, np.float32(0))
        terms.append(moe.op("Mul", weight, moe.expert(e, x)))
    return moe.sum_of(terms)


def roomy_capacity(moe, rooms=None):
    """V-MoE's, with room for all tokens: a cumulative sum gives each token a place in the queue of its expert."""
    rooms = rooms or moe.count
    values, indices = moe.top()
    hot = moe.op("OneHot", indices, moe.experts, np.float32([0, 1]))  # [T, k, E]
    by_slot = moe.op("Reshape", moe.op("Transpose", hot, perm=[1, 0, 2]), [-1, moe.experts])
    place = moe.op("Sub", moe.op("CumSum", by_slot, np.int64(0)), np.float32(1))
    place = moe.op("Transpose", moe.op("Reshape", place, [moe.k, moe.count, moe.experts]), perm=[1, 0, 2])
    place = moe.op("ReduceSum", moe.op("Mul", place, hot), [2], keepdims=0)
    room = moe.op("OneHot", moe.op("Cast", place, to=TensorProto.INT64), rooms, np.float32([0, 1]))
    weighted = moe.op("Mul", hot, moe.op("Unsqueeze", values, [2]))
    combine = moe.op("Einsum", weighted, room, equation="tke,tkc->tec")
    sent = moe.op("Cast", moe.op("Greater", combine, np.float32(0)), to=TensorProto.FLOAT)
    inputs = moe.op("Einsum", sent, moe.tokens, equation="tec,td->ecd")
    parts = [moe.op("Squeeze", moe.op("Slice", inputs, [e], [e + 1], [0]), [0]) for e in range(moe.experts)]
    outputs = moe.op("Concat", *(moe.op("Unsqueeze", moe.expert(e, x), [0]) for e, x in enumerate(parts)), axis=0)
    return moe.op("Einsum", combine, outputs, equation="tec,ecd->td")


def loop(moe):
    """An ONNX Loop over the experts, whose weights the iteration number picks."""
    values, indices = moe.top()
    outer, start = moe.w.nodes, len(moe.w.nodes)
    moe.w.nodes = [None] * start  # names go on from there

    def weight(array):
        return moe.op("Gather", array, "i", axis=0)

    places = moe.op("Transpose", moe.op("NonZero", moe.op("Equal", indices, "i")), perm=[1, 0])
    token = moe.op("Slice", places, [0], [1], [1])
    x = moe.op("GatherND", moe.tokens, token)
    hidden = moe.op("MatMul", x, weight(moe.w1))
    hidden = moe.act(hidden if moe.b1 is None else moe.op("Add", hidden, weight(moe.b1)))
    y = moe.op("MatMul", hidden, weight(moe.w2))
    y = y if moe.b2 is None else moe.op("Add", y, weight(moe.b2))
    y = moe.op("Mul", y, moe.op("Unsqueeze", moe.op("GatherND", values, places), [1]))
    y = moe.op("ScatterND", "sum", token, y, reduction="add")
    on = moe.op("Identity", "on")
    inputs = [("i", TensorProto.INT64, []), ("on", TensorProto.BOOL, []), ("sum", TensorProto.FLOAT, [moe.count, moe.width])]
    outputs = [(on, TensorProto.BOOL, []), (y, TensorProto.FLOAT, [moe.count, moe.width])]
    infos = [[helper.make_tensor_value_info(*i) for i in part] for part in (inputs, outputs)]
    body = helper.make_graph(moe.w.nodes[start:], "expert", *infos)
    moe.w.nodes = outer
    return moe.op("Loop", np.int64(moe.experts), np.bool_(True), moe.zeros(moe.count, moe.width), body=body)


def soft(moe):
    """A soft mixture with `k` slots for each expert, by MatMul: expert after expert on its rows."""
    slots = moe.experts * moe.k
    scores = moe.op("MatMul", moe.tokens, moe.w.normal(moe.width, slots))
    inputs = moe.op("MatMul", moe.op("Transpose", moe.op("Softmax", scores, axis=0), perm=[1, 0]), moe.tokens)
    parts = [moe.op("Slice", inputs, [e * moe.k], [(e + 1) * moe.k], [0]) for e in range(moe.experts)]
    outputs = moe.op("Concat", *(moe.expert(e, part) for e, part in enumerate(parts)), axis=0)
    return moe.op("MatMul", moe.op("Softmax", scores, axis=-1), outputs)


def soft_by_einsum(moe):
    """The same with all experts at once, in the letters of the paper."""
    scores = moe.op("Einsum", moe.tokens, moe.w.normal(moe.width, moe.experts, moe.k), equation="td,dep->tep")
    inputs = moe.op("Einsum", moe.tokens, moe.op("Softmax", scores, axis=0), equation="td,tep->epd")
    b1, b2 = (None if b is None else b[:, None] for b in (moe.b1, moe.b2))
    hidden = moe.act(moe.plus(moe.op("Einsum", inputs, moe.w1, equation="epd,edh->eph"), b1))
    outputs = moe.plus(moe.op("Einsum", hidden, moe.w2, equation="eph,ehd->epd"), b2)
    flat = moe.op("Softmax", moe.op("Reshape", scores, [moe.count, -1]), axis=-1)
    combine = moe.op("Reshape", flat, [moe.count, moe.experts, moe.k])
    return moe.op("Einsum", outputs, combine, equation="epd,tep->td")


SOFT_FORMS = [soft, soft_by_einsum]
FORMS = [
    *(gather_elements, gather_elements_and_sum, more_chosen_than_used, renormalised_by_division),
    *(renormalised_by_softmax, renormalised_above_a_bound, scaled_scores, where_chain),
    *(where_chain_for_each_slot, masked_weights, dense_weights, renormalised_by_masked_softmax),
    *(renormalised_by_filled_softmax, masked_softmax, renormalised_masked_softmax, threshold),
    *(one_hot_weights, rows_of_slots, rows_of_tokens, index_add, boolean_masks, gathered_weights),
    *(einsum_of_gathered_weights, einsum, noisy_gate, places_of_slots, buffer_of_slots, repeated_tokens),
    *(index_put, index_put_of_elements, masked_tokens, loop),
]
