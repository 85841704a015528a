"""Accuracy of the integer graph on the trained networks."""

import re

import numpy as np
import pytest

from hwgen import graph as fg
from hwgen.compare import compare
from hwgen.intgraph import MatMul
from hwgen.levels import import_model
from hwgen.select import integers
from hwgen.sim import golden

LABELS = {"logits": "label_digit", "digit": "label_digit", "parity": "label_parity"}
QUICK = 60


def digits(models, calib=128):
    with np.load(models / "digits_calib.npz") as file:
        images = {"image": file["image"][:calib]}
    with np.load(models / "digits_test.npz") as file:
        return images, {name: file[name] for name in file.files}


def hits(graph, integer, test, count):
    """Right answers of the float and of the integer graph, by output."""
    found = {o.name: [0, 0] for o in graph.outputs}
    for i in range(count):
        image = {"image": test["image"][i]}
        real = fg.outputs(graph, fg.evaluate(graph, image))
        for side, outputs in enumerate((real, golden.run(integer, image).outputs)):
            for name, value in outputs.items():
                found[name][side] += int(value.argmax() == test[LABELS[name]][i])
    return found


MODELS = ("vit_digits", "vit_digits_dynamo", "m3vit_digits_digit", "m3vit_digits_parity", "m3vit_digits_2task")


@pytest.mark.parametrize("name", MODELS)
def test_top1_quick(models, name):
    graph = import_model(models / f"{name}.onnx", confirmed=False)
    images, test = digits(models)
    for right, found in hits(graph, integers({"": graph}, images)[""], test, QUICK).values():
        assert abs(found - right) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_top1(models, name):
    graph = import_model(models / f"{name}.onnx")
    images, test = digits(models, 512)
    count = len(test["image"])
    for right, found in hits(graph, integers({"": graph}, images)[""], test, count).values():
        assert found >= right - 0.005 * count


def test_two_files_of_one_network_share_their_integers(models):
    graphs = {task: import_model(models / f"m3vit_digits_{task}.onnx", confirmed=False) for task in ("digit", "parity")}
    images, test = digits(models, 32)
    built = integers(graphs, images)
    # Paired by name, but for the number of the task in its gate's: gates of their own order the experts each in its way.
    first, second = ({re.sub(r"gate\.\d+", "gate", op.name): op for op in built[task].ops} for task in graphs)
    assert first.keys() == second.keys() and len(first) == len(built["digit"].ops) == len(built["parity"].ops)
    differing = set()
    for name, a in first.items():
        b = second[name]
        assert type(a) is type(b)
        for key, value in vars(a).items():
            if isinstance(value, np.ndarray) and not np.array_equal(value, getattr(b, key)):
                differing.add(a.name.split(".")[-2])
    assert differing == {"gate", "head"}
    for task, graph in graphs.items():
        ((right, found),) = hits(graph, built[task], test, 30).values()
        assert abs(found - right) <= 1


def test_both_branches_of_the_two_task_graph_share_their_weights(models):
    graph = import_model(models / "m3vit_digits_2task.onnx", confirmed=False)
    images, _ = digits(models, 16)
    weights = [op.w.tobytes() for op in integers({"": graph}, images)[""].ops if isinstance(op, MatMul) and op.expert]
    assert (len(weights), len(set(weights))) == (64, 32)  # 2 branches, 2 layers, 8 experts, 2 matrices


@pytest.mark.slow
@pytest.mark.parametrize("task", (0, 1))
def test_m3vit_edge(models, task):
    """The reference workload with its trained, outlier-laden weights: final tokens and expert choices."""
    path = models / f"m3vit_edge_task{task}.onnx"
    if not path.exists():
        pytest.skip("m3vit_edge is not here")
    graph = import_model(path)
    with np.load(models / "edge_images.npz") as file:
        images = {part: {"image": file[part].astype(np.float32) / 256} for part in ("calib", "test")}
    integer = integers({"": graph}, images["calib"])[""]
    ratios, agreement = [], []
    for i in range(len(images["test"]["image"])):
        found = compare(graph, integer, {"image": images["test"]["image"][i : i + 1]}, golden.run, 0)
        ratios.append(found.outputs[0].snr_db)
        agreement += [router.agreement for router in found.routers]
    print(f"{path.stem}: {np.mean(ratios):.2f} dB, {np.mean(agreement):.1%} of the expert choices")
    assert np.mean(ratios) >= 21 and np.mean(agreement) >= 0.96
