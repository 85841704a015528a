"""PostProcessor against numerics: random rows of random instructions, parameter banks rewritten as early as allowed."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen import numerics
from hwgen.config import Config
from hwgen.isa import Gelu, RowMax
from hwgen.rtl import ports
from hwgen.rtl.post import PostProcessor

FORMS = {kind: kind.name.lower() for kind in Gelu if kind}


@dataclass
class Tile:
    """An output tile: one parameter set, rows that follow one another, what they have in common."""

    mult: np.ndarray
    bias: np.ndarray
    rows: list[dict]
    accs: np.ndarray
    bank: int = 0
    used: int = 0
    issued: int = 0
    loaded: bool = False


@dataclass
class Log:
    """What left the post-processor, with the cycle counted from the row's entry where rows are concerned."""

    y: list = field(default_factory=list)
    scale: list = field(default_factory=list)
    used: list = field(default_factory=list)
    done: list = field(default_factory=list)


def residual_row(address, lanes):
    rng = np.random.default_rng(address)
    return rng.integers(-numerics.INT16_MAX, numerics.INT16_MAX + 1, lanes)


def reference_row(config, tile, acc, meta):
    """int16 row before masking, by numerics."""
    shift = meta["shift"] + meta["row_shift"]
    y = numerics.requantise(acc[None], tile.mult, np.array([[meta["row_mult"]]]), shift, tile.bias)
    if meta["gelu"]:
        y = numerics.gelu(y, FORMS[meta["gelu"]], meta["gelu_shift"])
    if meta["residual"]:
        y = numerics.add_residual(residual_row(meta["res_addr"], config.array_outputs), y)
    return y[0]


def reference(config, tiles, entries):
    """The log that the rows of `tiles`, entering in the cycles `entries`, must leave."""
    log, running, entries = Log(), {}, iter(entries)
    scale_latency = PostProcessor.latency_of(config) - ports.WRITE_LATENCY
    for tile in tiles:
        for acc, meta in zip(tile.accs, tile.rows, strict=True):
            entry, columns = next(entries), meta["columns"]
            if meta["last"]:
                log.done.append(entry + PostProcessor.latency_of(config))
            if not meta["write"]:
                continue
            log.used.append((entry + PostProcessor.USED_LATENCY, tile.bank))
            y = reference_row(config, tile, acc, meta)[:columns]
            padded = y.tolist() + [0] * (config.array_outputs - columns)
            mask = (1 << -(-columns // config.chunk)) - 1
            log.y.append((entry + PostProcessor.Y_LATENCY, meta["y_addr"], mask, padded))
            if meta["y_max"]:
                is_signed = meta["y_max"] == RowMax.SIGNED
                largest = int(y.max() if is_signed else np.abs(y).max())
                if not meta["first_tile"]:
                    largest = max(largest, running[is_signed, meta["row"]])
                running[is_signed, meta["row"]] = largest
                if meta["last_tile"]:
                    log.scale.append((entry + scale_latency, meta["scale_addr"], largest & 0xFFFF))
    return log


def run(config, tiles, rng, gaps):
    """Feed the tiles; parameters as early as `used` allows. Returns (log, entry cycle of each row)."""
    dut, log, entries = PostProcessor(config), Log(), []
    lanes = config.array_outputs
    noise = rng.integers(-numerics.INT16_MAX, numerics.INT16_MAX + 1, lanes).tolist()

    async def bench(ctx):
        ctx.set(dut.y.ready, 1)
        ctx.set(dut.scale.ready, 1)
        ctx.set(dut.res.ready, 1)
        reads, cycle, stop = {}, 0, None
        while stop is None or cycle < stop:
            ctx.set(dut.res.data, reads.pop(cycle, noise))
            if ctx.get(dut.used):
                log.used.append((cycle, ctx.get(dut.used_bank)))
                next(t for t in tiles if t.used < sum(r["write"] for r in t.rows)).used += 1
            # Parameters of the first tile that has none, once the tile before the previous is through.
            ctx.set(dut.params.valid, 0)
            pending = next((k for k, t in enumerate(tiles) if not t.loaded), None)
            loaded_now = None
            if pending is not None:
                before = tiles[pending - 2] if pending >= 2 else None
                if before is None or before.used == sum(r["write"] for r in before.rows):
                    loaded_now = tiles[pending]
                    ctx.set(dut.params.valid, 1)
                    ctx.set(dut.params.bank, loaded_now.bank)
                    ctx.set(dut.params.mask, (1 << lanes) - 1)
                    ctx.set(dut.params.mult, loaded_now.mult.tolist())
                    ctx.set(dut.params.bias, loaded_now.bias.tolist())
            tile = next((t for t in tiles if t.issued < len(t.rows)), None)
            ready = tile is not None and tile.loaded and not (gaps and rng.random() < 0.3)
            ctx.set(dut.i_valid, ready)
            if ready:
                ctx.set(dut.i_acc, tile.accs[tile.issued].tolist())
                ctx.set(dut.i_meta, tile.rows[tile.issued])
                tile.issued += 1
                entries.append(cycle)
            elif gaps:
                ctx.set(dut.i_meta.write, 1)
                ctx.set(dut.i_meta.last, 1)
            if tile is None and stop is None:
                stop = cycle + PostProcessor.latency_of(config) + 2
            if loaded_now is not None:
                loaded_now.loaded = True
            if ctx.get(dut.res.valid):
                reads[cycle + ports.READ_LATENCY] = residual_row(ctx.get(dut.res.addr), lanes).tolist()
            if ctx.get(dut.y.valid):
                row = [ctx.get(dut.y.data[o]) for o in range(lanes)]
                log.y.append((cycle, ctx.get(dut.y.addr), ctx.get(dut.y.mask), row))
            if ctx.get(dut.scale.valid):
                log.scale.append((cycle, ctx.get(dut.scale.addr), ctx.get(dut.scale.data)))
            if ctx.get(dut.done):
                log.done.append(cycle)
            await ctx.tick()
            cycle += 1

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return log, entries


def integers(rng, low, high, size=None):
    """Uniform, with the ends often."""
    values = rng.integers(low, high + 1, size)
    pick = rng.random(size)
    return np.where(pick < 0.08, low, np.where(pick > 0.92, high, values))


def random_tile(rng, config, rows, common, first, last):
    """Sums whose results spread over the whole int16 range and somewhat beyond."""
    lanes = config.array_outputs
    shift = int(integers(rng, numerics.SHIFT_MIN, numerics.SHIFT_MAX))
    columns = lanes if not last else int(rng.integers(1, lanes + 1))
    metas, accs = [], []
    for r in range(rows):
        row_mult = int(integers(rng, 0, numerics.U16_MAX))
        more = int(integers(rng, 0, numerics.RECIPROCAL_EXPONENT_MAX)) * int(rng.integers(2))
        # The magnitude of the sums at which the result is about 2^16.
        top = min(numerics.ACC_MAX, max(1, 2 ** (shift + more + 16) // max(row_mult, 1))) * 2.0 ** -rng.integers(0, 12)
        accs.append(integers(rng, -max(1, int(top)), max(1, int(top)), lanes))
        if r % 7 == 3:
            accs[-1] = rng.choice([-numerics.ACC_MAX, numerics.ACC_MAX], lanes)
        address = {name: int(rng.integers(0, 1 << ports.ADDRESS_BITS)) for name in ("res_addr", "y_addr")}
        address["scale_addr"] = int(rng.integers(0, 1 << 16))
        metas.append(
            common | address | {"row": r, "row_mult": row_mult, "shift": shift, "columns": columns, "write": 1}
            | {"row_shift": more, "first_tile": int(first), "last_tile": int(last), "last": int(last and r == rows - 1)}
        )
    return Tile(integers(rng, 0, numerics.U16_MAX, lanes), integers(rng, -32767, 32767, lanes), metas, np.array(accs))


def random_program(rng, config, instructions, rows):
    """Tiles of several Matmuls with any GELU, residual and maximum, some continuing one; placeholders between."""
    tiles = []
    for _ in range(instructions):
        kind = rng.choice(list(RowMax))
        common = {"gelu": int(rng.choice(list(Gelu))), "gelu_shift": int(rng.integers(0, numerics.GELU_SHIFT_MAX + 1))}
        common |= {"residual": int(rng.integers(2)), "y_max": int(kind), "bank": 0}
        blocks = int(rng.integers(1, 4))
        seen = any(t.rows[0]["y_max"] == kind for t in tiles)
        restart = not seen or rng.random() < 0.6
        for block in range(blocks):
            tiles.append(random_tile(rng, config, rows, common, restart and block == 0, block == blocks - 1))
        if rng.random() < 0.5:  # an expert without tokens
            placeholder = tiles[-1].rows[-1] | {"write": 0, "last": 1}
            tiles.append(Tile(tiles[-1].mult, tiles[-1].bias, [placeholder], tiles[-1].accs[-1:]))
    for k, tile in enumerate(tiles):
        tile.bank = k % 2
        for row in tile.rows:
            row["bank"] = tile.bank
    return tiles


@pytest.mark.parametrize("outputs, inputs", [(8, 8), (12, 20), (20, 16)])
@pytest.mark.parametrize("rows, gaps", [(PostProcessor.MAX_GAP, False), (11, True)])
def test_rows(outputs, inputs, rows, gaps):
    config = Config(array_outputs=outputs, array_inputs=inputs, acc_rows=16)
    rng = np.random.default_rng(outputs * rows)
    tiles = random_program(rng, config, 24 if rows < 8 else 10, rows)
    log, entries = run(config, tiles, rng, gaps)
    assert log == reference(config, tiles, entries)


def identity_tile(values, columns, lanes, meta):
    """Rows whose requantised values are `values`: multipliers that only move the point."""
    rows = [
        {"write": 1, "columns": columns, "bank": 0, "row_mult": 1 << 15, "shift": 23, "row": r % 16, "first_tile": 1}
        | {"row_shift": 0}
        | {"last_tile": 1, "last": 0, "gelu": 0, "gelu_shift": 0, "residual": 0, "y_max": 0, "res_addr": 0}
        | {"y_addr": r, "scale_addr": r} | meta
        for r in range(len(values))
    ]
    # (v * 2^9 * 2^15 / 2^16) * 2^15 / 2^23 = v
    return Tile(np.full(lanes, 1 << 15), np.zeros(lanes, np.int64), rows, np.array(values) << 9)


@pytest.mark.parametrize("gelu", list(FORMS))
def test_gelu_over_its_range(gelu):
    config = Config(array_outputs=8, array_inputs=8, acc_rows=16)
    rng = np.random.default_rng(gelu)
    tiles = []
    for shift in range(numerics.GELU_SHIFT_MAX + 1):
        edge = numerics.GELU_ENTRIES << shift
        around = np.concatenate([[0, 1, -1, 32767, -32767], edge + np.arange(-2, 3), -edge + np.arange(-2, 3)])
        half = (1 << shift) // 2  # where the index rounds
        around = np.concatenate([around, half + np.arange(-1, 2), rng.integers(-edge, edge, 102)]).clip(-32767, 32767)
        tiles.append(identity_tile(around.reshape(-1, 8), 8, 8, {"gelu": int(gelu), "gelu_shift": shift}))
    for k, tile in enumerate(tiles):
        tile.bank = k % 2
        for row in tile.rows:
            row["bank"] = tile.bank
    expected = [
        numerics.gelu(row >> 9, FORMS[gelu], t.rows[0]["gelu_shift"]).tolist() for t in tiles for row in t.accs
    ]
    log, entries = run(config, tiles, rng, False)
    assert [row for _, _, _, row in log.y] == expected
    assert log == reference(config, tiles, entries)


def test_masked_lanes_are_no_maximum():
    config = Config(array_outputs=8, array_inputs=8, acc_rows=16)
    values = [[-5, -9, -3, 100, 100, 100, 100, -30000], [-32767, -32767, -32767, 1, 1, 1, 1, 1]]
    for kind, maxima in ((RowMax.SIGNED, [-3 & 0xFFFF, -32767 & 0xFFFF]), (RowMax.ABS, [9, 32767])):
        tile = identity_tile(values, 3, 8, {"y_max": int(kind)})
        log, _ = run(config, [tile], np.random.default_rng(0), False)
        assert [value for _, _, value in log.scale] == maxima
        assert [row[3:] for _, _, _, row in log.y] == [[0] * 5] * 2


def test_refused_write_is_noticed():
    config = Config(array_outputs=8, array_inputs=8, acc_rows=16)
    dut = PostProcessor(config)

    async def bench(ctx):
        ctx.set(dut.i_valid, 1)
        ctx.set(dut.i_meta.write, 1)
        for _ in range(PostProcessor.Y_LATENCY + 2):
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    with pytest.raises(AssertionError, match="cannot wait"):
        sim.run()


def test_gap_promise():
    assert PostProcessor.MAX_GAP <= 8
