"""Operations beyond the plain ViT in the quantiser: accuracy against float, and the machine against golden."""

from dataclasses import asdict

import numpy as np
import pytest

import graph_maker as maker
from hwgen import graph as fg
from hwgen.compare import compare
from hwgen.config import Config
from hwgen.host.pack import pack_input, unpack_output
from hwgen.schedule import schedule
from hwgen.select import integers
from hwgen.sim import golden
from hwgen.sim.machine import Machine

T, D = 7, 32  # of maker.vit's defaults


def insert(graph, before, *nodes):
    """The graph with nodes put in front of the one named `before`."""
    at = next(i for i, n in enumerate(graph.nodes) if n.name == before)
    return fg.Graph(graph.inputs, [*graph.nodes[:at], *nodes, *graph.nodes[at:]], graph.outputs)


def pooled(rows=(0, T), norm=True):
    """Mean of some tokens, after the last LayerNorm or of the residual stream, and a head."""
    graph = maker.vit()
    x = "norm" if norm else "1.add2"
    nodes = [n for n in graph.nodes if n.name not in ("class_token", "head")]
    rng = np.random.default_rng(3)
    head = rng.standard_normal((5, D)).astype(np.float32)
    nodes += [fg.Mean("mean", x, *rows), fg.Linear("head", "mean", head, None)]
    return fg.Graph(graph.inputs, nodes, graph.outputs)


def after(kind):
    """An activation in place of GELU."""
    graph = maker.vit()
    nodes = [kind(n.name, n.x) if isinstance(n, fg.Activation) else n for n in graph.nodes]
    return fg.Graph(graph.inputs, nodes, graph.outputs)


def biased(mask=False):
    graph = maker.vit()
    rng = np.random.default_rng(4)
    bias = -np.abs(rng.standard_normal((2, T, T))).astype(np.float32) * 3
    if mask:
        bias = np.where(np.abs(np.subtract.outer(np.arange(T), np.arange(T))) > 2, -1e4, 0) + np.zeros((2, 1, 1))
    return maker.change(graph, "1.attn", bias=bias.astype(np.float32))


def embedded(kind, suffix=1):
    """The patches go through another layer before class token and positions come in."""
    graph = maker.vit()
    rng = np.random.default_rng(5)
    w = (rng.standard_normal((D, D)) * 0.2).astype(np.float32)
    layer = {
        "linear": fg.Linear("extra", "patches", w, rng.standard_normal(D).astype(np.float32)),
        "norm": fg.LayerNorm("extra", "patches", np.ones(D, np.float32), np.zeros(D, np.float32), 1e-6),
    }[kind]
    position = rng.standard_normal((T + suffix, D)).astype(np.float32)
    return maker.change(insert(graph, "embed", layer), "embed", x="extra", position=position)


def feature_map():
    graph = maker.vit(classes=0, prefix=0)
    value = graph.outputs[0].value
    return fg.Graph(graph.inputs, graph.nodes, [fg.Output("map", value, (D, 2, 3), True)])


GRAPHS = {
    "mean of all tokens": pooled,
    "mean of the patches": lambda: pooled((1, T)),
    "mean of the residual stream": lambda: pooled(norm=False),
    "relu": lambda: after(lambda name, x: fg.Activation(name, x, "relu")),
    "silu": lambda: after(lambda name, x: fg.Activation(name, x, "silu", 1.0)),
    "hard swish": lambda: after(lambda name, x: fg.Activation(name, x, "hardswish")),
    "tanh": lambda: after(lambda name, x: fg.Activation(name, x, "tanh")),
    "sigmoid": lambda: after(lambda name, x: fg.Activation(name, x, "sigmoid")),
    "quick gelu": lambda: after(lambda name, x: fg.Activation(name, x, "silu", 1.702)),
    "relative positions": biased,
    "mask": lambda: biased(True),
    "linear layer before the tokens": lambda: embedded("linear"),
    "norm before the tokens": lambda: embedded("norm", 0),
    "feature map": feature_map,
}


@pytest.fixture(params=GRAPHS)
def network(request):
    graph = GRAPHS[request.param]()
    fg.verify(graph)
    return graph, integers({"": graph}, maker.images(graph, 12))[""]


def on_machine(graph, config, image):
    """Outputs of one image on the machine model."""
    program = schedule({"": graph}, config)
    task, dram = program.tasks[""], program.dram()
    for slot in task.inputs:
        data = pack_input(asdict(slot), image[slot.name])
        dram[slot.dram : slot.dram + len(data)] = np.frombuffer(data, np.uint8)
    Machine(config).run(dram, task.offset, len(task.instructions), program.data_base, program.weight_bases)
    return {s.name: unpack_output(asdict(s), dram[s.dram : s.dram + s.layout.bytes]) for s in task.outputs}


def test_integer_network_follows_the_float_network(network):
    graph, integer = network
    found = compare(graph, integer, maker.images(graph, 3, seed=2), golden.run)
    assert min(o.snr_db for o in found.outputs) > 22


def test_machine_equals_golden(network):
    graph, integer = network
    image = {name: data[0] for name, data in maker.images(graph, 1, seed=9).items()}
    wanted = golden.run(integer, image).outputs
    for config in (Config(array_outputs=8, array_inputs=8), Config(array_outputs=12, array_inputs=20)):
        for name, got in on_machine(integer, config, image).items():
            np.testing.assert_array_equal(got, wanted[name], err_msg=name)


def test_positions_on_a_stored_tensor_keep_all_bits():
    """A table is added to a stored tensor exactly, whatever its digits."""
    graph = embedded("norm", 0)
    rng = np.random.default_rng(6)
    table = rng.uniform(-4, 4, (T, D)).astype(np.float32)
    table[3, :8] = np.array([0, 1, -1, 127.5, -127.5, 128, 255, -256]) / 128
    graph = maker.change(graph, "embed", position=table)
    integer = integers({"": graph}, maker.images(graph, 4))[""]
    image = {name: data[0] for name, data in maker.images(graph, 1).items()}
    run = golden.run(integer, image, trace=True)
    scale = integer.buffers["embed"].scale
    got = run.values["embed"] * scale - table
    added = run.values["extra"] * integer.buffers["extra"].scale + integer.offsets["extra"]
    assert np.abs(got[1:] - added).max() < 2.0 * scale  # the roundings of table, high bytes and rest
