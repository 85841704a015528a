"""The generated top on a bus that others wrote: cocotbext-axi's models of AXI and AXI-Lite, with pauses, errors and any base."""

from __future__ import annotations

import base64
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from hwgen import registers, steps
from hwgen.config import Config
from hwgen.registers import Status
from hwgen.schedule import schedule
from hwgen.sim import golden, simulators
from hwgen.sim.tb.graphs import Shape, random_graph, random_images

if not find_spec("cocotbext") or not find_spec("cocotbext.axi"):
    pytest.skip("no cocotbext-axi", allow_module_level=True)

SMALL = dict(array_outputs=8, array_inputs=8, bank_words=512)
CONFIGS = {
    "two ports": Config(**SMALL),
    "one port, narrow, short bursts": Config(**SMALL, weight_ports=1, axi_bytes=8, burst_beats=4, outstanding=2),
    "four ports": Config(**SMALL, weight_ports=4, outstanding=3),
}
BASES = (0, 0x3000, 0x7FF000)  # multiples of 4 KiB
PAUSES = ((0.0, 1), (0.3, 1), (0.7, 4), (0.5, 40))  # share of the time, longest stretch in cycles
READS, WRITES = 0, 1  # kinds of fault; behind them the weight ports


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_equal_to_golden_on_a_foreign_bus(tmp_path, kind, in_memory, monkeypatch):
    config = CONFIGS[kind]
    graph = random_graph(3, Shape())
    program = schedule({"": graph}, config)
    task = program.tasks[""]
    images = [random_images(graph, seed) for seed in range(2)]
    wanted = [golden.run(graph, image).outputs for image in images]
    job = {
        "seed": 1,
        "ports": config.weight_ports,
        "size": program.size,
        "bases": BASES,
        "pauses": PAUSES,
        "config_hash": registers.config_hash(config),
        "data_base": program.data_base,
        "weight_bases": program.weight_bases,
        "program": (task.offset - program.data_base) // config.axi_bytes,
        "instructions": len(task.instructions),
        "writes": [
            [[offset, base64.b64encode(data).decode()] for offset, data in in_memory.writes(program, task, image)]
            for image in images
        ],
        "reads": [[slot.dram, slot.layout.bytes] for slot in task.outputs],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "dram.bin").write_bytes(program.dram().tobytes())
    monkeypatch.syspath_prepend(Path(__file__).parent)  # cocotb looks for the bench there
    simulators.run_bench(
        steps.verilog(config), "hwgen_top", "foreign_bus_bench", tmp_path,
        environment={"HWGEN_BENCH": str(tmp_path), "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    results = json.loads((tmp_path / "result.json").read_text())
    assert len(results) >= len(BASES) * len(PAUSES) + 2 * 2 * (2 + config.weight_ports)
    for result in results:
        what = {name: result[name] for name in ("image", "base", "share", "longest", "fault")}
        if result["fault"] is None:
            assert result["status"] == Status.DONE | Status.IRQ, what
            found = in_memory.unpack(program, task, [base64.b64decode(data) for data in result["reads"]])
            for name, values in wanted[result["image"]].items():
                np.testing.assert_array_equal(found[name], values, str(what))
        else:
            error = Status.WRITE_ERROR if result["fault"][0] == WRITES else Status.READ_ERROR
            assert error in Status(result["status"]), what
