"""Readable names of layers, from what exporters leave: a parameter's name, else the path of the ONNX node."""

from __future__ import annotations

import re

from ..tensor import Const, Ref

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


def label(source: str, *parameters: Ref) -> str:
    """`blocks.0.attn.qkv` of parameter `blocks.0.attn.qkv.weight` or node `/blocks.0/attn/qkv/MatMul`, else ""."""
    for r in parameters:
        if isinstance(r.node.op, Const) and _DOTTED.fullmatch(r.node.name):
            return r.node.name.rpartition(".")[0]
    path = source.strip("/").split("/")
    return ".".join(path[:-1]) if source.startswith("/") else ""


def parent(name: str) -> str:
    return name.rpartition(".")[0]
