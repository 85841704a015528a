"""Pieces change no bit, read the bands of rows that their taps reach, and let array and vector unit work side by side."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import test_window_tiling as tiling
from hwgen import cost, mapping
from hwgen.dram import Dram
from hwgen.intgraph import Input, MatMul, Norm, ReduceWindow
from hwgen.intgraph_checks import verify
from hwgen.mapping import Mapping
from hwgen.mapping.bounds import aside, timing
from hwgen.mapping.order import dependencies
from hwgen.mapping.pieces import norms_in_place, pieces, when_wanted
from hwgen.quantise import quantise
from hwgen.schedule import attempt, schedule
from hwgen.select import select
from hwgen.sim import golden

machine = tiling.machine
CONFIG = replace(tiling.CONFIG, bank_words=2048, acc_rows=512)
MEMORY = Dram(latency=64, bytes_per_cycle=64.0)
LOAD = partial(aside, config=CONFIG)


def convnext(size, columns=16, seed=0, blocks=2):
    """A depthwise convolution, a LayerNorm of what it makes and two layers, added to what it reads; an image for it."""
    m = tiling.maker.Maker(size, columns, seed)
    x = m.norm("patches")
    for _ in range(blocks):
        y = m.norm(m.window(x, "weighted", (5, 5), columns=columns))
        x = m.add(x, m.linear(m.act(m.linear(y, outputs=4 * columns)), 4 * columns))
    graph = m.graph(m.linear(m.norm(x)))
    images = tiling.maker.images(graph, 3, seed)
    return select(quantise({"": graph}, images)[""]), {name: values[0] for name, values in images.items()}


NETWORKS = {
    "convnext": lambda seed: convnext((14, 15), seed=seed),
    "swin": lambda seed: tiling.swin((12, 16), seed=seed),
    "inverted": lambda seed: tiling.inverted((12, 18), (2, 1), seed=seed),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("most", [100, 400])
def test_no_bit_changes(network, most):
    for seed in range(2):
        graph, image = NETWORKS[network](seed)
        wanted = golden.run(graph, image, trace=True)
        placed = norms_in_place(graph)
        cut = pieces(placed, timing(CONFIG), LOAD, most)
        for made in (placed, cut, when_wanted(cut)):
            verify(made)
            assert len({op.name for op in made.ops}) == len(made.ops)
            found = golden.run(made, image, trace=True)
            for name, rows in wanted.outputs.items():
                np.testing.assert_array_equal(found.outputs[name], rows, name)
            for name, rows in found.values.items():
                np.testing.assert_array_equal(rows, wanted.values[name], name)
        assert len(cut.ops) > len(graph.ops)


def test_norms_take_the_place_of_what_only_they_read():
    graph, _ = convnext((6, 8))
    placed = norms_in_place(graph)
    norms = [op for op in placed.ops if isinstance(op, Norm)]
    # The first one's rows and the two convolutions' are read by nothing else; what the last one reads no one needs behind it.
    assert [op.x.buffer == op.out.buffer for op in norms] == [True, True, True, True]
    assert len(graph.buffers) - len(placed.buffers) == 4


def test_pieces_of_a_convolution_read_bands_and_go_when_they_are_wanted():
    graph, _ = convnext((28, 15), blocks=1)
    made = when_wanted(pieces(norms_in_place(graph), timing(CONFIG), LOAD, 400))
    windows = [op for op in made.ops if isinstance(op, ReduceWindow)]
    assert len(windows) > 2 and all(op.walk.rows <= op.x.rows < 28 * 15 for op in windows)
    # The first product of the layers behind starts before the last piece of the convolution.
    place = {op.name: i for i, op in enumerate(made.ops)}
    hidden = [op.name for op in made.ops if isinstance(op, MatMul) and op.gelu is not None]
    assert len(hidden) > 1 and place[hidden[0]] < place[windows[-1].name]
    for i, node in enumerate(dependencies(made)):
        assert all(j < i for j in node.before)


def test_the_array_begins_with_the_first_piece_of_an_image():
    """While the others are loaded: each piece of the first product waits for the pieces of its rows alone."""
    graph, _ = convnext((24, 15))
    made = when_wanted(pieces(graph, timing(CONFIG), LOAD, 150))
    kinds = [type(op) for op in made.ops if isinstance(op, Input | MatMul)]
    assert kinds.count(Input) > 1 and kinds[:2] == [Input, MatMul]
    first = next(i for i, op in enumerate(made.ops) if isinstance(op, MatMul))
    assert sum(isinstance(made.ops[j], Input) for j in dependencies(made)[first].before) == 1


def test_a_convolutional_network_takes_fewer_cycles_and_keeps_its_bits():
    graph, image = convnext((16, 16), columns=32)
    config = replace(CONFIG, bank_words=1024)

    def cycles(chosen):
        program = attempt({"": chosen.apply(graph, config, 1)}, config)
        return cost.estimate(program.tasks[""].instructions, config, MEMORY).cycles

    whole = Mapping(shared_hidden=True, ordered=False, room=0.8, interleave=0.92)
    assert cycles(replace(whole, piece=1000)) < 0.95 * cycles(whole)
    program = mapping.mapped({"": graph}, config, replace(whole, piece=1000))
    machine.assert_equal(machine.run(program, image), golden.run(graph, image).outputs)


def test_search_takes_pieces_where_they_are_faster():
    graph, image = convnext((24, 32), columns=32)
    config = replace(CONFIG, acc_rows=1024)
    choice = mapping.choose({"": graph}, config, MEMORY)
    assert choice.mapping.piece is not None
    program = schedule({"": choice.mapping.apply(graph, config, 1)}, config)
    machine.assert_equal(machine.run(program, image), golden.run(graph, image).outputs)
