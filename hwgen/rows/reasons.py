"""Why a node of T, or a layer, has no place in the row graph: said of what it is, with the nearest form that has one."""

from __future__ import annotations

from ..tensor import Concat, Contract, Gather, Input, Map, Node, Op, Pad, Scatter, TopK

STEM = "make the tokens by one convolution of the image, whose kernel may be larger than its stride"
REASONS: dict[type[Op], tuple[str, str]] = {
    Pad: ("pads a value inside the network, as convolutions and poolings do", STEM),
    Input: ("reads pixels of the image as they are", "make the tokens by one convolution of the image"),
    Concat: (
        "joins tokens of several computed tensors",
        "let class, distilled and register tokens go through every layer with the others",
    ),
    TopK: ("chooses tokens or channels by their values", "keep all tokens"),
    Gather: (
        "picks elements by computed indices that are not made of at most 64 top-k lists",
        "choose rows by TopK, ArgMax or a sort of scores, or export with static shapes",
    ),
    Scatter: (
        "writes elements at computed places, more than four of a list or several to one place",
        "add with reduction, or export without index arithmetic over tokens",
    ),
}
MAPS = {
    "add": "adds a constant that differs from token to token, or two values of different shapes",
    "mul": "multiplies two values of different shapes",
    "div": "divides by what is computed from the image",
    "sub": "subtracts what is computed from the image",
    "where": "chooses between values by a condition",
}
PLAIN = "use a plain convolution as patch embedding"
ROTARY = "rotary positions turn pairs of channels in every head: x * cos + rotate_half(x) * sin"
LINEAR = "fold constants into a neighbouring layer"


def reason(node: Node) -> tuple[str, str]:
    """(reason, hint) of a node that no pattern took or that the machine has no operation for."""
    op = node.op
    if isinstance(op, Map):
        if op.function in ("eq", "lt", "le", "and", "or", "not", "xor"):
            return "compares what is computed from the image", "export without conditions on values"
        if op.function in ("mul", "div") and any(r.constant is not None for r in node.operands):
            return "multiplies by a constant that differs from token to token", ROTARY
        if op.function in MAPS:
            return MAPS[op.function], LINEAR
        return (
            f"is {op.function} of a value, no part of a GELU or another layer that hwgen knows",
            "use GELU, SiLU or ReLU, Softmax, LayerNorm",
        )
    if isinstance(op, Contract):
        if sum(r.constant is not None for r in node.operands) == 1:
            return "multiplies by a constant that differs by group or token, as a convolution with groups does", PLAIN
        return (
            "is a product of two computed values along more axes than heads, rows and columns",
            "use softmax attention",
        )
    return REASONS.get(type(op), (f"is {op.kind}, which the machine has no operation for", ""))
