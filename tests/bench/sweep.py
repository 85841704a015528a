"""The Config that explore chooses against an exhaustive sweep, in cycles from the counters of the simulated Verilog.

    python tests/bench/sweep.py RESULTS.json [--within SHARE] [NETWORK@BOARD ...]

The grid of a board: every array shape of `explore.space.WIDTHS`, every number of weight ports and a shallow and a deep weight
buffer, each with the deepest scratchpad, as far as they fit. The cycle model ranks all of the grid; in RTL run those within
SHARE of the best (default 0.06, twice the error that the tests allow the model), and the choice.
Every output is compared with golden. RESULTS.json keeps what is measured, by program, Verilog and DRAM: a sweep that is stopped
goes on from there. Exit code 1: a choice is more than 5 % slower than the best, or outputs differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from hwgen import boards, example, explore, mapping, run
from hwgen.config import MAX_WEIGHT_PORTS, Config
from hwgen.dram import of_board
from hwgen.errors import UserError
from hwgen.explore.space import WIDTHS, base, fits
from hwgen.explore.work import measure, power
from hwgen.files import read_npz, write_atomic
from hwgen.steps import build

PAIRS = ("m3vit-digits@ulx3s-85f", "vit-digits@pynq-z2", "m3vit-digits@ultra96v2")
IMAGES = 2
LIMIT = 0.05
BANK_WORDS = (8192, 4096, 2048, 1024, 512, 256)


def grid(graphs, board) -> list[Config]:
    """Every Config of the sweep that fits."""
    found = []
    start = replace(base(board, measure(graphs)), banks=2)
    for outputs in WIDTHS:
        for inputs in WIDTHS:
            for ports in range(1, min(MAX_WEIGHT_PORTS, board.port_count - 1) + 1):
                for tiles in (4, 64):
                    shape = {"array_outputs": outputs, "array_inputs": inputs, "weight_ports": ports}
                    words = power(tiles * outputs + 2 * start.burst_beats)
                    configs = (_config(start, **shape, weight_words=words, bank_words=depth) for depth in BANK_WORDS)
                    found += [c for c in configs if c is not None and fits(c, board)][:1]
    return found


def _config(start: Config, **fields: int) -> Config | None:
    try:
        return replace(start, **fields)
    except UserError:
        return None


def in_rtl(files: tuple[Path, ...], board: str, config: Config, known: dict) -> dict:
    """Mean cycles of some images, and whether every output equals golden's; added to `known`."""
    model, calibration, test = files
    settings = {name: str(value) for name, value in config.to_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        build({"": model}, Path(folder) / "bundle", board=board, calibrate=calibration, settings=settings)
        bundle = run.open_bundle(Path(folder) / "bundle")
        what = [name for name in bundle.files if name in ("program.bin", "dram.bin") or name.startswith("rtl/")]
        memory = str(of_board(boards.load(board), config)).encode()
        key = hashlib.sha256(memory + b"".join(bundle.files[name] for name in sorted(what))).hexdigest()
        if key in known:
            return known[key]
        images = {name: read_npz(test)[name][:IMAGES] for name in run.inputs(bundle, "")}
        golden, rtl = (run.run(bundle, engine, images) for engine in ("golden", "rtl"))
    same = all(np.array_equal(golden.outputs[name], rtl.outputs[name]) for name in golden.outputs)
    known[key] = {"config": str(config), "cycles": sum(c["cycles"] for c in rtl.counters) / IMAGES, "equal": same}
    return known[key]


def sweep(pair: str, within: float, known: dict, save, folder: Path) -> bool:
    """One pair measured and one row printed; whether the choice is good enough."""
    network, _, name = pair.partition("@")
    board, files = boards.load(name), example.write(network, folder / f"{network}.onnx")
    state = build({"": files[0]}, folder / "unused", board=name, calibrate=files[1], stop_after="select")

    def model(config: Config, quick: bool = False) -> float:
        found = mapping.search(state.integers, config, of_board(board, config), quick=quick)
        return found.cycles if isinstance(found, mapping.Choice) else float("inf")

    configs = grid(state.integers, board)
    roughly = {config: model(config, quick=True) for config in configs}  # with one mapping, several save up to a tenth
    hopeful = [c for c in configs if roughly[c] <= (1.1 + within) * min(roughly.values())]
    ranked = sorted((model(config), str(config), config) for config in hopeful)
    near = [config for cycles, _, config in ranked if cycles <= (1 + within) * ranked[0][0]]
    choice = explore.choose(explore.explore(state.integers, board)).config
    results = {}
    for n, config in enumerate([choice, *near]):
        results[config] = in_rtl(files, name, config, known) | {"model": model(config)}
        save()
        print(
            f"{pair}: {n + 1} of {len(near) + 1} in RTL, {results[config]['cycles']:,.0f} cycles",
            file=sys.stderr,
            flush=True,
        )
    best = min(near, key=lambda c: results[c]["cycles"])
    least, chosen = results[best]["cycles"], results[choice]["cycles"]
    error = max(abs(r["model"] / r["cycles"] - 1) for r in results.values())
    cells = (pair, len(configs), len(near), _text(best), f"{least:,.0f}", _text(choice), f"{chosen:,.0f}",
             f"{chosen / least - 1:+.1%}", f"{error:.1%}")  # fmt: skip
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)
    return chosen <= (1 + LIMIT) * least and all(r["equal"] for r in results.values())


def _text(c: Config) -> str:
    return f"{c.array_outputs} x {c.array_inputs}, {c.weight_ports} ports, {c.weight_words} words"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("pairs", nargs="*", default=PAIRS)
    parser.add_argument("--within", type=float, default=0.06)
    options = parser.parse_intermixed_args(arguments)
    known = json.loads(options.results.read_text()) if options.results.exists() else {}

    def save() -> None:
        write_atomic(options.results, json.dumps(known, indent=1).encode())

    print("| network and board | grid | in RTL | best | cycles | choice | cycles | slower | model's largest error |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        good = [sweep(pair, options.within, known, save, Path(folder)) for pair in options.pairs]
    sys.exit(not all(good))


if __name__ == "__main__":
    main(sys.argv[1:])
