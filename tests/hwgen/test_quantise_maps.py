"""Maps on levels Q and M: golden computes what Q means, bit for bit, and both are near the float graph."""

from dataclasses import replace

import numpy as np
import pytest

import map_maker as maker
import test_machine as machine
from hwgen import graph as fg
from hwgen import qgraph
from hwgen.errors import UserError
from hwgen.intgraph import MatMul, ReduceWindow
from hwgen.leveltext import parse, text
from hwgen.qgraph import QGraph
from hwgen.quantise import quantise
from hwgen.schedule import schedule
from hwgen.select import select
from hwgen.sim import golden, quantised


def conv(m):
    return m.conv(m.norm("patches"))


def conv_stem(m):
    """Two convolutions with activations from the image on, the second with a stride."""
    x = m.act(m.conv(m.act("patches", "relu"), outputs=24), "hardswish")
    return m.linear(m.act(m.conv(x, (3, 2), inputs=24, stride=(2, 1), pads=(1, 0, 0, 1)), "silu"))


def conv_residual(m):
    """A stream that convolutions read and are added to, in steps of its own."""
    x = m.add("patches", m.conv(m.act(m.conv("patches"))))
    return m.add(x, m.conv(x, dilation=(2, 2), pads=(2, 2, 2, 2)))


def depthwise(m):
    """As ConvNeXt's block (Liu et al. 2022)."""
    x = m.norm(m.window("patches", "weighted", (5, 5)))
    return m.add("patches", m.linear(m.act(m.linear(x, outputs=48)), 48))


def stacked(m):
    """As CvT's projections (Wu et al. 2021): a token that no map holds, and what a convolution makes of the map, with and
    without a stride."""
    x = m.norm("patches")
    token = m.put(fg.Gather, x, np.array([3]))
    y = m.put(fg.Stack, (token, m.window(x, "weighted")))
    return m.linear(y), m.put(fg.Stack, (m.window(x, "weighted", stride=(2, 2)), token))


def beside(m):
    """As decoders that join maps: what windows make lies side by side with another value."""
    x = m.linear("patches")
    y = m.put(fg.Join, (x, m.window(x, "weighted"), m.window(x, "max")))
    return m.linear(y, 48)


def depthwise_activated(m):
    """As the feed-forward layer of PVTv2 (Wang et al. 2022) and an inverted residual with a stride."""
    x = m.linear(m.act(m.window(m.linear(m.norm("patches"), outputs=32), "weighted", columns=32)), 32)
    y = m.act(m.window(m.act(m.linear("patches"), "relu"), "weighted", stride=(2, 2)), "hardswish")
    return x, m.linear(y)


def pooled(m):
    x = m.norm("patches")
    mean = m.window(x, "mean", count_pads=False)
    return (
        m.linear(mean),
        m.linear(m.window(x, "max", stride=(2, 2))),
        m.window(x, "mean", stride=(2, 2)),
        m.window(x, "max", (2, 2), stride=(2, 2), pads=(0, 0, 0, 0)),
        m.conv(m.window(m.act(m.conv(x)), "max")),
    )


def windows(m):
    """Two blocks of Swin (Liu et al. 2021), the second shifted and masked, and the merging of patches behind them."""
    x = "patches"
    for shift, masks in (((0, 0), False), ((1, 2), True)):
        x = m.add(x, m.attention(m.norm(x), shift=shift, masks=masks))
        x = m.add(x, m.linear(m.act(m.linear(m.norm(x), outputs=32)), 32))
    return m.merge(x)


def gathered(m):
    """Nearest neighbours, a map spread out by zeros, a class token apart; read by a linear layer, a convolution, the end."""
    whole = np.arange(m.size[0] * m.size[1]).reshape(m.size)
    up = whole.repeat(2, 0).repeat(2, 1).reshape(-1)
    spread = np.full((2 * m.size[0] - 1, 2 * m.size[1] - 1), -1)
    spread[::2, ::2] = whole
    x = m.norm("patches")
    return (
        m.linear(m.put(fg.Gather, x, up)),
        m.conv(m.put(fg.Gather, x, spread.reshape(-1)), size=spread.shape),
        m.put(fg.Gather, m.put(fg.Rows, x, 0, 5), np.array([3, 1, -1, 4, 4])),
    )


def joined(m):
    """Values in different steps side by side and one below the other."""
    small, large = m.linear(m.norm("patches")), m.linear("patches", outputs=8)
    side = m.put(fg.Join, (small, large, "patches"))
    below = m.put(fg.Stack, (m.put(fg.Rows, small, 3, 9), "patches"))
    return (
        m.linear(side, 40),
        m.linear(m.norm(side, 40), 40),
        m.conv(side, inputs=40),
        m.linear(m.norm(below)),
        below,
        side,
    )


def squeezed(m):
    """Columns weighted by one row (Hu et al. 2018)."""
    x = m.act(m.conv("patches"))
    mean = m.put(fg.Mean, x, 0, m.size[0] * m.size[1])
    hidden = m.act(m.linear(mean, outputs=4), "relu")
    gate = m.act(m.linear(hidden, 4), "sigmoid")
    return m.linear(m.put(fg.Multiply, x, m.linear(hidden, 4))), m.linear(m.put(fg.Multiply, x, gate)), gate


def tables(m):
    """tanh and sigmoid behind a convolution, a window, a product and a sum; read by a convolution, products and sums."""
    x = m.act(m.conv("patches"), "tanh")
    gate = m.act(m.window(x, "weighted"), "sigmoid")
    y = m.put(fg.Multiply, m.act(m.linear(x), "sigmoid"), gate)
    total = m.put(fg.Add, m.conv(gate), m.act(m.put(fg.Add, y, m.act(m.conv("patches"), "sigmoid")), "tanh"))
    return gate, y, total


def stored_activated(m):
    """Activations of a sum, as in residual networks, and of values side by side that do not fill chunks, which a norm reads."""
    x = m.add("patches", m.window(m.norm("patches"), "weighted"))
    side = m.put(fg.Join, (m.act(x, "relu"), m.linear("patches", outputs=8)))
    return m.linear(m.norm(m.act(side, "hardswish"), 24), 24), m.act(x, "silu")


def activated_stem(m):
    """As EfficientViT's and EfficientFormer's stems: what an activation makes begins a stream, and a convolution reads it."""
    x = m.act(m.linear("patches"), "hardswish")
    x = m.add(x, m.linear(m.window(x, "weighted")))
    return m.linear(m.norm(m.add(x, m.conv(x))))


NETWORKS = [
    conv, conv_stem, conv_residual, depthwise, stacked, depthwise_activated, pooled, windows, gathered, joined, squeezed,
    tables, stored_activated, beside, activated_stem,
]  # fmt: skip


def made(network, seed):
    m = maker.Maker(seed=seed)
    outputs = network(m)
    graph = m.graph(*((outputs,) if isinstance(outputs, str) else outputs))
    return graph, quantise({"": graph}, maker.images(graph, 24, seed))[""]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", NETWORKS)
def test_maps(network, seed):
    graph, level_q = made(network, seed)
    level_m = select(level_q)
    errors = []
    for index in range(24, 28):
        image = {"image": maker.images(graph, 28, seed)["image"][index]}
        values = quantised.evaluate(level_q, image)
        found = golden.run(level_m, image, trace=True)
        for name, rows in quantised.outputs(level_q, values).items():
            np.testing.assert_array_equal(found.outputs[name], rows, name)
        for name, (view, _) in level_m.trace.items():
            ref = level_q.trace[name]
            expected = values[ref.value][ref.row : ref.row + ref.rows]
            np.testing.assert_array_equal(found.values[name], expected, f"{name} in {view}")
        wanted = fg.outputs(graph, fg.evaluate(graph, image))
        lost = [np.square(y).sum() / np.square(y - found.outputs[name]).sum() for name, y in wanted.items()]
        errors.append(10 * np.log10(lost))
    least = 28 if network is conv_stem else 30  # int8 image and two convolutions of int8 maps: 3 times 33 dB
    assert np.mean(errors, axis=0).min() > least, errors


@pytest.mark.parametrize("seed", range(8))
def test_sums_have_the_steps_of_an_activation_that_they_begin_with(seed):
    """Nothing brings it to others: whatever the two reach, each sum is one product with what it is added to."""
    graph, level_q = made(activated_stem, seed)
    act, *sums = (level_q.trace[n.name].value for n in graph.nodes if isinstance(n, fg.Activation | fg.Add))
    assert len({level_q.values[name].scale for name in (act, *sums)}) == 1
    assert sum(isinstance(op, qgraph.Multiply) for op in level_q.nodes) == 0


def test_activations_of_stored_values_keep_their_bits():
    """No product with the identity is between, whose operand has int8."""
    graph, level_q = made(stored_activated, 0)
    image = {"image": maker.images(graph, 1, 5)["image"][0]}
    values = quantised.evaluate(level_q, image)

    def real(name):
        ref = level_q.trace[name]
        return values[ref.value][ref.row : ref.row + ref.rows] * level_q.values[ref.value].scale

    for act in (node for node in graph.nodes if isinstance(node, fg.Activation) and node.form in ("relu", "silu")):
        wanted, found = fg.evaluate_node(act, {act.x: real(act.x)}), real(act.name)
        assert np.square(wanted - found).sum() < 10**-5 * np.square(wanted).sum(), act


@pytest.mark.parametrize("network", NETWORKS)
def test_text_of_level_q(network):
    _, level_q = made(network, 0)
    arrays = []
    written = text(level_q, arrays)
    again = parse(written, QGraph, arrays)
    qgraph.verify(again)
    assert text(again, []) == written


@pytest.mark.parametrize("config", ("12x20", "48x64"))
@pytest.mark.parametrize("network", NETWORKS)
def test_machine(network, config):
    """Through the scheduler, with columns that chunks divide and columns that they do not."""
    graph, level_q = made(network, 1)
    image = {"image": maker.images(graph, 1, 5)["image"][0]}
    sizes = {"bank_words": 4096, "scale_entries": 4096, "acc_rows": 64, "norm_columns": 256, "window_chunks": 1}
    level_m = select(level_q)
    program = schedule({"": level_m}, replace(machine.CONFIGS[config], **sizes))
    machine.assert_equal(machine.run(program, image), golden.run(level_m, image).outputs)


@pytest.mark.parametrize(
    "network, message",
    [
        (lambda m: m.window("patches", "weighted", (9, 9)), "81 taps, the machine weights up to 64"),
        (lambda m: m.conv("patches", dilation=(70, 1), pads=(70, 1, 70, 1)), "dilation_u=70"),
    ],
)
def test_what_the_machine_cannot_do_is_named(network, message):
    with pytest.raises(UserError, match=message):
        made(network, 0)


@pytest.mark.parametrize("size", [(64, 64), (72, 80)])
def test_mean_of_more_tokens_than_the_accumulators_hold(size):
    """Two thirds of one sign, one of the other: a part may be larger than the whole."""
    m = maker.Maker(size, columns=8)
    y = m.put(fg.Mean, m.act(m.norm("patches")), 0, size[0] * size[1])
    graph = m.graph(m.linear(y))
    images = maker.images(graph, 3)["image"]
    images[:, :, : size[0]] = 1.5 - images[:, :, : size[0]]
    level_m = select(quantise({"": graph}, {"image": images[:2]})[""])
    found = golden.run(level_m, {"image": images[2]}).outputs
    wanted = fg.outputs(graph, fg.evaluate(graph, {"image": images[2]}))
    for name, rows in wanted.items():
        assert 10 * np.log10(np.square(rows).sum() / np.square(rows - found[name]).sum()) > 30


def test_gathered_rows_are_read_by_the_product_behind():
    """Of Swin's blocks one copy each is left, in front of attention; what goes back rides on the projection."""
    level_m = select(made(windows, 0)[1])
    copies = [op for op in level_m.ops if isinstance(op, ReduceWindow)]
    assert len(copies) == 2 + 4
    back = [op for op in level_m.ops if isinstance(op, MatMul) and op.walk is not None]
    assert len(back) == 2 and all(op.residual is not None for op in back)


def test_windows_are_made_in_the_place_of_a_stack():
    level_m = select(made(stacked, 0)[1])
    windows = [op for op in level_m.ops if isinstance(op, ReduceWindow)]
    copies = [op for op in windows if op.walk.count == 1]
    assert len(windows) == 4 and [op.walk.rows for op in copies] == [1, 1]
    assert {op.out.buffer for op in windows} == {op.out.buffer for op in copies}


@pytest.mark.parametrize("first", [True, False])
def test_of_two_products_that_are_added_what_others_read_is_computed_once(first):
    m = maker.Maker((6, 8))
    x = m.conv("patches")
    y = m.linear(m.act(m.linear(x)))
    graph = m.graph(m.linear(m.add(*((x, y) if first else (y, x)))))
    level_m = select(quantise({"": graph}, maker.images(graph, 2))[""])
    names = [op.name for op in level_m.ops]
    assert [name for name in names if x in name and name != f"{x}.x"] == [x]


def test_windows_are_made_in_the_place_of_a_join():
    level_m = select(made(beside, 0)[1])
    windows = [op for op in level_m.ops if isinstance(op, ReduceWindow)]
    assert [op.walk.count for op in windows].count(1) == 1 and len(windows) == 3
    assert len({op.out.buffer for op in windows}) == 1 and sorted(op.out.col for op in windows) == [0, 16, 32]


def assert_near(made, images):
    """Every output of golden, calibrated with these images, within 28 dB of the float graph."""
    integer = select(quantise({"": made}, images)[""])
    image = {name: array[0] for name, array in images.items()}
    wanted, found = fg.outputs(made, fg.evaluate(made, image)), golden.run(integer, image).outputs
    for name, values in wanted.items():
        assert 10 * np.log10(np.square(values).sum() / np.square(values - found[name]).sum()) > 28, name


@pytest.mark.parametrize("limited", [False, True])
def test_what_is_gathered_stays_for_others(limited):
    """An output, and what reads it behind limits that it never meets."""
    m = maker.Maker()
    x = m.linear("patches")
    y = m.put(fg.Clip, x, -1e3, 1e3) if limited else x
    made = m.graph(m.linear(y) if limited else x, m.linear(m.put(fg.Gather, y, np.arange(48)[::-1].copy())))
    assert_near(made, maker.images(made, 5))


@pytest.mark.parametrize("below", [True, False])
def test_a_limit_that_values_meet_stays_where_the_file_gives_its_range_to_them_too(below):
    """As in quantised files from which onnxruntime took a ReLU, whose range is left: with images for calibration."""
    m = maker.Maker()
    x = m.linear("patches")
    y = m.put(fg.Clip, x, *((0.0, 0.6) if below else (-0.6, 9.0)))
    made = m.graph(m.linear(m.add(m.act(y), m.linear(y))))
    ends = (np.full(16, made.node(y).low, np.float32), np.full(16, made.node(y).high, np.float32))
    made = replace(made, ranges={y: ends, made.node(y).x: ends})
    assert_near(made, maker.images(made, 6))


def test_values_side_by_side_keep_their_steps_for_the_convolution_that_reads_them():
    """Nothing is rounded again that is read by column (the fusion of MobileViT: Mehta and Rastegari 2022)."""
    m = maker.Maker()
    small, large = m.conv("patches"), m.conv("patches")
    next(node for node in m.nodes if node.name == large).weight[...] *= 8
    side = m.put(fg.Join, (small, large))
    graph = m.graph(m.conv(side, inputs=2 * m.columns))
    values = quantise({"": graph}, maker.images(graph))[""].values
    steps = [np.broadcast_to(values[name].scale, m.columns) for name in (small, large)]
    np.testing.assert_array_equal(values[side].scale, np.concatenate(steps))
    assert steps[1].mean() > 4 * steps[0].mean()
