"""A model node by node: where each goes, what it costs, whether the whole fits the board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..origins import HOW, Place, costs
from ..version import __version__
from . import render

MOST_NAMES = 3


def page(about: Mapping[str, Any], tasks: Mapping[str, Sequence[Place]], report: Mapping[str, Any] | None) -> str:
    """The HTML text. about: `model`, `board`, `fit` (what does not fit, "" if all does), `mapping` (how it was
    mapped), `cut` (the --outputs that leave out what is refused). tasks: the nodes of each; report: of the schedule, if any."""
    shown = []
    for name, listed in tasks.items():
        task = None if report is None else report["tasks"][name]
        spent, rest = (None, None) if task is None else costs(listed, task)
        total = 1 if spent is None or rest is None else (sum(s["cycles"] for s in spent) + rest["cycles"]) or 1
        rows = [_row(i, place, None if spent is None else spent[i], total) for i, place in enumerate(listed)]
        counts = [(HOW[how], sum(place.how == how for place in listed)) for how in HOW]
        shown.append({
            "name": name, "rows": rows, "rest": rest, "total": total, "counts": [x for x in counts if x[1]],
            "refused": [place for place in listed if place.how == "refused"], "task": task,
        })  # fmt: skip
    title = f"hwgen check: {about['model']}"
    return render("inspector.html", title=title, version=__version__, how=HOW, tasks=shown, report=report, **about)


def _row(number: int, place: Place, spent: Mapping[str, int] | None, total: int) -> dict[str, Any]:
    kinds = ", ".join(dict.fromkeys(kind for kind, _ in place.layers))
    names = [name for _, name in place.layers]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    mine = spent if place.how == "layer" else None
    return {
        "number": number,
        "place": place,
        "shape": "" if place.shape is None else " × ".join(map(str, place.shape)),
        "goes": place.reason or f"{kinds} {', '.join(names[:MOST_NAMES])}{more}".strip(),
        "spent": mine,
        "share": None if mine is None else mine["cycles"] / total,
    }
