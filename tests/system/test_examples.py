"""The trained examples of maps: golden answers as the float model does."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen.example import write
from hwgen.importer.reference import reference
from hwgen.levels import import_model
from hwgen.select import integers
from hwgen.sim import golden


@pytest.mark.parametrize("name, least", [("swin-digits", 0.98), ("hybrid-digits", 0.99)])
def test_accuracy_is_that_of_float(name, least, tmp_path):
    """On all test images within half a point of the float model, which is as accurate as it was trained to be."""
    model, calibration, test = write(name, tmp_path / "net.onnx")
    with np.load(calibration) as data:
        graph = integers({"": import_model(model)}, {"image": data["image"]})[""]
    with np.load(test) as data:
        images, labels = data["image"], data["label_digit"]
    wanted = reference(model, {"image": images})["digit"].argmax(1)
    weights = golden.operands(graph)
    found = np.array([golden.run(graph, {"image": image}, weights=weights).outputs["digit"].argmax() for image in images])
    assert (wanted == labels).mean() >= least
    assert (found == labels).mean() >= (wanted == labels).mean() - 0.005
