"""What is mutated, and the tests that should notice it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
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
    "scan_lanes": ("tests/rtl/test_scan.py",),
    "row_walk": ("tests/rtl/test_row_walk.py", "tests/rtl/test_core.py"),
    "walk": ("tests/rtl/test_norm.py", "tests/rtl/test_load.py"),
    "window_finish": ("tests/rtl/test_window.py",),
    "window_lanes": ("tests/rtl/test_window.py",),
    "window_post": ("tests/rtl/test_window.py",),
    "window_reads": ("tests/rtl/test_window.py",),
    "expert_queues": ("tests/rtl/test_router.py", "tests/rtl/test_core.py"),
}
# Not mutated: what describes modules of others, or is held by synthesis and boards.
APART = {"__init__", "booth", "memory", "small_memory", "ports", "insn", "shared", "block", "top", "claims"}
if find_spec("pynq") is None:
    APART.add("board")  # whose tests need it


@dataclass(frozen=True)
class Area:
    """files: globs. tests: globs of the tests that should notice, the quickest first; for hwgen/rtl see RTL."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    share: float  # of the mutations that are drawn


AREAS = {
    "rtl": Area(("hwgen/rtl/*.py",), (), 0.25),
    "window": Area(("hwgen/rtl/window*.py", "hwgen/rtl/row_walk.py", "hwgen/rtl/walk.py"), (), 0.06),
    "scan": Area(
        ("hwgen/rtl/scan*.py", "hwgen/quantise/scan.py", "hwgen/rows/scans.py", "hwgen/recognise/scans.py"),
        ("tests/hwgen/test_scans.py", "tests/sim/test_machine_scans.py"), 0.06,
    ),
    "narrow": Area(
        ("hwgen/rtl/expander.py", "hwgen/quantise/narrow.py", "hwgen/schedule/narrow.py"),
        ("tests/hwgen/test_narrow.py", "tests/hwgen/test_quantise_narrow.py", "tests/sim/test_machine.py"), 0.05,
    ),
    "selection": Area(
        (
            "hwgen/rtl/select.py", "hwgen/rtl/ranking.py", "hwgen/rows/selection.py", "hwgen/quantise/received.py",
            "hwgen/quantise/hard.py", "hwgen/recognise/selection.py", "hwgen/recognise/lists.py",
        ),
        ("tests/hwgen/test_selection.py", "tests/hwgen/test_chosen.py", "tests/sim/test_machine_selections.py"), 0.06,
    ),
    "walks": Area(
        ("hwgen/walks.py", "hwgen/select/nests.py", "hwgen/mapping/bands.py"),
        (
            "tests/hwgen/test_walks.py", "tests/hwgen/test_nests.py", "tests/hwgen/test_bands.py",
            "tests/sim/test_machine_walks.py", "tests/sim/test_machine_windows.py", "tests/hwgen/test_window_tiling.py",
        ), 0.05,
    ),
    "columns": Area(
        ("hwgen/mapping/columns.py", "hwgen/mapping/halos.py", "hwgen/mapping/window*.py", "hwgen/mapping/streamed.py"),
        (
            "tests/hwgen/test_columns.py", "tests/hwgen/test_window_tiling.py", "tests/hwgen/test_depth_first.py",
            "tests/hwgen/test_spills.py",
        ), 0.06,
    ),
    "accuracy": Area(
        (
            "hwgen/accuracy.py", "hwgen/quantise/sensitive.py", "hwgen/quantise/feedback.py", "hwgen/quantise/clipping.py",
            "hwgen/quantise/calibrate.py", "hwgen/compare.py",
        ),
        ("tests/hwgen/test_accuracy.py", "tests/hwgen/test_quantise*.py", "tests/hwgen/test_compare.py"), 0.05,
    ),
    "transfer": Area(
        ("hwgen/transfer.py", "hwgen/counts.py", "hwgen/schedule/areas.py", "hwgen/agreement.py", "host/pack.py"),
        (
            "tests/hwgen/test_spills.py", "tests/hwgen/test_agreement.py", "tests/hwgen/test_cost.py", "tests/host/test_pack.py",
            "tests/sim/test_machine.py",
        ), 0.04,
    ),
    "numerics": Area(
        ("hwgen/numerics.py",),
        ("tests/hwgen/test_numerics.py", "tests/hwgen/test_scans.py", "tests/sim/test_golden.py", "tests/rtl/test_post.py",
         "tests/rtl/test_norm.py", "tests/rtl/test_scan.py"), 0.07,
    ),
    "quantise": Area(
        ("hwgen/quantise/*.py",),
        (
            "tests/hwgen/test_quantise_scales.py", "tests/hwgen/test_quantise.py", "tests/hwgen/test_quantise_*.py",
            "tests/hwgen/test_select.py", "tests/hwgen/test_chosen.py", "tests/fuzz/test_random_graphs.py",
        ), 0.08,
    ),
    "schedule": Area(
        ("hwgen/schedule/*.py",),
        (
            "tests/hwgen/test_narrow.py", "tests/hwgen/test_program_checks.py", "tests/hwgen/test_schedule*.py",
            "tests/sim/test_machine*.py",
        ), 0.08,
    ),
    "mapping": Area(
        ("hwgen/mapping/*.py",),
        (
            "tests/hwgen/test_mapping.py", "tests/hwgen/test_bands.py", "tests/hwgen/test_depth_first.py",
            "tests/hwgen/test_interleave.py", "tests/hwgen/test_pieces.py", "tests/hwgen/test_together.py",
            "tests/hwgen/test_columns.py", "tests/hwgen/test_spills.py", "tests/hwgen/test_window_tiling.py",
        ), 0.08,
    ),
    "rows": Area(
        ("hwgen/rows/*.py",), ("tests/hwgen/test_rows*.py", "tests/hwgen/test_recognise*.py", "tests/hwgen/test_scans.py"), 0.07
    ),
    "host": Area(
        ("host/*.py",),
        (
            "tests/host/test_pack.py", "tests/host/test_accelerator.py", "tests/host/test_faults.py", "tests/host/test_serial.py",
            "tests/host/test_main.py", "tests/host/test_multitask.py", "tests/host/test_energy.py",
        ), 0.04,
    ),
}  # fmt: skip


def files(area: Area, top: Path) -> list[str]:
    """Paths of the files of an area, relative to the repository."""
    found = sorted(path for pattern in area.files for path in top.glob(pattern) if path.stem not in APART)
    return [str(path.relative_to(top)) for path in found]


def tests_of(area: Area, path: str, top: Path) -> list[str]:
    """Paths of the tests that should notice a fault in a file; those that are named as it is come first."""
    folder, stem = Path(path).parent.name, Path(path).stem
    if folder == "rtl":
        return list(RTL.get(stem, (f"tests/rtl/test_{stem}.py",)))
    found = {str(p.relative_to(top)): None for pattern in area.tests for p in sorted(top.glob(pattern))}
    named = (f"test_{stem}.py", f"test_{folder}_{stem}.py")
    return sorted(found, key=lambda test: Path(test).name not in named)
