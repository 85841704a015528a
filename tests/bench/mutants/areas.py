"""What is mutated, and the tests that should notice it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Tests of a file of hwgen/rtl that is not named as its test is.
RTL = {
    "arbiter": ("tests/rtl/test_axi.py", "tests/proofs/test_axi.py"),
    "axi": ("tests/rtl/test_axi.py", "tests/proofs/test_axi.py", "tests/rtl/test_top.py"),
    "fifo": ("tests/rtl/test_axi.py", "tests/proofs/test_streams.py"),
    "common": ("tests/proofs/test_streams.py", "tests/rtl/test_post.py", "tests/rtl/test_norm.py"),
    "register_slice": ("tests/rtl/test_register_slice.py", "tests/proofs/test_streams.py"),
    "sequencer": ("tests/rtl/test_sequencer.py", "tests/proofs/test_axi.py"),
    "array": ("tests/rtl/test_array.py", "tests/rtl/test_mac_pair.py", "tests/proofs/test_pairs.py"),
    "gelu": ("tests/rtl/test_post.py",),
    "ranking": ("tests/rtl/test_select.py",),
    "gate_lanes": ("tests/rtl/test_vector.py",),
    "norm_pipeline": ("tests/rtl/test_norm.py",),
    "tiles": ("tests/rtl/test_core.py",),
    "issue": ("tests/rtl/test_core.py",),
    "walk": ("tests/rtl/test_window.py",),
    "window_finish": ("tests/rtl/test_window.py",),
    "window_lanes": ("tests/rtl/test_window.py",),
    "window_post": ("tests/rtl/test_window.py",),
    "window_reads": ("tests/rtl/test_window.py",),
    "expert_queues": ("tests/rtl/test_router.py", "tests/rtl/test_core.py"),
}
# Not mutated: what describes modules of others, or is held by synthesis and boards.
APART = {"__init__", "booth", "memory", "small_memory", "ports", "insn", "shared", "block", "top", "claims"}


@dataclass(frozen=True)
class Area:
    """files: globs. tests: globs of the tests that should notice, the quickest first; for hwgen/rtl see `tests_of`."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    share: float  # of the mutations that are drawn


AREAS = {
    "rtl": Area(("hwgen/rtl/*.py",), (), 0.45),
    "numerics": Area(
        ("hwgen/numerics.py",), ("tests/hwgen/test_numerics.py", "tests/sim/test_golden.py", "tests/rtl/test_post.py"), 0.08
    ),
    "quantise": Area(
        ("hwgen/quantise/*.py",), ("tests/hwgen/test_quantise_*.py", "tests/hwgen/test_quantise.py", "tests/fuzz/test_*.py"), 0.14
    ),
    "schedule": Area(
        ("hwgen/schedule/*.py",),
        (
            "tests/hwgen/test_narrow.py", "tests/hwgen/test_program_checks.py", "tests/hwgen/test_schedule*.py",
            "tests/sim/test_machine*.py",
        ),
        0.12,
    ),  # fmt: skip
    "mapping": Area(
        ("hwgen/mapping/*.py",),
        (
            "tests/hwgen/test_mapping.py", "tests/hwgen/test_depth_first.py", "tests/hwgen/test_interleave.py",
            "tests/hwgen/test_spills.py", "tests/hwgen/test_window_tiling.py",
        ),
        0.11,
    ),  # fmt: skip
    "rows": Area(("hwgen/rows/*.py",), ("tests/hwgen/test_rows*.py", "tests/hwgen/test_recognise*.py"), 0.1),
}


def files(area: Area, top: Path) -> list[str]:
    """Paths of the files of an area, relative to the repository."""
    found = sorted(path for pattern in area.files for path in top.glob(pattern) if path.stem not in APART)
    return [str(path.relative_to(top)) for path in found]


def tests_of(area: Area, path: str, top: Path) -> list[str]:
    """Paths of the tests that should notice a fault in a file."""
    if area is AREAS["rtl"]:
        stem = Path(path).stem
        return list(RTL.get(stem, (f"tests/rtl/test_{stem}.py",)))
    found = {str(p.relative_to(top)): None for pattern in area.tests for p in sorted(top.glob(pattern))}
    return list(found)
