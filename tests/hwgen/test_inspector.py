"""The inspector: every node of a file, where it goes, what it costs, whether the whole fits."""

import re

import onnx
import pytest
from onnx import TensorProto, helper

import hwgen
from hwgen import levels, origins, steps
from hwgen import report as reports
from hwgen.example import write


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    return write("m3vit-micro", tmp_path_factory.mktemp("micro") / "micro.onnx")[0]


@pytest.fixture(scope="module")
def state(micro):
    return steps.build({"": micro}, micro, stop_after="schedule")


@pytest.fixture(scope="module")
def compiled(micro):
    return levels.compiled(micro).until("rows")


@pytest.fixture(scope="module")
def places(compiled):
    return origins.places(compiled.model, compiled.levels["tensor"], compiled.levels["rows"], [])


def test_where_the_nodes_of_a_mixture_go(places):
    found = {place.node: (place.how, {kind for kind, _ in place.layers}) for place in places}
    assert found["/blocks.0/mlp/fc1/MatMul"] == ("layer", {"Linear"})
    assert found["/blocks.0/mlp/fc1/Add"] == ("part", {"Linear"})  # its bias
    assert found["/blocks.0/mlp/act/Div"] == found["/blocks.0/mlp/act/Erf"] == ("part", {"Activation"})
    assert found["/blocks.0/attn/scores/MatMul"] == found["/blocks.0/attn/Mul"] == ("part", {"Attention"})
    assert found["/blocks.0/attn/k/Transpose"] == ("layout", {"Attention"})
    assert found["/blocks.1/mlp/gate/TopK"][0] == "part" and "Route" in found["/blocks.1/mlp/gate/TopK"][1]
    assert "Experts" in found["/blocks.1/mlp/combine/MatMul"][1]
    assert found["/head/index"] == ("constant", set())
    shapes = {place.node: place.shape for place in places}
    assert shapes["/head/Gemm"] == (1, 5)


def test_what_follows_from_sizes_is_constant(tmp_path):
    """The attention of an exported Swin reads its scale and its windows off the shape of its input."""
    done = levels.compiled(write("swin-digits", tmp_path / "swin.onnx")[0]).until("rows")
    found = {p.node: p for p in origins.places(done.model, done.levels["tensor"], done.levels["rows"], [])}
    block = "/stage1/stage1.0/attention"
    assert {found[f"{block}/{name}"].how for name in ("Shape", "Div", "Pow")} == {"constant"}
    softmax = found[f"{block}/Softmax"]
    assert softmax.how == "part" and ("Attention", "stage1.stage1.0.attention") in softmax.layers
    assert found["/stage1/stage1.0/mlp/mlp.1/Erf"].layers == (("Activation", "stage1.stage1.0.mlp.mlp.1"),)


def test_every_layer_stands_at_a_node_and_every_operation_is_counted_once(compiled, state, places):
    held = [name for place in places if place.how == "layer" for _, name in place.layers]
    assert sorted(held) == sorted(node.name for node in compiled.levels["rows"].nodes)
    task = reports.make(state.program, state.board)["tasks"][""]
    spent, rest = origins.costs(places, task)
    for name in ("operations", "macs", "dram_bytes"):
        whole = len(task["operations"]) if name == "operations" else sum(e.get(name, 0) for e in task["operations"])
        assert sum(cost[name] for cost in spent) + rest[name] == whole > 0
    assert rest["cycles"] == 0
    moves = [cost for cost, place in zip(spent, places, strict=True) if place.how != "layer"]
    assert all(cost["operations"] == 0 for cost in moves)


def test_the_page_is_self_contained(hwgen, micro, tmp_path):
    code, out, err = hwgen("check", micro, "--html", tmp_path / "x.html")
    assert code == 0 and "every node is supported" in out and not err
    page = (tmp_path / "x.html").read_text()
    assert not re.search(r"https?:|<link|src=|url\(", page)
    assert "it fits" in page and page.count("<tr>") > len(onnx.load(micro).graph.node)
    assert "blocks.1.mlp.experts" in page and "images/s" in page


def network(tmp_path, kind: str, **attributes):
    """A linear layer, then a node of `kind`, both outputs."""
    shape, weight = [1, 4, 8], helper.make_tensor("w", TensorProto.FLOAT, [8, 8], [0.1] * 64)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="proj"),
        helper.make_node(kind, ["y"], ["z"], name="odd", **attributes),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "yz"]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, ends, [weight]), opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_what_is_refused_stands_with_its_reason(tmp_path):
    model = network(tmp_path, "Cos")
    (finding,) = hwgen.check(model)
    page = hwgen.inspect(model)
    assert "1 of 2 nodes are not supported" in page and finding.node in page and finding.reason in page
    assert "images/s" not in page
    listed = origins.places((c := levels.compiled(model).until("rows")).model, None, None, c.findings)
    assert {place.node: place.how for place in listed} == {"proj": "part", "odd": "refused"}


def test_the_command_tells_beside_the_page_what_it_tells_without(hwgen, tmp_path):
    model = network(tmp_path, "Cos")
    told = hwgen("check", model)
    assert hwgen("check", model, "--html", tmp_path / "x.html") == told
    code, out, err = told
    assert code == 2 and "odd" in out and "--outputs y" in out and "1 node is not supported" in err
    assert "--outputs y" in (tmp_path / "x.html").read_text()


def test_what_does_not_fit_is_said(micro):
    page = hwgen.inspect(micro, settings={"array_outputs": 128, "array_inputs": 64})
    assert "it does not fit: more " in page and "DSP" in page and "it fits" not in page


def test_bad_options(hwgen, micro, tmp_path):
    code, _, err = hwgen("check", micro, "--html", tmp_path / "no" / "x.html")
    assert code == 2 and "does not exist" in err
    code, _, err = hwgen("check", micro, "--html", tmp_path / "x.html", "--board", "nexys")
    assert code == 2 and "unknown board 'nexys'" in err and not (tmp_path / "x.html").exists()
