"""The cycle model: its timeline keeps the order that the program demands, and knows what binds."""

from dataclasses import replace

import pytest

from hwgen import cost, isa, timeline
from hwgen.config import Config
from hwgen.cost.traffic import port_rate
from hwgen.counts import data_beats
from hwgen.dram import Dram
from hwgen.isa import ColScale
from hwgen.latency import post_entry

SQUARE = Config()
FAST = Dram(latency=20)


def matmul(**fields) -> isa.Matmul:
    return isa.Matmul(**{"rows": 50, "x": 0, "x_pitch": 1, "shift": 16, "y": 0, "y_pitch": 1, **fields})


def run(program, config=SQUARE, memory=FAST, **more) -> cost.Estimate:
    units = [insn.unit for insn in program]
    end = isa.End(**{f"wait_{unit.name.lower()}": units.count(unit) for unit in isa.Unit})
    return cost.estimate([*program, end], config, memory, **more)


def test_full_tiles_keep_the_array_busy():
    words = 8 * 16 * 10 + 10 * 4
    result = run([isa.Stream(dram=0, words=words), matmul(rows=200, inputs=8 * 16, outputs=10 * 16)])
    assert result.array_active == 200 * 8 * 10
    assert result.macs == 200 * 128 * 160
    assert result.array_active < result.cycles < 1.05 * result.array_active + 300


def test_few_rows_wait_for_their_weights():
    result = run([isa.Stream(dram=0, words=16 * 64 + 64), matmul(rows=1, inputs=64 * 16, outputs=16)])
    assert result.cycles > 64 * 16
    causes = timeline.causes(result.spans)
    assert causes["tile"] + causes["dram"] > 0.8 * result.cycles - 300


def test_the_next_tile_loads_while_rows_stream():
    """A job waits before the row issuer: the loader does not."""
    work = [isa.Stream(dram=0, words=2 * (16 * 8 + 4)), *2 * [matmul(rows=60, inputs=8 * 16, outputs=16)]]
    second = run(work).spans[-1]
    assert second.causes["active"] == 60 * 8 and sum(second.causes.values()) == second.causes["active"]


def test_few_bursts_in_flight_are_the_limit():
    """A burst's place is free again after latency and beats, which come at full rate after the pause; measured in RTL:
    68.8 cycles of one burst of a beat; of the ulx3s, with what does not overlap, 2.89 cycles a beat.
    """
    memory = Dram(bytes_per_cycle=42.7, latency=64)
    assert 1 / port_rate(Config(outstanding=1, burst_beats=1, axi_bytes=4), memory) == 64 + 4 + 1
    slow = Dram(bytes_per_cycle=1.7, latency=64)
    few = Config(outstanding=2, axi_bytes=4, weight_ports=1)
    assert 1 / port_rate(few, slow) == (64 + 4 + 16) / 32
    refreshed = replace(slow, refresh_period=468, refresh_cycles=21)
    assert 1 / port_rate(few, refreshed) == pytest.approx((64 + 4 + 16) / 32 * 468 / 447)
    assert port_rate(Config(), memory) == 1.0  # as many as a board has hide the latency


def test_slow_memory_is_the_limit():
    config, words = Config(), 4096
    memory = Dram(bytes_per_cycle=4, latency=64)
    insns = [isa.Stream(dram=0, words=words + 64), matmul(rows=8, inputs=16 * 256, outputs=16)]
    result = run(insns, config, memory)
    assert result.weight_bytes == (words + 64) * config.slice_bytes * config.weight_ports
    assert result.cycles == pytest.approx(result.weight_bytes / 4, rel=0.05)


def test_empty_experts_move_nothing():
    route = isa.Route(rows=8, experts=4, top_k=1, renormalise=0, dense=0, x=0, x_pitch=1)

    def experts(counts):
        work = []
        for e in range(4):
            work.append(isa.Stream(dram=0, words=16 + 4, expert=e, wait_vector=1))
            work.append(matmul(rows=8, inputs=16, outputs=16, expert=e, wait_vector=1))
        return run([route, *work], queues=[counts])

    one, all_four = experts([8, 0, 0, 0]), experts([2, 2, 2, 2])
    assert one.weight_bytes * 4 == all_four.weight_bytes
    assert one.macs == all_four.macs == 8 * 16 * 16
    assert one.cycles < all_four.cycles
    assert run([route], queues=None).cycles > 0
    assert cost.balanced([route]) == [[2, 2, 2, 2]]


def test_waits_are_kept():
    load = isa.Load(dram=0, dst=0, rows=100, chunks=4, pitch=4)
    second = matmul(
        rows=10, inputs=16, outputs=16, w_source=isa.WeightSource.SCRATCHPAD, col_source=ColScale.IMMEDIATE, wait_load=1
    )
    program = [load, second, isa.Store(dram=0, src=0, rows=10, chunks=1, pitch=1, wait_matmul=1)]
    spans = {s.unit: s for s in run(program).spans}
    assert spans[isa.Unit.LOAD].end < spans[isa.Unit.MATMUL].start
    assert spans[isa.Unit.MATMUL].end < spans[isa.Unit.STORE].start


def test_beats_of_the_data_port():
    load = isa.Load(dram=0, dst=0, rows=10, chunks=3, pitch=3)
    store = isa.Store(dram=0, src=0, rows=10, chunks=3, pitch=3)
    config = Config(array_outputs=24, array_inputs=24, axi_bytes=16)
    assert data_beats(load, config) == data_beats(store, config) == 30 * 3
    assert data_beats(replace(load, narrow=1), config) == 30 * 2
    assert data_beats(isa.LoadScales(dram=0, dst=0, count=9), config) == 2


def test_more_never_takes_less():
    base = [isa.Stream(dram=0, words=20), matmul(rows=64, inputs=16, outputs=16)]
    times = [run(base * n).cycles for n in range(1, 6)]
    assert times == sorted(times) and times[0] < times[-1]


@pytest.mark.parametrize("outputs", [16, 32])
def test_residuals_take_turns_with_rows_from_the_same_bank(outputs):
    """Those of a tile while its own later rows go, and the rest while rows of the next tile or instruction do; measured in RTL:
    473 and 989 cycles of one and of two products of one tile, 985 and 2,009 of two tiles."""
    rows, away = 512, SQUARE.bank_chunks
    product = matmul(rows=rows, inputs=16, outputs=outputs, residual=1, x_pitch=1, res=rows, res_pitch=1, y=2 * away)
    stream = isa.Stream(dram=0, words=2 * (outputs + 10))
    for res, wanted in ((rows, 2 * rows * outputs // 16 - post_entry(SQUARE)), (away, 0)):
        result = run([stream, replace(product, res=res), replace(product, res=res)])
        assert timeline.causes(result.spans)["bank"] == wanted


@pytest.mark.parametrize("narrow", [0, 1])
def test_a_load_writes_where_nothing_else_is_written(narrow):
    """A bank takes one write a cycle, of a load last: loads of images beside norms took 5,600 cycles instead of 3,660 in RTL."""
    rows, away = 200, SQUARE.bank_chunks
    norm = isa.Norm(rows=rows, columns=64, x=0, x_pitch=4, y=away, y_pitch=4, params=0, epsilon=1)
    ends = []
    for dst in (away, 2 * away):
        spans = {s.unit: s for s in run([norm, isa.Load(dram=0, dst=dst, rows=rows, chunks=4, pitch=4, narrow=narrow)]).spans}
        ends.append(spans[isa.Unit.LOAD].end)
        assert spans[isa.Unit.VECTOR].end - spans[isa.Unit.VECTOR].start < 4.2 * rows + 100  # goes first
    assert ends[0] - ends[1] > (0.8 if narrow else 0.4) * 4 * rows


def test_the_vector_unit_writes_where_the_array_does_not():
    rows, away = 400, SQUARE.bank_chunks
    norm = isa.Norm(rows=rows, columns=16, x=2 * away, x_pitch=1, y=away + rows, y_pitch=1, params=2 * away, epsilon=1)
    product = matmul(rows=rows, inputs=16, outputs=64, x=0, y=away, y_pitch=1)
    ends = []
    for y in (away + rows, 3 * away):
        program = [isa.Stream(dram=0, words=64 + 40), product, replace(norm, y=y)]
        ends.append(max(s.end for s in run(program).spans if s.unit == isa.Unit.VECTOR))
    assert ends[0] - ends[1] > 2 * rows
