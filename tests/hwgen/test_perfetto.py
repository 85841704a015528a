"""A measured run for Perfetto: one track a unit, on which nothing overlaps, with every instruction in it."""

from hwgen import perfetto

TRACE = {
    "clock_mhz": 200.0,
    "task": "digit",
    "dram": "board",
    "runs": [
        {
            "busy": {"load": 40, "matmul": 90},
            "layers": [{"name": "norm1", "start": 0, "end": 120, "cycles": 120}],
            "operations": [
                {"index": 0, "insn": "Load", "unit": "load", "of": "image", "start": 0, "end": 40, "dram_bytes": 640},
                {"index": 1, "insn": "Matmul", "unit": "matmul", "of": "qkv", "start": 30, "end": 90, "active": 50},
                {"index": 2, "insn": "Matmul", "unit": "matmul", "of": "scores", "start": 60, "end": 120, "active": 20},
            ],
        }
    ],
}


def test_tracks_and_times():
    found = perfetto.events(TRACE)
    names = {(e["name"], e["tid"]): e["args"] for e in found["traceEvents"] if e["ph"] == "M"}
    assert names["process_name", 0] == {"name": "run 0, task digit"}
    assert [names["thread_name", t]["name"] for t in range(3)] == ["layers", "load", "matmul"]
    slices = {e["name"]: e for e in found["traceEvents"] if e["ph"] == "X"}
    assert (slices["qkv"]["tid"], slices["qkv"]["ts"], slices["qkv"]["dur"]) == (2, 0.15, 0.3)  # 5 ns a cycle
    assert (slices["scores"]["ts"], slices["scores"]["dur"]) == (0.45, 0.15)  # taken at 60, before qkv was done
    assert slices["scores"]["args"] == {"start": 60, "end": 120, "index": 2, "insn": "Matmul", "active": 20}
    assert slices["image"]["cat"] == "Load" and slices["image"]["args"]["dram_bytes"] == 640
    assert slices["norm1"]["dur"] == 0.6


def test_nothing_overlaps_whatever_the_order_of_ends():
    run = {**TRACE["runs"][0], "operations": TRACE["runs"][0]["operations"][::-1]}
    for trace in (TRACE, {**TRACE, "runs": [run, run]}):
        tracks: dict = {}
        for event in perfetto.events(trace)["traceEvents"]:
            if event["ph"] == "X":
                tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["dur"]))
        for slices in tracks.values():
            assert all(a + b <= c + 1e-9 for (a, b), (c, _) in zip(slices, slices[1:], strict=False))
