"""Machine against golden: every operation's result in program order, and the outputs under any order of the units."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from hwgen import intgraph_io, isa, mapping
from hwgen.config import Config
from hwgen.host.pack import pack_input, unpack_output
from hwgen.intgraph import Constant, Input, RouteTokens
from hwgen.isa import Indirect
from hwgen.schedule import schedule
from hwgen.schedule.checks import Faulty, verify_task
from hwgen.sim import golden
from hwgen.sim.machine import Machine, MachineFault
from hwgen.sim.tb.graphs import Shape, random_graph, random_images

CONFIGS = {
    "16x16": Config(),
    "12x20": Config(array_outputs=12, array_inputs=20),
    "8x8": Config(array_outputs=8, array_inputs=8, weight_ports=1),
    "48x64": Config(array_outputs=48, array_inputs=64, weight_ports=4, axi_bytes=8),
    "small": Config(bank_words=256, banks=2, weight_words=64, scale_entries=256),
}
TIGHT = Config(bank_words=64, weight_words=64, scale_entries=128)  # just holds the plain shape
SHAPES = {
    "plain": Shape(),
    "all to one": Shape(favour=1, shun=2, top_k=1),
    "many experts": Shape(experts=9, top_k=3, shun=0, heads=3, head=8),
    "wide": Shape(heads=1, head=48, hidden=70, patches=(2, 5), channels=1, patch=(4, 3)),
}
ORDERS = ["eager", "lazy", 1, 2, 3]


def run(program, images, order="program", task="", observe=None):
    """Outputs of one image. The memories start with noise: nothing may depend on what was there."""
    rng = np.random.default_rng(0)
    machine = Machine(program.config)
    machine.scratch[:] = rng.integers(-32768, 32768, machine.scratch.size)
    machine.scale[:] = rng.integers(0, 65536, machine.scale.size)
    entry, dram = program.tasks[task], program.dram()
    for slot in entry.inputs:
        data = pack_input(asdict(slot), images[slot.name] if program.batch == 1 else images[slot.name][slot.index])
        dram[slot.dram : slot.dram + len(data)] = np.frombuffer(data, np.uint8)
    machine.run(dram, entry.offset, len(entry.instructions), program.data_base, program.weight_bases, observe, order)
    found = {}
    for s in entry.outputs:
        found.setdefault(s.name, []).append(unpack_output(asdict(s), dram[s.dram : s.dram + s.layout.bytes]))
    return {name: parts[0] if program.batch == 1 else np.stack(parts) for name, parts in found.items()}


def assert_equal(got, wanted):
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def assert_keeps(graph, mapped, config, batch):
    """`mapped`, for a batch, gives what golden gives of `graph` for each image alone, in any order of the units."""
    sets = [random_images(graph, seed) for seed in range(batch)]
    wanted = [golden.run(graph, images).outputs for images in sets]
    stacked = {name: np.stack([outputs[name] for outputs in wanted]) for name in wanted[0]}
    images = {name: np.stack([s[name] for s in sets]) for name in sets[0]}
    program = schedule({"": mapped}, config)
    for order in ORDERS:
        assert_equal(run(program, images if batch > 1 else sets[0], order), stacked if batch > 1 else wanted[0])


def assert_saved(graph):
    """The graph written and read again computes the same."""
    again = intgraph_io.load(intgraph_io.save({"": graph}))[""]
    images = random_images(graph, 1)
    assert_equal(golden.run(again, images).outputs, golden.run(graph, images).outputs)


def assert_checked(graph, config, kind, fields, wait):
    """An instruction with a field one more than it must be, or without the wait for a unit, is no program of the graph."""
    task = schedule({"": graph}, config).tasks[""]
    verify_task(graph, task, config)
    at = next(i for i, insn in enumerate(task.instructions) if isinstance(insn, kind))
    good = task.instructions[at]
    for field in fields:
        task.instructions[at] = replace(good, **{field: getattr(good, field) + 1})
        with pytest.raises(Faulty):
            verify_task(graph, task, config)
    task.instructions[at] = replace(good, **{f"wait_{wait.lower()}": 0})
    with pytest.raises(Faulty, match=f"does not wait for {wait}"):
        verify_task(graph, task, config)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_operation_equals_golden(config, shape):
    graph = random_graph(len(shape), SHAPES[shape])
    images = random_images(graph, 1)
    wanted = golden.run(graph, images, trace=True)
    program = schedule({"": graph}, CONFIGS[config])
    task = program.tasks[""]
    number = {op.name: i for i, op in enumerate(graph.ops)}
    last = {
        name: index for index, name in enumerate(task.origins) if not isinstance(task.instructions[index], isa.Store)
    }
    seen = set()

    def observe(index, insn, machine):
        name = task.origins[index]
        if not name or last[name] != index:
            return
        op = graph.ops[number[name]]
        view = op.dense if isinstance(op, RouteTokens) else op.out
        if view is None or isinstance(insn, (isa.Load, isa.LoadScales)) != isinstance(op, (Constant, Input)):
            return
        place = task.place(view.buffer, number[name])
        got = machine.read_place(place.address, place.pitch, place.rows, place.columns)
        got = got[view.row : view.row + view.rows, view.col : view.col + view.cols]
        rows = view.rows
        if getattr(op, "indirect", None) == Indirect.GATHER:
            rows = len(machine.queues[op.expert[1]][0])
        np.testing.assert_array_equal(got[:rows], wanted.snapshots[name][:rows], err_msg=name)
        seen.add(name)

    assert_equal(run(program, images, observe=observe), wanted.outputs)
    assert len(seen) >= len(graph.ops) - SHAPES[shape].layers  # a Route may have no dense result
    spread = [np.ptp(value) for value in wanted.outputs.values()]
    assert min(spread) > 0


@pytest.mark.parametrize("config", [*CONFIGS.values(), TIGHT], ids=[*CONFIGS, "tight"])
def test_any_order_of_the_units(config):
    for seed in range(2):
        graph = random_graph(seed, Shape(layers=3, shun=seed))
        images = random_images(graph, seed)
        wanted = golden.run(graph, images).outputs
        program = schedule({"": graph}, config)
        for order in ORDERS:
            assert_equal(run(program, images, order), wanted)


@pytest.mark.parametrize("chosen", [*mapping.candidates(1), *mapping.candidates(4)], ids=str)
def test_mappings_in_any_order_of_the_units(chosen):
    batch = 1 if chosen in mapping.candidates(1) else 4
    config = replace(CONFIGS["12x20"], bank_words=4096)
    graph = random_graph(3, Shape(layers=3, shun=0))
    assert_keeps(graph, chosen.apply(graph, config, batch), config, batch)


@pytest.mark.parametrize("seed", range(4))
def test_spilled_values_in_any_order_of_the_units(seed):
    """A scratchpad too small for anything else: most values go to DRAM and come back."""
    config = replace(CONFIGS["8x8"], bank_words=64, weight_words=64, scale_entries=256)
    graph = random_graph(seed, Shape(experts=5, top_k=3, heads=3, head=8, patches=(2, 5), layers=3))
    images = random_images(graph, seed)
    wanted = golden.run(graph, images).outputs
    for room in (0.9, 0.5):
        program = schedule({"": mapping.Mapping(spill=room).apply(graph, config, 1)}, config)
        assert sum(isinstance(insn, isa.Store) for insn in program.tasks[""].instructions) >= 5 * len(wanted)
        for order in ["program", *ORDERS]:
            assert_equal(run(program, images, order), wanted)


@pytest.mark.parametrize("acc_rows", [2, 4, 8])
def test_blocks_of_rows(acc_rows):
    """More rows than accumulators: heads that share row maxima go block by block."""
    for seed in range(4):
        graph = random_graph(seed, Shape(layers=1, heads=1 + seed % 3, head=(12, 16, 7)[seed % 3]))
        images = random_images(graph, seed)
        wanted = golden.run(graph, images).outputs
        program = schedule({"": graph}, replace(CONFIGS["12x20"], acc_rows=acc_rows))
        for order in ("program", "lazy", seed):
            assert_equal(run(program, images, order), wanted)


def test_two_tasks_in_one_memory_image():
    graphs = {task: random_graph(seed, Shape(favour=seed), task) for seed, task in enumerate("ab")}
    program = schedule(graphs, CONFIGS["16x16"])
    for task, graph in graphs.items():
        images = random_images(graph, 5)
        assert_equal(run(program, images, task=task), golden.run(graph, images).outputs)


@pytest.mark.parametrize("unit", ["load", "matmul", "vector"])
def test_missing_waits_show(unit):
    """Without the wait counts on one unit some order gives a wrong result or a fault."""
    graph = random_graph(0)
    images = random_images(graph, 0)
    wanted = golden.run(graph, images).outputs
    program = schedule({"": graph}, TIGHT)
    task = program.tasks[""]
    task.instructions = [
        insn if isinstance(insn, isa.End) else replace(insn, **{f"wait_{unit}": 0}) for insn in task.instructions
    ]

    def wrong(order):
        with np.errstate(all="ignore"):
            try:
                got = run(program, images, order)
            except MachineFault:
                return True
        return any(not np.array_equal(got[name], value) for name, value in wanted.items())

    assert any(wrong(order) for order in ORDERS)


def execute(config, instructions, dram=None):
    dram = np.zeros(1 << 16, np.uint8) if dram is None else dram
    code = isa.assemble(instructions)
    dram[: len(code)] = np.frombuffer(code, np.uint8)
    machine = Machine(config)
    machine.run(dram, 0, len(instructions), 0, [1 << 15] * config.weight_ports)
    return machine


def test_faults():
    config = CONFIGS["16x16"]
    product = isa.Matmul(rows=4, inputs=16, outputs=16, x=0, x_pitch=1, shift=8, y=64, y_pitch=1)
    stream = isa.Stream(dram=0, words=20)  # 4 words of parameters, 16 of weights
    execute(config, [stream, product, isa.End(wait_matmul=1)])
    with pytest.raises(MachineFault, match="deadlock.*MATMUL at 0"):
        execute(config, [product, isa.End(wait_matmul=1)])
    with pytest.raises(MachineFault, match="deadlock"):
        execute(config, [stream, replace(product, wait_load=1), isa.End()])
    with pytest.raises(MachineFault, match="3 weight words are left over"):
        execute(config, [replace(stream, words=23), product, isa.End(wait_matmul=1)])
    with pytest.raises(MachineFault, match="ends with END"):
        execute(config, [stream, product])
    with pytest.raises(MachineFault, match="scratchpad"):
        execute(config, [stream, replace(product, y=config.scratch_chunks - 3), isa.End(wait_matmul=1)])
    with pytest.raises(MachineFault, match="DRAM"):
        execute(config, [isa.Load(dram=1 << 20, dst=0, rows=1, chunks=1, pitch=1), isa.End(wait_load=1)])


def test_faults_of_walks():
    config = CONFIGS["16x16"]
    product = isa.Matmul(rows=4, inputs=16, outputs=16, x=0, x_pitch=1, shift=8, y=64, y_pitch=1)
    walk = isa.MatmulWalk(n0=2, x0=1, y0=1)
    taps = replace(walk, kernel_v=2)
    stream, end = isa.Stream(dram=0, words=20), isa.End(wait_matmul=1)
    execute(config, [stream, walk, product, end])
    execute(config, [replace(stream, words=36), taps, product, end])
    norm = isa.Norm(rows=1, columns=16, x=0, x_pitch=1, y=1, y_pitch=1, params=2, epsilon=1, y_max=0)
    for program, message in (
        ([stream, walk, walk, product], "a walk behind a walk"),
        ([stream, product, walk], "a walk is left over"),
        ([stream, replace(walk, wait_load=1), product], "a walk that waits"),
        ([isa.WindowWalk(), norm, stream, product], "a walk before NORM"),
        ([stream, walk, replace(product, expert=3)], "an expert's rows do not walk"),
        ([stream, walk, replace(product, rows=3)], r"3 rows in loops of \[2, 1, 1\]"),
        ([replace(stream, words=36), taps, replace(product, x_convert=isa.Convert.ROW)], "2 taps with ROW conversion"),
        ([replace(stream, words=36), taps, replace(product, row_source=isa.RowScale.TABLE)], "TABLE row multipliers"),
        (
            [replace(stream, words=4), taps, replace(product, w_source=isa.WeightSource.SCRATCHPAD)],
            "weights in the scratchpad",
        ),
        ([stream, replace(walk, x_start=(1 << 16) - 1), product], "scratchpad access"),
    ):
        with pytest.raises(MachineFault, match=message):
            execute(config, [*program, end])


def test_streams_beyond_the_weight_buffer_deadlock():
    """A queue full of streams in front of the Matmul that would make room."""
    config = Config(weight_words=64)
    product = isa.Matmul(rows=1, inputs=16, outputs=16, x=0, x_pitch=1, shift=8, y=64, y_pitch=1)
    count = isa.QUEUE_DEPTH + 6
    streams = [isa.Stream(dram=0, words=20)] * count
    end = isa.End(wait_matmul=count)
    with pytest.raises(MachineFault, match="deadlock"):
        execute(config, [*streams, *[product] * count, end])
    interleaved = [insn for pair in zip(streams, [product] * count, strict=True) for insn in pair]
    execute(config, [*interleaved, end])


def test_discard_drops_the_words_of_an_empty_queue():
    """Words streamed before the queue's length was known are popped; without `discard` they would be left over."""
    config = CONFIGS["16x16"]
    product = isa.Matmul(rows=4, inputs=16, outputs=16, x=0, x_pitch=1, shift=8, y=64, y_pitch=1, expert=3)
    stream = isa.Stream(dram=0, words=20)
    execute(config, [stream, replace(product, discard=1), isa.End(wait_matmul=1)])
    with pytest.raises(MachineFault, match="20 weight words are left over"):
        execute(config, [stream, product, isa.End(wait_matmul=1)])


def test_weight_words_are_striped():
    """Port p delivers bytes p*slice.. of each word from its own region."""
    config = Config(
        array_outputs=48, array_inputs=48, weight_ports=2
    )  # slices of 32 bytes, 16 of them padding at the end
    assert config.slice_bytes == 32
    machine = Machine(config)
    machine.dram = np.arange(4096, dtype=np.uint32).astype(np.uint8)
    machine.weight_bases = [0, 1024]
    words = machine.stream(isa.Stream(dram=6, words=2))
    assert words.shape == (2, 48)
    np.testing.assert_array_equal(words[0], [*range(96, 128), *range(96, 112)])
    np.testing.assert_array_equal(words[1], [*range(128, 160), *range(128, 144)])


def test_narrow_load():
    config = Config(array_outputs=12, array_inputs=20)  # chunks of 4 elements in beats of 16 bytes
    dram = np.full(1 << 16, 99, np.uint8)
    values = np.array([-128, -127, -1, 0, 1, 2, 126, 127, 5, -5, 6, -6], np.int8)
    for i, part in enumerate(values.reshape(3, 4)):
        dram[4096 + 16 * i :][:4] = part.view(np.uint8)
    load = isa.Load(dram=4096 // 16, dst=10, rows=3, chunks=1, pitch=2, narrow=1)
    machine = execute(config, [load, isa.End(wait_load=1)], dram)
    for row, part in enumerate(values.reshape(3, 4)):
        np.testing.assert_array_equal(machine.scratch[40 + 8 * row :][:4], part.astype(int) * 256)
        assert not machine.scratch[44 + 8 * row :][:4].any()


def test_load_and_store_keep_chunks_and_padding():
    config = Config(array_outputs=12, array_inputs=20)  # chunks of 4 elements in beats of 16 bytes
    dram = np.zeros(1 << 16, np.uint8)
    values = np.arange(24, dtype="<i2")
    padded = np.full((6, 8), 99, "<i2")
    padded[:, :4] = values.reshape(6, 4)
    dram[4096 : 4096 + 96] = padded.view(np.uint8).reshape(-1)
    load = isa.Load(dram=4096 // 16, dst=10, rows=2, chunks=3, pitch=5)
    store = isa.Store(dram=8192 // 16, src=10, rows=2, chunks=3, pitch=5, wait_load=1)
    machine = execute(config, [load, store, isa.End(wait_store=1)], dram)
    np.testing.assert_array_equal(machine.scratch[40:52], values[:12])
    np.testing.assert_array_equal(machine.scratch[60:72], values[12:])
    stored = dram[8192 : 8192 + 96].view("<i2").reshape(6, 8)
    np.testing.assert_array_equal(stored[:, :4].reshape(-1), values)
    assert not stored[:, 4:].any()
