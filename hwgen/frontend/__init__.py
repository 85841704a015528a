"""Front end: ONNX file -> the ViT-level graph of `hwgen.graph`."""

from hwgen.fuse import Finding

from .importer import check, confirm, import_model, refusal
from .load import Model, load
from .reference import reference

__all__ = ["Finding", "Model", "check", "confirm", "import_model", "load", "reference", "refusal"]
