"""What ONNX files become in the tensor IR: nodes, copies, error against onnxruntime, seconds of CPU.

    python tests/bench/lower.py FILE.onnx [FILE.onnx ...]

The error is the largest difference of any output, in standard deviations of the output, on the best of up to three seeded
normal images of different size: with drawn weights a softmax may be so steep that float32 itself decides nothing.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime

from hwgen.errors import UserError
from hwgen.importer.importer import import_program
from hwgen.importer.load import load
from hwgen.tensor import evaluate, verify

SIZES = (1, 0.1, 10)
LIMIT = 1e-4
KINDS = {"f": np.float32, "i": np.int64, "b": np.bool_}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def line(path: Path) -> tuple[bool, str]:
    """(lowered and equal within 1e-4, what to print)."""
    begin = time.process_time()
    program, findings = import_program(load(path))
    imported = time.process_time() - begin
    if findings:
        groups = Counter(f"{f.op}: {f.reason}" for f in findings)
        return False, f"{len(findings)} refused: " + "; ".join(f"{text} ({n})" for text, n in groups.most_common(4))
    verify(program)
    nodes = Counter(n.op.kind for n in program.nodes())
    run, worst = session(path), np.inf
    for size in SIZES:
        rng = np.random.default_rng(0)
        feed = {i.name: (size * rng.standard_normal(i.shape, np.float32)).astype(KINDS[i.dtype]) for i in program.inputs()}
        got, _ = evaluate(program, feed)
        wanted = dict(zip(got, run.run(list(got), feed), strict=True))
        worst = min(worst, max(_error(got[name], w) for name, w in wanted.items()))
        if worst <= LIMIT:
            break
    total = sum(n for kind, n in nodes.items() if kind not in ("const", "input"))
    kinds = " ".join(f"{kind} {n}" for kind, n in sorted(nodes.items()))
    return worst <= LIMIT, f"{total} nodes, {nodes['copy']} copies, error {worst:.1e}, import {imported:.2f} s: {kinds}"


def _error(got: np.ndarray, wanted: np.ndarray) -> float:
    return np.inf if got.shape != wanted.shape else float(np.abs(got - wanted).max() / (wanted.std() + 1e-6))


def main(paths: list[str]) -> int:
    good = 0
    for path in map(Path, paths):
        try:
            fine, text = line(path)
        except UserError as error:
            fine, text = False, str(error)
        good += fine
        print(f"{'' if fine else 'NOT EQUAL '}{path.name}: {text}", flush=True)
    print(f"{good} of {len(paths)} equal within 1e-4")
    return good != len(paths)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
