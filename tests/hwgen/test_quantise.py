"""The quantiser on random networks: accuracy of the integer graph, structure, oddities, bad input."""

from dataclasses import replace

import numpy as np
import pytest

import graph_maker as maker
from hwgen import graph as fg
from hwgen.compare import compare
from hwgen.errors import UserError
from hwgen.intgraph import Constant, MatMul, Norm, RouteTokens
from hwgen.isa import Indirect
from hwgen.quantise import Quantisation
from hwgen.quantise.calibrate import observe
from hwgen.quantise.sensitive import Network
from hwgen.quantise.shared import signatures
from hwgen.select import integers
from hwgen.sim import golden


def one(graph, images=None, **options):
    return integers({"": graph}, images or maker.images(graph, 12), Quantisation(**options))[""]


def snr(graph, integer=None, count=3):
    """Signal-to-noise ratio of each output, and the share of equal expert choices."""
    found = compare(graph, integer or one(graph), maker.images(graph, count, seed=2), golden.run)
    return min(o.snr_db for o in found.outputs), min((r.agreement for r in found.routers), default=1.0)


NETWORKS = {
    "dense": {},
    "experts": {"experts": 4},
    "experts without bias": {"experts": 4, "bias": False},
    "top 1": {"experts": 5, "top_k": 1},
    "top 3, renormalised, tanh": {"experts": 8, "top_k": 3, "renormalise": True, "form": "gelu_tanh"},
    "one expert": {"experts": 1, "top_k": 1},
    "no prefix, tokens out": {"prefix": 0, "classes": 0},
    "two prefix tokens, one head": {"prefix": 2, "heads": 1},
    "odd sizes": {"columns": 27, "heads": 3, "hidden": 50, "image": (1, 6, 9), "patch": 3},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_integer_network_follows_the_float_network(name):
    quality, agreement = snr(maker.vit(**NETWORKS[name]))
    assert quality > 20 and agreement > 0.9


def test_only_the_needed_work_is_done():
    graph = maker.vit(experts=4)
    integer = one(graph)
    norms = {op.name: op for op in integer.ops if isinstance(op, Norm)}
    assert norms["norm"].x.rows == 1 and norms["0.norm1"].x.rows == 7
    stream = {b for b in integer.buffers if b == "embed" or ".add" in b}
    assert stream == {"embed"}  # the residual stream stays in place
    assert not any(op.name.endswith((".rows", ".copy")) for op in integer.ops)
    projections = [op for op in integer.ops if op.name.endswith(("attn.q", "attn.k"))]
    assert [op.out.cols for op in projections] == [32] * 4


def test_keys_are_centred_and_biases_are_folded():
    """A huge constant in all keys and values costs no accuracy: neither depends on it."""
    graph = maker.vit()
    for i in range(2):
        for part in "kv":
            bias = np.linspace(-60, 60, 32).astype(np.float32)
            graph = maker.change(graph, f"{i}.{part}", bias=bias)
        weight = graph.node(f"{i}.proj").weight
        graph = maker.change(graph, f"{i}.proj", bias=-(weight @ bias))
    assert snr(graph)[0] > 20


def test_outliers_of_the_hidden_layer_are_kept_apart():
    graph = maker.vit(depth=1, hidden=256, classes=0)
    bias = np.zeros(256, np.float32)
    bias[[5, 100, 200]] = (20, 30, 40)
    weight = graph.node("0.fc2").weight * 0.3
    graph = maker.change(maker.change(graph, "0.fc1", bias=bias), "0.fc2", weight=weight)
    integer = one(graph, min_snr=0.0)
    parts = [integer.buffers[name] for name in integer.buffers if name.startswith("0.gelu")]
    assert sorted(b.cols for b in parts) == [32, 224]
    assert snr(graph, integer)[0] > 20
    assert len([op for op in integer.ops if isinstance(op, MatMul) and op.name.startswith("0.fc2")]) == 2

    # Not where the outliers alone would leave the range of the stream they are added to.
    weight = weight.copy()
    weight[:, [100, 200]] = (1.0, -0.75)
    integer = one(maker.change(graph, "0.fc2", weight=weight), min_snr=0.0)
    assert len([op for op in integer.ops if op.name.startswith("0.fc2")]) == 1


def test_two_heads_in_one_graph_fork_the_stream():
    """A second branch from the middle of the network: what it still needs is not overwritten."""
    graph = maker.vit(depth=2, experts=4)
    first = graph.node("0.add2")
    extra = [
        fg.LayerNorm("b.norm", "0.add2", np.ones(32), np.zeros(32), 1e-6),
        fg.Linear("b.fc1", "b.norm", graph.node("0.fc1").weight, None),
        fg.Activation("b.gelu", "b.fc1", "gelu"),
        fg.Linear("b.fc2", "b.gelu", graph.node("0.fc2").weight, None),
        fg.Add("b.add", "0.add2", "b.fc2"),
    ]
    again = [
        fg.Experts("c.experts", "b.norm", "1.route", *(getattr(graph.node("1.experts"), f) for f in ("w1", "b1", "w2", "b2")),
                   "gelu"),
        fg.Add("c.add", "b.add", "c.experts"),
    ]  # fmt: skip
    assert first
    outputs = [*graph.outputs, fg.Output("branch", "b.add", (7, 32)), fg.Output("last", "c.add", (7, 32))]
    forked = fg.Graph(graph.inputs, graph.nodes + extra + again, outputs)
    fg.verify(forked)
    integer = one(forked)
    assert "c.add" in integer.buffers
    routes = [op.name for op in integer.ops if isinstance(op, RouteTokens)]
    assert len(routes) == len(set(routes)) == 2
    assert snr(forked, integer)[0] > 17


def test_matrices_that_read_the_stream_itself():
    """No LayerNorm in front: row maxima come from the writer or from an operation of their own."""
    graph = maker.vit(depth=1)
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32) / 8
    nodes = [
        *graph.nodes,
        fg.Linear("x1", "0.add2", weight, None),
        fg.Add("y1", "0.add2", "x1"),
        fg.Linear("x2", "embed", weight, None),
        fg.Add("y2", "y1", "x2"),
        fg.Linear("x3", "y2", weight, None),
    ]
    changed = fg.Graph(graph.inputs, nodes, [fg.Output("y", "x3", (7, 32))])
    integer = one(changed)
    assert any(op.name == "embed.rows" for op in integer.ops)
    assert snr(changed, integer)[0] > 20


def test_experts_that_are_not_added_and_outputs_of_every_kind():
    graph = maker.vit(depth=2, experts=4)
    nodes = [n for n in graph.nodes if n.name not in ("1.add2", "norm", "class_token", "head")]
    outputs = [
        fg.Output(name.replace(".", "_"), name, fg.shapes(graph)[name])
        for name in ("1.experts", "1.norm2", "1.gate", "0.gelu", "0.add2", "1.proj", "1.attn")
    ]
    changed = fg.Graph(graph.inputs, nodes, outputs)
    integer = one(changed)
    assert any(isinstance(op, Constant) and op.name == "1.experts.zero" for op in integer.ops)
    assert snr(changed, integer)[0] > 15


@pytest.mark.parametrize("field", ("weight", "bias"))
def test_zero_constants(field):
    graph = maker.vit(experts=4)
    for node in list(graph.nodes):
        if isinstance(node, fg.Linear) and getattr(node, field) is not None:
            graph = maker.change(graph, node.name, **{field: np.zeros_like(getattr(node, field))})
    integer = one(graph)
    images = maker.images(graph, 1)
    result = golden.run(integer, {"image": images["image"][0]})
    assert np.isfinite(result.outputs["logits"]).all()


def test_constant_images_and_zero_network():
    graph = maker.vit(experts=4)
    integer = one(graph, {"image": np.zeros((2, 3, 8, 12), np.float32)})
    assert np.isfinite(golden.run(integer, {"image": np.zeros((3, 8, 12))}).outputs["logits"]).all()
    for node in list(graph.nodes):
        zeros = {k: np.zeros_like(v) for k, v in vars(node).items() if isinstance(v, np.ndarray)}
        graph = maker.change(graph, node.name, **zeros)
    integer = one(graph)
    assert not golden.run(integer, {"image": np.ones((3, 8, 12))}).outputs["logits"].any()


def test_tiny_stream_beside_large_factors():
    """The stream's scale grows where a matrix or a bias needs it."""
    graph = maker.vit(depth=1)
    weight = graph.node("0.proj").weight * 0
    weight[:, :2] = (3e4, -3e4)
    v = graph.node("0.v").weight.copy()
    v[1] = v[0]
    graph = maker.change(maker.change(graph, "0.proj", weight=weight), "0.v", weight=v, bias=np.zeros(32, np.float32))
    integer = one(graph)
    assert np.isfinite(golden.run(integer, {"image": np.ones((3, 8, 12))}).outputs["logits"]).all()


def test_logits_beyond_the_range_are_moved():
    """A token's chosen logits far from zero, others far below: routing is unchanged."""
    graph = maker.vit(experts=4)
    graph = maker.change(graph, "1.gate", bias=np.array([60, 60, 60, -20]))
    integer = one(graph)
    quality, agreement = snr(graph, integer)
    assert quality > 20 and agreement > 0.9
    (gate,) = (op for op in integer.ops if op.name == "1.gate")
    assert abs(int(gate.bias[0])) < 5 * 512 / np.log(2) and gate.bias[3] < -20000


def test_same_input_gives_the_same_integers():
    graph = maker.vit(experts=4)
    first, second = one(graph), one(graph)
    for a, b in zip(first.ops, second.ops, strict=True):
        assert repr(a) == repr(b)
        for key, value in vars(a).items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, getattr(b, key))
    assert integers({"": graph}, None)[""].ops  # seeded noise


def test_tasks_share_integers():
    """Own gates and heads; everything else equal, though each task sees other ranges behind its gates."""
    one_task = maker.vit(depth=4, experts=4)
    rng = np.random.default_rng(9)
    other = one_task
    for name in ("1.gate", "3.gate"):
        other = maker.change(other, name, weight=rng.standard_normal((4, 32)).astype(np.float32) * 0.5)
    other = maker.change(other, "head", weight=rng.standard_normal((5, 32)).astype(np.float32))
    found = integers({"a": one_task, "b": other}, maker.images(one_task))
    assert found["a"].task == "a"
    others = {op.name: op for op in found["b"].ops}  # own gates: experts in an order of their own
    assert len(others) == len(found["a"].ops)
    for a in found["a"].ops:
        b = others[a.name]
        for key, value in vars(a).items():
            if isinstance(value, np.ndarray) and not a.name.endswith(("gate", "head")) and a.name != "norm":
                assert np.array_equal(value, getattr(b, key)), (a.name, key)
            if key == "epsilon":
                assert value == b.epsilon
    for task, graph in (("a", one_task), ("b", other)):
        assert snr(graph, found[task])[0] > 18


def test_signatures_tell_layers_apart():
    graph = maker.vit(depth=4, experts=4)
    keys = signatures(graph)
    layers = [
        n.name for n in graph.nodes if isinstance(n, fg.Linear | fg.LayerNorm | fg.Experts | fg.Attention | fg.Activation)
    ]
    assert len({keys[name] for name in layers}) == len(layers)
    assert signatures(maker.vit(depth=4, experts=4)) == keys


def test_copies_of_unlike_values_have_steps_of_their_own():
    """The two sums differ a thousandfold; what copies them for the activations behind is the same matrix."""
    rng = np.random.default_rng(0)
    graph = maker.vit(depth=1)
    first = next(i for i, n in enumerate(graph.nodes) if isinstance(n, fg.LayerNorm))
    x, width = graph.nodes[first].name, len(graph.nodes[first].gamma)
    nodes, outputs = graph.nodes[: first + 1], []
    for i, gain in enumerate((1e-3, 1.0)):
        weight, one_like_another = rng.standard_normal((width, width)) * gain, np.eye(width, dtype=np.float32)
        nodes += [
            fg.Linear(f"linear{i}", x, weight.astype(np.float32), None),
            fg.Linear(f"copy{i}", f"linear{i}", one_like_another, None),
            fg.Activation(f"relu{i}", f"copy{i}", "relu"),
        ]
        outputs.append(fg.Output(f"y{i}", f"relu{i}", (7, width)))
    graph = replace(graph, nodes=nodes, outputs=outputs)
    keys = signatures(graph)
    assert keys["copy0"] != keys["copy1"]
    assert snr(graph)[0] > 30


def test_sums_of_weights_keep_their_own_range():
    """Of a value with few rows all columns count as one, but not the last one where it is what the others are divided by."""
    graph = maker.vit(depth=1)
    first = next(i for i, n in enumerate(graph.nodes) if isinstance(n, fg.LayerNorm))
    x, width = graph.nodes[first].name, len(graph.nodes[first].gamma)
    weight = np.random.default_rng(1).standard_normal((width, width)).astype(np.float32)
    weight[-1], bias = 0, np.full(width, 3, np.float32)
    nodes = [*graph.nodes[: first + 1], fg.Linear("sums", x, weight, bias), fg.Ratio("ratio", "sums")]
    graph = replace(graph, nodes=nodes, outputs=[])
    seen = observe(graph, {"image": maker.images(graph, 1)["image"]}).values["sums"]
    assert (seen.low[-1], seen.high[-1]) == (3, 3)
    assert len(set(seen.low[:-1])) == 1 and seen.low[0] < 0


@pytest.mark.parametrize(
    "images, message",
    (
        ({"pixels": np.zeros((2, 3, 8, 12))}, "no array 'image'.*has 'pixels'"),
        ({}, "no array 'image'.*no arrays"),
        ({"image": np.zeros((2, 3, 8, 8))}, r"'image' has shape \[2, 3, 8, 8\], the model's input \[n, 3, 8, 12\]"),
        ({"image": np.zeros((3, 8, 12))}, r"shape \[3, 8, 12\]"),
        ({"image": np.zeros((0, 3, 8, 12))}, r"shape \[0, 3, 8, 12\]"),
        ({"image": np.full((1, 3, 8, 12), np.nan)}, "NaN"),
        ({"image": np.full((1, 3, 8, 12), "x")}, "not numbers"),
    ),
)
def test_bad_calibration_data(images, message):
    with pytest.raises(UserError, match=message):
        integers({"": maker.vit()}, images)


def huge_hidden(graph):
    return maker.change(graph, "0.fc1", weight=graph.node("0.fc1").weight * 500)


def huge_gate(graph):
    return maker.change(graph, "1.gate", weight=graph.node("1.gate").weight * 100)


def huge_gate_bias(graph):
    return maker.change(graph, "1.gate", bias=np.linspace(-500, 500, 4))


@pytest.mark.parametrize(
    "fault, message",
    (
        (huge_gate, "Linear '1.gate'.*router"),
        (huge_gate_bias, "Linear '1.gate'.*router"),
    ),
)
def test_what_the_machine_cannot_do_is_named(fault, message):
    with pytest.raises(UserError, match=message):
        one(fault(maker.vit(experts=4)))


def test_an_activation_of_huge_values_is_that_of_relu():
    graph = huge_hidden(maker.vit())
    assert snr(graph, one(graph))[0] > 20


def test_expert_operations_are_in_machine_order():
    """Route directly before its experts, then gather and scatter in pairs: the machine has one set of queues."""
    integer = one(maker.vit(depth=4, experts=3))
    queue = None
    for op in integer.ops:
        if isinstance(op, RouteTokens):
            queue = op.name
        if isinstance(op, MatMul) and op.expert is not None:
            assert op.expert[0] == queue
            assert op.indirect == (Indirect.GATHER if op.name.endswith("w1") else Indirect.SCATTER)


def test_ranges_do_not_hang_on_the_order_of_sums():
    """Calibration images give the same ranges whatever the order in which BLAS adds up: here that of an MLP's hidden columns."""
    rng = np.random.default_rng(0)
    graph = maker.vit(depth=1, columns=256, hidden=1024, classes=0)
    first, second = (node for node in graph.nodes if isinstance(node, fg.Linear) and 1024 in node.weight.shape)
    order = rng.permutation(1024)
    swapped = {
        first.name: replace(first, weight=first.weight[order], bias=first.bias[order]),
        second.name: replace(second, weight=np.ascontiguousarray(second.weight[:, order])),
    }
    other = replace(graph, nodes=[swapped.get(node.name, node) for node in graph.nodes])
    images = {"image": rng.standard_normal((8, 3, 8, 12)).astype(np.float32)}
    one, two = (observe(g, images).values for g in (graph, other))
    found = {name: (one[name], two[name]) for name in one if one[name].high.size == 256}
    assert second.name in found
    for name, (a, b) in found.items():
        np.testing.assert_array_equal(a.low, b.low, name)
        np.testing.assert_array_equal(a.high, b.high, name)


def test_loads_of_experts():
    """Of each expert the images that ask it, also those with a single token, its tokens, and the loads of images in order."""
    graph = maker.vit(experts=4, image=(1, 4, 6), patch=2, prefix=0, top_k=1)
    data = maker.images(graph, 9)
    (route, *_) = (n for n in graph.nodes if isinstance(n, fg.Route))
    asked, tokens, ordered = np.zeros((3, 4), int)
    lone = 0
    for i in range(9):
        chosen = fg.evaluate(graph, {name: array[i] for name, array in data.items()}, np.float64)[route.name][0]
        counts = [sum(int(e == expert) for e in chosen.flat) for expert in range(4)]
        asked += [count > 0 for count in counts]
        tokens += counts
        ordered += sorted(counts, reverse=True)
        lone += counts.count(1)
        assert sum(counts) == chosen.size
    np.testing.assert_array_equal(observe(graph, data).load[route.logits], [asked, tokens, ordered])
    assert lone


def test_noise_is_that_of_the_worst_output():
    """A change that one output does not see shows as in the other, whichever comes first."""
    graph = maker.vit(classes=5)
    data = maker.images(graph, 2)
    values = fg.evaluate(graph, {name: array[0] for name, array in data.items()})
    early = fg.Output("early", "0.add1", values["0.add1"].shape)
    head = next(n for n in graph.nodes if n.name == "head")
    changed = {"head": replace(head, weight=head.weight * np.float32(1.1))}
    found = []
    for outputs in ([*graph.outputs, early], [early, *graph.outputs]):
        both = replace(graph, outputs=outputs)
        found.append(Network(both, observe(graph, data), data).noise(changed))
    assert found[0] == found[1] > 1e-3


@pytest.mark.parametrize("readers", [1, 2])
def test_layers_of_an_attention_alone_are_its_sides(readers):
    """Not those whose positions are turned for two."""
    graph = maker.vit(depth=1)
    nodes = {n.name: n for n in graph.nodes}
    attention, angles = nodes["0.attn"], np.zeros((7, 8), np.float32)
    turned = fg.Rotate("turned", "0.q", np.cos(angles), np.sin(angles), 2)
    both = [replace(attention, q="turned"), *[replace(attention, name="again", q="turned", k="embed")] * (readers - 1)]
    at = graph.nodes.index(attention)
    graph = replace(graph, nodes=[*graph.nodes[:at], turned, *both, *graph.nodes[at + 1 :]])
    data = maker.images(graph, 2)
    assert Network(graph, observe(graph, data), data).sides["0.attn"] == ({"0.q", "0.k"} if readers == 1 else {"0.k"})
