"""A measured run as Chrome's and Perfetto's viewers read it (Trace Event Format): a process for each run, a track for each unit.

Open the file at https://ui.perfetto.dev or chrome://tracing; nothing is uploaded.
"""

from __future__ import annotations

SUFFIX = ".perfetto.json"
LAYERS = "layers"


def events(trace: dict) -> dict:
    """The JSON object of a viewer, from one that `hwgen run --trace` writes.

    Slices on a track must not overlap, and a unit takes an instruction before it has finished the last one: a slice begins where
    the unit has ended what came before, and its arguments say when it was taken. Microseconds, at the clock of the bundle.
    """
    scale, found = 1 / trace["clock_mhz"], []
    for number, run in enumerate(trace["runs"]):
        tracks = {LAYERS: [(x["name"], "layer", x["start"], x["end"], _rest(x)) for x in run["layers"]]}
        for unit in run["busy"]:
            mine = [x for x in run["operations"] if x["unit"] == unit]
            tracks[unit] = [(x["of"], x["insn"], x["start"], x["end"], _rest(x)) for x in mine]
        name = f"run {number}" + (f", task {trace['task']}" if trace["task"] else "")
        found.append(_meta("process_name", number, 0, name=name))
        for track, (unit, slices) in enumerate(tracks.items()):
            found += [_meta("thread_name", number, track, name=unit), _meta("thread_sort_index", number, track, sort_index=track)]
            free = 0
            for title, kind, start, end, more in sorted(slices, key=lambda x: (x[3], x[2])):
                begin = min(max(start, free), end)
                free = end
                times = {"ts": begin * scale, "dur": (end - begin) * scale}
                args = {"start": start, "end": end, **more}
                found.append({"ph": "X", "pid": number, "tid": track, "name": title, "cat": kind, **times, "args": args})
    return {"traceEvents": found, "displayTimeUnit": "ns", "otherData": {"clock_mhz": trace["clock_mhz"], "dram": trace["dram"]}}


def _rest(entry: dict) -> dict:
    """What else is known: cycles by cause, products, bytes."""
    return {key: value for key, value in entry.items() if key not in ("name", "of", "unit", "start", "end")}


def _meta(what: str, process: int, thread: int, **args) -> dict:
    return {"ph": "M", "pid": process, "tid": thread, "name": what, "args": args}
