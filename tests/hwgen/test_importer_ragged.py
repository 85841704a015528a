"""Rows that depend on the image, control flow and sequences, imported to tensor IR: T equals the file as onnxruntime runs it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import moe_maker as maker
from hwgen.importer.importer import import_program
from hwgen.importer.load import load
from hwgen.importer.reference import reference
from hwgen.tensor import evaluate, verify

pytest.importorskip("onnxruntime")

T, D, E, HIDDEN = 6, 8, 4, 5
IMAGE = (1, 2, 2 * T)


class Writer(maker.Writer):
    """With graphs inside nodes, whose names are their own."""

    def __init__(self, seed=0, prefix=""):
        super().__init__(seed)
        self.prefix, self.count = prefix, 0

    def op(self, kind, *inputs, **attributes):
        before = len(self.nodes), len(self.constants)
        made = super().op(kind, *inputs, **attributes)
        node = self.nodes[-1]
        for tensor in self.constants[before[1] :]:
            old, tensor.name = tensor.name, self.prefix + tensor.name
            node.input[:] = [tensor.name if name == old else name for name in node.input]
        node.output[:] = [self.prefix + name for name in node.output]
        node.name = self.prefix + node.name
        return list(node.output) if isinstance(made, list) else node.output[0]

    def body(self, build, *inputs):
        """`build` gets a writer and the names of the inputs (name, type, shape), gives the outputs (name, type, shape)."""
        self.count += 1
        inner = Writer(self.count, f"{self.prefix}b{self.count}_")
        names = [inner.prefix + i[0] for i in inputs]
        outputs = build(inner, *names)
        infos = [[helper.make_tensor_value_info(n, k, s) for n, (_, k, s) in zip(names, inputs, strict=True)]]
        infos.append([helper.make_tensor_value_info(*o) for o in outputs])
        return helper.make_graph(inner.nodes, inner.prefix + "g", *infos, inner.constants)


class Moe(maker.Moe):
    """Patch embedding and gate; `favour`: an expert that every token chooses first."""

    def __init__(self, k=2, seed=0, experts=E, tokens=T, favour=None):
        writer = Writer(seed)
        conv = writer.op("Conv", "image", writer.normal(D, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
        self.x = writer.op("Transpose", writer.op("Reshape", conv, [1, D, tokens]), perm=[0, 2, 1])
        super().__init__(writer, writer.op("Reshape", self.x, [tokens, D]), (tokens, D), experts, HIDDEN, k)
        if favour is not None:
            self.logits = self.op("Add", self.logits, 50.0 * (np.arange(experts) == favour))
            self.gate = self.op("Softmax", self.logits, axis=-1)

    def save(self, path, y):
        y = self.op("Add", self.x, self.op("Reshape", y, [1, self.count, D]))
        return self.w.write(path, (1, 2, 2 * self.count), y, [1, self.count, D])


def proven(path, seeds=range(3)):
    """The program, after a comparison with the file on seeded images."""
    model = load(path)
    program, findings = import_program(model)
    assert not findings, findings
    verify(program)
    rng = np.random.default_rng(0)
    images = {name: rng.standard_normal((len(seeds), *shape[1:]), np.float32) for name, shape in model.inputs.items()}
    expected = reference(model, images)
    for i in range(len(seeds)):
        found, _ = evaluate(program, {name: image[i : i + 1] for name, image in images.items()})
        for name, value in found.items():
            assert np.abs(value - expected[name][i]).max() <= 1e-4 * expected[name].std(), (name, i)
    return program


def refused(path):
    return [f"{f.op}: {f.reason}" for f in import_program(load(path))[1]]


@pytest.mark.parametrize("form", [*maker.FORMS, *maker.SOFT_FORMS])
@pytest.mark.parametrize("k", [1, 2])
def test_every_form_equals_its_file(tmp_path, form, k):
    moe = Moe(k)
    proven(moe.save(tmp_path / "m.onnx", form(moe)))


@pytest.mark.parametrize("form", maker.FORMS)
def test_all_tokens_to_one_expert(tmp_path, form):
    moe = Moe(1, favour=1)
    proven(moe.save(tmp_path / "m.onnx", form(moe)), [0])


@pytest.mark.parametrize("form", maker.FORMS)
def test_one_token(tmp_path, form):
    moe = Moe(2, tokens=1)
    proven(moe.save(tmp_path / "m.onnx", form(moe)))


@pytest.mark.parametrize("name", ["m3vit_digits_2task", "m3vit_digits_digit", "m3vit_digits_parity"])
def test_trained(models, name):
    proven(models / f"{name}.onnx", [0])


# --- one by one ------------------------------------------------------------------------------------------------------


def places(moe, e, by_slot=False):
    """(tokens [n], slots [n]) of an expert, and the weights [T, k]."""
    values, indices = moe.top()
    found = moe.op("NonZero", moe.op("Equal", moe.op("Transpose", indices, perm=[1, 0]) if by_slot else indices, e))
    first, second = (moe.op("Squeeze", part, [0]) for part in moe.op("Split", found, [1, 1], outputs=2, axis=0))
    return (second, first, values) if by_slot else (first, second, values)


def index_put(moe):
    """y[token] += .. of torch without duplicates: read, add, write back."""
    y = moe.zeros(T, D)
    for e in range(E):
        token, slot, values = places(moe, e)
        where = moe.op("Unsqueeze", token, [1])
        weight = moe.op("GatherND", values, moe.op("Concat", where, moe.op("Unsqueeze", slot, [1]), axis=1))
        rows = moe.op("Mul", moe.expert(e, moe.op("Gather", moe.tokens, token)), moe.op("Unsqueeze", weight, [1]))
        y = moe.op("ScatterND", y, where, moe.op("Add", moe.op("GatherND", y, where), rows))
    return y


def concatenated(moe):
    """The rows of all experts behind each other, added at once; the index is computed, from behind."""
    parts, indices = [], []
    for e in range(E):
        token, _, _ = places(moe, e, by_slot=True)
        parts.append(moe.expert(e, moe.op("Gather", moe.tokens, token)))
        indices.append(moe.op("Sub", token, T))
    index = moe.op("Unsqueeze", moe.op("Concat", *indices, axis=0), [1])
    return moe.op("ScatterND", moe.zeros(T, D), index, moe.op("Concat", *parts, axis=0), reduction="add")


def shapes(moe):
    """ConstantOfShape, Expand, Size, Range and the mean over an expert's tokens."""
    token, _, _ = places(moe, 1)
    rows = moe.op("Gather", moe.tokens, token)
    count = moe.op("Shape", rows)
    one = np.array([1.0], np.float32)
    ones = moe.op("ConstantOfShape", count, value=helper.make_tensor("v", TensorProto.FLOAT, [1], one))
    rows = moe.op("Add", rows, moe.op("Mul", ones, moe.op("Expand", moe.w.normal(1, D), count)))
    number = moe.op("Squeeze", moe.op("Slice", count, [0], [1]), [0])
    rows = moe.op("Gather", rows, moe.op("Range", np.int64(0), number, np.int64(1)), axis=0)
    share = moe.op("Div", moe.op("Cast", moe.op("Size", rows), to=1), float(D))
    total = moe.op("ReduceSum", rows, [0])
    mean = moe.op("Div", total, moe.op("Max", share, 1.0))
    flat = moe.op("Reshape", moe.op("Reshape", rows, moe.op("Concat", [-1], [2], [D // 2], axis=0)), [-1, D])
    index = moe.op("Expand", moe.op("Unsqueeze", token, [1]), count)
    y = moe.op("ScatterElements", moe.zeros(T, D), index, flat, axis=0)
    return moe.op("Add", y, mean)


def compressed(moe):
    mask = moe.op("Greater", moe.op("Gather", moe.gate, 0, axis=1), 0.25)
    rows = moe.expert(0, moe.op("Compress", moe.tokens, mask, axis=0))
    return moe.op("ScatterND", moe.zeros(T, D), moe.op("Transpose", moe.op("NonZero", mask), perm=[1, 0]), rows)


def sorted_and_split(moe):
    """Tokens in the order of their experts, split by how many each has, put back by the inverse order."""
    moe.k = 1
    values, indices = moe.top()
    flat = moe.op("Reshape", indices, [-1])
    _, order = moe.op("TopK", moe.op("Cast", flat, to=1), [T], outputs=2, largest=0)
    held = moe.op("ReduceSum", moe.op("OneHot", flat, np.int64(E), np.int64([0, 1])), [0], keepdims=0)
    parts = moe.op("Split", moe.op("Gather", moe.tokens, order), held, outputs=E, axis=0)
    rows = moe.op("Concat", *(moe.expert(e, part) for e, part in enumerate(parts)), axis=0)
    where = moe.op("Concat", *moe.op("Split", order, held, outputs=E, axis=0), axis=0)
    return moe.op("Mul", moe.op("ScatterND", moe.zeros(T, D), moe.op("Unsqueeze", where, [1]), rows), values)


def twice_chosen(moe):
    """Of an expert's tokens those whose weight is large."""
    token, slot, values = places(moe, 0)
    weight = moe.op(
        "GatherND", values, moe.op("Transpose", moe.op("NonZero", moe.op("Equal", moe.top()[1], 0)), perm=[1, 0])
    )
    kept = moe.op("Squeeze", moe.op("NonZero", moe.op("Greater", weight, 0.3)), [0])
    token = moe.op("Gather", token, kept)
    rows = moe.expert(0, moe.op("Gather", moe.tokens, token))
    return moe.op("ScatterND", moe.zeros(T, D), moe.op("Unsqueeze", token, [1]), rows)


def skipped_if_empty(moe, seen=None):
    """if token.numel() > 0: y.index_add_(..)"""
    y = moe.op("Mul", moe.tokens, 0.5)
    for e in range(E):
        token, _, _ = places(moe, e)
        some = moe.op("Greater", moe.op("Size", token), np.int64(0))

        def then(w, e=e, token=token, y=y):
            hidden = w.op("Relu", w.op("MatMul", w.op("Gather", moe.tokens, token), moe.w1[e]))
            rows = w.op("MatMul", hidden, moe.w2[e])
            return [(w.op("ScatterND", y, w.op("Unsqueeze", token, [1]), rows, reduction="add"), 1, [T, D])]

        other = moe.w.body(lambda w, y=y: [(w.op("Identity", y), 1, [T, D])])
        y = moe.op("If", some, then_branch=moe.w.body(then), else_branch=other)
    return y


def of_two_branches(moe):
    many = moe.op("Greater", moe.op("ReduceMax", moe.tokens, keepdims=0), 1.0)
    branches = [moe.w.body(lambda w, f=f: [(w.op("Mul", moe.tokens, f), 1, [T, D])]) for f in (2.0, 3.0)]
    return moe.op("If", many, then_branch=branches[0], else_branch=branches[1])


FLAG, INDEX = ("keep", TensorProto.BOOL, []), ("i", TensorProto.INT64, [])


def loop_over_experts(moe, trips=E):
    gates = moe.op("ScatterElements", moe.zeros(T, E), *moe.top()[::-1], axis=1)

    def body(w, i, keep, y):
        hidden = w.op("Relu", w.op("MatMul", moe.tokens, w.op("Gather", moe.w1, i)))
        weight = w.op("Unsqueeze", w.op("Gather", gates, i, axis=1), [1])
        made = w.op("Mul", weight, w.op("MatMul", hidden, w.op("Gather", moe.w2, i)))
        return [
            (w.op("Identity", keep), 9, []),
            (w.op("Add", y, made), 1, [T, D]),
            (w.op("ReduceSum", made, keepdims=0), 1, []),
        ]

    body = moe.w.body(body, INDEX, FLAG, ("y", 1, [T, D]))
    y, sums = moe.op("Loop", np.int64(trips), "", moe.tokens, outputs=2, body=body)
    return moe.op("Add", y, moe.op("ReduceMax", sums, keepdims=0))


def loop_over_hit_experts(moe):
    """for e in expert_hit, as torch.jit.script leaves it."""
    _, indices = moe.top()
    hot = moe.op("OneHot", indices, np.int64(E), np.int64([0, 1]))
    hit = moe.op("NonZero", moe.op("Greater", moe.op("ReduceSum", hot, [0, 1], keepdims=0), np.int64(0)))
    hit = moe.op("Transpose", hit, perm=[1, 0])
    trips = moe.op("Squeeze", moe.op("Slice", moe.op("Shape", hit), [0], [1]), [0])

    def body(w, i, keep, y):
        e = w.op("Squeeze", w.op("Gather", hit, i), [0])
        found = w.op("NonZero", w.op("Equal", indices, e))
        token = w.op("Gather", found, np.int64(0), axis=0)
        hidden = w.op("Relu", w.op("MatMul", w.op("Gather", moe.tokens, token), w.op("Gather", moe.w1, e)))
        rows = w.op("MatMul", hidden, w.op("Gather", moe.w2, e))
        y = w.op("ScatterND", y, w.op("Unsqueeze", token, [1]), rows, reduction="add")
        return [(w.op("Identity", keep), 9, []), (y, 1, [T, D])]

    return moe.op("Loop", trips, "", moe.zeros(T, D), body=moe.w.body(body, INDEX, FLAG, ("y", 1, [T, D])))


def loop_until(moe):
    """A Loop that ends where a sum grows large."""

    def body(w, i, keep, y):
        y = w.op("Add", w.op("Mul", y, 1.5), 0.1)
        return [(w.op("Less", w.op("ReduceMax", y, keepdims=0), 4.0), 9, []), (y, 1, [T, D])]

    return moe.op("Loop", np.int64(9), np.bool_(True), moe.tokens, body=moe.w.body(body, INDEX, FLAG, ("y", 1, [T, D])))


def sequences(moe):
    parts = moe.op("SequenceConstruct", *(moe.expert(e) for e in range(2)))
    parts = moe.op("SequenceInsert", parts, moe.tokens)
    parts = moe.op("SequenceErase", moe.op("SequenceInsert", parts, moe.expert(3), np.int64(0)), np.int64(1))
    first = moe.op("ReduceMax", moe.op("ConcatFromSequence", parts, axis=0, new_axis=1), [0], keepdims=0)
    halves = moe.op("SplitToSequence", first, np.int64(4), axis=0)
    last = moe.op("ConcatFromSequence", halves, axis=0)
    number = moe.op("Cast", moe.op("SequenceLength", halves), to=1)
    return moe.op("Mul", moe.op("Add", last, moe.op("SequenceAt", parts, np.int64(-1))), number)


def scanned(moe):
    def body(w, h, x):
        h = w.op("Add", w.op("Mul", h, 0.7), x)
        return [(h, 1, [D]), (w.op("Tanh", h), 1, [D])]

    body = moe.w.body(body, ("h", 1, [D]), ("x", 1, [D]))
    options = {
        "num_scan_inputs": 1,
        "scan_input_directions": [1],
        "scan_output_directions": [1],
        "scan_output_axes": [1],
    }
    h, y = moe.op("Scan", np.zeros(D, np.float32), moe.tokens, outputs=2, body=body, **options)
    return moe.op("Add", moe.op("Transpose", y, perm=[1, 0]), h)


FORMS = [
    *(index_put, concatenated, shapes, compressed, sorted_and_split, twice_chosen, skipped_if_empty, of_two_branches),
    *(loop_over_experts, loop_over_hit_experts, loop_until, sequences, scanned),
]


@pytest.mark.parametrize("favour", [None, 0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_public_code(tmp_path, form, favour):
    moe = Moe(2 if favour is None else 1, favour=favour)
    proven(moe.save(tmp_path / "m.onnx", form(moe)), range(5))


def test_an_if_that_skips_no_tokens_leaves_no_choice(tmp_path):
    moe = Moe()
    program = proven(moe.save(tmp_path / "m.onnx", skipped_if_empty(moe)))
    assert not [n for n in program.nodes() if n.op.kind == "reduce" and n.dtype == "i"]


def test_an_if_that_needs_two_tokens_stays_a_choice(tmp_path):
    moe = Moe()
    token, _, _ = places(moe, 0)
    rows = moe.op(
        "ScatterND", moe.tokens, moe.op("Unsqueeze", token, [1]), moe.expert(0, moe.op("Gather", moe.tokens, token))
    )
    bodies = [moe.w.body(lambda w, y=y: [(w.op("Identity", y), 1, [T, D])]) for y in (rows, moe.tokens)]
    y = moe.op(
        "If", moe.op("Greater", moe.op("Size", token), np.int64(2)), then_branch=bodies[0], else_branch=bodies[1]
    )
    program = proven(moe.save(tmp_path / "m.onnx", y), range(8))
    assert [n for n in program.nodes() if n.op.kind == "reduce" and n.dtype == "i"]


# --- what is no longer entry by entry is refused ---------------------------------------------------------------------


def across(moe, rows, token):
    return moe.op("MatMul", moe.op("Softmax", rows, axis=0), moe.w.normal(D, D)), token


def other_tokens(moe, rows, token):
    return moe.op("Add", rows, moe.op("Gather", moe.tokens, places(moe, 2)[0])), token


def wrong_length(moe, rows, token):
    return moe.op("Add", rows, moe.w.normal(T * moe.k, D)), token


def without_first(moe, rows, token):
    return tuple(moe.op("Slice", v, [1], [1 << 40], [0]) for v in (rows, token))


def frozen(moe, rows, token):
    return moe.op("Reshape", rows, [3, D]), token


def frozen_at_all_tokens(moe, rows, token):
    return moe.op("Reshape", rows, [T * moe.k, D]), token


def reversed_rows(moe, rows, token):
    return moe.op("Slice", rows, [-1], [-(1 << 40)], [0], [-1]), token


def folded(moe, rows, token):
    return moe.op("Reshape", moe.op("ReduceSum", moe.op("Reshape", rows, [2, -1, D]), [0], keepdims=0), [-1, D]), token


@pytest.mark.parametrize(
    "spoil, words",
    [
        (across, "Softmax: mixes the tokens"),
        (other_tokens, "Add: combines the tokens of different experts"),
        (wrong_length, "Add: mixes the tokens"),
        (without_first, "Slice: the export froze how many tokens"),
        (frozen, "Reshape: the export froze how many tokens each expert got in its example: the shape [3, 8]"),
        (frozen_at_all_tokens, "Reshape: the export froze how many tokens"),
        (reversed_rows, "Slice: the export froze"),
        (folded, "Reshape: the export froze"),
    ],
)
def test_mixed_rows_are_refused(tmp_path, spoil, words):
    moe = Moe()
    token, _, _ = places(moe, 1)
    rows, token = spoil(moe, moe.op("Gather", moe.tokens, token), token)
    y = moe.op("ScatterND", moe.zeros(T, D), moe.op("Unsqueeze", token, [1]), rows, reduction="add")
    found = refused(moe.save(tmp_path / "m.onnx", y))
    assert found and words in found[0], found


def test_a_ragged_output_is_refused(tmp_path):
    moe = Moe()
    token, _, _ = places(moe, 1)
    path = moe.w.write(tmp_path / "m.onnx", IMAGE, moe.op("Gather", moe.tokens, token), [None, D])
    assert "as many elements as the image says" in refused(path)[0]


def test_an_endless_loop_is_refused(tmp_path):
    moe = Moe()
    body = [helper.make_node("Identity", ["keep"], ["again"]), helper.make_node("Relu", ["y"], ["made"])]
    infos = [helper.make_tensor_value_info(*v) for v in (INDEX, FLAG, ("y", 1, [T, D]))]
    outputs = [helper.make_tensor_value_info("again", 9, []), helper.make_tensor_value_info("made", 1, [T, D])]
    keep = moe.op("Less", moe.op("ReduceMax", moe.tokens, keepdims=0), 100.0)
    y = moe.op("Loop", "", keep, moe.tokens, body=helper.make_graph(body, "g", infos, outputs))
    assert "rounds" in refused(moe.save(tmp_path / "m.onnx", y))[0]
