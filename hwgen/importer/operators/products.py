"""Matrix products, einsum and convolutions: contractions, of windows where there is a kernel."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ...tensor import Ref
from ...tensor.build import LETTERS
from ..rules import Context, Op, Unsupported, rule
from .movement import padded
from .taps import picked, summed


@rule("MatMul")
def matmul(c: Context, op: Op, a: Ref, b: Ref) -> Ref:
    return c.t.matmul(a, b)


@rule("Gemm")
def gemm(c: Context, op: Op, a: Ref, b: Ref, bias: Ref | None = None) -> Ref:
    a = c.t.transpose(a, (1, 0)) if op.flag("transA") else a
    b = c.t.transpose(b, (1, 0)) if op.flag("transB") else b
    y = c.t.map("mul", c.t.matmul(a, b), op.attribute("alpha", 1.0))
    beta = op.attribute("beta", 1.0)
    return y if bias is None else c.t.map("add", y, c.t.map("mul", bias, beta))


@rule("Einsum")
def einsum(c: Context, op: Op, *x: Ref) -> Ref:
    left, arrow, result = op.attribute("equation").replace(" ", "").partition("->")
    terms = left.split(",")
    used = set(left + result)
    free = [letter for letter in LETTERS if letter not in used]
    ranks = [len(r.shape) - len(s.replace("...", "")) if "." in s else 0 for r, s in zip(x, terms, strict=True)]
    dots = "".join(free[: max(ranks)])
    terms = [s.replace("...", dots[len(dots) - n :]) for n, s in zip(ranks, terms, strict=True)]
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
    twice = {letter for letter in lengths if sum(letter in s for _, s in refs) > 1}
    summed = {letter for letter in twice if lengths[letter] == 1 and letter not in result}
    y, own = _narrow(c, *refs[0], summed)
    for i, (r, s) in enumerate(refs[1:], 1):
        r, s = _narrow(c, r, s, summed)
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


def _narrow(c: Context, r: Ref, letters: str, summed: set[str]) -> tuple[Ref, str]:
    """Without axes of length 1, which broadcast; not without those `summed` over, so that it stays a matrix product."""
    kept = [i for i, n in enumerate(r.shape) if n != 1 or letters[i] in summed]
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
    kernel = _kernel(op, weight)
    strides, dilations, pads = geometry(op, x.shape[2:], kernel)
    x = c.t.pad(x, [0, 0, *(a for a, _ in pads)], [0, 0, *(b for _, b in pads)])
    return _convolved(c, op, x, weight, bias, strides, dilations)


def _kernel(op: Op, weight: Ref) -> tuple[int, ...]:
    kernel = weight.shape[2:]
    if tuple(op.attribute("kernel_shape", kernel)) != kernel:
        raise ValueError(f"kernel_shape {op.attribute('kernel_shape')} of a weight {list(weight.shape)}")
    return kernel


def _convolved(
    c: Context, op: Op, x: Ref, weight: Ref, bias: Ref | None, strides: list[int], dilations: list[int]
) -> Ref:
    """A padded tensor by weight [outputs, channels of a group, kernel..]; groups are an axis, left out where there is one."""
    t, groups, rank = c.t, op.attribute("group", 1), len(strides)
    x = windows(c, x, weight.shape[2:], strides, dilations, [(0, 0)] * rank)
    space, inner, (n, channels, *rest), outputs = "stu"[:rank], "ijk"[:rank], x.shape, weight.shape[0]
    if groups == 1 and n > 1 and (taps := picked(weight)) is not None:  # channels as images: nothing but movement
        y = t.gather(t.reshape(x, (n, *rest[:rank], prod(rest[rank:]))), t.const(taps), 1 + rank)
        y = t.transpose(y, (0, 1 + rank, *range(1, 1 + rank)))
    elif groups == 1:
        y = t.contract(f"nc{space}{inner},oc{inner}->no{space}", x, weight)
    else:
        x = t.reshape(x, (n, groups, channels // groups, *rest))
        weight = t.reshape(weight, (groups, outputs // groups, *weight.shape[1:]))
        y = t.reshape(t.contract(f"ngc{space}{inner},goc{inner}->ngo{space}", x, weight), (n, outputs, *rest[:rank]))
    return y if bias is None else t.map("add", y, t.reshape(bias, (1, prod(bias.shape), *[1] * rank)))


@rule("ConvTranspose")
def conv_transpose(c: Context, op: Op, x: Ref, weight: Ref, bias: Ref | None = None) -> Ref:
    """Windows that do not overlap are placed side by side; else a convolution, by the turned kernel, of the tensor with
    zeros between its elements."""
    t, kernel, groups = c.t, _kernel(op, weight), op.attribute("group", 1)
    rank, (n, channels, *lengths), outputs = len(kernel), x.shape, weight.shape[1] * groups
    strides, dilations, pads, ends = _spread(op, lengths, kernel)
    if groups == 1 and n > 1 and bias is None and (taps := picked(weight)) is not None and len(taps) == prod(kernel):
        if np.array_equal(taps, np.arange(len(taps))):  # windows of channels that are images, added up
            wide = [(m - 1) * s + d * (k - 1) + 1 for m, k, s, d in zip(lengths, kernel, strides, dilations, strict=True)]
            y = summed(t, t.reshape(x, (n, *kernel, *lengths)), wide, strides, dilations)
            return padded(c, t.reshape(y, (n, 1, *wide)), [0, 0, *(-p for p in pads)], [0, 0, *ends])
    weight = t.reshape(weight, (groups, channels // groups, *weight.shape[1:]))
    if tuple(strides) == kernel and max(dilations) == 1 and not any(pads) and not any(ends):
        space, inner = "stu"[:rank], "ijk"[:rank]
        between = "".join(a + b for a, b in zip(space, inner, strict=True))
        x = t.reshape(x, (n, groups, channels // groups, *lengths))
        y = t.contract(f"ngc{space},gco{inner}->ngo{between}", x, weight)
        y = t.reshape(y, (n, outputs, *(m * k for m, k in zip(lengths, kernel, strict=True))))
        return y if bias is None else t.map("add", y, t.reshape(bias, (1, outputs, *[1] * rank)))
    for i, (m, s, k) in enumerate(zip(lengths, strides, kernel, strict=True)):
        axis = 2 + i
        x = t.reshape(x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
        x = t.pad(x, [0] * (rank + 3), [s - 1 if a == axis + 1 else 0 for a in range(rank + 3)])
        x = t.slice(t.reshape(x, (*x.shape[:axis], m * s, *x.shape[axis + 2 :])), axis, 0, (m - 1) * s + 1)
        weight = t.slice(weight, 3 + i, k - 1, k, -1)
    weight = t.reshape(t.transpose(weight, (0, 2, 1, *range(3, 3 + rank))), (outputs, channels // groups, *kernel))
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    before, after = ([0, 0, *(r + e for r, e in zip(reach, end, strict=True))] for end in ([-p for p in pads], ends))
    return _convolved(c, op, padded(c, x, before, after), weight, bias, [1] * rank, dilations)


def _spread(op: Op, lengths: list[int], kernel: tuple[int, ...]) -> tuple[list[int], list[int], list[int], list[int]]:
    """(strides, dilations, elements cut off in front, elements added behind: negative where cut off)."""
    rank = len(kernel)
    strides, dilations = op.attribute("strides") or [1] * rank, op.attribute("dilations") or [1] * rank
    extra, shape = op.attribute("output_padding") or [0] * rank, op.attribute("output_shape")
    pads, mode = op.attribute("pads") or [0] * 2 * rank, op.attribute("auto_pad", "NOTSET") or "NOTSET"
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad is {mode!r}")
    whole = [(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in zip(lengths, kernel, strides, dilations, strict=True)]
    if mode.startswith("SAME") and not shape:
        shape = [min(n * s, w + e) for n, s, w, e in zip(lengths, strides, whole, extra, strict=True)]
    if not shape:
        pads = [0] * 2 * rank if mode == "VALID" else pads
        return strides, dilations, pads[:rank], [e - b for e, b in zip(extra, pads[rank:], strict=True)]
    front, behind = [], []
    for w, e, m in zip(whole, extra, shape[-rank:], strict=True):
        if m > w + e:
            raise ValueError(f"output_shape {m} of a window sum of {w + e}")
        total = w + e - m
        front.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
        behind.append(m - w + front[-1])
    return strides, dilations, front, behind
