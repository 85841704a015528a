"""Networks beyond the pre-norm ViT with one scale: every value has its own, and limits hold."""

from dataclasses import asdict, replace

import numpy as np
import pytest

import graph_maker as maker
from hwgen import graph as fg
from hwgen.compare import compare
from hwgen.config import Config
from hwgen.host.pack import pack_input, unpack_output
from hwgen.intgraph import MatMul, Multiply
from hwgen.quantise import quantise
from hwgen.schedule import schedule
from hwgen.select import integers, select
from hwgen.sim import golden, quantised
from hwgen.sim.machine import Machine

T, D = 7, 32  # of maker.vit's defaults


def random(*shape, seed=0, scale=None):
    scale = shape[-1] ** -0.5 if scale is None else scale
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def extended(*nodes, output=None, columns=D, rows=T, depth=1, **options):
    """A ViT of one layer with nodes behind it; the last one is the output."""
    graph = maker.vit(depth=depth, classes=0, **options)
    made = fg.Graph(graph.inputs, [*graph.nodes, *nodes], [fg.Output("y", output or nodes[-1].name, (rows, columns))])
    fg.verify(made)
    return made


def norm(name, x, seed=0):
    return fg.LayerNorm(name, x, 1 + random(D, seed=seed, scale=0.2), random(D, seed=seed + 1, scale=0.2), 1e-6)


def mlp(name, x, act=lambda name, x: fg.Activation(name, x, "gelu"), seed=0):
    return [
        fg.Linear(f"{name}.fc1", x, random(64, D, seed=seed), random(64, seed=seed + 1, scale=0.2)),
        act(f"{name}.act", f"{name}.fc1"),
        fg.Linear(f"{name}.fc2", f"{name}.act", random(D, 64, seed=seed + 2), random(D, seed=seed + 3, scale=0.2)),
    ]


def attention(name, x, scale=16**-0.5, seed=0):
    parts = [
        fg.Linear(f"{name}.{p}", x, random(D, D, seed=seed + i), random(D, seed=seed + 9 + i, scale=0.2))
        for i, p in enumerate("qkv")
    ]
    made = fg.Attention(f"{name}.attn", *(p.name for p in parts), 2, scale)
    return [*parts, made, fg.Linear(f"{name}.proj", made.name, random(D, D, seed=seed + 5), None)]


def two_scales(ratio):
    """The embedding is `ratio` times larger than what follows the LayerNorm behind it."""
    graph = maker.vit(depth=1, classes=0)
    big = graph.node("embed")
    graph = maker.change(graph, "embed", prefix=big.prefix * ratio, position=big.position * ratio)
    graph = maker.change(
        graph, "patches", weight=graph.node("patches").weight * ratio, bias=graph.node("patches").bias * ratio
    )
    nodes = [*graph.nodes[:2], norm("first", "embed"), *mlp("m", "first"), fg.Add("sum", "first", "m.fc2")]
    return fg.Graph(graph.inputs, nodes, [fg.Output("y", "sum", (T, D))])


def growing(ratio):
    """A residual stream whose first part is `ratio` times smaller than what is added to it last."""
    graph = maker.vit(depth=1, classes=0)
    last = fg.Linear("last", "0.norm2", random(D, D, scale=ratio), None)
    first = fg.Linear("head", "0.norm1", random(D, D, seed=3), None)
    nodes = [*graph.nodes, last, fg.Add("sum", "0.add2", "last"), first]
    outputs = [
        fg.Output("large", "sum", (T, D)),
        fg.Output("small", "head", (T, D)),
        fg.Output("mid", "0.add1", (T, D)),
    ]
    return fg.Graph(graph.inputs, nodes, outputs)


def post_norm():
    graph = maker.vit(depth=1, classes=0)
    nodes = [
        *graph.nodes[:2],
        *attention("a", "embed"),
        fg.Add("add1", "embed", "a.proj"),
        norm("n1", "add1"),
        *mlp("m", "n1"),
        fg.Add("add2", "n1", "m.fc2"),
        norm("n2", "add2"),
    ]
    return fg.Graph(graph.inputs, nodes, [fg.Output("y", "n2", (T, D))])


def negative_scale():
    graph = maker.vit(depth=1, classes=0)
    return maker.change(graph, "0.attn", scale=-1.0)


def huge_norm_added():
    """Norms of two branches added: neither is a product."""
    return extended(norm("n1", "0.add1"), norm("n2", "0.add2", 5), fg.Add("sum", "n1", "n2"))


GRAPHS = {
    "two scales": lambda: two_scales(1e4),
    "a stream that grows": lambda: growing(300.0),
    "a stream that shrinks": lambda: two_scales(1e-3),
    "post-norm": post_norm,
    "negative scores": negative_scale,
    "matrices that read sums": lambda: extended(
        fg.Linear("x1", "0.add2", random(D, D), None),
        fg.Add("y1", "0.add2", "x1"),
        fg.Linear("x2", "embed", 3 * np.eye(D, dtype=np.float32), None),
        fg.Add("y2", "y1", "x2"),
        norm("z", "y2"),
    ),
    "norms are added": huge_norm_added,
    "sums are added": lambda: extended(fg.Add("sum", "0.add1", "0.add2"), norm("n", "sum")),
    "twice itself": lambda: extended(fg.Add("sum", "0.add2", "0.add2"), norm("n", "sum")),
    "activation of a sum": lambda: extended(
        fg.Activation("act", "0.add2", "gelu"), fg.Linear("out", "act", random(D, D), None)
    ),
    "an activation is added": lambda: extended(
        *mlp("m", "0.add2")[:1],
        fg.Activation("r", "m.fc1", "relu"),
        fg.Linear("s", "0.add2", random(64, D), None),
        fg.Activation("g", "s", "gelu"),
        fg.Add("sum", "r", "g"),
        columns=64,
    ),
    "products in the stream": lambda: extended(
        fg.Multiply("p", "0.add2", "0.norm2"), fg.Add("sum", "0.add2", "p"), norm("n", "sum")
    ),
    "attention is added": lambda: extended(
        *attention("a", "0.norm2")[:-1], fg.Add("sum", "0.add2", "a.attn"), norm("n", "sum")
    ),
    "attention on what is no product": lambda: extended(
        fg.Attention("a", "0.norm1", "0.norm2", "0.add2", 2, 0.2), fg.Add("sum", "0.add2", "a")
    ),
    "mean of an embedding": lambda: extended(
        fg.Mean("m", "embed", 1, 6), fg.Linear("h", "m", random(D, D), None), rows=1
    ),
    "soft mixture": lambda: extended(
        fg.Dispatch("d", "0.norm2", "0.norm2", random(4, D)),
        fg.SlotExperts(
            "e", "d", random(2, 64, D), random(2, 64, seed=1), random(2, D, 64, seed=2), random(2, D, seed=3), "gelu"
        ),
        fg.Combine("c", "0.norm2", "e", random(4, D, seed=4), None),
        fg.Add("sum", "0.add2", "c"),
        norm("n", "sum"),
    ),
    "mean of a mean": lambda: extended(
        fg.Mean("m", "0.add2", 0, T), fg.Rows("r", "m", 0, 1), fg.Mean("mm", "r", 0, 1), rows=1
    ),
    "rows of rows": lambda: extended(
        fg.Rows("r", "0.add2", 1, 6), fg.Rows("s", "r", 1, 3), fg.Linear("h", "s", random(D, D), None), rows=2
    ),
    "rows of a sum are added": lambda: extended(
        fg.Rows("r", "0.add2", 1, 3),
        fg.Rows("s", "0.add1", 2, 4),
        fg.Linear("h", "s", random(D, D), None),
        fg.Add("sum", "r", "h"),
        norm("n", "sum"),
        rows=2,
    ),
    "outputs of what is folded": lambda: replace(
        extended(norm("n", "0.add2")), outputs=[fg.Output(n, n, (T, D)) for n in ("n", "0.attn", "0.norm1")]
    ),
    "logits that are clipped": lambda: extended(
        fg.Linear("h", "0.norm2", random(D, D), random(D)), fg.Clip("c", "h", -0.5, 0.3)
    ),
    "ReLU absorbed": lambda: extended(*mlp("m", "0.norm2", lambda n, x: fg.Clip(n, x, 0.0, 1.5))),
    "ReLU without an end": lambda: extended(*mlp("m", "0.norm2", lambda n, x: fg.Clip(n, x, 0.0, np.inf))),
    "hidden layer clipped above": lambda: extended(*mlp("m", "0.norm2", lambda n, x: fg.Clip(n, x, -np.inf, 0.4))),
    "norm clipped": lambda: extended(
        norm("n", "0.add2"), fg.Clip("c", "n", -0.7, 1.1), fg.Linear("h", "c", random(D, D), None)
    ),
    "norm clipped, added": lambda: extended(
        norm("n", "0.add2"), fg.Clip("c", "n", -0.7, 1.1), *mlp("m", "c"), fg.Add("sum", "c", "m.fc2")
    ),
    "GELU clipped": lambda: extended(
        fg.Linear("f", "0.norm2", random(64, D), None),
        fg.Activation("g", "f", "gelu"),
        fg.Clip("c", "g", -0.1, 0.5),
        fg.Linear("h", "c", random(D, 64), None),
    ),
    "stream clipped": lambda: extended(
        fg.Clip("c", "0.add2", -0.8, 1.9),
        fg.Linear("h", "c", random(D, D), None),
        fg.Add("sum", "c", "h"),
        norm("n", "sum"),
    ),
    "queries, keys and values clipped": lambda: extended(
        *attention("a", "0.norm2")[:3],
        *(fg.Clip(f"c{p}", f"a.{p}", -0.6, 0.9) for p in "qkv"),
        fg.Attention("a", "cq", "ck", "cv", 2, 0.7),
        fg.Linear("p", "a", random(D, D), None),
    ),
    "attention clipped": lambda: extended(
        *attention("a", "0.norm2", 1.0)[:-1],
        fg.Clip("c", "a.attn", -0.2, 0.3),
        fg.Linear("p", "c", random(D, D), None),
    ),
    "product clipped, added": lambda: extended(
        fg.Linear("h", "0.norm2", random(D, D), None),
        fg.Clip("c", "h", -0.3, 0.7),
        fg.Add("sum", "0.add2", "c"),
        norm("n", "sum"),
    ),
    "limits off zero": lambda: extended(fg.Clip("c", "0.add2", 0.3, 0.6), fg.Linear("h", "c", random(D, D), None)),
    "patches clipped": lambda: extended(
        fg.Clip("c", "patches", -0.4, 0.1), fg.Linear("h", "c", random(D, D), None), rows=T - 1
    ),
    "clipped twice": lambda: extended(norm("n", "0.add2"), fg.Clip("c", "n", -1.0, 0.5), fg.Clip("d", "c", -0.2, 2.0)),
}


@pytest.mark.parametrize("calibrated", (True, False))
@pytest.mark.parametrize("name", GRAPHS)
def test_golden_follows_float_and_level_q_and_machine_golden(name, calibrated):
    """With images for calibration and without any; level Q, golden and the machine agree bit for bit."""
    graph = GRAPHS[name]()
    made = quantise({"": graph}, maker.images(graph, 8) if calibrated else None)[""]
    integer = select(made)
    images = maker.images(graph, 3, seed=2)
    found = compare(graph, integer, images, golden.run)
    limit = 24 if calibrated else 18
    assert {o.name: o.snr_db for o in found.outputs if o.snr_db < limit} == {}
    image = {key: data[0] for key, data in images.items()}
    values = quantised.outputs(made, quantised.evaluate(made, image))
    for key, wanted in golden.run(integer, image).outputs.items():
        np.testing.assert_array_equal(values[key], wanted)
    config = Config(array_outputs=12, array_inputs=20, window_chunks=1)
    program = schedule({"": integer}, config)
    task, dram = program.tasks[""], program.dram()
    for slot in task.inputs:
        data = pack_input(asdict(slot), image[slot.name])
        dram[slot.dram : slot.dram + len(data)] = np.frombuffer(data, np.uint8)
    Machine(config).run(dram, task.offset, len(task.instructions), program.data_base, program.weight_bases)
    for slot in task.outputs:
        got = unpack_output(asdict(slot), dram[slot.dram : slot.dram + slot.layout.bytes])
        np.testing.assert_array_equal(got, values[slot.name])


def snr(graph, name, **options):
    integer = integers({"": graph}, maker.images(graph, 8), **options)[""]
    found = compare(graph, integer, maker.images(graph, 3, seed=2), golden.run)
    return {o.name: o.snr_db for o in found.outputs}[name]


def test_ranges_that_part_cost_nothing():
    """A network loses no accuracy by parts of other sizes, up to 10^6."""
    alike = snr(two_scales(1.0), "y")
    assert all(snr(two_scales(ratio), "y") > alike - 1 for ratio in (1e-6, 1e-3, 1e3, 1e6))
    alike = snr(growing(1.0), "mid")
    assert all(snr(growing(ratio), "mid") > alike - 1 for ratio in (1e-3, 30.0, 1e4))


def test_the_stream_of_a_plain_network_changes_no_scale():
    integer = integers({"": maker.vit(depth=4)}, None)[""]
    assert not any(isinstance(op, Multiply) for op in integer.ops)
    assert not any(op.name.endswith((".copy", ".rows", ".steps")) for op in integer.ops)


def test_limits_that_no_calibration_image_reaches_cost_nothing():
    graph = GRAPHS["stream clipped"]()
    peak = max(float(np.abs(fg.evaluate(graph, {"image": x})["0.add2"]).max()) for x in maker.images(graph, 8)["image"])
    wide = maker.change(graph, "c", low=-1.1 * peak, high=1.1 * peak)
    with_images = integers({"": wide}, maker.images(graph, 8))[""]
    bare = integers({"": maker.change(graph, "c", low=-np.inf, high=np.inf)}, maker.images(graph, 8))[""]
    assert len(with_images.ops) == len(bare.ops)
    loud = {"image": maker.images(graph, 8)["image"] * 3}  # whose values reach the limits
    assert len(integers({"": wide}, loud)[""].ops) > len(bare.ops)


def test_a_negative_scale_is_the_sign_of_the_queries():
    graph = negative_scale()
    plain = maker.change(
        maker.change(graph, "0.attn", scale=1.0), "0.q", weight=-graph.node("0.q").weight, bias=-graph.node("0.q").bias
    )
    images = maker.images(graph, 4)
    one, other = (integers({"": g}, images)[""] for g in (graph, plain))
    for a, b in zip(one.ops, other.ops, strict=True):
        if isinstance(a, MatMul) and not hasattr(a.w, "buffer"):
            np.testing.assert_array_equal(a.w, b.w, err_msg=a.name)
    found = compare(graph, one, images, golden.run)
    assert {layer.name: layer.snr_db for layer in found.layers}["0.q"] > 25  # the sign is in the scale of the trace


@pytest.mark.parametrize("scale", (1e-12, 1e-30))
def test_scores_that_vanish_leave_the_mean(scale):
    assert snr(maker.change(maker.vit(depth=1, classes=0), "0.attn", scale=scale), "tokens") > 24


def test_scores_of_any_scale_are_built():
    graph = maker.change(maker.vit(depth=1, classes=0), "0.attn", scale=1e7)
    made = integers({"": graph}, None)[""]
    assert any(op.name.startswith("0.attn") for op in made.ops)


def test_gains_of_a_pooled_token_read_all_bits():
    """A BatchNorm that stands alone behind a mean, as in a quantised LeViT, adds no noise to what it reads."""
    gain = 1 + random(D, scale=0.5)
    graph = extended(fg.Mean("m", "0.add2", 0, T), fg.Linear("gain", "m", np.diag(gain), None), rows=1)
    graph = replace(graph, outputs=[fg.Output("before", "m", (1, D)), fg.Output("after", "gain", (1, D))])
    images = maker.images(graph)
    found = golden.run(integers({"": graph}, images)[""], {"image": images["image"][0]}).outputs
    error = found["after"] - found["before"] * gain
    assert np.square(error).sum() < 1e-5 * np.square(found["after"]).sum()
