"""Reading an ONNX file: everything that can be wrong with it is said here, before anything is interpreted."""

from hwgen.frontend.load import Model, load

__all__ = ["Model", "load"]
