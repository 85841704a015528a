"""What writes a model's file: PyTorch's two exporters in many settings, and the programs that rewrite such a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn


@dataclass(frozen=True)
class Export:
    """One way to export. `raw`: constants not folded (TorchScript) or the graph not optimised (dynamo)."""

    kind: str  # "ts": TorchScript, "dy": dynamo
    opset: int
    dynamic: bool = False
    raw: bool = False
    dtype: torch.dtype = torch.float32
    external: bool = False

    @property
    def name(self) -> str:
        marks = {"dyn": self.dynamic, "raw": self.raw, "external": self.external}
        dtype = {torch.float32: [], torch.float16: ["half"], torch.bfloat16: ["bf16"]}[self.dtype]
        return "-".join([f"{self.kind}{self.opset}", *(mark for mark, on in marks.items() if on), *dtype])

    def write(self, model: nn.Module, image: torch.Tensor, path: Path) -> None:
        """Export `model`, input `image` [1, C, H, W] as example."""
        model, image = model.to(self.dtype), image.to(self.dtype)
        names = {"input_names": ["image"], "output_names": ["out"], "opset_version": self.opset}
        with torch.no_grad():
            if self.kind == "ts":
                axes = {"image": {0: "n"}, "out": {0: "n"}} if self.dynamic else None
                torch.onnx.export(
                    model,
                    (image,),
                    str(path),
                    dynamo=False,
                    do_constant_folding=not self.raw,
                    dynamic_axes=axes,
                    **names,
                )
                return
            shapes = None
            if self.dynamic:
                image = torch.cat([image, image])  # an example of batch 1 would fix the batch
                shapes = ({0: torch.export.Dim("n", min=1, max=64)},)
            program = torch.onnx.export(
                model, (image,), dynamo=True, optimize=not self.raw, dynamic_shapes=shapes, verbose=False, **names
            )
            program.save(str(path), external_data=self.external)


def _exports() -> list[Export]:
    half, brain = torch.float16, torch.bfloat16
    made = [Export("ts", opset) for opset in (13, 14, 15, 16, 17, 18, 20)]
    made += [Export("ts", opset, dynamic, raw=True) for opset in (13, 14, 17) for dynamic in (False, True)]
    made += [Export("ts", opset, dynamic=True) for opset in (13, 17)]
    made += [Export("dy", opset) for opset in (18, 19, 20, 21, 22, 23)]
    made += [Export("dy", opset, dynamic=True) for opset in (18, 20, 23)]
    made += [Export("dy", 20, raw=True), Export("dy", 23, dynamic=True, raw=True), Export("dy", 20, external=True)]
    return [
        *made,
        Export("ts", 17, dynamic=True, dtype=half),
        Export("dy", 18, dtype=half),
        Export("dy", 20, dtype=brain),
    ]


EXPORTS = {export.name: export for export in _exports()}


# --- programs that rewrite a file: from `source` to `target` ---------------------------------------------------------


def simplified(source: Path, target: Path) -> None:
    import onnxsim

    onnx.save(onnxsim.simplify(onnx.load(source))[0], target)


def slimmed(source: Path, target: Path) -> None:
    import onnxslim

    onnxslim.slim(str(source), str(target))


def optimised(level: str):
    """onnxruntime's own optimiser, as a session of that level saves its graph."""

    def rewrite(source: Path, target: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return rewrite


def fused(kind: str, half: bool = False):
    """onnxruntime's optimiser of transformers for a model of `kind`."""

    def rewrite(source: Path, target: Path) -> None:
        from onnxruntime.transformers import optimizer

        model = optimizer.optimize_model(str(source), model_type=kind)
        if half:
            model.convert_float_to_float16(keep_io_types=True)
        model.save_model_to_file(str(target))

    return rewrite


def sixteen_bit(source: Path, target: Path) -> None:
    """Weights and arithmetic in float16, input and output too."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source)), target)


def static_int8(source: Path, target: Path) -> None:
    """onnxruntime's static quantisation with its defaults: pairs of QuantizeLinear and DequantizeLinear."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    rng = np.random.default_rng(0)
    shapes = {
        value.name: [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        for value in onnx.load(prepared).graph.input
    }

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        left = 4

        def get_next(self):
            self.left -= 1
            if self.left < 0:
                return None
            return {name: rng.uniform(-1.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}

    quantize_static(str(prepared), str(target), Noise(), weight_type=QuantType.QInt8, per_channel=True)
    prepared.unlink()


REWRITES = {
    "qdq": static_int8,
    "sim": simplified,
    "slim": slimmed,
    "basic": optimised("ORT_ENABLE_BASIC"),
    "extended": optimised("ORT_ENABLE_EXTENDED"),
    "all": optimised("ORT_ENABLE_ALL"),
    "transformers": fused("vit"),
    "bert": fused("bert"),
    "transformers-half": fused("vit", half=True),
    "fp16": sixteen_bit,
}


def seeded(model: nn.Module) -> nn.Module:
    """The model with weights that leave no part of it without effect: fresh ones have norms of one and biases of zero."""
    generator = torch.Generator().manual_seed(1)

    def normal(tensor, scale):
        return torch.randn(tensor.shape, generator=generator) * scale

    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2 and p.shape[0] > 1:
                gain = 3.0 if "gate" in name else 0.7  # scores of experts must lie apart
                fan_in = p.shape[-2] if "experts" in name and p.ndim == 3 else p[0].numel()
                p.copy_(normal(p, gain / np.sqrt(fan_in)))
            elif p.ndim >= 2:
                p.copy_(normal(p, 0.3))
            elif p.ndim == 1:
                p.copy_(normal(p, 0.15) + (1 if name.endswith(("weight", "gamma")) else 0))
        for name, b in model.named_buffers():
            if name.endswith("running_var"):
                b.copy_(torch.rand(b.shape, generator=generator) + 0.5)
            elif name.endswith("running_mean"):
                b.copy_(normal(b, 0.2))
    return model.eval()
