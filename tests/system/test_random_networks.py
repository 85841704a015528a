"""Random vision transformers, dense and with experts: the float model against golden, golden against the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import network_maker as maker
from hwgen import graph as fg
from hwgen.compare import compare
from hwgen.config import Config
from hwgen.importer.reference import reference
from hwgen.levels import import_model
from hwgen.mapping import Mapping
from hwgen.schedule import schedule
from hwgen.select import integers
from hwgen.sim import golden

Network, Layer = maker.Network, maker.Layer

CONFIGS = (
    Config(array_outputs=16, array_inputs=16, bank_words=4096, window_chunks=1),
    Config(array_outputs=12, array_inputs=20, weight_ports=1, bank_words=4096, window_chunks=1),  # divides no width
    Config(
        array_outputs=8, array_inputs=8, banks=2, bank_words=16384, acc_rows=128, weight_words=64, weight_ports=1,
        window_chunks=1,
    ),  # fmt: skip
)
MAPPINGS = (
    Mapping(row_tiles=2),
    Mapping(group=2),
    Mapping(group=1, shared_hidden=True),
    Mapping(group=2, ordered=False),
)
IMAGES = 4
# Root mean square error over deviation of outputs, where the same experts were chosen. Int8 weights of layers as narrow
# as these (a row of 4 to 48 of them) leave a few per cent; a layer left out or misread leaves about one.
TOLERANCE = 0.25
# Beyond it only where a LayerNorm of channels that are all but equal magnifies what came before: then the float graph still
# computes what the file says, and no layer by itself adds more than this.
OWN_DB = 20.0


@st.composite
def layers(draw) -> Layer:
    hidden = draw(st.integers(1, 40))
    if draw(st.booleans()):
        return Layer(hidden=hidden, gated=draw(st.sampled_from(["", "", "two", "packed", "norm"])))
    experts = draw(st.one_of(st.integers(1, 9), st.sampled_from([16, 33, 64])))
    form = draw(st.sampled_from(sorted(maker.FORMS)))
    gates = ["random", "one", "bias"] + ["ties"] * (form != "threshold")  # which takes all experts that tie: refused
    return Layer(
        hidden=hidden,
        experts=experts,
        top_k=draw(st.integers(1, min(4, experts))),
        form=form,
        gate=draw(st.sampled_from(gates)),
        shared=draw(st.sampled_from([0, 0, 7])),
    )


@st.composite
def networks(draw) -> Network:
    def choice(*values):
        return draw(st.sampled_from(values))

    prefix = draw(st.integers(0, 2))
    head = draw(st.integers(4, 17))
    windows = choice(0, 0, 1, 2, 3)
    rotary = choice("", "halves", "pairs") if head % 2 == 0 and not windows else ""  # within windows it is refused
    return Network(
        grid=(draw(st.integers(1, 4)), draw(st.integers(2, 5))),
        patch=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        overlap=choice(0, 0, 1, 2),
        windows=windows,
        channels=choice(1, 3),
        heads=draw(st.integers(1, 3)),
        head=head,
        rotary=rotary,
        qk_norm=choice(False, False, True),
        head_gains=choice(False, True) if not rotary else False,  # of heads that are turned they are refused
        prefix=prefix,
        position=draw(st.booleans()),
        layers=tuple(draw(st.lists(layers(), min_size=1, max_size=2))),
        bias=draw(st.booleans()),
        qkv=choice("fused", "split", "einsum"),
        scale=choice("mul", "div", "query"),
        gelu=choice("op", "erf", "tanh", "tanh op", "silu", "relu"),
        norm=choice("op", "steps"),
        classes=choice(0, 5),
        seed=draw(st.integers(0, 1 << 20)),
    )


def choices(graph: fg.Graph, image: np.ndarray) -> list[np.ndarray]:
    """The experts that the float model chooses, of each routing, sorted for each token."""
    values = fg.evaluate(graph, {"image": image})
    return [np.sort(values[n.name][0], axis=1) for n in graph.nodes if isinstance(n, fg.Route)]


def chosen(result: golden.Result, tokens: int) -> list[np.ndarray]:
    """The same of golden."""
    routes: dict[str, list[list[int]]] = {}
    for (name, expert), (queue, _) in sorted(result.queues.items(), key=lambda item: item[0][1]):
        rows = routes.setdefault(name, [[] for _ in range(tokens)])
        for token in queue:
            rows[token].append(expert)
    return [np.array(rows) for rows in routes.values()]


def check(net: Network, folder: Path, on_machine) -> None:
    """Images on the float model and on golden; on the machine too, one alone and as they can be mapped."""
    path = maker.write(net, folder / "net.onnx")
    graph = import_model(path)
    data = maker.images(net, IMAGES, net.seed)
    integer = integers({"": graph}, {"image": data})[""]
    wanted = reference(path, {"image": data})
    results = [golden.run(integer, {"image": image}) for image in data]
    names = list(wanted)
    spread = {name: float(wanted[name].std()) + 1e-9 for name in names}
    same = []
    for i, result in enumerate(results):
        mine, theirs = chosen(result, net.tokens), choices(graph, data[i])
        if all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True)):
            same.append(i)
    for name in names:
        got = np.stack([r.outputs[name] for r in results]).reshape(wanted[name].shape)
        assert np.isfinite(got).all()
        if same:
            error = float(np.sqrt(np.square(got[same] - wanted[name][same]).mean())) / spread[name]
            if error >= TOLERANCE:
                floats = np.stack([fg.outputs(graph, fg.evaluate(graph, {"image": data[i]}))[name] for i in same])
                np.testing.assert_allclose(floats, wanted[name][same], atol=0.02 * spread[name], err_msg=f"{net}: {name}")
                worst = min(compare(graph, integer, {"image": data}, golden.run).layers, key=lambda layer: layer.own_db)
                assert worst.own_db > OWN_DB, f"{net}: {name} differs by {error:.3f} standard deviations: {worst}"
    config = CONFIGS[net.seed % len(CONFIGS)]
    mapping = MAPPINGS[net.seed % len(MAPPINGS)]
    batch = 1 if mapping.row_tiles > 1 else 2
    mapped = mapping.apply(integer, config, batch)
    batched = {"image": data[0] if batch == 1 else data[:batch]}
    machine = on_machine(schedule({"": integer}, config), "", {"image": data[0]})
    mapped_machine = on_machine(schedule({"": mapped}, config), "", batched)
    for name in names:
        np.testing.assert_array_equal(machine[name], results[0].outputs[name], f"{net}: {name} on the machine")
        images = [r.outputs[name] for r in results[:batch]]
        joined = images[0] if batch == 1 else np.stack(images)
        np.testing.assert_array_equal(golden.run(mapped, batched).outputs[name], joined, f"{net}: {name} mapped")
        np.testing.assert_array_equal(mapped_machine[name], joined, f"{net}: {name} mapped, on the machine")


QUIET = dict(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@settings(max_examples=25, derandomize=True, **QUIET)
@given(net=networks())
def test_random_network(net, tmp_path, on_machine):
    check(net, tmp_path, on_machine)


def test_soft_mixture_beside_a_shared_expert(tmp_path, on_machine):
    """Found among random networks: the sum of the two is no product, and its steps are too coarse for one."""
    layer = Layer(hidden=10, experts=33, top_k=3, form="soft_by_einsum", gate="ties", shared=7)
    net = Network(
        grid=(1, 5), patch=(3, 3), channels=1, heads=2, head=13, prefix=0, position=False, layers=(layer,), bias=False,
        qkv="einsum", scale="div", gelu="tanh op", norm="op", classes=0, seed=1767,
    )  # fmt: skip
    check(net, tmp_path, on_machine)


@pytest.mark.parametrize("qkv", ["fused", "split", "einsum"])
def test_gains_of_heads_of_normalised_queries(tmp_path, on_machine, qkv):
    """As in Swin V2: they are factors of the scores of each head."""
    net = Network(qk_norm=True, head_gains=True, qkv=qkv, heads=3, layers=(Layer(hidden=9),), seed=5)
    factors = [n.factors for n in import_model(maker.write(net, tmp_path / "m.onnx")).nodes if isinstance(n, fg.Attention)]
    assert len(factors) == 1 and len(np.unique(factors[0])) == 3
    check(net, tmp_path, on_machine)


@pytest.mark.slow
@settings(max_examples=1000, **QUIET)
@given(net=networks())
def test_many_random_networks(net, tmp_path, on_machine):
    check(net, tmp_path, on_machine)
