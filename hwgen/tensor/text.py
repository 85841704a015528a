"""Tensor IR as text, and back: what `--print` shows and what pass tests are written in.

    %0 = input name="image" : f[1, 3, 32, 32]
    %1 = const [1, 2] : i[2]                      small constants in full, large ones `normal(SEED)` in tests, `...` in prints
    %2 = contract spec="ab,cb->ac" %0{4:8,8:1} %3 : f[4, 16]  # blocks.0.attn.qkv
    output logits = %2

An operand shows its layout (`Layout.text`) unless it is the whole value in its own shape.
"""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from typing import Any, cast

import numpy as np

from . import ir
from .build import Builder
from .ir import Const, Input, Node, Op, Program, Ref
from .layer import Layer
from .layout import Layout

SMALL = 16  # elements of a constant that is written out
DTYPES = {"f": np.float32, "i": np.int64, "b": np.bool_}


def text(program: Program) -> str:
    """One line a node, operands first, then the outputs."""
    numbers: dict[Node, int] = {}
    lines = []
    for node in program.nodes():
        numbers[node] = len(numbers)
        operands = "".join(" " + _operand(r, numbers) for r in node.operands)
        note = f"  # {node.name or node.source}" if node.name or node.source else ""
        lines.append(f"%{numbers[node]} = {_op(node)}{operands} : {node.dtype}{list(node.shape)}{note}")
    lines += [f"output {name} = {_operand(r, numbers)}" for name, r in program.outputs.items()]
    return "\n".join(lines) + "\n"


def _operand(r: Ref, numbers: dict[Node, int]) -> str:
    plain = r.layout == Layout.dense(r.node.shape)
    return f"%{numbers[r.node]}" + ("" if plain else "{" + r.layout.text() + "}")


def _op(node: Node) -> str:
    if isinstance(node.op, Const):
        return "const " + (repr(node.op.array.tolist()) if node.size <= SMALL else "...")
    given = [f for f in fields(cast(Any, node.op)) if not (isinstance(node.op, Input) and f.name != "name")]
    return " ".join([node.op.kind, *(f"{f.name}={_value(getattr(node.op, f.name))}" for f in given)])


def _value(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"array{list(value.shape)}"
    return repr(value).replace(" ", "").replace("inf", "1e999")


LINE = re.compile(r"%(\w+) = (\w+) ?(.*?) : ([fib])(\[[\d, ]*\])$")
OPERAND = re.compile(r"%(\w+)(?:\{([^}]*)\})?")


def parse(written: str, layers: dict[str, type[Layer]] | None = None) -> Program:
    """The inverse of `text`; `normal(SEED)` as a constant draws normal numbers. Raises ValueError naming the line."""
    kinds: dict[str, type[Op]] = {c.__name__.lower(): c for c in vars(ir).values() if isinstance(c, type) and issubclass(c, Op)}
    kinds |= layers or {}
    t = Builder(fold=False)
    values: dict[str, Ref] = {}
    outputs: dict[str, Ref] = {}
    for line in written.splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        try:
            if line.startswith("output "):
                name, _, operand = line[7:].partition(" = ")
                outputs[name] = _reference(OPERAND.fullmatch(operand.strip()), values)
                continue
            found = LINE.fullmatch(line)
            if found is None:
                raise ValueError("is no `%n = op operands : kind[shape]`")
            target, kind, rest, dtype, shape = found.groups()
            values[target] = _parsed(t, kinds, values, kind, rest, dtype, tuple(ast.literal_eval(shape)))
        except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
            raise ValueError(f"{line!r}: {error}") from None
    return Program(outputs)


def _reference(found: re.Match[str] | None, values: dict[str, Ref]) -> Ref:
    if found is None or found[1] not in values:
        raise ValueError("no such value")
    r = values[found[1]]
    return r if found[2] is None else r.move(Layout.parse(found[2]))


def _parsed(
    t: Builder, kinds: dict[str, type[Op]], values: dict[str, Ref], kind: str, rest: str, dtype: str, shape: tuple[int, ...]
) -> Ref:
    if kind == "const":
        seed = re.fullmatch(r"normal\((\d+)\)", rest)
        array = np.random.default_rng(int(seed[1])).standard_normal(shape) if seed else np.array(ast.literal_eval(rest))
        return t.const(array.astype(DTYPES[dtype]).reshape(shape))
    operands = [_reference(m, values) for m in OPERAND.finditer(rest)]
    given = {key: ast.literal_eval(value) for key, value in re.findall(r"(\w+)=((?:'[^']*'|\"[^\"]*\"|\([^)]*\)|[^\s%])+)", rest)}
    if kind == "input":
        return t.input(given["name"], shape, dtype)
    r = t.node(kinds[kind](**given), *operands)
    if (r.node.dtype, r.node.shape) != (dtype, shape):
        raise ValueError(f"makes {r.node.dtype}{list(r.node.shape)}")
    return r
