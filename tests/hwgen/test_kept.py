"""Runs on whole values beside blocks of larger ones: no bit changes, less is moved, and pieces lie in the order of blocks."""

from dataclasses import replace

import numpy as np
import pytest

import map_maker as maker
import test_window_tiling as tiling
from hwgen.config import Config
from hwgen.intgraph import Fetch, Spill
from hwgen.intgraph_checks import verify
from hwgen.mapping import Mapping
from hwgen.mapping.kept import Kept, Touched
from hwgen.quantise import quantise
from hwgen.schedule import schedule
from hwgen.schedule.allocate import Item, place
from hwgen.select import select
from hwgen.sim import golden

machine = tiling.machine
CONFIG = Config(
    array_outputs=8, array_inputs=8, bank_words=1024, window_chunks=1, norm_columns=128, scale_entries=2048, acc_rows=512
)
KEPT = Mapping(spill=0.3, room=0.8, windows=True)


def narrowing(seed=0):
    """A map of which no bank holds half, then one of a quarter as many rows, with layers on each; an image for it."""
    m = maker.Maker((24, 20), 32, seed)
    x = m.norm("patches")
    x = m.add(x, m.linear(m.act(m.window(m.linear(x, outputs=64), "weighted", (3, 3), columns=64)), 64))
    x = m.window(x, "weighted", (2, 2), stride=(2, 2), pads=(0, 0, 0, 0))
    m.size = (12, 10)
    for _ in range(2):
        x = m.add(x, m.attention(m.norm(x), window=(6, 5)))
        x = m.add(x, m.linear(m.act(m.linear(m.norm(x), outputs=64)), 64))
    graph = m.graph(m.linear(m.norm(x)))
    images = maker.images(graph, 3, seed)
    return select(quantise({"": graph}, images)[""]), {name: values[0] for name, values in images.items()}


def moved(graph):
    """Rows that go to and from DRAM, of all columns."""
    return sum(op.x.rows * op.x.cols for op in graph.ops if isinstance(op, Spill | Fetch))


# Size, first and last step, and until when it would like its place, of items of which one finds none beside the others.
NEAR = ((4, 103, 106, 110), (4, 102, 105, 107), (7, 100, 100, 102), (5, 106, 108, 109), (2, 104, 105, 109))
NETWORKS = {
    "narrowing": lambda seed: narrowing(seed),
    "swin": lambda seed: tiling.swin((12, 16), seed=seed),
    "inverted": lambda seed: tiling.inverted((12, 18), (2, 1), seed=seed),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("changes", [{}, {"piece": 400, "interleave": 0.8}], ids=["in order", "pieces in turns"])
def test_the_same_on_golden_and_machine(network, changes):
    """In any order of the units."""
    graph, image = NETWORKS[network](0)
    wanted = golden.run(graph, image).outputs
    kept = replace(KEPT, **changes).apply(graph, CONFIG, 1)
    verify(kept)
    for name, rows in golden.run(kept, image).outputs.items():
        np.testing.assert_array_equal(rows, wanted[name], name)
    program = schedule({"": kept}, CONFIG)
    for order in ("program", "lazy", 3):
        machine.assert_equal(machine.run(program, image, order), wanted)


def test_what_fits_as_a_whole_is_not_moved():
    """Blocks of the large map, and the small one as it is: nothing of it goes to DRAM, as it does without such runs."""
    graph, _ = narrowing()
    config = replace(CONFIG, bank_words=2048)
    blocks, kept = (Mapping(spill=0.1, room=room).apply(graph, config, 1) for room in (None, 0.8))
    assert 0 < moved(kept) < 0.8 * moved(blocks)


def test_runs_begin_and_end_where_little_lives():
    """Two large values between small ones: one run to the first small one, one to the end; none beyond what there is room for."""
    sizes = [("a", 2), ("b", 9), ("c", 2), ("d", 9), ("e", 2)]
    apart = 20  # units that work in place, on both sides of each
    units, spans = [], {}
    for n, (name, size) in enumerate(sizes):
        before = [] if not n else [Touched(*sizes[n - 1], 0, False)]
        units += [[*before, Touched(name, size, 0, True)], *([[Touched(name, size, 0, True)]] * apart)]
        spans[name] = [n * (apart + 1), min((n + 1) * (apart + 1), len(sizes) * (apart + 1) - 1)]

    def runs(first, room):
        known = Kept(units, spans, set(), [(1.0, 0.0)] * len(units), (room, 99), room, 1)
        return {end for end, _ in known.runs(first, set(), lambda u: (0, 0))}

    assert runs(0, 11) >= {len(units)}
    assert not runs(1, 11)
    assert all(end <= apart + 1 for end in runs(0, 10))


def test_only_what_is_near_gives_way_to_what_finds_no_place():
    """Where one finds no place although nothing beside it could give way, others near it do; what is far away keeps its time."""
    far = [Item("far", 6, 0, 1, held=3), Item("after far", 6, 2, 3)]
    near = [Item(f"{n}", size, first, last, held=held) for n, (size, first, last, held) in enumerate(NEAR)]
    place([*far, *near], 1, 12, {}, "chunks", "bank_words")
    assert far[0].address != far[1].address
    beside = [(a, b) for a in near for b in near if a is not b and a.first <= b.last and b.first <= a.last]
    assert all(a.address + a.size <= b.address or b.address + b.size <= a.address for a, b in beside)
