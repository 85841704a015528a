"""Wait counts order every pair of conflicting instructions: checked from the instruction set alone, not from the scheduler.

What an instruction is sure to come after is computed from the wait counts and the units' own order; what it touches, from
its fields. Two instructions that touch the same place must be ordered, except that within a unit only a read after a
write needs a wait.
"""

from dataclasses import fields, replace

import numpy as np
import pytest

from hwgen import isa
from hwgen.config import Config
from hwgen.counts import walks
from hwgen.isa import Convert, Indirect, RowMax, RowScale, Unit
from hwgen.schedule import schedule
from hwgen.sim.tb.graphs import Shape, random_graph
from hwgen.sim.tb.maps import random_map_graph
from hwgen.walks import ZERO_ROW, Walk


def area(start, rows, pitch, width):
    """rows: how many, or which."""
    return (start + np.reshape(np.arange(rows) if np.isscalar(rows) else rows, (-1, 1)) * pitch + np.arange(width)).ravel()


def footprint(insn, config, tokens, walk=None):
    """(addresses read, addresses written); scale entries behind the scratchpad, then the expert queues."""
    chunk, scales = config.chunk, config.scratch_chunks
    queue = np.array([scales + config.scale_entries])
    reads, writes = [], []

    def chunks(elements):
        return -(-elements // chunk)

    match insn:
        case isa.Load():
            writes.append(area(insn.dst, insn.rows, insn.pitch, insn.chunks))
        case isa.LoadScales():
            writes.append(scales + insn.dst + np.arange(insn.count))
        case isa.Stream():
            reads += [queue] if insn.expert != isa.NO_EXPERT else []
        case isa.Store():
            reads.append(area(insn.src, insn.rows, insn.pitch, insn.chunks))
        case isa.Norm():
            reads.append(area(insn.x, insn.rows, insn.x_pitch, chunks(insn.columns)))
            reads.append(insn.params + np.arange(2 * chunks(insn.columns)))
            writes.append(area(insn.y, insn.rows, insn.y_pitch, chunks(insn.columns)))
            writes.append(scales + insn.y_scale + np.arange(insn.rows))
        case isa.Route():
            reads.append(area(insn.x, insn.rows, insn.x_pitch, chunks(insn.experts)))
            writes.append(queue)
            writes += [area(insn.y, insn.rows, insn.y_pitch, chunks(insn.experts))] if insn.dense else []
        case isa.Matmul():
            rows = insn.rows if insn.expert == isa.NO_EXPERT else tokens
            reads += [queue] if insn.expert != isa.NO_EXPERT else []
            x_rows, y_rows = np.arange(rows), np.arange(rows)
            if walk is not None:
                walked = Walk.of(walk, rows)
                x_rows, y_rows = walked.x_rows().ravel(), walked.y_rows()
                x_rows = x_rows[x_rows != ZERO_ROW]
            reads.append(area(insn.x, x_rows, insn.x_pitch, chunks(insn.inputs)))
            if insn.x_convert != Convert.STATIC or insn.row_source == RowScale.TABLE:
                reads.append(scales + insn.x_scale + x_rows)
            if insn.w_source == isa.WeightSource.SCRATCHPAD:
                reads.append(area(insn.w, insn.outputs, insn.w_pitch, chunks(insn.inputs)))
                if insn.w_convert == Convert.ROW:
                    reads.append(scales + insn.w_scale + np.arange(insn.outputs))
            if insn.residual:
                reads.append(area(insn.res, y_rows, insn.res_pitch, chunks(insn.outputs)))
            writes.append(area(insn.y, y_rows, insn.y_pitch, chunks(insn.outputs)))
            if insn.y_max != RowMax.NONE:
                writes.append(scales + insn.y_scale + y_rows)
    empty = [np.zeros(0, np.int64)]
    return np.concatenate(reads or empty), np.concatenate(writes or empty)


def unordered(program, config, tokens):
    """Pairs (earlier, later) of instructions that conflict without being ordered."""
    count = dict.fromkeys(Unit, 0)
    after = {}  # (unit, ordinal) -> finished counts that its start is sure of
    last = {unit: np.zeros(len(Unit), int) for unit in Unit}
    touched, bad = [], []
    size = config.scratch_chunks + config.scale_entries + 1
    behind = walks(program)
    for index, insn in enumerate(program[:-1]):
        if isinstance(insn, isa.WalkFields):
            continue
        sure = last[insn.unit].copy()
        for unit in Unit:
            wait = getattr(insn, f"wait_{unit.name.lower()}")
            assert wait <= count[unit], "waits for what comes later in the program"
            sure[unit] = max(sure[unit], wait)
        # What the awaited instructions waited for has happened as well.
        for unit in Unit:
            if sure[unit]:
                sure = np.maximum(sure, after[unit, sure[unit]])
        count[insn.unit] += 1
        after[insn.unit, count[insn.unit]] = last[insn.unit] = sure
        reads, writes = np.zeros(size, bool), np.zeros(size, bool)
        r, w = footprint(insn, config, tokens, behind.get(index))
        reads[r], writes[w] = True, True
        for earlier, unit, ordinal, old_reads, old_writes in touched:
            conflict = (old_writes & reads).any()
            if unit != insn.unit:
                conflict = conflict or ((old_reads | old_writes) & writes).any()
            if conflict and sure[unit] < ordinal:
                bad.append((earlier, insn))
        touched.append((insn, insn.unit, count[insn.unit], reads, writes))
    return bad


@pytest.mark.parametrize("config", [
    Config(),
    Config(array_outputs=12, array_inputs=20, bank_words=256),
    Config(bank_words=64, scale_entries=128),
], ids=["16x16", "12x20", "tight"])  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_conflicts_are_ordered(config, seed):
    shape = Shape(layers=3, experts=3)
    task = schedule({"": random_graph(seed, shape)}, config).tasks[""]
    assert unordered(task.instructions, config, shape.tokens) == []


def test_conflicts_are_ordered_in_blocks_of_rows():
    config, shape = Config(acc_rows=4), Shape(layers=1)
    task = schedule({"": random_graph(0, shape)}, config).tasks[""]
    assert unordered(task.instructions, config, shape.tokens) == []


@pytest.mark.parametrize("acc_rows", [16, 256])
def test_conflicts_are_ordered_where_rows_walk(acc_rows):
    config = Config(acc_rows=acc_rows, bank_words=512)
    for seed in range(2):
        assert unordered(schedule({"": random_map_graph(seed)}, config).tasks[""].instructions, config, 0) == []


def test_the_check_sees_missing_waits():
    """Most waits are needed: without one of them a conflict is found (the others follow from the rest)."""
    config, shape = Config(bank_words=64), Shape(experts=2)
    program = schedule({"": random_graph(0, shape)}, config).tasks[""].instructions
    found = total = 0
    for i, insn in enumerate(program[:-1]):
        waits = {f.name: 0 for f in fields(insn) if f.name.startswith("wait_")}
        if insn == replace(insn, **waits):
            continue
        changed = [*program[:i], replace(insn, **waits), *program[i + 1 :]]
        found += bool(unordered(changed, config, shape.tokens))
        total += 1
    assert total > 20 and found > total // 2


def test_expert_instructions_name_their_route():
    program = schedule({"": random_graph(1, Shape(layers=4))}, Config()).tasks[""].instructions
    routes = 0
    for insn in program:
        routes += isinstance(insn, isa.Route)
        if getattr(insn, "expert", isa.NO_EXPERT) != isa.NO_EXPERT:
            assert routes > 0
            assert isinstance(insn, isa.Stream) or insn.indirect != Indirect.NONE
    assert routes == 2
