"""Files that onnxruntime's optimiser has rewritten become the same graph as the files it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import network_maker as maker
from hwgen import graph
from hwgen.errors import UserError
from hwgen.levels import check, import_model
from operator_maker import onnxruntime_version

onnxruntime = pytest.importorskip("onnxruntime")
Layer, Network = maker.Layer, maker.Network

LEVELS = ("ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
NETWORKS = {
    "operators": Network(channels=3),
    "written out": Network(gelu="erf", norm="steps", qkv="split", scale="div"),
    "tanh": Network(gelu="tanh", qkv="split", scale="query", patch=(4, 4), channels=3, prefix=0),
    "mixture": Network(layers=(Layer(), Layer(experts=4, top_k=2, form="dense_weights"))),
    "rows of experts": Network(layers=(Layer(experts=3, top_k=2, form="rows_of_tokens", shared=8),), gelu="erf"),
}


def optimised(path: Path, level: str, target: Path) -> Path:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return target


def operators(path: Path) -> set[str]:
    return {f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in onnx.load(path).graph.node}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_same_graph_and_values(tmp_path, name, level):
    net = NETWORKS[name]
    plain = maker.write(net, tmp_path / "plain.onnx")
    wanted, got = import_model(plain), import_model(optimised(plain, level, tmp_path / "m.onnx"))
    assert [type(n) for n in got.nodes] == [type(n) for n in wanted.nodes]
    image = {"image": maker.images(net, 1, seed=2)[0]}
    for output, array in graph.outputs(wanted, graph.evaluate(wanted, image)).items():
        again = graph.outputs(got, graph.evaluate(got, image))[output]
        np.testing.assert_allclose(again, array, atol=1e-4 * np.abs(array).max())


def test_the_highest_level_blocks_the_patch_embedding(tmp_path):
    """Its convolution has weights of another layout, which the import undoes."""
    plain = maker.write(Network(head=16, channels=3), tmp_path / "plain.onnx")
    path = optimised(plain, "ORT_ENABLE_ALL", tmp_path / "m.onnx")
    if "com.microsoft.nchwc.Conv" not in operators(path):
        pytest.skip("this machine's onnxruntime does not block so small a convolution")
    wanted, got = (next(n for n in import_model(p).nodes if isinstance(n, graph.PatchEmbed)) for p in (plain, path))
    np.testing.assert_allclose(got.weight, wanted.weight, rtol=1e-6)
    proto = onnx.load(path)
    conv = next(n for n in proto.graph.node if n.domain == "com.microsoft.nchwc" and n.op_type == "Conv")
    conv.attribute.append(onnx.helper.make_attribute("activation", "Softsign"))
    onnx.save(proto, path)
    findings = check(path)
    assert findings[0].op == "com.microsoft.nchwc.Conv" and findings[0].node == conv.name
    with pytest.raises(UserError, match="nchwc.Conv"):
        import_model(path)


def test_layer_norm_before_the_opset_that_has_it(tmp_path):
    """onnxruntime's optimisers write it into files of any opset, which ONNX's own checker calls invalid."""
    net = Network(gelu="erf", qkv="split")
    path = maker.write(net, tmp_path / "m.onnx")
    wanted = import_model(path)
    proto = onnx.load(path)
    proto.opset_import[0].version = 13
    onnx.save(proto, path)
    with pytest.raises(onnx.checker.ValidationError, match="LayerNormalization"):
        onnx.checker.check_model(proto)
    got = import_model(path)
    assert [n.name for n in got.nodes] == [n.name for n in wanted.nodes]
    proto.opset_import[0].version = 12
    proto.graph.node[-1].op_type = "Gelu"  # of opset 20
    onnx.save(proto, path)
    with pytest.raises(UserError, match="not a valid ONNX graph.*Gelu"):
        check(path)


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "LeakyRelu"])
def test_product_fused_with_its_activation(tmp_path, activation):
    """Gemm and activation become FusedGemm where tokens are two-dimensional, as inside experts."""
    w = maker.moe_maker.Writer()

    def linear(x, outputs=8):
        return w.op("Gemm", x, w.normal(8, outputs), w.normal(outputs))

    conv = w.op("Conv", "image", w.normal(8, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    x = linear(w.op("Reshape", w.op("Transpose", w.op("Reshape", conv, [1, 8, 6]), perm=[0, 2, 1]), [6, 8]))
    if activation == "Sigmoid":  # the gate of a shared expert
        y = w.op("Mul", w.op("Sigmoid", linear(x, 1)), linear(w.op("Gelu", linear(x))))
    else:
        y = linear(w.op(activation, linear(x)))
    plain = w.write(tmp_path / "plain.onnx", (1, 4, 6), w.op("Reshape", y, [1, 6, 8]), [1, 6, 8])
    path = optimised(plain, "ORT_ENABLE_EXTENDED", tmp_path / "m.onnx")
    if activation == "LeakyRelu" and onnxruntime_version() < (1, 28):
        pytest.skip("this onnxruntime does not fuse a product with LeakyRelu")
    assert "com.microsoft.FusedGemm" in operators(path)
    assert [type(n) for n in import_model(path).nodes] == [type(n) for n in import_model(plain).nodes]
