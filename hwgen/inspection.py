"""A model on a board, node by node: the page of `hwgen check --html` and `hwgen.inspect`, and what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import boards, levels, origins, report, steps
from .errors import Finding, UserError
from .files import readable
from .images import Held
from .importer.part import Cut
from .pages import inspector


class Inspection(NamedTuple):
    """The page (HTML), every node that cannot be built, and the outputs that leave them out, where there are such."""

    page: str
    findings: list[Finding]
    cut: Cut | None


def inspect(
    path: Path,
    board: str = "zcu104",
    *,
    shapes: Mapping[str, tuple[int, ...]],
    outputs: Sequence[str] = (),
    calibrate: Held | None = None,
    settings: Mapping[str, str] | None = None,
) -> Inspection:
    """Where each node of a file goes, what it costs on the board, whether the whole fits. Arguments as in `steps.build`."""
    how: dict[str, Any] = {"shapes": dict(shapes), "outputs": outputs}
    compiled = levels.tasks(path, **how)
    findings = levels.standing(compiled)
    cut = levels.proposal(path, findings, shapes=how["shapes"]) if findings and not outputs else None
    about: dict[str, Any] = {"model": readable(path), "board": boards.load(board), "fit": "", "mapping": ""}
    about["cut"] = "" if cut is None else ",".join(cut.outputs)
    made = None
    if not findings:
        try:
            state = steps.build(
                {"": path}, path, board=board, stop_after="schedule", settings=dict(settings or {}), calibrate=calibrate, **how
            )
            assert state.program is not None and state.mapping is not None  # of the step `schedule`
            made = report.make(state.program, state.board, [readable(path)])
            over = report.exceeded(made)
            about |= {"mapping": state.mapping.text(state.batch), "fit": f"more {over} than the part has" if over else ""}
        except UserError as error:
            about["fit"] = str(error)
    nodes = {
        name: origins.places(one.model, one.levels.get("tensor"), one.levels.get("rows"), one.findings)
        for name, one in compiled.items()
    }
    return Inspection(inspector.page(about, nodes, made), findings, cut)
