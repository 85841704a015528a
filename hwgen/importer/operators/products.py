"""Matrix products, einsum and convolutions: contractions, of windows where there is a kernel."""

from __future__ import annotations

from math import prod
from typing import Any

from ...tensor import Ref
from ...tensor.build import LETTERS
from ..rules import Context, Op, Unsupported, rule


@rule("MatMul")
def matmul(c: Context, op: Op, a: Ref, b: Ref) -> Ref:
    return c.t.matmul(a, b)


@rule("Gemm")
def gemm(c: Context, op: Op, a: Ref, b: Ref, bias: Ref | None = None) -> Ref:
    a = c.t.transpose(a, (1, 0)) if op.attribute("transA", 0) else a
    b = c.t.transpose(b, (1, 0)) if op.attribute("transB", 0) else b
    y = c.t.map("mul", c.t.matmul(a, b), op.attribute("alpha", 1.0))
    beta = op.attribute("beta", 1.0)
    return y if bias is None else c.t.map("add", y, c.t.map("mul", bias, beta))


@rule("Einsum")
def einsum(c: Context, op: Op, *x: Ref) -> Ref:
    left, arrow, result = op.attribute("equation").replace(" ", "").partition("->")
    terms = left.split(",")
    used = set(left + result)
    free = [letter for letter in LETTERS if letter not in used]
    dots = "".join(free[: max((len(r.shape) - len(s.replace("...", "")) for r, s in zip(x, terms, strict=True) if "." in s), default=0)])
    terms = [s.replace("...", dots[len(dots) - len(r.shape) + len(s) - 3 :]) if "." in s else s for r, s in zip(x, terms, strict=True)]
    if arrow:
        result = result.replace("...", dots)
    else:
        letters = "".join(terms)
        result = dots + "".join(s for s in sorted(set(letters)) if letters.count(s) == 1 and s not in dots)
    refs = [_distinct(c, r, s) for r, s in zip(x, terms, strict=True)]
    lengths: dict[str, int] = {}
    for r, s in refs:
        for letter, n in zip(s, r.shape, strict=True):
            lengths[letter] = max(lengths.get(letter, 1), n)
    y, own = _narrow(c, *refs[0], lengths)
    for i, (r, s) in enumerate(refs[1:], 1):
        r, s = _narrow(c, r, s, lengths)
        later = set("".join(t for _, t in refs[i + 1 :]) + result)
        kept = "".join(dict.fromkeys(letter for letter in own + s if letter in later))
        kept = kept if i < len(refs) - 1 else "".join(letter for letter in result if letter in own + s)
        y, own = c.t.contract(f"{own},{s}->{kept}", y, r), kept
    gone = [i for i, letter in enumerate(own) if letter not in result]
    y = c.t.reduce("sum", y, gone, keep=False)
    own = "".join(letter for letter in own if letter in result)
    y = c.t.transpose(y, [own.index(letter) for letter in result if letter in own])
    return c.t.reshape(y, [lengths[letter] for letter in result])


def _distinct(c: Context, r: Ref, letters: str) -> tuple[Ref, str]:
    """A letter that occurs twice in one operand walks the diagonal."""
    for letter in letters:
        while letters.count(letter) > 1:
            first = letters.index(letter)
            second = letters.index(letter, first + 1)
            r, letters = c.t.diagonal(r, first, second), letters[:second] + letters[second + 1 :]
    return r, letters


def _narrow(c: Context, r: Ref, letters: str, lengths: dict[str, int]) -> tuple[Ref, str]:
    """Without axes of length 1, which broadcast."""
    kept = [i for i, n in enumerate(r.shape) if n != 1]
    return c.t.reshape(r, [r.shape[i] for i in kept]), "".join(letters[i] for i in kept)


def geometry(op: Op, lengths: tuple[int, ...], kernel: Any) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """(strides, dilations, (before, behind) pads) of a convolution or pool over axes of `lengths`."""
    rank = len(lengths)
    strides, dilations = op.attribute("strides") or [1] * rank, op.attribute("dilations") or [1] * rank
    given, mode = op.attribute("pads") or [0] * 2 * rank, op.attribute("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return strides, dilations, list(zip(given[:rank], given[rank:], strict=True))
    if mode == "VALID":
        return strides, dilations, [(0, 0)] * rank
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad is {mode!r}")
    pads = []
    for n, k, s, d in zip(lengths, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        pads.append((total // 2, total - total // 2) if mode == "SAME_UPPER" else (total - total // 2, total // 2))
    return strides, dilations, pads


def windows(c: Context, x: Ref, kernel: Any, strides: Any, dilations: Any, pads: Any, value: float = 0.0) -> Ref:
    """[N, C, spatial..] -> [N, C, positions.., kernel..] of the padded tensor."""
    rank = len(kernel)
    x = c.t.pad(x, [0, 0, *(a for a, _ in pads)], [0, 0, *(b for _, b in pads)], value)
    for i in range(rank):
        x = c.t.window(x, 2 + 2 * i, kernel[i], strides[i], dilations[i])
    return c.t.transpose(x, [0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2)])


@rule("Conv")
def conv(c: Context, op: Op, x: Ref, weight: Ref, bias: Ref | None = None) -> Ref:
    """Groups are an axis of their own, left out where there is one."""
    t, kernel, groups = c.t, weight.shape[2:], op.attribute("group", 1)
    if tuple(op.attribute("kernel_shape", kernel)) != kernel:
        raise ValueError(f"kernel_shape {op.attribute('kernel_shape')} of a weight {list(weight.shape)}")
    n, channels, *lengths = x.shape
    x = windows(c, x, kernel, *geometry(op, tuple(lengths), kernel))
    space, inner, outputs = "stu"[: len(kernel)], "ijk"[: len(kernel)], weight.shape[0]
    if groups == 1:
        y = t.contract(f"nc{space}{inner},oc{inner}->no{space}", x, weight)
    else:
        x = t.reshape(x, (n, groups, channels // groups, *x.shape[2:]))
        weight = t.reshape(weight, (groups, outputs // groups, *weight.shape[1:]))
        y = t.contract(f"ngc{space}{inner},goc{inner}->ngo{space}", x, weight)
        y = t.reshape(y, (n, outputs, *y.shape[3:]))
    return y if bias is None else t.map("add", y, t.reshape(bias, (1, prod(bias.shape), *[1] * len(kernel))))
