"""T -> L: patterns that find layers in tensor IR. A pattern is a shape plus a check; what none takes stays a node of T."""

from __future__ import annotations

from ..errors import Finding
from ..tensor import Map, Program
from .activations import clip, curved, leaky, log_sigmoid, over_sigmoid, plain, scaled, undone
from .attention import attention
from .conditions import placed, stepped
from .convolution import along_channels, convolution, frames
from .grouped import grouped
from .kept_keys import kept_keys
from .limits import dynamic, joined, limit, of_input, of_inputs
from .linear import absorbed, bias, bias_at_last, gain, gain_at_last, linear, scale, sorted_walks, wide_input
from .match import parted
from .moe import mixtures
from .norms import before_turns, length, norm, softmax
from .outer import chosen, outer, weighed
from .rewrite import Pattern, rewrite
from .rotary import turned
from .scans import scan, skipped
from .selection import received, scattered, selected
from .tokens import channels_last, ordered, padded, pool, positions, shifted, tokens, total

LISTS: tuple[Pattern, ...] = (selected, scattered, placed, stepped)  # what is chosen by what the network computes

# Before any layer is found, so that a value without its limits would be without those of all that it is computed from.
FIRST: tuple[Pattern, ...] = (parted, before_turns, log_sigmoid)
# In order. Behind parts of concatenations a round finds layers in the steps that exporters write; a single number that
# multiplies or is added may be such a step, so that only a later round folds those, and puts rows and columns in order.
ROUNDS: tuple[tuple[Pattern, ...], ...] = (
    (
        *(joined, shifted, scan, skipped, convolution, linear, grouped, kept_keys, attention, softmax, norm, curved, leaky),
        *(undone, over_sigmoid, bias, gain, received, *LISTS),
    ),
    # what is left outside attention and norms, and with a number that is no step of it
    (turned, length, outer, weighed, chosen, scaled, frames),
    (
        joined,
        gain_at_last,
        bias_at_last,
        absorbed,
        sorted_walks,
        wide_input,
        tokens,
        positions,
        padded,
        channels_last,
        pool,
        plain,
        clip,
        ordered,
    ),
    (
        gain_at_last,
        bias_at_last,
        absorbed,
        sorted_walks,
        tokens,
        positions,
        channels_last,
        pool,
        along_channels,
        total,
        plain,
        clip,
        scale,
        ordered,
    ),
)

__all__ = ["ROUNDS", "Pattern", "recognise", "rewrite"]


def recognise(program: Program) -> tuple[Program, list[Finding]]:
    """The same outputs by layers, and what keeps mixtures of experts from being one; nothing else is refused here."""
    if any(isinstance(n.op, Map) and n.op.function == "round" for n in program.nodes()):
        program = rewrite(program, (limit, dynamic), past=False)
        program.notes["ranges"] = program.notes.get("ranges", {}) | of_inputs(program)
        program = rewrite(program, (of_input,), past=False)
    made, findings, none = mixtures(program)
    if findings and none:  # what chooses rows may look like a router
        made, findings, _ = mixtures(rewrite(program, LISTS, past=False))
    made = rewrite(made, FIRST, past=False)
    for patterns in ROUNDS:
        made = rewrite(made, patterns)
    return made, findings
