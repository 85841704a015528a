"""Functions of single numbers beyond GELU and ReLU: softplus, exp, Mish, ELU, absolute values; features of linear attention."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import test_machine as machine
from hwgen import graph as fg
from hwgen.levels import check, import_model
from hwgen.quantise.calibrate import noise
from hwgen.schedule import schedule
from hwgen.select import integers
from hwgen.sim import golden

node = helper.make_node
FUNCTIONS = {
    "softplus": lambda x, y: [node("Softplus", [x], [y])],
    "exp": lambda x, y: [node("Exp", [x], [y])],
    "exp of a sum": lambda x, y: [node("Add", [x, x], [f"{y}_two"]), node("Exp", [f"{y}_two"], [y])],
    "abs": lambda x, y: [node("Abs", [x], [y])],
    "elu": lambda x, y: [node("Elu", [x], [y], alpha=0.7)],
    "mish": lambda x, y: [node("Softplus", [x], ["s"]), node("Tanh", ["s"], ["t"]), node("Mul", [x, "t"], [y])],
    "sigmoid undone": lambda x, y: [  # as detectors refine the places that a layer before gave
        *(node("Sigmoid", [x], ["chance"]), node("Sub", ["one", "chance"], ["rest"])),
        *(node("Clip", [n, "least"], [f"{n}_"]) for n in ("chance", "rest")),
        *(node("Div", ["chance_", "rest_"], ["odds"]), node("Log", ["odds"], [y])),
    ],
    "sigmoids undone beside constants": lambda x, y: [  # those of several layers, the first of which has learned places
        *(node("Sigmoid", [x], ["own"]), node("Concat", ["own", "chances"], ["chance"], axis=2)),
        *(node("Sub", ["one", "chance"], ["rest"]), *(node("Clip", [n, "least"], [f"{n}_"]) for n in ("chance", "rest"))),
        *(node("Div", ["chance_", "rest_"], ["odds"]), node("Log", ["odds"], ["both"])),
        *(node("Split", ["both"], ["first", "second"], axis=2), node("Add", ["first", "second"], [y])),
    ],
    "softplus with its threshold": lambda x, y: [  # as PyTorch's exporter writes it
        *(node("Softplus", [x], ["s"]), node("Greater", [x, "far"], ["beyond"]), node("Where", ["beyond", x, "s"], [y])),
    ],
    "softplus up to a threshold": lambda x, y: [
        *(node("Softplus", [x], ["s"]), node("LessOrEqual", [x, "far"], ["near"]), node("Where", ["near", "s", x], [y])),
    ],
    "over a sigmoid": lambda x, y: [
        *(node("Tanh", [x], ["small"]), node("Sigmoid", ["small"], ["size"]), node("Div", [x, "size"], [y])),
    ],
    "elu + 1": lambda x, y: [node("Elu", [x], [f"{y}_e"]), node("Add", [f"{y}_e", "one"], [y])],
}


def write(path, nodes, held, output):
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in held.items()]
    ends = [helper.make_tensor_value_info(n, 1, [1, *s]) for n, s in (("image", (3, 16, 24)), (nodes[-1].output[0], output))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def normal(rng, *shape, scale=1.0):
    return rng.standard_normal(shape).astype(np.float32) * np.float32(scale * np.prod(shape[1:]) ** -0.5)


def decibels(path):
    """Golden against the float graph on unseen noise; the machine gives what golden gives."""
    graph = import_model(path)
    made = integers({"": graph}, {n: noise(s) for n, s in graph.inputs.items()})[""]
    image = {n: noise(s, seed=1)[0] for n, s in graph.inputs.items()}
    (wanted,), found = fg.outputs(graph, fg.evaluate(graph, image)).values(), golden.run(made, image).outputs
    config = replace(machine.CONFIGS["12x20"], bank_words=8192, scale_entries=4096, acc_rows=64, window_chunks=1)
    machine.assert_equal(machine.run(schedule({"": made}, config), image), found)
    (got,) = found.values()
    return 10 * np.log10(np.square(wanted - wanted.mean()).sum() / np.square(wanted - got).sum())


@pytest.mark.parametrize("size", [0.5, 1.0])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_between_two_layers(tmp_path, function, size):
    rng = np.random.default_rng(0)
    held = {"p": normal(rng, 16, 3, 4, 4), "w": normal(rng, 24, 16, 1, 1, scale=size), "v": normal(rng, 8, 24, 1, 1)}
    held |= {"b": rng.standard_normal(24).astype(np.float32), "one": np.float32(1), "least": np.float32(1e-5)}
    held["far"] = np.float32(20)
    held["chances"] = rng.uniform(0.1, 0.9, (1, 24, 4, 6)).astype(np.float32)
    nodes = [
        node("Conv", ["image", "p"], ["x"], strides=[4, 4]),
        node("Conv", ["x", "w", "b"], ["h"]),
        *FUNCTIONS[function]("h", "f"),
        node("Conv", ["f", "v"], ["out"]),
    ]
    assert decibels(write(tmp_path / "m.onnx", nodes, held, (8, 4, 6))) > 30


@pytest.mark.parametrize("threshold, softplus", [(20, True), (2, False)])
def test_thresholds_of_softplus(tmp_path, threshold, softplus):
    """Where x itself is still another number than softplus(x), the file's choice between them is kept (importing proves it)."""
    held = {"far": np.float32(threshold), "p": normal(np.random.default_rng(2), 8, 3, 4, 4, scale=40)}
    nodes = [node("Conv", ["image", "p"], ["h"], strides=[4, 4]), *FUNCTIONS["softplus with its threshold"]("h", "f")]
    graph = import_model(write(tmp_path / "m.onnx", nodes, held, (8, 4, 6)))
    assert ([type(n) for n in graph.nodes] == [fg.PatchEmbed, fg.Activation]) == softplus, graph.nodes


def test_a_network_as_deep_as_no_stack_of_calls(tmp_path):
    """Layers behind each other without a sum, each of which asks for the one before."""
    rng, count = np.random.default_rng(3), 150
    held = {"p": normal(rng, 8, 3, 4, 4)} | {f"w{i}": normal(rng, 8, 8, 1, 1) for i in range(count)}
    nodes = [node("Conv", ["image", "p"], ["x0"], strides=[4, 4])]
    for i in range(count):
        nodes += [node("Conv", [f"x{i}", f"w{i}"], [f"h{i}"]), node("Sigmoid", [f"h{i}"], [f"s{i}"])]
        nodes.append(node("Mul", [f"h{i}", f"s{i}"], [f"x{i + 1}"]))
    assert check(write(tmp_path / "m.onnx", nodes, held, (8, 4, 6))) == []


def test_features_of_linear_attention(tmp_path):
    """exp(w x - |x|^2 / 2) of queries and keys, whose products are normalised by their sum (Choromanski et al. 2021)."""
    rng = np.random.default_rng(1)
    depth, features, tokens = 8, 12, 24
    held = {name: normal(rng, 16, depth, scale=0.5) for name in ("wq", "wk", "wv")} | {"p": normal(rng, 16, 3, 4, 4)}
    held |= {"random": normal(rng, depth, features), "flat": np.array([1, 16, tokens]), "half": np.float32(0.5)}
    held |= {"last": np.array([2]), "tokens": np.array([1]), "small": np.float32(1e-4), "o": normal(rng, depth, 16)}
    nodes = [
        node("Conv", ["image", "p"], ["map"], strides=[4, 4]),
        node("Reshape", ["map", "flat"], ["channels"]),
        node("Transpose", ["channels"], ["x"], perm=[0, 2, 1]),
        node("MatMul", ["x", "wv"], ["v"]),
    ]
    for n in "qk":
        nodes += [
            node("MatMul", ["x", f"w{n}"], [n]),
            node("MatMul", [n, "random"], [f"{n}_w"]),
            node("Mul", [n, n], [f"{n}_squares"]),
            node("ReduceSum", [f"{n}_squares", "last"], [f"{n}_norm"], keepdims=1),
            node("Mul", [f"{n}_norm", "half"], [f"{n}_half"]),
            node("Sub", [f"{n}_w", f"{n}_half"], [f"{n}_diff"]),
            node("Exp", [f"{n}_diff"], [f"{n}_exp"]),
        ]
    nodes += [
        node("Transpose", ["k_exp"], ["k_turned"], perm=[0, 2, 1]),
        node("MatMul", ["k_turned", "v"], ["kv"]),
        node("MatMul", ["q_exp", "kv"], ["sums"]),
        node("ReduceSum", ["k_exp", "tokens"], ["k_sum"], keepdims=1),
        node("Mul", ["q_exp", "k_sum"], ["products"]),
        node("ReduceSum", ["products", "last"], ["weights"], keepdims=1),
        node("Add", ["weights", "small"], ["positive"]),
        node("Div", ["sums", "positive"], ["mixed"]),
        node("MatMul", ["mixed", "o"], ["out"]),
    ]
    assert decibels(write(tmp_path / "m.onnx", nodes, held, (tokens, 16))) > 25


@pytest.mark.parametrize("limited", ["nothing", "keys", "sources"])
def test_lengths_of_heads_behind_a_transpose(tmp_path, limited):
    """As onnxruntime's optimiser leaves cosine attention: lengths are taken before heads come in front of tokens. `limited`: as
    quantised files do, normed keys are cut to a range, or queries and keys lie on a grid before and behind the transpose."""
    rng, tokens, heads, depth = np.random.default_rng(4), 24, 2, 8
    held = {f"w{n}": normal(rng, 16, heads * depth) for n in "qkv"}
    held |= {"p": normal(rng, 16, 3, 4, 4), "o": normal(rng, heads * depth, 16)}
    held |= {"flat": np.array([1, 16, tokens]), "split": np.array([1, tokens, heads, depth])}
    held |= {"least": np.float32(1e-12), "most": np.float32(0.4), "low": np.float32(-0.5), "sharp": np.float32(4)}
    held |= {"shape": np.array([1, heads, tokens, depth]), "joined": np.array([1, tokens, heads * depth])}
    held |= {"step": np.float32(0.03), "zero": np.int8(3)}
    nodes = [
        node("Conv", ["image", "p"], ["map"], strides=[4, 4]),
        node("Reshape", ["map", "flat"], ["channels"]),
        node("Transpose", ["channels"], ["x"], perm=[0, 2, 1]),
    ]

    def on_grid(name):
        if limited != "sources":
            return name
        nodes.append(node("QuantizeLinear", [name, "step", "zero"], [f"{name}_integers"]))
        nodes.append(node("DequantizeLinear", [f"{name}_integers", "step", "zero"], [f"{name}_grid"]))
        return f"{name}_grid"

    for n in "qkv":
        nodes.append(node("MatMul", ["x", f"w{n}"], [f"{n}_all"]))
        nodes.append(node("Reshape", [on_grid(f"{n}_all"), "split"], [f"{n}_split"]))
        nodes.append(node("Transpose", [f"{n}_split"], [f"{n}_heads"], perm=[0, 2, 1, 3]))
    for n in "qk":
        nodes += [
            node("ReduceL2", [f"{n}_split"], [f"{n}_root"], axes=[3], keepdims=1),
            node("Transpose", [f"{n}_root"], [f"{n}_turned"], perm=[0, 2, 1, 3]),
            node("Clip", [f"{n}_turned", "least"], [f"{n}_length"]),
            node("Expand", [f"{n}_length", "shape"], [f"{n}_wide"]),
        ]
        nodes.append(node("Div", [on_grid(f"{n}_heads"), f"{n}_wide"], [f"{n}_normed"]))
    keys = "k_cut" if limited == "keys" else "k_normed"
    nodes += [node("Clip", ["k_normed", "low", "most"], ["k_cut"])] if limited == "keys" else []
    nodes += [
        node("Transpose", [keys], ["k_columns"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q_normed", "k_columns"], ["cosines"]),
        node("Mul", ["cosines", "sharp"], ["scores"]),
        node("Softmax", ["scores"], ["chances"], axis=-1),
        node("MatMul", ["chances", "v_heads"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "joined"], ["tokens"]),
        node("MatMul", ["tokens", "o"], ["out"]),
    ]
    assert decibels(write(tmp_path / "m.onnx", nodes, held, (tokens, 16))) > 25


def test_the_log_of_a_sigmoid_on_a_grid(tmp_path):
    """-softplus(-x) whatever limit stands between the two; the limit on the layer before stays for all that read it."""
    rng = np.random.default_rng(3)
    held = {"p": normal(rng, 16, 3, 4, 4), "w": normal(rng, 24, 16, 1, 1), "v": normal(rng, 8, 24, 1, 1)}
    held |= {"step": np.float32(0.03), "fine": np.float32(1 / 255), "zero": np.int8(0), "low": np.int8(-128)}
    nodes = [node("Conv", ["image", "p"], ["x"], strides=[4, 4]), node("Conv", ["x", "w"], ["h"])]
    for name, step, zero in (("h", "step", "zero"), ("chance", "fine", "low")):
        nodes += [node("QuantizeLinear", [name, step, zero], [f"{name}_q"])]
        nodes += [node("DequantizeLinear", [f"{name}_q", step, zero], [f"{name}_grid"])]
        nodes += [node("Sigmoid", ["h_grid"], ["chance"])] if name == "h" else []
    nodes += [node("Log", ["chance_grid"], ["f"]), node("Add", ["f", "h_grid"], ["sum"]), node("Conv", ["sum", "v"], ["out"])]
    path = write(tmp_path / "m.onnx", nodes, held, (8, 4, 6))
    made = import_model(path).nodes
    assert [n.form for n in made if isinstance(n, fg.Activation)] == ["softplus"]
    (limit,) = (n for n in made if isinstance(n, fg.Clip))
    assert [n for n in made if limit.x in n.inputs] == [limit]


def test_what_no_product_makes_is_named(tmp_path):
    rng = np.random.default_rng(2)
    held = {"p": normal(rng, 16, 3, 4, 4), "v": normal(rng, 8, 16, 1, 1)}
    nodes = [node("Conv", ["image", "p"], ["x"], strides=[4, 4]), node("Sin", ["x"], ["s"]), node("Conv", ["s", "v"], ["out"])]
    (finding,) = check(write(tmp_path / "m.onnx", nodes, held, (8, 4, 6)))
    assert "is sin of what may span more than one turn" in finding.reason
