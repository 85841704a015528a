"""Gated MLPs, rotary positions, norms of queries and keys: float against golden, golden against machine and Verilog."""


import numpy as np
import pytest

import gated_maker as maker
from hwgen import graph as fg
from hwgen.config import Config
from hwgen.intgraph import Multiply
from hwgen.mapping import Mapping
from hwgen.schedule import schedule
from hwgen.select import integers
from hwgen.sim import golden

SQUARE = Config(array_outputs=16, array_inputs=16)
UNEVEN = Config(array_outputs=12, array_inputs=20, weight_ports=1)


@pytest.mark.parametrize("config", [SQUARE, UNEVEN], ids=["16x16", "12x20"])
@pytest.mark.parametrize("form", maker.FORMS)
def test_accuracy_and_machine(form, config, on_machine):
    graph = maker.vit(**maker.FORMS[form])
    fg.verify(graph)
    rng = np.random.default_rng(1)
    images = rng.standard_normal((6, *graph.inputs["image"])).astype(np.float32)
    integer = integers({"": graph}, {"image": images})[""]
    kinds = {type(op) for op in integer.ops}
    assert Multiply in kinds or "norm of heads" in form
    signal = noise = 0.0
    for image in images:
        wanted = fg.outputs(graph, fg.evaluate(graph, {"image": image}))
        result = golden.run(integer, {"image": image})
        for name, value in wanted.items():
            signal += float(np.square(value).sum())
            noise += float(np.square(value - result.outputs[name]).sum())
    assert 10 * np.log10(signal / noise) > 27
    found = on_machine(schedule({"": integer}, config), "", {"image": images[0]})
    for name, value in golden.run(integer, {"image": images[0]}).outputs.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.xdist_group("16x16")
@pytest.mark.parametrize("form", ["norm inside", "all"])
def test_on_verilog(form, climb):
    graph = maker.vit(**maker.FORMS[form])
    images = np.random.default_rng(2).standard_normal((2, *graph.inputs["image"])).astype(np.float32)
    integer = integers({"": graph}, {"image": images})[""]
    climb({"": integer}, SQUARE, "", [{"image": images[0]}])
    climb({"": integer}, SQUARE, "", [{"image": images}], mapping=Mapping(group=2), batch=2, stall=100, seed=3)
