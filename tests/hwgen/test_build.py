"""The build and what runs on its bundle: deterministic, refused when damaged, the same on golden and machine."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import hwgen as hwgen_package
from hwgen import cost, isa, parts, steps
from hwgen.errors import UserError
from hwgen.example import write
from hwgen.importer.reference import reference
from hwgen.sim import rtl
from hwgen.sim.machine import Machine
from hwgen.timeline import CAUSES

pytestmark = pytest.mark.xdist_group("build")  # they share bundles

SMALL = ["--set", "array_outputs=8", "--set", "array_inputs=8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with m3vit-micro, its images and its bundle."""
    folder = tmp_path_factory.mktemp("made")
    model, calibration, _ = write("m3vit-micro", folder / "micro.onnx")
    settings = {"array_outputs": "8", "array_inputs": "8"}
    steps.build({"": model}, folder / "micro.bundle", calibrate=calibration, settings=settings)
    return folder


@pytest.fixture(scope="module")
def two_tasks(made) -> Path:
    """A bundle of two tasks `a` and `b`."""
    models = {task: made / "micro.onnx" for task in "ab"}
    settings = {"array_outputs": "8", "array_inputs": "8"}
    steps.build(models, made / "two.bundle", calibrate=made / "micro_calib.npz", settings=settings)
    return made / "two.bundle"


def contents(bundle: Path) -> dict[str, bytes]:
    return {str(p.relative_to(bundle)): p.read_bytes() for p in sorted(bundle.rglob("*")) if p.is_file()}


def test_bundle_is_complete(made):
    names = set(contents(made / "micro.bundle"))
    assert {"manifest.json", "program.bin", "dram.bin", "graph.bin", "report.json", "report.html"} <= names
    assert any(name.startswith("rtl/") and name.endswith(".v") for name in names)
    manifest = json.loads((made / "micro.bundle" / "manifest.json").read_text())
    assert manifest["board"] == "zcu104"
    assert manifest["models"][0]["file"] == "micro.onnx"


def test_built_twice_is_byte_identical(made, tmp_path):
    """In another process, with another order of sets and from another folder."""
    shutil.copy(made / "micro.onnx", tmp_path)
    options = ["--calibrate", made / "micro_calib.npz", "-o", tmp_path / "again.bundle"]
    command = [sys.executable, "-m", "hwgen", "build", tmp_path / "micro.onnx", *SMALL, *options]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(hwgen_package.__file__).parents[1])}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "images/s" in run.stdout and "available" in run.stdout
    assert contents(tmp_path / "again.bundle") == contents(made / "micro.bundle")


def test_golden_and_machine_give_the_same_numbers(hwgen, made, tmp_path):
    outputs = []
    for engine in ("golden", "machine"):
        target = tmp_path / f"{engine}.npz"
        options = ["--engine", engine, "--input", made / "micro_test.npz", "--output", target, "--limit", 3, "--json"]
        code, out, err = hwgen("run", made / "micro.bundle", *options)
        assert (code, err) == (0, "")
        summary = json.loads(out)
        assert (summary["engine"], summary["images"]) == (engine, 3)
        assert summary["outputs"] == {"logits": {"shape": [3, 5], "dtype": "float32"}}
        with np.load(target) as data:
            outputs.append(data["logits"])
    assert outputs[0].dtype == np.float32
    assert np.array_equal(*outputs)


def on_the_machine(verilog, config, image, runs, *, data_base, weight_bases, dram, progress):
    """What `hwgen.sim.rtl.simulate` does, on the machine and the cycle model."""
    assert any("module hwgen_top" in text for text in verilog.values())
    memory, results = np.frombuffer(image, np.uint8).copy(), []
    for run in runs:
        for offset, data in run.writes:
            memory[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        start = data_base + run.program * config.axi_bytes
        Machine(config).run(memory, start, run.instructions, data_base, weight_bases)
        counters = {"CYCLES_LO": 1000 + len(results), "CYCLES_HI": 0, "ARRAY_ACTIVE": 250, "BUSY_MATMUL": 900, "ID": 1}
        program = isa.disassemble(memory[start : start + run.instructions * isa.WORD_BYTES].tobytes())
        reads = [memory[at : at + size].tobytes() for at, size in run.reads]
        results.append(rtl.RunResult(reads, counters, cost.estimate(program, config, dram).spans))
    return results


def test_rtl_engine_gives_bytes_and_counters(hwgen, made, tmp_path, monkeypatch):
    monkeypatch.setattr(rtl, "simulate", on_the_machine)
    outputs = []
    for engine in ("golden", "rtl"):
        options = ["--engine", engine, "--input", made / "micro_test.npz", "--output", tmp_path / "o.npz", "--json"]
        code, out, err = hwgen("run", made / "micro.bundle", *options)
        assert code == 0, err
        with np.load(tmp_path / "o.npz") as data:
            outputs.append(data["logits"])
    assert np.array_equal(*outputs)
    summary = json.loads(out)
    assert summary["cycles"] == [1000, 1001, 1002, 1003]
    assert summary["array_utilisation"][0] == 0.25
    assert summary["counters"][0] == {"cycles": 1000, "array_active": 250, "busy_matmul": 900}
    energy = summary["energy_estimate"]
    assert "estimate" in energy["note"] and energy["of_it"]["dram"] == 0  # these runs counted no beats
    assert energy["millijoule_per_image"] == pytest.approx(sum(energy["of_it"].values()), rel=1e-2)
    code, out, _ = hwgen("run", made / "micro.bundle", *options[:-1])
    assert code == 0 and "image 3: 1,003 cycles" in out and "energy, an estimate from these counters: " in out


def test_a_batch_shares_runs(hwgen, made, tmp_path, monkeypatch):
    """Four images in batches of three: the last run is filled up, every image gets its own outputs and its share."""
    monkeypatch.setattr(rtl, "simulate", on_the_machine)
    bundle = tmp_path / "batch.bundle"
    code, out, err = hwgen(
        "build", made / "micro.onnx", *SMALL, "--calibrate", made / "micro_calib.npz", "--batch", 3, "-o", bundle
    )
    assert code == 0 and "batch of 3" in err, err
    assert json.loads((bundle / "manifest.json").read_text())["batch"] == 3
    found = {}
    for engine in ("golden", "machine", "rtl"):
        options = ["--engine", engine, "--input", made / "micro_test.npz", "--output", tmp_path / "o.npz", "--json"]
        code, out, err = hwgen("run", bundle, *options)
        assert code == 0, err
        with np.load(tmp_path / "o.npz") as data:
            found[engine] = data["logits"]
    assert len(found["golden"]) == 4 and np.ptp(found["golden"], axis=0).any()
    assert np.array_equal(found["golden"], found["machine"]) and np.array_equal(found["golden"], found["rtl"])
    summary = json.loads(out)
    assert summary["batch"] == 3 and summary["images"] == 4
    assert summary["cycles"] == [333, 333, 333, 334]  # thirds of 1,000 and 1,001
    single, whole = (json.loads((b / "report.json").read_text()) for b in (made / "micro.bundle", bundle))
    one, three = (report["tasks"][""] for report in (single, whole))
    assert three["macs"] == one["macs"] and abs(three["run_cycles"] - 3 * three["cycles"]) < 3
    assert three["traffic_bytes"]["weights"] < one["traffic_bytes"]["weights"]
    code, out, err = hwgen("build", made / "micro.onnx", *SMALL, "--batch", 0, "-o", tmp_path / "no.bundle")
    assert (code, out) == (2, "") and "batch=0" in err and not (tmp_path / "no.bundle").exists()


def test_demo_tells_whether_the_hardware_is_right(hwgen, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "verilog", lambda config: {"hwgen_top.v": "module hwgen_top; endmodule"})
    monkeypatch.setattr(rtl, "simulate", on_the_machine)
    code, out, err = hwgen("demo", "--images", 2, "--keep", tmp_path / "kept")
    assert code == 0, err
    assert "every output equal, bit for bit" in out
    assert (tmp_path / "kept" / "m3vit-digits.bundle" / "manifest.json").is_file()

    def broken(*arguments, **options):
        results = on_the_machine(*arguments, **options)
        return [rtl.RunResult([bytes(len(part)) for part in r.reads], r.registers) for r in results]

    monkeypatch.setattr(rtl, "simulate", broken)
    code, out, _ = hwgen("demo", "--images", 1, "--keep", tmp_path / "kept")
    assert code == 1
    assert "OUTPUTS DIFFER" in out


def test_noise_calibration_warns(hwgen, made, tmp_path):
    code, _, err = hwgen("build", made / "micro.onnx", *SMALL, "-o", tmp_path / "n.bundle")
    assert code == 0
    assert "hwgen: warning: no --calibrate data" in err


@pytest.mark.parametrize("name", ["manifest.json", "program.bin", "dram.bin", "graph.bin", "report.json"])
def test_flipped_bit_is_refused_by_every_command(hwgen, made, tmp_path, name):
    bundle = tmp_path / "bad.bundle"
    shutil.copytree(made / "micro.bundle", bundle)
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    run = ["run", bundle, "--engine", "machine", "--input", made / "micro_test.npz", "--output", tmp_path / "out.npz"]
    for command in (run, ["report", bundle], ["disasm", bundle]):
        code, out, err = hwgen(*command)
        assert (code, out) == (2, "")
        assert name in err and "damaged" in err
    assert not (tmp_path / "out.npz").exists()


def test_bundle_of_another_instruction_set_is_refused(hwgen, made, tmp_path, monkeypatch):
    monkeypatch.setattr("hwgen.isa.fingerprint", lambda: "0123456789abcdef")
    run = ["run", made / "micro.bundle", "--engine", "machine", "--input", made / "micro_test.npz"]
    for command in (run, ["disasm", made / "micro.bundle"]):
        code, out, err = hwgen(*command)
        assert (code, out) == (2, "")
        assert "micro.bundle: built by hwgen" in err and "another instruction set" in err


def test_bad_run_options_are_named(hwgen, made, tmp_path):
    data, bundle = made / "micro_test.npz", made / "micro.bundle"

    def fails(*arguments) -> str:
        code, out, err = hwgen("run", *arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        return err

    assert "unknown engine 'gpu'; there are golden" in fails(bundle, "--engine", "gpu", "--input", data)
    assert "--limit 0" in fails(bundle, "--engine", "golden", "--input", data, "--limit", 0)
    assert "unknown task 'depth'" in fails(bundle, "--engine", "golden", "--input", data, "--task", "depth")
    assert "no.npz: no such file" in fails(bundle, "--engine", "golden", "--input", tmp_path / "no.npz")
    assert "no.bundle" in fails(tmp_path / "no.bundle", "--engine", "golden", "--input", data)
    gone = tmp_path / "gone" / "o.npz"
    assert "gone" in fails(bundle, "--engine", "golden", "--input", data, "--output", gone)
    np.savez(tmp_path / "wrong.npz", image=np.zeros((1, 1, 4, 4)))
    assert "[1, 1, 4, 4], expected [images, 1, 8, 8]" in fails(bundle, "--engine", "golden", "--input", tmp_path / "wrong.npz")
    np.savez(tmp_path / "nan.npz", image=np.full((1, 1, 8, 8), np.inf))
    assert "'image' holds NaN or infinity in image 0" in fails(bundle, "--engine", "golden", "--input", tmp_path / "nan.npz")


def test_report_and_disasm(hwgen, made):
    code, out, _ = hwgen("report", made / "micro.bundle", "--json")
    report = json.loads(out)
    assert code == 0
    task = report["tasks"][""]
    assert task["estimate"] is True and task["cycles"] > 0 and 0 < task["utilisation"] < 1
    assert set(task["unit_busy_cycles"]) == {"load", "weights", "matmul", "vector", "store"}
    assert task["traffic_bytes"]["weights"] > 0
    code, out, _ = hwgen("report", made / "micro.bundle")
    assert code == 0 and "estimate" in out
    code, out, _ = hwgen("disasm", made / "micro.bundle")
    assert code == 0
    assert "MATMUL" in out and "ROUTE" in out and out.splitlines()[-1].split()[1] == "END"
    assert "; " in out
    page = (made / "micro.bundle" / "report.html").read_text()
    drawn = json.loads(re.search(r'id="run0-data">(.*?)</script>', page)[1])
    waits = sum(entry.get(cause, 0) > 0 for entry in task["operations"] for cause in CAUSES)
    assert sum(map(len, drawn["bars"])) == len(task["operations"]) and len(drawn["array"]) == waits > 0
    listed = parts.parts(task)
    assert page.count("<circle") == sum(row["macs"] > 0 < row["dram_bytes"] for row in listed) and "http" not in page
    for name in ("macs", "dram_bytes"):
        assert sum(row[name] for row in listed) == sum(layer[name] for layer in task["layers"])
    assert sum(layer["macs"] for layer in task["layers"]) == task["macs"]
    assert sum(layer["dram_bytes"] for layer in task["layers"]) == sum(task["traffic_bytes"].values())
    for cause in CAUSES:
        assert abs(sum(layer[cause] for layer in task["layers"]) - task["causes"][cause]) <= len(task["layers"])
    assert 0 < task["causes"]["active"] <= task["cycles"] - task["causes"]["depend"]


def test_trace_of_a_run(hwgen, made, tmp_path, monkeypatch):
    """Measured layers beside the estimated ones; a trace belongs to its program."""
    monkeypatch.setattr(rtl, "simulate", on_the_machine)
    bundle, trace, page = made / "micro.bundle", tmp_path / "t.json", tmp_path / "r.html"
    options = ["--engine", "rtl", "--input", made / "micro_test.npz", "--limit", 2, "--trace", trace]
    code, _, err = hwgen("run", bundle, *options, "--dram", "unlimited")
    assert code == 0, err
    measured = json.loads(trace.read_text())
    assert (measured["dram"], measured["dram_bytes_per_cycle"], len(measured["runs"])) == ("unlimited", 0.0, 2)
    estimate = json.loads((bundle / "report.json").read_text())["tasks"][""]
    assert len(measured["runs"][0]["operations"]) == len(estimate["operations"])
    viewed = tmp_path / "t.perfetto.json"
    assert hwgen("run", bundle, *options[:-1], viewed)[0] == 0
    slices = [event for event in json.loads(viewed.read_text())["traceEvents"] if event["ph"] == "X"]
    assert len(slices) == sum(len(run["operations"]) + len(run["layers"]) for run in measured["runs"])
    code, out, err = hwgen("report", bundle, "--trace", trace, "--html", page)
    assert (code, err) == (0, "") and "measured, run 1, DRAM unlimited" in out
    assert page.read_text().count("<canvas") == 3
    code, out, _ = hwgen("report", bundle, "--trace", trace, "--json")
    assert json.loads(out)["measured"] == measured

    def fails(command, *options) -> str:
        code, _, err = hwgen(command, bundle, *options)
        assert code == 2
        return err

    assert "unknown DRAM setting 'slow'; there are board, unlimited" in fails("run", *options, "--dram", "slow")
    options[1] = "machine"
    assert "--trace: the engine machine has no cycles" in fails("run", *options)
    trace.write_text(json.dumps(measured | {"bundle": "0" * 16}))
    assert "a trace of another program" in fails("report", "--trace", trace)
    trace.write_text("{}")
    assert "t.json: is no trace" in fails("report", "--trace", trace)


def test_progress_of_a_simulation(hwgen, made, monkeypatch):
    def simulate(*arguments, progress, **more):
        for cycles in (0, 10_000):
            progress(0, 1, cycles)
            time.sleep(0.05)
        return on_the_machine(*arguments, progress=None, **more)

    monkeypatch.setattr(rtl, "simulate", simulate)
    monkeypatch.setattr("hwgen.progress.OFTEN_SECONDS", 0.01)
    options = ["--engine", "rtl", "--input", made / "micro_test.npz", "--limit", 1]
    code, _, err = hwgen("run", made / "micro.bundle", *options, "--progress")
    assert code == 0 and re.search(r"rtl: [1-9][\d,]* of [\d,]+ cycles, run 1 of 1, 0:0\d, [\d,]+ cycles/s", err), err


def test_compare_tells_the_error_of_every_layer(hwgen, made, tmp_path):
    options = ["--input", made / "micro_test.npz", "--limit", 2]
    code, out, err = hwgen("compare", made / "micro.onnx", made / "micro.bundle", *options)
    assert (code, err) == (0, "")
    assert "SNR" in out and "logits" in out
    code, out, err = hwgen("compare", made / "micro.onnx", made / "micro.bundle", *options, "--json")
    found = json.loads(out)
    assert found["images"] == 2 and found["outputs"][0]["name"] == "logits" and found["outputs"][0]["snr_db"] > 10

    model = onnx.load(made / "micro.onnx")
    model.doc_string = "another file, the same network"
    onnx.save(model, tmp_path / "other.onnx")
    code, out, err = hwgen("compare", tmp_path / "other.onnx", made / "micro.bundle", *options)
    assert code == 0 and "other.onnx is not the file that" in err
    wider = onnx.load(made / "micro.onnx")
    for weight in wider.graph.initializer:
        if weight.name == "head.weight":
            weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((weight.dims[0] + 2, weight.dims[1]), "f4"), weight.name))
        if weight.name == "head.bias":
            weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros(weight.dims[0] + 2, "f4"), weight.name))
    wider.graph.output[0].type.tensor_type.shape.dim[1].dim_value += 2
    onnx.save(wider, tmp_path / "wider.onnx")
    code, out, err = hwgen("compare", tmp_path / "wider.onnx", made / "micro.bundle", *options)
    assert code == 2 and "another network than the bundle's" in err and "Traceback" not in err
    write("m3vit-digits-digit", tmp_path / "m3vit.onnx")
    code, out, err = hwgen("compare", tmp_path / "m3vit.onnx", made / "micro.bundle", *options)
    assert code == 2 and "its outputs digit are not those of" in err


def test_tasks_are_named_where_there_are_several(hwgen, made, two_tasks, tmp_path):
    data = made / "micro_test.npz"
    code, _, err = hwgen("run", two_tasks, "--engine", "golden", "--input", data)
    assert code == 2 and "holds the tasks a, b" in err
    code, _, err = hwgen("run", two_tasks, "--engine", "golden", "--input", data, "--task", "c")
    assert code == 2 and "unknown task 'c'; it holds 'a', 'b'" in err
    code, out, _ = hwgen("run", two_tasks, "--engine", "machine", "--input", data, "--task", "b", "--limit", 1, "--json")
    assert code == 0 and json.loads(out)["task"] == "b"
    code, out, _ = hwgen("disasm", two_tasks, "--task", "a")
    assert code == 0 and "MATMUL" in out
    code, out, _ = hwgen("disasm", two_tasks)
    assert "task a" in out and "task b" in out and "task a,b" in out


def test_tasks_of_one_image_run_together(hwgen, made, two_tasks, tmp_path):
    data, files = made / "micro_test.npz", {}
    for engine, task in (("golden", "a"), ("golden", "a,b"), ("machine", "b,a")):
        files[task] = tmp_path / f"{task}.npz"
        options = ("--engine", engine, "--input", data, "--task", task, "--limit", 1, "--output", files[task])
        code, out, _ = hwgen("run", two_tasks, *options, "--json")
        assert code == 0 and json.loads(out)["task"] == ("a" if task == "a" else "a,b")
    alone, golden, machine = (np.load(path) for path in files.values())
    assert sorted(golden.files) == sorted(f"{task}.{name}" for task in "ab" for name in alone.files)
    for name in golden.files:
        np.testing.assert_array_equal(golden[name], machine[name])
        np.testing.assert_array_equal(golden[name], alone[name[2:]])
    code, out, _ = hwgen("report", two_tasks)
    assert code == 0 and "tasks a,b" in out
    assert hwgen("verify", two_tasks, "--input", data, "--engine", "machine", "--task", "a,b", "--limit", 1)[0] == 0
    code, _, err = hwgen("compare", made / "micro.onnx", two_tasks, "--input", data, "--task", "a,b")
    assert code == 2 and "'a,b' is a run of several tasks" in err
    code, _, err = hwgen("run", two_tasks, "--engine", "golden", "--input", data, "--task", "a,c")
    assert code == 2 and "unknown task 'a,c'; it holds 'a', 'b'" in err
    code, _, err = hwgen("run", two_tasks, "--engine", "golden", "--input", data, "--task", "a,a")
    assert code == 2 and "holds no run of the tasks a,a; of its tasks it runs together: 'a,b'" in err


def test_tasks_share_their_weights(made, two_tasks):
    assert (two_tasks / "dram.bin").read_bytes() == (made / "micro.bundle" / "dram.bin").read_bytes()
    # A program for each of them, and one for both together, which is no longer, as they are the same network here.
    assert (two_tasks / "program.bin").stat().st_size == 3 * (made / "micro.bundle" / "program.bin").stat().st_size


def test_a_directory_that_is_no_bundle_is_left_alone(hwgen, made, tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("important")
    code, _, err = hwgen("build", made / "micro.onnx", *SMALL, "-o", target)
    assert code == 2 and "mine" in err
    assert [p.name for p in target.iterdir()] == ["thesis.txt"]


def test_a_model_that_fits_no_machine_leaves_nothing(hwgen, made, tmp_path):
    target = tmp_path / "x.bundle"
    code, _, err = hwgen("build", made / "micro.onnx", *SMALL, "--set", "bank_words=2", "-o", target)
    assert code == 2, err
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_and_unsupported_operators_are_named(hwgen, made, tmp_path):
    model = onnx.load(made / "micro.onnx")
    weight = next(w for w in model.graph.initializer if w.name == "blocks.0.mlp.fc1.weight")
    weight.raw_data = np.full(list(weight.dims), np.nan, np.float32).tobytes()
    onnx.save(model, tmp_path / "nan.onnx")
    code, _, err = hwgen("build", tmp_path / "nan.onnx", "-o", tmp_path / "x.bundle")
    assert code == 2 and "nan.onnx" in err and "blocks.0.mlp.fc1.weight" in err

    model = onnx.load(made / "micro.onnx")
    node = next(n for n in model.graph.node if n.op_type == "Erf")
    node.op_type = "Sin"
    onnx.save(model, tmp_path / "sin.onnx")
    code, _, err = hwgen("build", tmp_path / "sin.onnx", "-o", tmp_path / "x.bundle")
    assert code == 2 and "sin.onnx" in err and "Sin" in err and node.name in err
    assert not (tmp_path / "x.bundle").exists()


def test_tasks_must_agree_on_their_inputs():
    class Net:
        def __init__(self, shape):
            self.inputs = {"image": shape}

    graphs = {"a": Net((1, 8, 8)), "b": Net((3, 8, 8))}
    with pytest.raises(UserError, match="task 'b': input 'image' has shape"):
        steps.common_inputs(graphs)


def test_external_data_that_changed_is_told_by_compare(hwgen, made, tmp_path):
    """The model's file is the same, the weights beside it are others."""
    model = onnx.load(made / "micro.onnx")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=256)
    settings, test = {"array_outputs": "8", "array_inputs": "8"}, made / "micro_test.npz"
    steps.build({"": tmp_path / "m.onnx"}, tmp_path / "m.bundle", settings=settings)
    compare = ["compare", tmp_path / "m.onnx", tmp_path / "m.bundle", "--input", test, "--limit", 1]
    assert "is not the file" not in hwgen(*compare)[2]
    data = np.fromfile(tmp_path / "m.data", np.float32)
    (data * np.float32(1.01)).tofile(tmp_path / "m.data")
    code, _, err = hwgen(*compare)
    assert code == 0 and "m.onnx is not the file that" in err


def test_an_integer_input_makes_tasks_and_an_output_may_be_called_file(hwgen, made, tmp_path):
    model = onnx.load(made / "micro.onnx")
    graph = model.graph
    head = next(n for n in reversed(graph.node) if n.op_type in ("MatMul", "Gemm"))
    weight = next(t for t in graph.initializer if t.name == head.input[1])
    both = onnx.numpy_helper.to_array(weight)
    graph.initializer.append(onnx.numpy_helper.from_array(np.stack([both, both[::-1] * 2]), "both"))
    graph.node.insert(0, onnx.helper.make_node("Gather", ["both", "task"], ["picked"], axis=0))
    head.input[1] = "picked"
    graph.input.append(onnx.helper.make_tensor_value_info("task", onnx.TensorProto.INT64, []))
    for node in graph.node:
        node.output[:] = ["file" if name == graph.output[0].name else name for name in node.output]
    graph.output[0].name = "file"
    onnx.save(model, tmp_path / "m.onnx")
    bundle, calibration, test = tmp_path / "m.bundle", made / "micro_calib.npz", made / "micro_test.npz"
    code, _, err = hwgen("build", tmp_path / "m.onnx", *SMALL, "--calibrate", calibration, "-o", bundle)
    assert code == 0, err
    assert list(json.loads((bundle / "manifest.json").read_text())["tasks"]) == ["task0", "task1"]
    images = np.load(test)["image"][:2]
    for task in (0, 1):
        out = tmp_path / "out.npz"
        command = ["run", bundle, "--engine", "golden", "--input", test, "--output", out, "--limit", 2, "--task", f"task{task}"]
        assert hwgen(*command)[0] == 0
        expected = reference(tmp_path / "m.onnx", {"image": images, "task": np.full(2, task)})["file"]
        got = np.load(out)["file"]
        assert got.shape == expected.shape and np.abs(got - expected).max() < 0.5 * expected.std()
        code, text, err = hwgen("compare", tmp_path / "m.onnx", bundle, "--input", test, "--limit", 1, "--task", f"task{task}")
        assert code == 0 and "is not the file" not in err and "file" in text
    code, _, err = hwgen(*command[:-2])
    assert code == 2 and "task0" in err and "task1" in err
