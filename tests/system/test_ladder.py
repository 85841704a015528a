"""The ladder: trained and random networks give the same bits on golden, machine and RTL, at two array shapes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from hwgen import isa
from hwgen.config import Config
from hwgen.counts import stream_beats
from hwgen.graph import Graph
from hwgen.intgraph import Transfer
from hwgen.levels import import_model
from hwgen.mapping import Mapping, together
from hwgen.mapping.rematerialise import rematerialise
from hwgen.quantise import Quantisation
from hwgen.schedule import schedule
from hwgen.select import integers
from hwgen.sim import golden
from hwgen.sim.tb.graphs import Shape, random_graph, random_images
from hwgen.sim.tb.maps import random_map_graph
from hwgen.sim.tb.selections import random_selection_graph
from hwgen.sim.tb.windows import random_window_graph

SQUARE = Config(array_outputs=16, array_inputs=16)
# Divides neither 64 nor the heads of 32. What expands narrow weights lets plain ones through: one compilation for both.
ODD = Config(array_outputs=12, array_inputs=20, weight_ports=1, narrow_weights=1)
SMALLEST = Config(
    array_outputs=8, array_inputs=8, banks=2, acc_rows=32, bank_words=512, scale_entries=512, queue_entries=64,
    norm_columns=64, weight_words=64, weight_ports=1, max_experts=8,
)  # fmt: skip
SHAPES = pytest.mark.parametrize(
    "config",
    [  # a shape's tests go to one worker, which compiles it once
        pytest.param(SQUARE, id="16x16", marks=pytest.mark.xdist_group("16x16")),
        pytest.param(ODD, id="12x20", marks=pytest.mark.xdist_group("12x20")),
    ],
)
IMAGES = 4
CALIBRATION = 64
ASSETS = Path(str(resources.files("hwgen.example"))) / "assets"


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    """Calibration and test images of the digit models."""
    return {part: np.load(ASSETS / f"digits_{part}.npz")["image"] for part in ("calib", "test")}


@pytest.fixture
def trained(request):
    """Graph of a trained model: shipped with the project, or from the folder of real networks."""

    def get(name: str) -> Graph:
        path = ASSETS / f"{name}.onnx"
        return import_model(path if path.exists() else request.getfixturevalue("models") / path.name)

    return get


@SHAPES
@pytest.mark.parametrize("model", ["m3vit_digits_2task", "vit_digits", "vit_digits_dynamo"])
def test_trained_model(model, config, trained, digits, climb):
    graphs = integers({"": trained(model)}, {"image": digits["calib"][:CALIBRATION]})
    count = IMAGES if model.startswith("m3vit") else 1  # what is done in a dense network does not hang on the image
    ladder = climb(graphs, config, "", [{"image": image} for image in digits["test"][:count]])
    assert all(result.registers["ARRAY_ACTIVE"] > 0 for result in ladder.rtl)


@SHAPES
def test_two_tasks_in_one_bundle(config, trained, digits, climb):
    """One file per task: both tasks run from one program image that holds the shared weights once."""
    names = {"digit": "m3vit_digits_digit", "parity": "m3vit_digits_parity"}
    graphs = integers(
        {task: trained(name) for task, name in names.items()},
        {"image": digits["calib"][:CALIBRATION]},
    )
    images = [{"image": image} for image in digits["test"][:IMAGES]]
    moe = [climb(graphs, config, task, images) for task in names]
    # The trained router leaves experts without a token on some of these images.
    assert any(0 in queue for ladder in moe for run in ladder.machine for queue in run.queues)


@pytest.mark.parametrize(
    "config",
    [  # what the tasks share is found before there is a shape
        pytest.param(SQUARE, id="16x16", marks=pytest.mark.xdist_group("16x16")),
        pytest.param(ODD, id="12x20", marks=[pytest.mark.xdist_group("12x20"), pytest.mark.slow]),
    ],
)
def test_two_tasks_as_one_run(config, trained, digits, climb):
    """Both tasks of an image: the answers of each alone, in fewer cycles, with the weights of an expert read once."""
    names = {"digit": "m3vit_digits_digit", "parity": "m3vit_digits_parity"}
    graphs = integers(
        {task: trained(name) for task, name in names.items()},
        {"image": digits["calib"][:CALIBRATION]},
    )
    joint = together(graphs)
    images = [{"image": image} for image in digits["test"][:2]]
    ladder = climb({joint.task: joint}, config, joint.task, images)
    alone = {task: climb({task: graph}, config, task, images) for task, graph in graphs.items()}
    for i, both in enumerate(ladder.machine):
        for task in names:
            np.testing.assert_array_equal(both.outputs[task], alone[task].machine[i].outputs[task])
        assert ladder.rtl[i].cycles < 0.85 * sum(one.rtl[i].cycles for one in alone.values())
        assert both.weight_beats < 0.75 * sum(one.machine[i].weight_beats for one in alone.values())


@SHAPES
def test_without_limits_of_dram(config, trained, digits, climb):
    graphs = integers({"": trained("m3vit_digits_2task")}, {"image": digits["calib"][:CALIBRATION]})
    climb(graphs, config, "", [{"image": digits["test"][0]}], dram="unlimited")


def test_task_switch_moves_no_weight(trained, digits, hardware):
    """An image of another task before costs an image neither a byte nor a cycle, but for the phase of DRAM's refresh."""
    names = {"digit": "m3vit_digits_digit", "parity": "m3vit_digits_parity"}
    calibration = {"image": digits["calib"][:CALIBRATION]}
    program = schedule(integers({task: trained(name) for task, name in names.items()}, calibration), SQUARE)
    image = {"image": digits["test"][0]}
    steady = {"dram": "unlimited"}
    alternating = hardware(program, [(task, image) for task in ("digit", "parity", "digit", "parity")], **steady)
    digit, parity = (hardware(program, [(task, image)] * 2, **steady) for task in names)
    for run, same in zip(alternating[2:], (digit[1], parity[1]), strict=True):
        counted = {name: n for name, n in run.registers.items() if "BEATS" in name or name.startswith("CYCLES")}
        assert all(counted[name] for name in ("WEIGHT_BEATS0", "DATA_READ_BEATS", "DATA_WRITE_BEATS", "CYCLES_LO"))
        assert counted == {name: same.registers[name] for name in counted}
        assert run.reads == same.reads


@SHAPES
@pytest.mark.parametrize("seed", range(3))
def test_random_graph_with_stalls(seed, config, climb):
    """Every mode of every operation; an expert with no token and one with all; handshakes withheld at random."""
    graph = random_graph(seed, Shape(experts=6, top_k=2, favour=1, shun=4))
    ladder = climb({"": graph}, config, "", [random_images(graph, seed)], stall=100, seed=seed + 1)
    tokens = Shape().tokens
    for run in ladder.machine:
        queues = np.array(run.queues)
        assert (queues[:, 1] == tokens).all() and (queues[:, 4] == 0).all()


@SHAPES
@pytest.mark.parametrize(
    ("batch", "mapping"), [(3, Mapping()), (4, Mapping(staggered=True, shared_hidden=True, halved=True))], ids=["whole", "halves"]
)
def test_batch_with_stalls(config, batch, mapping, climb):
    """Images share the experts' weights; with one queue for all of them or of each half, an empty and a full one."""
    graph = random_graph(1, Shape(experts=6, top_k=2, favour=1, shun=4))
    sets = [random_images(graph, seed) for seed in range(batch)]
    images = {name: np.stack([s[name] for s in sets]) for name in sets[0]}
    ladder = climb({"": graph}, config, "", [images], mapping=mapping, batch=batch, stall=100, seed=7)
    wanted = [golden.run(graph, s).outputs for s in sets]
    for name, values in ladder.machine[0].outputs.items():
        np.testing.assert_array_equal(values, np.stack([outputs[name] for outputs in wanted]))


@SHAPES
def test_row_blocks(config, climb):
    graph = random_graph(2, Shape())
    climb({"": graph}, config, "", [random_images(graph, 0)], mapping=Mapping(row_tiles=2))


@SHAPES
def test_spills(config, climb):
    """Next to no room: what one run of operations leaves for another goes to DRAM and comes back, block by block."""
    graph = random_graph(3, Shape(patches=(4, 5)))
    mapping = Mapping(spill=0.02)
    moves = [op for op in mapping.apply(graph, config, 1).ops if isinstance(op, Transfer)]
    assert 2 * len(moves) > len(graph.ops)
    climb({"": graph}, config, "", [random_images(graph, 0)], mapping=mapping, stall=100, seed=5)


@SHAPES
def test_depth_first(config, climb):
    """No room for anything: every run in the smallest blocks, each with its own queues."""
    graph = random_graph(3, Shape(patches=(4, 5)))
    mapping = Mapping(shared_hidden=True, room=0.0)
    assert len(mapping.apply(graph, config, 1).ops) > 1.5 * len(graph.ops)
    climb({"": graph}, config, "", [random_images(graph, 0)], mapping=mapping)


@SHAPES
def test_rematerialise(config, climb):
    """A LayerNorm repeated for its last reader."""
    graph = random_graph(3, Shape())
    twice = rematerialise(graph)
    assert len(twice.ops) > len(graph.ops)
    climb({"": twice}, config, "", [random_images(graph, 0)])


MAPS = ({}, {"windows": (2, 3), "width": 44}, {"windows": (3, 2), "size": (2, 4), "width": 36})


@SHAPES
@pytest.mark.parametrize("seed", range(3))
def test_maps_with_stalls(seed, config, climb):
    """Convolutions, shifted windows there and back, attention in a window; handshakes withheld at random."""
    graph = random_map_graph(seed, **MAPS[seed])
    climb({"": graph}, config, "", [random_images(graph, seed)], stall=100, seed=seed + 1)


@SHAPES
def test_maps_in_parts(config, climb):
    """A map with more rows than the accumulators."""
    graph = random_map_graph(4, windows=(5, 4), size=(4, 4))
    assert graph.buffers["x"].rows > config.acc_rows
    climb({"": graph}, config, "", [random_images(graph, seed) for seed in range(2)])


# With all units that a machine may be without; chunks of 4 elements, of 16 and of 4.
WINDOWED = {
    "8x12": Config(
        array_outputs=8, array_inputs=12, window_chunks=1, window_rows=2, acc_rows=32, select_rows=64, scan_states=2,
        narrow_weights=1, axi_bytes=8,
    ),
    "16x16": replace(SQUARE, window_chunks=1, window_rows=2, acc_rows=32, select_rows=64),
    "12x20": replace(ODD, window_chunks=3, window_rows=3, select_rows=32),
}  # fmt: skip
WINDOWS = pytest.mark.parametrize(
    "name",
    [  # the larger ones are compiled where there is time
        pytest.param("8x12", marks=pytest.mark.xdist_group("window 8x12")),
        *(pytest.param(n, marks=[pytest.mark.xdist_group(f"window {n}"), pytest.mark.slow]) for n in ("16x16", "12x20")),
    ],
)


@WINDOWS
@pytest.mark.parametrize("seed", range(2))
def test_random_windows_with_stalls(seed, name, climb):
    """Depthwise convolution, pooling, shifted windows, resizing and merging; in parts where the row maxima are fewer."""
    groups = {"width": 24, "groups": 3} if seed else {}
    graph = random_window_graph(seed, **groups)
    climb({"": graph}, WINDOWED[name], "", [random_images(graph, seed)], stall=100, seed=seed + 1)


@WINDOWS
@pytest.mark.parametrize("seed", range(2))
def test_random_selections_with_stalls(seed, name, climb):
    """Rows chosen by scores that tie, by columns and rows of them: some, all, one, the rest."""
    groups = {"width": 48, "groups": 3} if seed else {}
    graph = random_selection_graph(seed, **groups)
    climb({"": graph}, WINDOWED[name], "", [random_images(graph, seed)], stall=100, seed=seed + 1)


@WINDOWS
@pytest.mark.parametrize("model", ["swin_digits", "hybrid_digits"])
def test_trained_backbone(model, name, trained, digits, climb):
    """Shifted windows and merged patches; dense and depthwise convolutions beside attention."""
    graphs = integers({"": trained(model)}, {"image": digits["calib"][:CALIBRATION]})
    climb(graphs, WINDOWED[name], "", [{"image": image} for image in digits["test"][:2]])


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(WINDOWED["8x12"], id="a-beat-a-word", marks=pytest.mark.xdist_group("window 8x12")),
        pytest.param(ODD, id="two-beats-a-word", marks=pytest.mark.xdist_group("12x20")),
    ],
)
def test_narrow_weights(config, trained, digits, climb):
    """Weights of 4 to 6 bits, plain ones between them, and experts without tokens: the same bits, fewer beats."""
    assert config.slice_beats == {1: 2, 2: 1}[config.weight_ports]
    graph, calibration = trained("m3vit_digits_2task"), {"image": digits["calib"][:CALIBRATION]}
    graphs = integers({"": graph}, calibration, Quantisation(weights="5,*.experts:4,head*:6,*blocks.0.*:8"))
    images = [{"image": image} for image in digits["test"][:2]]
    climb(graphs, config, "", images)
    programs = [schedule(graphs, replace(config, narrow_weights=n)).tasks[""].instructions for n in (1, 0)]
    narrow, plain = ([insn for insn in program if isinstance(insn, isa.Stream)] for program in programs)
    assert {insn.narrow for insn in narrow} == {0, 4, 5, 6}
    assert sum(stream_beats(i, config) for i in narrow) < 0.9 * sum(stream_beats(i, config) for i in plain)


@pytest.mark.slow
@WINDOWS
def test_windows_of_a_larger_map(name, climb):
    """Without stalls: the cycle model counts the taps, and what the reads of windows leave to stores beside them."""
    graph = random_window_graph(3, size=(8, 10), width=60)
    config = replace(WINDOWED[name], acc_rows=256, bank_words=2048, scale_entries=8192)
    climb({"": graph}, config, "", [random_images(graph, 3)])


def test_smallest_config_on_icarus(climb):
    """A second simulator, four-state: nothing that reaches an output may depend on an uninitialised register."""
    if shutil.which("iverilog") is None:
        pytest.skip("iverilog is not installed")
    shape = Shape(patches=(2, 2), patch=(1, 2), heads=1, head=12, layers=2, hidden=16, experts=3, top_k=2, classes=3)
    graph = random_graph(5, shape)
    climb({"": graph}, SMALLEST, "", [random_images(graph, 5)], simulator="icarus")
