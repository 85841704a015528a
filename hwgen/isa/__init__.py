"""The instruction set: one frozen dataclass per instruction, field widths fixed whatever the Config.

Encoder, decoder, disassembler, the RTL's view (`layout`) and the ISA document derive from these classes; `sim.machine`
is their executable definition. An instruction is one word of 512 bits, little endian, its first field in the low bits.

Units run decoupled, each through its own instructions in program order. An instruction starts when every unit u has
finished at least `wait_u` instructions (counted from the start of the run): these counts are the dependency tokens.

Addresses: scratchpad in chunks (`Config.chunk` int16 elements), DRAM in AXI beats from the base register of its region,
row scales in entries of the scale memory. `pitch` is the distance in chunks from a row to the next.
"""

from .coding import assemble, decode, disassemble, encode, fingerprint, parse, text
from .instructions import (
    INSNS,
    OP_BITS,
    WALKS,
    End,
    Insn,
    Load,
    LoadScales,
    Matmul,
    MatmulWalk,
    Multiply,
    Norm,
    ReduceWindow,
    Route,
    RowInsn,
    Scan,
    Select,
    Store,
    Stream,
    WalkFields,
    WindowWalk,
    layout,
)
from .modes import (
    ADDRESS_BITS,
    COORDINATE_BITS,
    COUNT_BITS,
    GATE_SCORE_BITS,
    INDEX_BITS,
    NARROW_GRANULES,
    NARROW_NUMBER_BITS,
    NO_EXPERT,
    QUEUE_BITS,
    QUEUE_DEPTH,
    ROW_BITS,
    SCALE_BITS,
    SCAN_ENTRIES,
    TAP_BITS,
    WALK_LOOPS,
    WINDOW_TAPS,
    WORD_BITS,
    WORD_BYTES,
    Border,
    ColScale,
    Convert,
    Gelu,
    Indirect,
    Op,
    Reduce,
    RowMax,
    RowScale,
    Unit,
    WeightSource,
)

__all__ = [
    "assemble", "decode", "disassemble", "encode", "fingerprint", "parse", "text", "INSNS", "OP_BITS", "WALKS", "End", "Insn",
    "Load", "LoadScales", "Matmul", "MatmulWalk", "Multiply", "Norm", "ReduceWindow", "Route", "RowInsn", "Scan", "Select",
    "Store", "Stream", "WalkFields", "WindowWalk", "layout", "ADDRESS_BITS", "COORDINATE_BITS", "COUNT_BITS", "GATE_SCORE_BITS",
    "INDEX_BITS", "NARROW_GRANULES", "NARROW_NUMBER_BITS", "NO_EXPERT", "QUEUE_BITS", "QUEUE_DEPTH", "ROW_BITS", "SCALE_BITS",
    "SCAN_ENTRIES", "TAP_BITS", "WALK_LOOPS", "WINDOW_TAPS", "WORD_BITS", "WORD_BYTES", "Border", "ColScale", "Convert", "Gelu",
    "Indirect", "Op", "Reduce", "RowMax", "RowScale", "Unit", "WeightSource",
]
