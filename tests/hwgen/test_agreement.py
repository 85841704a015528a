"""`hwgen build --verify`: good programs pass, and one that computes something else is found before anything is written."""

import re
from dataclasses import replace

import numpy as np
import pytest

import hwgen as package
from hwgen import agreement, isa, steps
from hwgen.config import Config
from hwgen.example import write
from hwgen.mapping import Mapping
from hwgen.schedule import schedule
from hwgen.sim import golden
from hwgen.sim.tb.graphs import Shape, random_graph, random_images

SMALL = {"array_outputs": 8, "array_inputs": 8}
OPTIONS = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture
def model(tmp_path):
    return write("m3vit-micro", tmp_path / "m.onnx")[0]


def damage(monkeypatch):
    """Programs whose last Matmul shifts its sums by one bit less: well formed, with the same places and waits."""

    def damaged(graphs, config):
        program = schedule(graphs, config)
        for task in program.tasks.values():
            at = max(i for i, insn in enumerate(task.instructions) if isinstance(insn, isa.Matmul))
            task.instructions[at] = replace(task.instructions[at], shift=task.instructions[at].shift - 1)
        return replace(program)

    monkeypatch.setattr(steps, "schedule", damaged)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_good_build(hwgen, model, tmp_path, batch):
    code, _, err = hwgen("build", model, "-o", tmp_path / "b", "--verify", "--batch", batch, *OPTIONS)
    assert code == 0 and f"equal to golden on {'an image' if batch == 1 else '2 images'}" in err
    assert (tmp_path / "b" / "manifest.json").exists()


def test_a_program_that_computes_something_else(hwgen, model, tmp_path, monkeypatch):
    damage(monkeypatch)
    before = sorted(tmp_path.iterdir())
    code, _, err = hwgen("build", model, "-o", tmp_path / "b", "--verify", *OPTIONS)
    assert code == 3 and "of the program differ from those of the quantised graph" in err
    assert err.splitlines()[-1] == "hwgen: this is a fault of hwgen, not of your input"
    assert sorted(tmp_path.iterdir()) == before
    assert hwgen("build", model, "-o", tmp_path / "b", *OPTIONS)[0] == 0  # nobody has asked


def test_from_python(model, tmp_path, monkeypatch):
    calibration = np.load(tmp_path / "m_calib.npz")["image"]
    bundle = package.build(model, calibrate={"image": calibration}, settings=SMALL, verify=True)
    assert bundle.path.exists()
    damage(monkeypatch)
    with pytest.raises(agreement.Disagreement, match=r"output '\w+': \d+ of \d+ values .* the first at \[\d+\]"):
        package.build(model, tmp_path / "b", calibrate={"image": calibration}, settings=SMALL, verify=True)
    assert not (tmp_path / "b").exists()


def test_in_a_file_and_before_there_is_a_program(hwgen, model, tmp_path):
    (tmp_path / "build.toml").write_text('model = "m.onnx"\nverify = true\nstop_after = "select"\n')
    code, _, err = hwgen("build", "--config", tmp_path / "build.toml")
    assert code == 2 and "--verify: the program is made by step schedule, behind select" in err


def test_every_task_and_every_image_of_a_batch():
    """A fault that one task alone shows, and one in the second image of a batch."""
    config = Config(**SMALL)
    graphs = {name: random_graph(seed, Shape()) for name, seed in (("a", 0), ("b", 1))}
    images = {name: np.stack([image] * 2) for name, image in random_images(graphs["a"], 0).items()}
    program = schedule(graphs, config)
    assert agreement.check(program, graphs, images) == "equal to golden on an image"
    with pytest.raises(agreement.Disagreement, match="^task b, output"):
        agreement.check(program, graphs | {"b": random_graph(2, Shape())}, images)

    mapped = {"": Mapping(group=2).apply(graphs["a"], config, 2)}
    pair = schedule(mapped, config)
    varied = {name: np.stack([values[0], -values[0]]) for name, values in images.items()}
    assert agreement.check(pair, {"": graphs["a"]}, varied) == "equal to golden on 2 images"
    swapped = [replace(slot, index=0) for slot in pair.tasks[""].inputs]
    pair.tasks[""] = replace(pair.tasks[""], inputs=swapped)
    with pytest.raises(agreement.Disagreement, match="^output"):
        agreement.check(pair, {"": graphs["a"]}, varied)


def test_the_first_value_that_differs_is_named(monkeypatch):
    graph, config = random_graph(0, Shape()), Config(**SMALL)
    image = random_images(graph, 0)
    right = golden.run(graph, image).outputs
    name, values = next(iter(right.items()))
    assert values.size > 4
    for flat in ([values.size - 2], [1, values.size - 1]):
        wrong = values.copy().reshape(-1)
        wrong[flat] += 1
        found = [right | {name: wrong.reshape(values.shape)}]
        monkeypatch.setattr(agreement.transfer, "on_machine", lambda *_, found=found: found)
        where = re.escape(str([int(k) for k in np.unravel_index(flat[0], values.shape)]))
        with pytest.raises(agreement.Disagreement, match=f"{len(flat)} of {values.size} values .* the first at {where}: "):
            agreement.check(schedule({"": graph}, config), {"": graph}, {k: v[None] for k, v in image.items()})
