"""Examples: what is written loads, is deterministic and behaves; the reference workload has the stated size."""

import hashlib

import numpy as np
import onnx
import pytest

from hwgen.errors import UserError
from hwgen.example import EXAMPLES, write
from hwgen.example.synthetic import MICRO, TINY, Spec, images, model

SMALL = [name for name in EXAMPLES if name != "m3vit-tiny"]


@pytest.mark.parametrize("name", SMALL)
def test_files_are_complete_and_fit_each_other(name, tmp_path):
    paths = write(name, tmp_path / "net.onnx")
    assert [p.name for p in paths] == ["net.onnx", "net_calib.npz", "net_test.npz"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    proto = onnx.load(paths[0])
    onnx.checker.check_model(proto)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    for path in paths[1:]:
        with np.load(path) as data:
            assert list(data["image"].shape[1:]) == shape
            assert np.isfinite(data["image"]).all()


def test_written_twice_is_byte_identical(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = (write("m3vit-micro", tmp_path / d / "net.onnx") for d in "ab")
    assert [hashlib.sha256(p.read_bytes()).digest() for p in a] == [hashlib.sha256(p.read_bytes()).digest() for p in b]


def test_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(UserError, match="unknown example 'resnet'; known are m3vit-digits"):
        write("resnet", tmp_path / "x.onnx")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        write("m3vit-micro", tmp_path / "nowhere" / "x.onnx")


def macs(s: Spec) -> int:
    t, d = s.tokens, s.width
    block = t * d * 4 * d + 2 * t * t * d
    dense, moe = t * d * s.hidden * 2, t * d * (s.top_k * s.expert_hidden * 2 + s.experts)
    return s.patches * s.image[0] * s.patch**2 * d + s.layers * block + s.layers // 2 * (dense + moe)


def test_tiny_is_the_reference_workload():
    assert (TINY.tokens, TINY.layers, TINY.experts, TINY.top_k) == (129, 12, 16, 2)
    assert round(macs(TINY) / 1e6, 1) == 782.7


def test_micro_runs_and_stays_sane():
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(model(MICRO).SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = np.concatenate([session.run(None, {"image": x[None]})[0] for x in images(MICRO, 3, 1)])
    assert outputs.shape == (3, 5)
    assert 0.1 < outputs.std() < 10


def test_tiny_runs_and_stays_sane():
    ort = pytest.importorskip("onnxruntime")
    spec = Spec(**{**TINY.__dict__, "layers": 2})
    proto = model(spec)
    chosen = next(n.output[1] for n in proto.graph.node if n.op_type == "TopK")
    proto.graph.output.append(onnx.helper.make_tensor_value_info(chosen, onnx.TensorProto.INT64, [129, 2]))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens, index = session.run(None, {"image": images(spec, 1, 1)})
    assert tokens.shape == (1, 129, 192)
    assert 0.5 < tokens.std() < 10
    assert len(np.bincount(index.ravel(), minlength=16).nonzero()[0]) >= 8  # skewed, but several experts work
