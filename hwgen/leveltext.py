"""Levels Q and M as text, and back: what `--print` shows, what pass tests are written in, what a bundle keeps.

    values['fc'] = Value(rows=4, cols=2, scale=0.5)
    nodes += Product('fc', x=Ref('n', 0, 4), matrix=Matrix(w=i1([[1, -2], [3, 4]]), col_mult=40000, shift=20, row=32768))

A line is a field of the graph or an item of one, written as Python without what has its default. An array is its dtype
called with its numbers, or where it is large with its shape: `i1(64, 192)`, of which `arrays` holds the numbers
(`at=5`) or `seed=5` draws some.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import MISSING, fields, is_dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from . import isa
from .resampling import Axis, Resampled, Resampling
from .walks import Plane

SMALL = 16  # elements of an array that is written out
DTYPES = {"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"}
ENUMS = {c.__name__: c for c in vars(isa).values() if isinstance(c, type) and issubclass(c, IntEnum) and c is not IntEnum}
BOUNDS = {"inf": float("inf"), "nan": float("nan")}


def text(graph: Any, arrays: list[np.ndarray] | None = None) -> str:
    """The graph, a line an item; large arrays are put into `arrays`, where that is given."""
    lines = []
    for f in fields(graph):
        held = getattr(graph, f.name)
        if isinstance(held, dict):
            lines += [f"{f.name}[{key!r}] = {_show(value, arrays)}" for key, value in held.items()]
        elif isinstance(held, list):
            lines += [f"{f.name} += {_show(value, arrays)}" for value in held]
        else:
            lines.append(f"{f.name} = {_show(held, arrays)}")
    return "\n".join(lines) + "\n"


def _show(value: Any, arrays: list[np.ndarray] | None) -> str:
    if isinstance(value, IntEnum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, np.generic) or isinstance(value, np.ndarray) and not value.ndim:
        value = value.item()
    if isinstance(value, np.ndarray):
        kind = value.dtype.str[1:]
        if kind not in DTYPES:
            raise TypeError(f"arrays of type {value.dtype} have no text")
        if value.size <= SMALL and (value.dtype.kind != "f" or np.isfinite(value).all()):
            return f"{kind}({value.tolist()!r})"
        shape = ", ".join(map(str, value.shape))
        if arrays is None:
            return f"{kind}({shape})"
        arrays.append(value)
        return f"{kind}({shape}, at={len(arrays) - 1})"
    if is_dataclass(value):
        whole = all(f.default is MISSING for f in fields(value))
        shown = []
        for f in fields(value):
            held = getattr(value, f.name)
            plain = isinstance(held, (int, float, str, tuple, type(None))) and type(held) is type(f.default)
            if not plain or held != f.default:
                shown.append(("" if whole or f.name == "name" else f"{f.name}=") + _show(held, arrays))
        return f"{type(value).__name__}({', '.join(shown)})"
    if isinstance(value, tuple):
        return f"({''.join(_show(v, arrays) + ', ' for v in value).rstrip()})"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    raise TypeError(f"{type(value).__name__} has no text")


def parse(written: str, kind: type, arrays: list[np.ndarray] | None = None) -> Any:
    """The inverse of `text` for a graph of class `kind`. Raises ValueError naming the line."""
    module = vars(sys.modules[kind.__module__])
    names = {n: c for n, c in module.items() if isinstance(c, type) and is_dataclass(c)} | ENUMS
    names |= {kind.__name__: kind for kind in (Axis, Plane, Resampled, Resampling)}
    containers = {f.name: f.default_factory for f in fields(kind) if f.default is MISSING}
    graph: dict[str, Any] = {f.name: [] if str(f.type).startswith("list") else {} for f in fields(kind) if f.name in containers}
    for number, line in enumerate(written.splitlines(), 1):
        try:
            for statement in ast.parse(line.strip()).body:
                match statement:
                    case ast.AugAssign(target=ast.Name(id=name), value=value):
                        graph[name].append(_read(value, names, arrays))
                    case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name), slice=key)], value=value):
                        graph[name][ast.literal_eval(key)] = _read(value, names, arrays)
                    case ast.Assign(targets=[ast.Name(id=name)], value=value):
                        graph[name] = _read(value, names, arrays)
                    case _:
                        raise ValueError("is no item of a graph")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, SyntaxError) as error:
            raise ValueError(f"line {number}: {line.strip()[:200]!r}: {error}") from None
    return kind(**graph)


def _read(node: ast.expr, names: dict[str, type], arrays: list[np.ndarray] | None) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            given = {k.arg: _read(k.value, names, arrays) for k in keywords if k.arg is not None}
            values = [_read(a, names, arrays) for a in args]
            return _array(name, values, given, arrays) if name in DTYPES else names[name](*values, **given)
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return names[name][attribute]  # type: ignore[index]
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            items = [_read(e, names, arrays) for e in elements]
            return tuple(items) if isinstance(node, ast.Tuple) else items
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read(operand, names, arrays)
        case ast.Name(id=name):
            return BOUNDS[name]
    return ast.literal_eval(node)


def _array(dtype: str, values: list[Any], given: dict[str, int], arrays: list[np.ndarray] | None) -> np.ndarray:
    if isinstance(values[0], list):
        return np.array(values[0], dtype)
    if "seed" in given:
        drawn = np.random.default_rng(given["seed"]).standard_normal(values) * 2.0 ** (8 * int(dtype[1]) - 4)
        return (drawn / 2.0 ** (8 * int(dtype[1]) - 4) if dtype[0] == "f" else np.rint(drawn)).astype(dtype)
    if arrays is None or "at" not in given:
        raise ValueError(f"{dtype}{values} has no contents")
    found = arrays[given["at"]]
    if (found.dtype.str[1:], list(found.shape)) != (dtype, values):
        raise ValueError(f"array {given['at']} is {found.dtype}{list(found.shape)}")
    return found
