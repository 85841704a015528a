"""The ports between units, each defined once, seen from the side that asks.

Between units: streams (valid/ready) and the memory ports below. Inside a unit: strobes with a stated latency. A row, once
issued into the matmul pipeline, never stalls; that is why the scratchpad grants the residual read and the
post-processor's write always.
"""

from __future__ import annotations

from amaranth.hdl import signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, Signature

from .. import isa, latency
from ..config import Config
from ..isa import ADDRESS_BITS, GATE_SCORE_BITS, QUEUE_BITS, ROW_BITS
from ..isa import SCALE_BITS as SCALE_ADDRESS_BITS
from ..numerics import RECIPROCAL_EXPONENT_MAX

ELEMENT = signed(16)
ROW_SHIFT_BITS = RECIPROCAL_EXPONENT_MAX.bit_length()
FIELDS = dict(isa.layout(isa.Matmul))  # widths
READ_LATENCY, WRITE_LATENCY = latency.READ, latency.WRITE


def elements(config: Config, chunks: int) -> data.ArrayLayout:
    """int16 elements of so many chunks."""
    return data.ArrayLayout(ELEMENT, chunks * config.chunk)


def read_port(config: Config, chunks: int) -> Signature:
    """Scratchpad read of `chunks` consecutive chunks from chunk address `addr`, any alignment, inside one bank."""
    return Signature(
        {
            "valid": Out(1),
            "addr": Out(ADDRESS_BITS),
            "ready": In(1),
            "data": In(elements(config, chunks)),  # READ_LATENCY after acceptance, no back-pressure
        }
    )


def write_port(config: Config, chunks: int) -> Signature:
    """Scratchpad write of the chunks whose `mask` bit is set, from chunk address `addr`."""
    return Signature(
        {
            "valid": Out(1),
            "addr": Out(ADDRESS_BITS),
            "mask": Out(chunks),
            "data": Out(elements(config, chunks)),
            "ready": In(1),
        }
    )


# Scale memory read: `data` READ_LATENCY cycles after `addr`, every cycle.
SCALE_READ = Signature({"addr": Out(SCALE_ADDRESS_BITS), "data": In(16)})
SCALE_WRITE = Signature({"valid": Out(1), "addr": Out(SCALE_ADDRESS_BITS), "data": Out(16), "ready": In(1)})

# Expert queues, held by the router. `count`, `start`: combinational functions of `expert`, stable while no Route runs.
# `entry` READ_LATENCY cycles after `addr`: token and gate score of a queue entry.
QUEUE_LOOKUP = Signature({"expert": Out(8), "count": In(ROW_BITS + 1), "start": In(QUEUE_BITS)})
QUEUE_ENTRY = data.StructLayout({"token": unsigned(ROW_BITS), "gate": unsigned(GATE_SCORE_BITS)})
QUEUE_READ = Signature({"addr": Out(QUEUE_BITS), "entry": In(QUEUE_ENTRY)})


def insn_layout(insn: type[isa.Insn]) -> data.StructLayout:
    """The fields of an instruction as the hardware sees them, `op` first."""
    return data.StructLayout({name: unsigned(width) for name, width in isa.layout(insn)})


def insn_stream() -> Signature:
    """Instructions of one unit, as raw words; the unit views them with `insn_layout`. Accepted once it has taken them in."""
    return stream.Signature(unsigned(isa.WORD_BITS))


def param_write(config: Config) -> Signature:
    """Column multipliers (u16) and biases (i16) into one of the two parameter banks of the post-processor."""
    lanes = config.array_outputs
    return Signature(
        {
            "valid": Out(1),
            "bank": Out(1),
            "mask": Out(lanes),
            "mult": Out(data.ArrayLayout(unsigned(16), lanes)),
            "bias": Out(data.ArrayLayout(ELEMENT, lanes)),
        }
    )


def post_meta(config: Config) -> data.StructLayout:
    """What rides along with a row of sums into the post-processor."""
    return data.StructLayout(
        {
            "write": 1,  # 0: an empty instruction's placeholder, only `last` counts
            "columns": (config.array_outputs).bit_length(),  # valid columns of this output tile, 1..O
            "bank": 1,  # parameter bank
            "row_mult": 16,
            "shift": FIELDS["shift"],
            "row_shift": ROW_SHIFT_BITS,  # added to `shift`: exponent of the row multiplier
            "gelu": FIELDS["gelu"],
            "gelu_shift": FIELDS["gelu_shift"],
            "residual": 1,
            "res_addr": ADDRESS_BITS,
            "y_addr": ADDRESS_BITS,
            "y_max": 2,
            "row": ROW_BITS,  # with y_max the index of the running row maximum: SIGNED and ABS keep separate ones
            "first_tile": 1,  # the row maximum starts anew (first output tile, unless max_continue)
            "last_tile": 1,  # last output tile: the row maximum is stored
            "scale_addr": SCALE_ADDRESS_BITS,
            "last": 1,  # last row of its instruction
        }
    )
