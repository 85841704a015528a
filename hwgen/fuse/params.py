"""Parameters and names: folding factors into layers, and readable labels from what exporters left."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from .op import Op, Unsupported
from .symbols import Embedding, HeadNorm, Lin, Mixed, Norm, Patches, Pooled, Product, Sum, Sym
from .views import Const

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


def scaled(sym: Sym, factor: float | np.ndarray) -> Sym:
    """sym times `factor`, a number or one number per output channel, where its parameters can take it."""
    common = {"shape": sym.shape, "label": sym.label, "source": sym.source}
    by_row = factor if np.ndim(factor) == 0 else factor[..., None]
    match sym:
        case Lin(x=x, weight=w, bias=b):
            return Lin(x=x, weight=_f32(w * by_row), bias=None if b is None else _f32(b * factor), **common)
        case Norm(gamma=g, beta=b) | HeadNorm(gamma=g, beta=b):
            return replace(sym, gamma=_f32(g * factor), beta=_f32(b * factor))
        case Mixed(w2=w, b2=b):
            return replace(sym, w2=_f32(w * by_row), b2=None if b is None else _f32(b * factor))
        case Product(a=a, b=b):
            by_b = isinstance(b, Lin | Norm) or not isinstance(a, Lin | Norm)
            return replace(sym, b=scaled(b, factor)) if by_b else replace(sym, a=scaled(a, factor))
        case Sum(a=a, b=b) if np.ndim(factor) == 0:
            return replace(sym, a=replace(a, scale=a.scale * factor), b=replace(b, scale=b.scale * factor))
        case Patches(weight=w, bias=b):
            w = _f32(w * np.reshape(factor, (-1, 1, 1, 1)))
            return replace(sym, weight=w, bias=None if b is None else _f32(b * factor))
        case Embedding(x=x, prefix=p, position=t):
            return replace(sym, x=scaled(x, factor), prefix=_f32(p * factor), position=_f32(t * factor))
        case Pooled(x=x):
            return replace(sym, x=scaled(x, factor))
    raise Unsupported(
        "multiplies by a constant a tensor that no linear layer or LayerNorm makes",
        "fold the constant into a neighbouring layer",
    )


def _f32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


def label_of(op: Op, *values: Any) -> str:
    """A readable dotted name: from a parameter's name, else from a node's path; "" where neither tells anything."""
    for value in values:
        if isinstance(value, Const) and _DOTTED.fullmatch(value.name):
            return value.name.rpartition(".")[0]
    path = op.name.strip("/").split("/")
    return ".".join(path[:-1]) if op.name.startswith("/") else ""


def parent(label: str) -> str:
    return label.rpartition(".")[0]
