"""intgraph_io: a graph survives the round trip, bytes are deterministic, damage is refused."""

from dataclasses import fields, is_dataclass

import numpy as np
import pytest

from hwgen import intgraph_io
from hwgen.errors import UserError
from hwgen.intgraph import Buffer, Constant, Input, IntGraph, MatMul, Norm, Output, RouteTokens, View
from hwgen.isa import ColScale, Convert, Indirect, RowMax, RowScale


def graph(task: str, weights) -> IntGraph:
    full = View("x", 0, 4, 0, 8)
    return IntGraph(
        buffers={"x": Buffer("x", 4, 8, groups=2, scale=np.linspace(0.1, 0.2, 8)), "y": Buffer("y", 4, 6, scale=0.5)},
        ops=[
            Input("in", full, "image", (1, 4, 8), (1, 2, 4), 0.01, -0.5, source="conv"),
            Constant("c", full, np.arange(32, dtype=np.int16).reshape(4, 8)),
            Norm("n", full, full, np.ones(8, np.int16), np.zeros(8, np.int16), 1 << 40),
            RouteTokens("r", View("y", 0, 4, 0, 4), 2, True, dense=View("y", 0, 4, 0, 4)),
            MatMul(
                "m", View("y", 0, 4, 0, 6), full, weights, Convert.ROW, col_mult=np.full(6, 60000, np.uint16),
                bias=np.zeros(6, np.int16), row_scale=RowScale.CONVERTED, gelu=("softplus", 3), row_max=RowMax.ABS,
                expert=("r", 1), indirect=Indirect.GATHER,
            ),
            MatMul("v", full, full, full, w_convert=Convert.ROW, col_scale=ColScale.IMMEDIATE, col_mult=7, residual=full),
        ],
        outputs=[Output("y", View("y", 0, 1, 0, 6), 0.25, (6,))],
        task=task,
        trace={"block.0": (full, "m")},
    )  # fmt: skip


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if type(a) is not type(b):
        return False
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b


def test_round_trip_keeps_every_field_and_type():
    weights = np.random.default_rng(1).integers(-127, 128, (6, 8)).astype(np.int8)
    graphs = {"a": graph("a", weights), "b": graph("b", weights)}
    assert same(intgraph_io.load(intgraph_io.save(graphs)), graphs)


def test_equal_arrays_are_stored_once_and_bytes_are_deterministic():
    weights = np.random.default_rng(1).integers(-127, 128, (6, 8)).astype(np.int8)
    one = intgraph_io.save({"a": graph("a", weights)})
    again = intgraph_io.save({"a": graph("a", weights.copy())})
    both = intgraph_io.save({"a": graph("a", weights), "b": graph("b", weights.copy())})
    assert one == again
    assert both.count(weights.tobytes()) == 1


def test_damage_is_a_user_error_that_names_the_file():
    data = intgraph_io.save({"": graph("", np.ones((6, 8), np.int8))})
    for bad in (b"", b"hello world!", data[:40], data[:-1], data.replace(b'"|i1"', b'"|O8"')):
        with pytest.raises(UserError, match="g.bin: not a saved integer graph"):
            intgraph_io.load(bad, "g.bin")


def test_objects_are_not_saved():
    with pytest.raises(TypeError, match="have no text"):
        intgraph_io.save({"": graph("", np.array([object()]))})
