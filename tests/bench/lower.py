"""What ONNX files become on the way down: nodes of a level, error against onnxruntime, seconds of CPU.

    python tests/bench/lower.py [--level tensor|layers|rows] FILE.onnx [FILE.onnx ...]

The error is the largest difference of any output, in standard deviations of the output, on the best of up to three seeded
normal images of different size: with drawn weights a softmax may be so steep that float32 itself decides nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime

from hwgen import graph
from hwgen.errors import UserError
from hwgen.levels import compiled
from hwgen.proof import evaluate
from hwgen.tensor import Program

SIZES = (1, 0.1, 10)
LIMIT = 1e-4
KINDS = {"f": np.float32, "i": np.int64, "b": np.bool_}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def line(path: Path, level: str) -> tuple[bool, str]:
    """(lowered and equal within 1e-4, what to print)."""
    begin = time.process_time()
    done = compiled(path).until(level)
    spent = time.process_time() - begin
    if done.findings or level not in done.levels:
        groups = Counter(f"{f.op}: {f.reason}" for f in done.findings)
        return False, f"{len(done.findings)} refused: " + "; ".join(f"{text} ({n})" for text, n in groups.most_common(6))
    made, inputs = done.levels[level], done.levels["tensor"].inputs()
    run, worst = session(path), np.inf
    for size in SIZES:
        rng = np.random.default_rng(0)
        feed = {i.name: (size * rng.standard_normal(i.shape, np.float32)).astype(KINDS[i.dtype]) for i in inputs}
        got = evaluate(made, feed)
        wanted = dict(zip(got, run.run(list(got), feed), strict=True))
        worst = min(worst, max(_error(got[name], w) for name, w in wanted.items()))
        if worst <= LIMIT:
            break
    nodes = _nodes(made)
    kinds = " ".join(f"{kind} {n}" for kind, n in sorted(nodes.items()))
    return worst <= LIMIT, f"{nodes.total()} nodes, error {worst:.1e}, {spent:.2f} s: {kinds}"


def _nodes(level: Program | graph.Graph) -> Counter[str]:
    if isinstance(level, Program):
        return Counter(n.op.kind for n in level.nodes() if n.op.kind not in ("const", "input"))
    return Counter(type(n).__name__ for n in level.nodes)


def _error(got: np.ndarray, wanted: np.ndarray) -> float:
    if got.shape not in (wanted.shape, wanted.shape[1:]):
        return np.inf
    return float(np.abs(got.reshape(wanted.shape) - wanted).max() / (wanted.std() + 1e-6))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--level", default="tensor", choices=("tensor", "layers", "rows"))
    parser.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args()
    good = 0
    for path in given.files:
        try:
            fine, text = line(path, given.level)
        except UserError as error:
            fine, text = False, str(error)
        good += fine
        print(f"{'' if fine else 'NOT EQUAL '}{path.name}: {text}", flush=True)
    print(f"{good} of {len(given.files)} equal within 1e-4")
    return good != len(given.files)


if __name__ == "__main__":
    sys.exit(main())
