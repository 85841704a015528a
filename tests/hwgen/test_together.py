"""Several tasks of one image as one run: every output as each task gives it alone, experts' weights read once."""

from dataclasses import replace

import numpy as np
import pytest

from hwgen import mapping
from hwgen.config import Config
from hwgen.intgraph import Constant, MatMul, Norm, Output, RouteTokens
from hwgen.intgraph_checks import verify
from hwgen.mapping import Mapping, name_of, together
from hwgen.schedule import schedule
from hwgen.sim import golden
from hwgen.sim.tb.graphs import Shape, random_graph, random_images

SHAPES = {
    "plain": Shape(),
    "all to one": Shape(favour=1, shun=2, top_k=1),
    "odd": Shape(experts=5, top_k=3, heads=3, head=8, patches=(2, 5), layers=3),
    "deep": Shape(layers=4),
}


def changed(graph, at, seed):
    """The graph with other constants in the operations at these places."""
    rng, ops = np.random.default_rng(seed), list(graph.ops)
    for i in at:
        op = ops[i]
        if isinstance(op, MatMul) and isinstance(op.w, np.ndarray):
            ops[i] = replace(op, w=rng.permuted(op.w, axis=0))
        elif isinstance(op, Norm):
            ops[i] = replace(op, gamma=rng.permuted(op.gamma))
        elif isinstance(op, Constant):
            ops[i] = replace(op, data=rng.permuted(op.data))
    return replace(graph, ops=ops)


def gates(graph):
    """Places of the products that routers read."""
    logits = {op.logits.buffer for op in graph.ops if isinstance(op, RouteTokens)}
    return [i for i, op in enumerate(graph.ops) if isinstance(op, MatMul) and op.out.buffer in logits]


def renamed(graph, prefix):
    """The graph with other names throughout, as another file would give them."""
    moved = {name: replace(b, name=prefix + name) for name, b in graph.buffers.items()}

    def one(op):
        views = {n: replace(v, buffer=prefix + v.buffer) for n, v in op.views().items()}
        routed = {} if op.expert is None else {"expert": (prefix + op.expert[0], op.expert[1])}
        return replace(op, name=prefix + op.name, **views, **routed)

    outputs = [replace(o, view=replace(o.view, buffer=prefix + o.view.buffer)) for o in graph.outputs]
    return replace(graph, buffers={b.name: b for b in moved.values()}, ops=[one(op) for op in graph.ops], outputs=outputs)


def assert_as_alone(graphs, seeds=(0, 1)):
    joint = together(graphs)
    assert_equal(joint, graphs, seeds)
    return joint


def assert_equal(joint, graphs, seeds):
    verify(joint)
    assert len({op.name for op in joint.ops}) == len(joint.ops)
    for seed in seeds:
        image = random_images(next(iter(graphs.values())), seed)
        found = golden.run(joint, image).outputs
        for task, graph in graphs.items():
            for name, values in golden.run(graph, image).outputs.items():
                assert np.ptp(values) > 0
                np.testing.assert_array_equal(found[f"{task}.{name}"], values, f"{task} {name}")


def count(graph, kind):
    return sum(isinstance(op, kind) for op in graph.ops)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_tasks_with_gates_of_their_own(shape, seed):
    first = random_graph(seed, SHAPES[shape])
    graphs = {"a": first, "b": renamed(changed(first, gates(first), seed), "b."), "c": changed(first, gates(first), seed + 9)}
    joint = assert_as_alone(graphs)
    assert count(joint, RouteTokens) == count(first, RouteTokens) > 0
    assert sum(op.expert is not None for op in joint.ops) == sum(op.expert is not None for op in first.ops)
    # What comes before the first gate is there once, here as far as no buffer is used again behind it.
    assert "embed" in {op.name for op in joint.ops}


@pytest.mark.parametrize("seed", range(24))
def test_any_operation_may_differ(seed):
    """A gate or an expert, what comes before all of them or behind: the outputs are those of each task alone."""
    rng, first = np.random.default_rng(seed), random_graph(seed, list(SHAPES.values())[seed % 4])
    fixed = [i for i, op in enumerate(first.ops) if isinstance(op, (MatMul, Norm, Constant))]
    at = rng.choice(fixed, 1 + seed % 3, replace=False)
    assert_as_alone({"a": first, "b": changed(first, at, seed)}, seeds=(seed,))


@pytest.mark.parametrize("seed", range(3))
def test_tasks_of_other_ends_follow_task_by_task(seed):
    first = random_graph(seed, Shape(layers=3))
    other = changed(first, gates(first), seed)
    wider = random_graph(seed + 50, Shape(layers=3, classes=7))
    ends = [i for i, op in enumerate(first.ops) if op.name == "final"]
    assert [op.name for op in wider.ops[-2:]] == [op.name for op in first.ops[-2:]] == ["final", "head"]
    buffers = other.buffers | {"logits": wider.buffers["logits"]}
    (logits,) = (o for o in wider.outputs if o.name == "logits")
    tokens = [o for o in first.outputs if o.name == "tokens"]
    first = replace(first, outputs=[o for o in first.outputs if o.name == "logits"] + tokens)
    outputs = [replace(logits, name="more"), *tokens]
    ended = replace(other, buffers=buffers, ops=other.ops[: ends[0]] + wider.ops[-2:], outputs=outputs)
    graphs = {"a": first, "b": ended}
    joint = together(graphs)
    verify(joint)
    assert [o.name for o in joint.outputs] == ["logits", "a.tokens", "more", "b.tokens"]
    image = random_images(first, seed)
    found = golden.run(joint, image).outputs
    alone = {task: golden.run(graph, image).outputs for task, graph in graphs.items()}
    for name, wanted in (("logits", alone["a"]["logits"]), ("more", alone["b"]["more"]), ("b.tokens", alone["b"]["tokens"])):
        np.testing.assert_array_equal(found[name], wanted)


def test_equal_tasks_are_computed_once():
    graph = random_graph(3, Shape())
    joint = assert_as_alone({"a": graph, "b": renamed(graph, "b.")})
    assert len(joint.ops) == len(graph.ops)


def in_order(graph, order):
    """The graph whose experts have their turns in this order."""
    ops, made = list(graph.ops), []
    for op in ops:
        if op.expert is None:
            made.append(op)
        elif op.expert[1] == 0 and op.indirect.name == "GATHER":
            made += [o for e in order for o in ops if o.expert == (op.expert[0], e)]
    return replace(graph, ops=made)


def test_experts_in_another_order_have_one_turn():
    first = random_graph(5, Shape(experts=4))
    second = changed(first, gates(first), 5)
    joint = together({"a": in_order(first, (2, 0, 1, 3)), "b": in_order(second, (2, 3, 0, 1))})
    turns = list(dict.fromkeys(op.expert[1] for op in joint.ops if op.expert is not None))
    assert turns == [2, 0, 3, 1]
    # What they add to is cut at int16's ends, here often: another order gives other sums.
    assert_equal(joint, {task: in_order(graph, turns) for task, graph in (("a", first), ("b", second))}, (0, 1))
    assert sum(op.expert is not None for op in joint.ops) == sum(op.expert is not None for op in first.ops)


def test_mapped_and_in_a_batch():
    """Joined tasks are a graph like others: every mapping gives the same."""
    first = random_graph(2, Shape(layers=3))
    graphs = {"a": first, "b": changed(first, gates(first), 2)}
    joint, config = together(graphs), Config(bank_words=4096)
    image = random_images(first, 0)
    wanted = golden.run(joint, image).outputs
    for chosen in (*mapping.candidates(1), Mapping(shared_hidden=True, ordered=False, room=0.5)):
        found = golden.run(chosen.apply(joint, config, 1), image).outputs
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values)
    both = Mapping(group=2).apply(joint, config, 2)
    found = golden.run(both, {n: np.stack([a, random_images(first, 1)[n]]) for n, a in image.items()}).outputs
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name][0], values)
    assert schedule({joint.task: both}, config).tasks["a,b"].instructions
    with pytest.raises(ValueError, match="tasks of a batch"):
        together({"a": both, "b": both})


def test_names():
    assert name_of(["a", "b"]) == "a,b"
    graph = random_graph(0, Shape())
    names = [o.name for o in graph.outputs]
    other = replace(graph, outputs=[Output("y", o.view, o.scale, o.shape) for o in graph.outputs[:1]])
    assert [o.name for o in together({"a": graph, "b": other}).outputs] == [*names, "y"]
