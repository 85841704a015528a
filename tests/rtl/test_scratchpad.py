# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen.config import Config
from hwgen.rtl.ports import READ_LATENCY, WRITE_LATENCY
from hwgen.rtl.scratchpad import Scratchpad

READERS = ("res", "x", "w", "vector", "store")  # in falling priority
WRITERS = ("y", "vector", "load")


class Model:
    """The scratchpad's contract: contents, grants, and what a read must (or, None, need not) deliver."""

    def __init__(self, config: Config):
        self.config = config
        self.chunks = np.zeros((config.scratch_chunks, config.chunk), np.int64)
        self.defined = np.zeros(config.scratch_chunks, bool)
        self.writes = []  # (cycle, addresses, data)

    def grants(self, requests: dict) -> dict:
        taken, ready = set(), {}
        for name, request in requests.items():
            bank = request["addr"] // self.config.bank_chunks
            ready[name] = bank not in taken
            if request["valid"]:
                taken.add(bank)
        return ready

    def inside(self, addr: int, behind: np.ndarray) -> np.ndarray:
        """Chunk addresses so far behind an address in its bank, whose first chunk is behind its last."""
        size = self.config.bank_chunks
        return addr // size * size + (addr + behind) % size

    def write(self, cycle: int, request: dict) -> None:
        mask = request["mask"].astype(bool)
        self.writes.append((cycle, self.inside(request["addr"], np.flatnonzero(mask)), request["data"][mask]))

    def read(self, cycle: int, addr: int, count: int) -> list:
        """Chunks that a read accepted in `cycle` delivers; to be called with the writes of earlier cycles only."""
        landed = [w for w in self.writes if w[0] <= cycle - WRITE_LATENCY]
        self.writes = [w for w in self.writes if w[0] > cycle - WRITE_LATENCY]
        for _, addresses, data in landed:
            self.chunks[addresses] = data
            self.defined[addresses] = True
        unsure = {a for _, addresses, _ in self.writes for a in addresses}
        return [
            self.chunks[a].copy() if self.defined[a] and a not in unsure else None
            for a in self.inside(addr, np.arange(count)).tolist()
        ]


def chunk_counts(config: Config) -> dict:
    wide_in, wide_out = config.input_chunks, config.output_chunks
    return {"rd_res": wide_out, "rd_x": wide_in, "rd_w": wide_in, "rd_vector": 1, "rd_store": 1} | {
        "wr_y": wide_out,
        "wr_vector": 1,
        "wr_load": 1,
    }


def random_request(config: Config, count: int, kind: str, load: float, rng) -> dict:
    request = {"valid": bool(rng.random() < load), "addr": int(rng.integers(config.scratch_chunks))}
    if kind == "wr":
        request["mask"] = rng.integers(0, 2, count) if rng.random() < 0.5 else np.ones(count, np.int64)
        request["data"] = rng.integers(-(1 << 15), 1 << 15, (count, config.chunk))
    return request


def run(config: Config, cycles: int, load: float, rng) -> dict:
    """Random traffic of all requesters against the model; counts of what happened."""
    dut = Scratchpad(config)
    model, counts = Model(config), chunk_counts(config)
    seen = {"checked": 0, "wrapped": 0, "refused": 0}

    async def bench(ctx):
        requests = {name: random_request(config, n, name[:2], load, rng) for name, n in counts.items()}
        due: dict[int, list] = {}
        for cycle in range(cycles):
            for name, request in requests.items():
                port = getattr(dut, name)
                ctx.set(port.valid, request["valid"])
                ctx.set(port.addr, request["addr"])
                if name[:2] == "wr":
                    ctx.set(port.mask, sum(int(bit) << k for k, bit in enumerate(request["mask"])))
                    ctx.set(port.data, request["data"].reshape(-1).tolist())
            for name, expected in due.pop(cycle, []):
                words = list(ctx.get(getattr(dut, name).data))
                got = np.array(words).reshape(-1, config.chunk)
                for k, chunk in enumerate(expected):
                    if chunk is not None:
                        np.testing.assert_array_equal(got[k], chunk, f"{name} chunk {k} in cycle {cycle}")
                        seen["checked"] += 1
            accepted = {}
            for kind, names in (("rd", READERS), ("wr", WRITERS)):
                ready = model.grants({f"{kind}_{n}": requests[f"{kind}_{n}"] for n in names})
                for name, expected in ready.items():
                    assert ctx.get(getattr(dut, name).ready) == expected, f"{name}.ready in cycle {cycle}"
                    accepted[name] = expected and requests[name]["valid"]
                    seen["refused"] += requests[name]["valid"] and not expected
            for name in accepted:
                request = requests[name]
                if accepted[name] and name[:2] == "rd":
                    values = model.read(cycle, request["addr"], counts[name])
                    due.setdefault(cycle + READ_LATENCY, []).append((name, values))
                    first, last = request["addr"], request["addr"] + counts[name] - 1
                    seen["wrapped"] += first // config.word_chunks != last // config.word_chunks
            for name in accepted:
                if accepted[name] and name[:2] == "wr":
                    model.write(cycle, requests[name])
                # A refused request stays; so does its address.
                if accepted[name] or not requests[name]["valid"]:
                    requests[name] = random_request(config, counts[name], name[:2], load, rng)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return seen


@pytest.mark.parametrize(
    "outputs,inputs,banks,words",
    [(12, 20, 2, 4), (8, 8, 4, 8), (16, 8, 2, 2), (8, 24, 8, 2)],
)
def test_concurrent_traffic(outputs, inputs, banks, words):
    config = Config(array_outputs=outputs, array_inputs=inputs, banks=banks, bank_words=words)
    rng = np.random.default_rng(outputs * inputs + banks)
    for load in (0.9, 0.4):
        seen = run(config, 250, load, rng)
        assert seen["checked"] > 200 and seen["refused"] > 50, seen
        assert seen["wrapped"] > 20 or config.word_chunks == 1, seen


def test_bad_style():
    with pytest.raises(ValueError, match="style='lut'"):
        Scratchpad(Config(), style="lut")
