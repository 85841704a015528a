"""What `--set` chooses about quantisation: calibration, equalisation, 16-bit activations, narrow weights."""

import json

import numpy as np
import pytest

import graph_maker as maker
from hwgen import compare
from hwgen import graph as fg
from hwgen.config import Config
from hwgen.errors import UserError
from hwgen.host.pack import pack_input, unpack_output
from hwgen.intgraph import MatMul, Norm
from hwgen.program import manifest
from hwgen.quantise import Quantisation, clipping
from hwgen.schedule import schedule
from hwgen.select import integers
from hwgen.sim import golden
from hwgen.sim.machine import Machine


def built(graph, **options):
    return integers({"": graph}, maker.images(graph, 8), Quantisation(**options))[""]


def compared(graph, integer, spread=1):
    return compare.compare(graph, integer, maker.images(graph, 3, seed=5), golden.run, spread)


def snr(graph, integer):
    return compared(graph, integer).outputs[0].snr_db


# --- bits ---


@pytest.mark.parametrize("wrong", ("-1", "nan", "inf", "101", "much"))
def test_min_snr_is_a_number_of_decibels(wrong):
    with pytest.raises(UserError, match="min_snr"):
        Quantisation.from_texts({"min_snr": wrong})
    assert Quantisation.from_texts({"min_snr": "24"}).min_snr == 24.0


# --- calibration -----------------------------------------------------------------------------------------------------


def counts_of(values):
    return clipping.histogram(np.abs(values), np.abs(values).max(axis=1))


@pytest.mark.parametrize("method", ("mse", "entropy"))
def test_outliers_are_cut_off_and_even_ranges_are_not(method):
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((1, 100_000))
    outlier = normal.copy()
    outlier[0, 0] = 20.0
    flat = rng.uniform(-1, 1, (1, 100_000))
    parts = clipping.covered(np.concatenate([counts_of(v) for v in (normal, outlier, flat)]), method)
    assert parts[1] < 0.8 and parts[1] < parts[0] <= 1.0 and parts[2] > 0.95
    assert parts.shape == (3,) and parts.min() >= 0.25


def test_mse_chooses_the_smallest_error():
    """Against trying every part on the values themselves."""
    rng = np.random.default_rng(1)
    values = np.abs(rng.standard_t(3, (1, 20_000)))
    (part,) = clipping.covered(counts_of(values), "mse")
    peak = values.max()

    def error(share):
        step = share * peak / 127
        return np.square(values - np.minimum(np.rint(values / step), 127) * step).sum()

    best = min(error(share) for share in clipping.CANDIDATES / clipping.BINS)
    assert error(part) <= best * 1.01 < error(1.0)


def test_entropy_of_a_part_is_that_of_its_levels():
    """Against loops: what lies beyond joins the last bin, each level's count is spread over its bins that have any."""
    rng = np.random.default_rng(2)
    counts = counts_of(rng.standard_t(3, (1, 3000)))
    counts[0, 700:760] = 0
    ends = np.array([512, 800, 1200, clipping.BINS])
    counts[0, ends - 1] += 5  # the last bin is another than the one before
    for end in ends.tolist():
        p = counts[0, :end].astype(float)
        p[-1] += counts[0, end:].sum()
        q = np.zeros(end)
        for level in range(clipping.LEVELS):
            bins = [b for b in range(end) if b * clipping.LEVELS // end == level]
            full = [b for b in bins if counts[0, b]]
            q[full] = counts[0, bins].sum() / max(len(full), 1)
        p, q = p / p.sum(), q / q.sum()
        wanted = sum(a * np.log(a / max(b, 1e-9)) for a, b in zip(p, q, strict=True) if a > 0)
        assert clipping._divergence(counts, end)[0] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("method", ("mse", "entropy"))
def test_calibration_reaches_the_steps(method):
    graph = maker.vit(experts=4)
    plain, other = built(graph), built(graph, calibration=method)
    scales = [np.ravel(g.buffers["0.attn.q"].scale) for g in (plain, other)]
    assert np.all(scales[1] <= scales[0]) and np.any(scales[1] < scales[0])
    assert snr(graph, other) > 18


# --- LayerNorm ---------------------------------------------------------------------------------------------------------


def with_outliers(shift):
    """One channel of the first LayerNorm 30 times larger than the rest, or shifted by as much."""
    graph = maker.vit(depth=1)
    gamma, beta = np.ones(32, np.float32), np.zeros(32, np.float32)
    (beta if shift else gamma)[3] = 30
    weights = {}
    for part in "qkv":
        weights[part] = graph.node(f"0.{part}").weight.copy()
        weights[part][:, 3] /= 30
        graph = maker.change(graph, f"0.{part}", weight=weights[part])
    return maker.change(graph, "0.norm1", gamma=gamma, beta=beta)


def test_a_large_constant_channel_costs_nothing():
    graph = with_outliers(shift=True)
    integer = built(graph, equalise=0.0)
    (norm,) = (op for op in integer.ops if isinstance(op, Norm) and op.name == "0.norm1")
    assert abs(integer.offsets["0.norm1"][3] - 30) < 2
    assert np.abs(norm.beta).max() < 12000  # the middle went into the biases of Q, K and V
    assert snr(graph, integer) > 30


def test_equalisation_evens_out_an_outlier_channel():
    graph = with_outliers(shift=False)
    plain, even = (built(graph, equalise=strength) for strength in (0.0, 0.5))
    scale = np.ravel(even.buffers["0.norm1"].scale)
    assert scale[3] > 10 * np.delete(scale, 3).max() and np.ptp(plain.buffers["0.norm1"].scale) == 0
    assert snr(graph, even) > snr(graph, plain) + 3
    layers = {layer.name: layer for layer in compared(graph, even).layers}
    assert layers["0.norm1"].own_db > 70  # compared in real units


@pytest.mark.parametrize("parts", ["qkv", "k"])
def test_equalisation_leaves_weights_quantised_before(parts):
    graph = with_outliers(shift=False)
    for part in parts:
        weight = graph.node(f"0.{part}").weight
        step = np.abs(weight).max(axis=1, keepdims=True) / 127
        graph = maker.change(graph, f"0.{part}", weight=(np.rint(weight / step) * step).astype(np.float32))
    assert np.ptp(built(graph).buffers["0.norm1"].scale) == 0


# --- 16 and 4 bits -----------------------------------------------------------------------------------------------------


def test_wide_layers_lose_nothing_by_their_activations():
    """Weights on the int8 grid, so that activations alone make the error of the second layer of the MLP."""
    graph = maker.vit(depth=1, classes=0)
    weight = graph.node("0.fc2").weight
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    graph = maker.change(graph, "0.fc2", weight=(np.rint(weight / step) * step).astype(np.float32))
    plain, wide = built(graph), built(graph, wide="0.add2")
    own = [{layer.name: layer.own_db for layer in compared(graph, g).layers}["0.add2"] for g in (plain, wide)]
    assert own[1] > own[0] + 15


@pytest.mark.parametrize("pattern", ("*.add?", "0.add1, head, 1.gate", "*"))
def test_wide_layers_on_the_machine(pattern):
    graph = maker.vit(depth=2, experts=4, prefix=2)
    integer = built(graph, wide=pattern)
    assert len([op for op in integer.ops if op.name.endswith(".rest")]) >= 2
    image = {name: array[0] for name, array in maker.images(graph, 1, seed=9).items()}
    expected = golden.run(integer, image)
    program = schedule({"": integer}, Config(array_outputs=16, array_inputs=16))
    assert program.size and snr(graph, integer) > 20
    entry = manifest(program, models=[], board="", registers={}, files={})
    task, memory = entry["tasks"][""], entry["memory"]
    dram = np.zeros(program.size, np.uint8)
    for _, offset, data in program.images():
        dram[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
    for slot in task["inputs"]:
        data = pack_input(slot, image[slot["name"]])
        dram[slot["dram"] : slot["dram"] + len(data)] = np.frombuffer(data, np.uint8)
    code = task["program"]
    machine = Machine(program.config)
    machine.run(dram, code["offset_bytes"], code["instructions"], memory["data_base"], memory["weight_bases"])
    for slot in task["outputs"]:
        found = unpack_output(slot, dram[slot["dram"] : slot["dram"] + slot["bytes"]].tobytes())
        np.testing.assert_array_equal(found, expected.outputs[slot["name"]])


@pytest.mark.parametrize(
    "options, said",
    [
        ({"calibration": "percentile"}, "calibration='percentile': must be max, mse or entropy"),
        ({"equalise": 1.5}, "equalise=1.5: must be a number from 0 to 1"),
        ({"equalise": float("nan")}, "equalise=nan"),
        ({"wide": "0.add1, no.such"}, "--set wide=0.add1, no.such: 'no.such' is no linear layer.*, for example '0.add1'"),
        ({"wide": "0.attn"}, "'0.attn' is no linear layer"),
        ({"wide": "1.add2"}, "'1.add2' is no linear layer"),
        ({"weights": "7"}, "weights=7: '7' must be auto, 8, 6, 5 or 4"),
        ({"weights": "0.fc1:few"}, "'few' must be auto"),
        ({"weights": "no.such:8"}, "--set weights=no.such:8: 'no.such' is no linear layer or layer of experts"),
        ({"weights": "4, :8"}, "weights=4, :8: ':8' names no layer"),
        ({"weights": "5,0.attn:6"}, "--set weights=5,0.attn:6: '0.attn' is no linear layer or layer of experts"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(UserError, match=said):
        built(maker.vit(experts=4), **options)


def test_command_line(hwgen, models, tmp_path):
    model, data = models / "vit_digits.onnx", models / "digits_calib.npz"
    shape = ["--set", "array_outputs=16", "--set", "array_inputs=16"]
    chosen = ["--set", "calibration=mse", "--set", "wide=*blocks.0.add*", "--set", "equalise=0.25"]
    code, _, err = hwgen("build", model, "--calibrate", data, "-o", tmp_path / "b", *shape, *chosen)
    assert code == 0, err
    entry = json.loads((tmp_path / "b" / "manifest.json").read_text())["quantisation"]
    assert entry == {"calibration": "mse", "equalise": 0.25, "wide": "*blocks.0.add*", "min_snr": 20.0, "weights": "8"}
    for setting, said in (
        ("calibration=best", "calibration='best'"),
        ("equalise=much", "--set equalise=much: not a number"),
        ("colour=red", "it has acc_rows"),
        ("colour=red", "Quantisation has calibration, equalise, min_snr, weights, wide"),
    ):
        code, _, err = hwgen("build", model, "-o", tmp_path / "c", "--set", setting)
        assert code == 2 and said in err and err.count("\n") == 1


def test_compare_names_the_layer_that_was_spoilt():
    graph = maker.vit(depth=2)
    integer = built(graph)
    broken = [op for op in integer.ops if isinstance(op, MatMul) and op.name == "1.fc2"]
    for op in broken:
        op.w[:] = op.w // 16 * 16
    found = compared(graph, integer, 2)
    assert found.worst == "1.add2" and "most of the error enters at 1.add2" in compare.text(found)
    spoilt = next(layer for layer in found.layers if layer.name == "1.add2")
    assert spoilt.own_db < 30 and spoilt.output_db < found.outputs[0].snr_db + 3
    assert isinstance(graph.node("1.add2"), fg.Add)
