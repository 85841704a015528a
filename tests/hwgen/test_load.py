"""Files as they come: data beside them, links, open sizes, odd tensors; and bad files, each refused in one clear line."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwgen.errors import UserError
from hwgen.importer.external import fingerprint
from hwgen.importer.load import load
from hwgen.importer.reference import reference

WEIGHT = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
BIAS = np.arange(5, dtype=np.float32)
IMAGES = np.random.default_rng(1).standard_normal((3, 3, 2, 2)).astype(np.float32)


def values(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def small(shape=("n", 3, 2, 2), kind=TensorProto.FLOAT, out=("n", 5), nodes=(), constants=()) -> onnx.ModelProto:
    """y = flatten(image) @ w + b; the weight comes from an initialiser, the bias from a Constant node."""
    chain = [
        helper.make_node("Constant", [], ["b"], "bias", value=numpy_helper.from_array(BIAS, "b")),
        helper.make_node("Reshape", ["image", "flat"], ["x"], "flatten"),
        helper.make_node("MatMul", ["x", "w"], ["xw"], "product"),
        helper.make_node("Add", ["xw", "b"], ["y"], "sum"),
    ]
    held = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.array([-1, 12]), "flat"), *constants]
    inputs = [values("image", kind, shape)]
    graph = helper.make_graph([*nodes, *chain], "g", inputs, [values("y", TensorProto.FLOAT, out)], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def saved(tmp_path, model, name="m.onnx", **options):
    tmp_path.mkdir(parents=True, exist_ok=True)
    onnx.save(model, tmp_path / name, **options)
    return tmp_path / name


def outside(tmp_path, model=None, name="m.onnx"):
    """A model with all its tensors in m.data, attributes too."""
    options = {"location": "m.data", "size_threshold": 0, "convert_attribute": True}
    return saved(tmp_path, model or small(), name, save_as_external_data=True, **options)


# --- data beside the model ---------------------------------------------------------------------------------------


def test_external_data_of_initialisers_and_attributes_from_any_folder(tmp_path, monkeypatch):
    other = small()
    other.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(BIAS + 100, "b"))
    path = outside(tmp_path / "a")
    outside(tmp_path / "b", other)
    for place in ("a", "b", "/"):
        monkeypatch.chdir(tmp_path / place)
        model = load(path if place == "/" else os.path.relpath(path))
        held = model.graph.node[0].attribute[0].t
        assert np.array_equal(model.constants["w"], WEIGHT)
        assert np.array_equal(numpy_helper.to_array(held), BIAS)
        expected = IMAGES.reshape(3, 12) @ WEIGHT + BIAS
        np.testing.assert_allclose(reference(path, {"image": IMAGES})["y"], expected, rtol=1e-5, atol=1e-5)


def branched():
    """y = image reduced, plus a number that a branch of an If and the body of a Loop hold."""

    def body(name, node, held, inputs=(), outputs=None):
        return helper.make_graph([node], name, list(inputs), outputs or [values(node.output[0], 1, None)], [held])

    two, three = numpy_helper.from_array(np.full(5, 2, np.float32), "two"), numpy_helper.from_array(BIAS * 3, "three")
    then = body("then", helper.make_node("Identity", ["two"], ["t"]), two)
    other = body("else", helper.make_node("Neg", ["two"], ["e"]), two)
    inputs = [values("i", TensorProto.INT64, []), values("c", TensorProto.BOOL, []), values("a", 1, [5])]
    step = [helper.make_node("Add", ["a", "three"], ["a2"]), helper.make_node("Identity", ["c"], ["c2"])]
    loop = helper.make_graph(step, "loop", inputs, [values("c2", TensorProto.BOOL, []), values("a2", 1, [5])], [three])
    nodes = [
        helper.make_node("If", ["yes"], ["chosen"], "choice", then_branch=then, else_branch=other),
        helper.make_node("Loop", ["times", "yes", "chosen"], ["looped"], "loop", body=loop),
    ]
    given = {"yes": np.array(True), "times": np.array(4)}
    model = small(nodes=nodes, constants=[numpy_helper.from_array(a, n) for n, a in given.items()])
    model.graph.node[-1].input[1] = "looped"
    return model


@pytest.mark.parametrize("engine", ["onnxruntime", "evaluator"])
def test_external_data_inside_branches_and_loops(tmp_path, monkeypatch, engine):
    path = outside(tmp_path, branched())
    if engine == "evaluator":
        monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    proto = onnx.load(path, load_external_data=False)
    inner = next(a.g for a in proto.graph.node[0].attribute if a.name == "then_branch").initializer[0]
    if inner.data_location != TensorProto.EXTERNAL:  # onnx writes them beside the model from 1.21 on
        pytest.skip("this onnx leaves the tensors of branches inside")
    monkeypatch.chdir("/")
    got = reference(path, {"image": IMAGES})["y"]
    np.testing.assert_allclose(got, IMAGES.reshape(3, 12) @ WEIGHT + 2 + 12 * BIAS, rtol=1e-5, atol=1e-5)


def test_external_data_missing_short_or_a_pointer(tmp_path):
    path, data = outside(tmp_path), tmp_path / "m.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-4])
    with pytest.raises(UserError, match="external data of attribute 'value' of Constant node 'bias': .*m.data is truncated"):
        load(path)
    data.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="m.data is a git-lfs pointer, not the data .git lfs pull"):
        load(path)
    data.unlink()
    with pytest.raises(UserError, match="m.onnx: external data of initialiser 'w': no such file .*m.data"):
        load(path)
    data.write_bytes(whole)
    for key, value in (("offset", "far"), ("offset", "-8"), ("length", "-1")):
        proto = onnx.load(path, load_external_data=False)
        entry = next(e for e in proto.graph.initializer[0].external_data if e.key == key)
        entry.value = value
        saved(tmp_path, proto, "bad.onnx")
        with pytest.raises(UserError, match="bad.onnx: external data of initialiser 'w': bad offset or length"):
            load(tmp_path / "bad.onnx")


@pytest.mark.parametrize("cut", [4, -4])
def test_external_data_of_another_length_than_the_shape(tmp_path, cut):
    path = outside(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    entry = next(e for e in proto.graph.initializer[0].external_data if e.key == "length")
    entry.value = str(int(entry.value) - cut)
    saved(tmp_path, proto)
    (tmp_path / "m.data").write_bytes((tmp_path / "m.data").read_bytes() + bytes(8))
    with pytest.raises(UserError, match=r"initialiser 'w' does not hold its shape \(12, 5\)"):
        load(path)


@pytest.mark.parametrize("location", ["../m.data", "/etc/hostname", "", "sub/../../m.data"])
def test_external_data_stays_beside_the_model(tmp_path, location):
    path = outside(tmp_path / "a")
    proto = onnx.load(path, load_external_data=False)
    next(e for e in proto.graph.initializer[0].external_data if e.key == "location").value = location
    saved(tmp_path / "a", proto)
    with pytest.raises(UserError, match="location '.*' is no file beside the model"):
        load(path)


def test_links_as_in_the_cache_of_huggingface_hub(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/0a1b"
    snapshot.mkdir(parents=True)
    outside(blobs)
    for name, blob in (("m.onnx", "aaaa"), ("m.data", "bbbb")):
        (blobs / name).rename(blobs / blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    assert np.array_equal(load(snapshot / "m.onnx").constants["w"], WEIGHT)
    # the data beside what the link leads to, not beside the link
    (snapshot / "m.data").unlink()
    (blobs / "bbbb").rename(blobs / "m.data")
    assert np.array_equal(load(snapshot / "m.onnx").constants["w"], WEIGHT)
    # beside the link itself
    (blobs / "m.data").rename(snapshot / "m.data")
    assert np.array_equal(load(snapshot / "m.onnx").constants["w"], WEIGHT)
    # elsewhere
    (tmp_path / "elsewhere").mkdir()
    (snapshot / "m.data").rename(tmp_path / "elsewhere/m.data")
    (snapshot / "m.data").symlink_to(tmp_path / "elsewhere/m.data")
    with pytest.raises(UserError, match="the link .*m.data leads to another folder .copy the model with cp -L"):
        load(snapshot / "m.onnx")


def test_fingerprint_covers_external_data(tmp_path):
    path = outside(tmp_path)
    before = fingerprint(path)
    data = bytearray((tmp_path / "m.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "m.data").write_bytes(data)
    assert fingerprint(path) != before
    inside = saved(tmp_path, small(), "inside.onnx")
    assert fingerprint(inside) == __import__("hashlib").sha256(inside.read_bytes()).hexdigest()


# --- what the file holds -----------------------------------------------------------------------------------------


def test_sparse_initialisers_are_written_out(tmp_path):
    model = small()
    places = np.array([3, 17, 59])
    kept = np.zeros(60, np.float32)
    kept[places] = WEIGHT.reshape(-1)[places]
    for flat in (True, False):
        indices = places if flat else np.stack(np.unravel_index(places, (12, 5)), 1)
        del model.graph.sparse_initializer[:], model.graph.initializer[:]
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 12]), "flat"))
        held = numpy_helper.from_array(kept[places], "w"), numpy_helper.from_array(indices, "")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(*held, [12, 5]))
        assert np.array_equal(load(saved(tmp_path, model)).constants["w"], kept.reshape(12, 5))
    model.graph.sparse_initializer[0].dims[0] = 2
    with pytest.raises(UserError, match=r"initialiser 'w'.* sparse"):
        load(saved(tmp_path, model))


def test_sparse_constants_are_written_out(tmp_path):
    """Of Constant nodes, also within branches."""
    model, kept = branched(), np.zeros(5, np.float32)
    kept[[1, 3]] = 7, -2
    indices = numpy_helper.from_array(np.array([1, 3]), "")
    sparse = helper.make_sparse_tensor(numpy_helper.from_array(kept[[1, 3]], "b"), indices, [5])
    held = helper.make_node("Constant", [], ["half"], "held", sparse_value=sparse)
    model.graph.node[0].attribute[0].g.node.insert(0, held)
    next(n for n in model.graph.node if n.name == "bias").attribute[0].CopyFrom(held.attribute[0])
    loaded = load(saved(tmp_path, model)).graph
    inner = next(a.g for a in loaded.node[0].attribute if a.name == "then_branch" or a.name == "else_branch").node[0]
    for node in (inner, next(n for n in loaded.node if n.name == "bias")):
        assert np.array_equal(numpy_helper.to_array(node.attribute[0].t), kept)
    held.attribute[0].sparse_tensor.dims[0] = 2
    model.graph.node[0].attribute[0].g.node[0].CopyFrom(held)
    with pytest.raises(UserError, match="Constant node 'held'.* sparse"):
        load(saved(tmp_path, model))


def test_floating_point_is_float32_and_integers_keep_their_type(tmp_path):
    half = numpy_helper.from_array(WEIGHT.astype(np.float16), "h")
    byte = numpy_helper.from_array(np.arange(3, dtype=np.uint8), "i")
    model = load(saved(tmp_path, small(constants=[half, byte])))
    assert model.constants["h"].dtype == np.float32 and model.constants["i"].dtype == np.uint8
    assert model.inputs == {"image": (1, 3, 2, 2)} and model.outputs == ["y"] and not model.quantised
    assert model.half  # of its weights, and nothing casts them


def test_unknown_element_types_are_named(tmp_path):
    model = small()
    model.graph.initializer[0].data_type = 77
    with pytest.raises(UserError, match="initialiser 'w' is of the unknown element type 77"):
        load(saved(tmp_path, model))
    model = small()
    model.graph.input[0].type.tensor_type.elem_type = 88
    with pytest.raises(UserError, match="input 'image' is of the unknown element type 88"):
        load(saved(tmp_path, model))
    with pytest.raises(UserError, match="input 'image' is of STRING"):
        load(saved(tmp_path, small(kind=TensorProto.STRING)))


@pytest.mark.parametrize("what", ["shape", "type"])
def test_outputs_without_shape(tmp_path, what):
    model = small()
    model.graph.output.append(values("xw", TensorProto.FLOAT, None))
    if what == "type":
        model.graph.output[-1].ClearField("type")
    assert load(saved(tmp_path, model)).outputs == ["y", "xw"]


def test_nodes_in_any_order(tmp_path):
    model = small()
    nodes = [model.graph.node[i] for i in (3, 1, 0, 2)]
    shuffled = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(shuffled)
    assert [n.op_type for n in load(saved(tmp_path, model)).graph.node][-1] == "Add"


@pytest.mark.parametrize("engine", ["onnxruntime", "evaluator"])
def test_the_long_name_of_onnx_own_domain(tmp_path, monkeypatch, engine):
    """In branches and functions too; onnx's checker takes no node of it."""
    model = branched()
    call = model.graph.node[-2]
    opsets = [helper.make_opsetid("ai.onnx", 18)]
    product = helper.make_node("MatMul", ["a", "b"], ["c"], "inner", domain="ai.onnx")
    model.functions.append(helper.make_function("local", "product", ["a", "b"], ["c"], [product], opsets))
    call.op_type, call.domain = "product", "local"
    for node in [*model.graph.node, *(n for a in model.graph.node[0].attribute for n in a.g.node)]:
        node.domain = node.domain or "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    model.opset_import.append(helper.make_opsetid("local", 1))
    path = saved(tmp_path, model)
    if engine == "evaluator":
        monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    got = reference(path, {"image": IMAGES})["y"]
    np.testing.assert_allclose(got, IMAGES.reshape(3, 12) @ WEIGHT + 2 + 12 * BIAS, rtol=1e-5, atol=1e-5)
    assert load(path).opsets[""] == 18
    model.opset_import.append(helper.make_opsetid("", 17))
    with pytest.raises(UserError, match="of several opsets: 17, 18"):
        load(saved(tmp_path, model))


# --- sizes that the file leaves open -----------------------------------------------------------------------------


def test_shapes_are_told_or_taken_from_images(tmp_path):
    path = saved(tmp_path, small(("batch", "channels", "height", "width")))
    for shapes in ({"image": (1, 3, 2, 2)}, {"": (1, 3, 2, 2)}):
        assert load(path, shapes).inputs == {"image": (1, 3, 2, 2)}
    assert load(path, like={"image": IMAGES.shape, "label": (3,)}).inputs == {"image": (1, 3, 2, 2)}
    with pytest.raises(UserError, match=r"shape \[1, \?, \?, \?\]; give its size, as --shape image=1,3,224,224"):
        load(path)


def test_axes_of_one_name_are_one_size(tmp_path):
    model = small(("n", "c", "h", "w"))
    model.graph.input.append(values("mask", TensorProto.FLOAT, ["n", "h", "w"]))
    path = saved(tmp_path, model)
    assert load(path, {"image": (1, 3, 2, 4)}).inputs == {"image": (1, 3, 2, 4), "mask": (1, 2, 4)}
    with pytest.raises(UserError, match="has inputs image, mask; say whose shape it is"):
        load(path, {"": (1, 3, 2, 2)})


@pytest.mark.parametrize(
    "shape, given, words",
    [
        (("n", 3, 2, 2), {"image": (1, 3, 4, 4)}, r"input 'image' has shape \[\?, 3, 2, 2\], not \[1, 3, 4, 4\]"),
        (("n", 3, 2, 2), {"image": (1, 3)}, r"not \[1, 3\]"),
        (("n", 3, 2, 2), {"picture": (1, 3, 2, 2)}, "has no input 'picture' to give a shape to; it has image"),
        (("n", 3, "h", 2), {"image": (2, 3, 2, 2)}, "export with batch 1 or a dynamic batch axis"),
        ((4, 3, 2, 2), None, "export with batch 1 or a dynamic batch axis"),
        (("n", 3, "h", "w"), {"image": (1, 3, 0, 2)}, "which holds nothing"),
        (None, None, "give its size"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path, shape, given, words):
    with pytest.raises(UserError, match=words):
        load(saved(tmp_path, small(shape)), given)


@pytest.mark.parametrize("shape", [("n", 3, 2, 2, 7), ("n", 9), ("n",)])
def test_inputs_of_any_rank_are_handed_on(tmp_path, shape):
    assert load(saved(tmp_path, small(shape))).inputs == {"image": (1, *shape[1:])}


def test_an_integer_input_is_a_number_or_fixed(tmp_path):
    model = small()
    for name, shape in (("task", []), ("mode", [1]), ("ids", ["n", 7])):
        model.graph.input.append(values(name, TensorProto.INT64, shape))
    path = saved(tmp_path, model)
    held = load(path)
    assert held.numbers == ["task", "mode"] and held.kinds["ids"] == np.int64
    held = load(path, fixed={"task": 2})
    assert held.numbers == ["mode"] and held.constants["task"] == 2 and held.fixed["task"].shape == ()
    with pytest.raises(UserError, match="has no input 'tusk'"):
        load(path, fixed={"tusk": 2})
    with pytest.raises(UserError, match="input 'ids' is no single integer"):
        load(path, fixed={"ids": 2})


# --- files that are at fault -------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            load(path)


@pytest.mark.parametrize("what", ["node", "output"])
def test_a_graph_without_nodes_or_outputs(tmp_path, what):
    nodes = [helper.make_node("Relu", ["image"], ["y"])] if what == "output" else []
    image, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 8, 8]) for n in ("image", "y"))
    graph = helper.make_graph(nodes, "g", [image], [y] if what == "node" else [])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(UserError, match=f"m.onnx: the model has no {what}"):
        load(tmp_path / "m.onnx")


def test_truncated_or_foreign_file(tmp_path):
    whole = small().SerializeToString()
    path = tmp_path / "cut.onnx"
    for data in (whole[: len(whole) // 2], whole[:-1], whole[:7], b"", b"not a model", whole[1:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match="cut.onnx"):
            load(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1000\n")
    with pytest.raises(UserError, match="cut.onnx: is a git-lfs pointer, not the model .git lfs pull"):
        load(path)


def test_newer_opset_is_named(tmp_path):
    model = small()
    model.opset_import[0].version = 99
    with pytest.raises(UserError, match="m.onnx: opset 99; the newest that onnx .* knows is"):
        load(saved(tmp_path, model))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_numbers(tmp_path, value):
    model, bad = small(), WEIGHT.copy()
    bad[2, 3] = value
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(bad, "w"))
    with pytest.raises(UserError, match=r"initialiser 'w' holds NaN or infinity at \[2, 3\]"):
        load(saved(tmp_path, model))


def test_graph_with_a_missing_value(tmp_path):
    model = small()
    del model.graph.initializer[0]
    with pytest.raises(UserError, match="not a valid ONNX graph: .* input 'w'"):
        load(saved(tmp_path, model))
