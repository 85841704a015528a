"""The vector unit's instructions: LayerNorm, products of rows, windows, routing, selection, scans. Each returns its writes."""

from __future__ import annotations

import numpy as np

from hwgen import isa
from hwgen import numerics as num

from .walked import MachineFault, Memories, Write, walk_rows

Array = np.ndarray


def norm(machine: Memories, insn: isa.Norm) -> list[Write]:
    """Normalised rows and their maxima."""
    chunk, r = machine.config.chunk, np.arange(insn.rows)
    whole = -(-insn.columns // chunk)
    gamma, beta = machine.scratch[machine.rows(insn.params, whole, np.arange(2), insn.columns)].astype(np.int64)
    x = machine.scratch[machine.rows(insn.x, insn.x_pitch, r, insn.columns)]
    return _made_rows(machine, insn, num.layer_norm(x, gamma, beta, insn.epsilon, bool(insn.centred)))


def multiply(machine: Memories, insn: isa.Multiply) -> list[Write]:
    """Products of rows and their maxima."""
    chunk, r = machine.config.chunk, np.arange(insn.rows)
    whole = -(-insn.columns // chunk)
    if not 0 < insn.period <= whole or insn.columns > machine.config.norm_columns:
        raise MachineFault(f"{insn.columns} columns with factors of {insn.period} chunks")
    if insn.pairs and (insn.shift != num.GAMMA_SHIFT or chunk % 2):
        raise MachineFault(f"pairs with shift {insn.shift} in chunks of {chunk}")
    x = machine.scratch[machine.rows(insn.x, insn.x_pitch, r, whole * chunk)].copy()
    x[:, insn.columns :] = 0
    factor = machine.scratch[machine.rows(insn.factor, insn.factor_pitch, r, insn.period * chunk)]
    factor = np.tile(factor, (1, -(-whole // insn.period)))[:, : whole * chunk]
    y = num.turn(x, factor) if insn.pairs else num.multiply(x, factor, insn.shift)
    return _made_rows(machine, insn, y[:, : insn.columns])


def _made_rows(machine: Memories, insn: isa.RowInsn, y: Array, rows: Array | None = None) -> list[Write]:
    """int16 [rows, columns] to rows of y, `rows` or one after another, and their maxima where asked for."""
    r = np.arange(insn.rows) if rows is None else rows
    writes = [_whole_rows(machine, insn, r, y)]
    return [*writes, (machine.scale, machine.scales(insn.y_scale, r), num.row_max_abs(y))] if insn.y_max else writes


def _whole_rows(machine: Memories, insn: isa.RowInsn | isa.Route | isa.Scan, rows: Array, y: Array) -> Write:
    """int16 [rows, columns], padded with zeros to whole chunks, to these rows of y."""
    padded = np.pad(y, ((0, 0), (0, -y.shape[1] % machine.config.chunk)))
    return machine.scratch, machine.rows(insn.y, insn.y_pitch, rows, padded.shape[1]), padded


def route(machine: Memories, insn: isa.Route) -> tuple[list[Write], list[tuple[Array, Array]]]:
    """What it writes, and the new queues."""
    config = machine.config
    if insn.rows * insn.top_k > config.queue_entries or insn.experts > config.max_experts or insn.top_k > num.MAX_TOP_K:
        raise MachineFault(f"{insn.rows} tokens to {insn.top_k} of {insn.experts} experts exceed the queues")
    r = np.arange(insn.rows)
    logits = machine.scratch[machine.rows(insn.x, insn.x_pitch, r, insn.experts)]
    experts, gates = num.route(logits, insn.top_k, bool(insn.renormalise))
    queues = [(np.zeros(0, np.int64),) * 2] * machine.config.max_experts
    for e in range(insn.experts):
        tokens, choice = np.nonzero(experts == e)
        queues[e] = tokens, gates[tokens, choice]
    if not insn.dense:
        return [], queues
    dense = np.zeros((insn.rows, insn.experts), np.int64)
    dense[r[:, None], experts] = num.saturate(gates, num.INT16_MAX)
    return [_whole_rows(machine, insn, r, dense)], queues


def reduce_window(machine: Memories, insn: isa.ReduceWindow, fields: isa.WindowWalk | None) -> list[Write]:
    """Rows of joined taps and their maxima; without a walk each row is its own window."""
    config, weighted = machine.config, insn.reduce == isa.Reduce.WEIGHTED
    taps, inside, y_rows = walk_rows(fields or isa.WindowWalk(x3=1, y3=1), insn.rows)
    if not config.window_chunks:
        raise MachineFault("a ReduceWindow on a machine without window_chunks")
    if insn.rows > config.acc_rows or (weighted and len(taps) > isa.WINDOW_TAPS):
        raise MachineFault(f"{insn.rows} rows of {len(taps)} taps exceed the window engine")
    whole = -(-insn.columns // config.chunk)
    params = machine.scratch[machine.rows(insn.params, whole, np.arange(2 + weighted * len(taps)), insn.columns)]
    x = np.stack([machine.scratch[machine.rows(insn.x, insn.x_pitch, rows, insn.columns)] for rows in taps])
    weights = params[2:] >> num.STATIC_SHIFT if weighted else None
    total = num.reduce_window(x * inside[:, :, None], weights, inside if insn.reduce == isa.Reduce.MAX else None)
    y = num.window_post(total, params[0].view(np.uint16), insn.before, insn.shift, params[1].astype(np.int64))
    if insn.gelu != isa.Gelu.OFF:
        y = num.gelu(y, insn.gelu.name.lower(), insn.gelu_shift)
    return _made_rows(machine, insn, y, y_rows)


def select(machine: Memories, insn: isa.Select) -> list[Write]:
    """Rows in the order of their scores."""
    config, count = machine.config, insn.score_rows * insn.score_columns
    if count > config.select_rows or insn.first + insn.rows > count:
        raise MachineFault(f"rows {insn.first}..{insn.first + insn.rows} of {count} scores, {config.select_rows} at most")
    width = -(-insn.columns // config.chunk) * config.chunk
    scores = machine.scratch[machine.rows(insn.scores, insn.scores_pitch, np.arange(insn.score_rows), insn.score_columns)]
    order = num.ranked(scores.reshape(-1))[insn.first : insn.first + insn.rows]
    x = machine.scratch[machine.rows(insn.x, insn.x_pitch, order, width)]
    return [(machine.scratch, machine.rows(insn.y, insn.y_pitch, np.arange(insn.rows), width), x)]


def scan(machine: Memories, insn: isa.Scan) -> list[Write]:
    """Rows of a recurrence, backwards from the address on where so."""
    config, states = machine.config, insn.states
    if not config.scan_states:
        raise MachineFault("a Scan on a machine without scan_states")
    fits = 0 < states <= num.SCAN_STATES_MAX and insn.beats == -(-states // config.scan_states)
    if not fits or not 0 < insn.group * insn.beats <= isa.SCAN_ENTRIES:
        raise MachineFault(f"a Scan of {states} states in {insn.beats} beats, groups of {insn.group} chunks")
    r = np.arange(insn.rows) * (-1 if insn.backwards else 1)
    x, steps = (
        machine.scratch[machine.rows(at, pitch, r, insn.columns)]
        for at, pitch in ((insn.x, insn.x_pitch), (insn.steps, insn.steps_pitch))
    )
    mix = machine.scratch[machine.rows(insn.mix, insn.mix_pitch, r, 2 * states)]
    params = machine.scratch[machine.rows(insn.params, insn.params_pitch, np.arange(1 + states), insn.columns)]
    shifts = num.ScanShifts(
        insn.steps_shift, insn.step_shift, insn.fed_shift, insn.decay_shift, insn.skip_shift, insn.shift
    )
    if not shifts.fit:
        raise MachineFault(f"a Scan that shifts by {shifts}")
    return [_whole_rows(machine, insn, r, num.scan(x, steps, mix, params, shifts))]
