"""Whether the integers keep of the float model what the options promise: measured, mended by 16 bits where that helps, told."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .compare import snr_db
from .graph import Graph, evaluate, outputs
from .qgraph import QGraph
from .quantise import Quantisation, fresh_noise, quantise
from .quantise.options import MOST_SNR
from .sim import quantised

IMAGES = 2  # that are measured
MORE = 6.0  # dB beyond what is missing that the estimate is asked for, where it promised too much
GAIN = 1.0  # dB, without which more layers in 16 bits are not worth their cycles
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Accurate:
    """Level Q of each task, the dB that its worst output keeps on the images measured, and of which output that is.

    `before`: dB of the worst task before more layers had 16 bits; None where none had to.
    """

    graphs: dict[str, QGraph]
    kept: dict[str, tuple[float, str]]
    before: float | None = None

    @property
    def worst(self) -> float:
        return min(db for db, _ in self.kept.values())


def accurate(graphs: dict[str, Graph], images: Arrays | None, options: Quantisation) -> Accurate:
    """Level Q by `quantise`, again with more layers in 16 bits as long as an output keeps less than `min_snr`.

    The estimate by which layers are chosen knows of what they multiply; what else the integers lose is only seen by
    running them. With a min_snr of 0 nothing is promised, nor measured. Raises UserError as `quantise` does.
    """
    first = best = _measured(graphs, images, options, options)
    asked = options.min_snr
    while best.worst < options.min_snr and asked < MOST_SNR:
        asked = min(asked + options.min_snr - best.worst + MORE, MOST_SNR) if asked == options.min_snr else MOST_SNR
        found = _measured(graphs, images, replace(options, min_snr=asked), options)
        if found.worst > best.worst + GAIN:
            best = found
    return best if best is first else replace(best, before=first.worst)


def _measured(graphs: dict[str, Graph], images: Arrays | None, options: Quantisation, wanted: Quantisation) -> Accurate:
    made = quantise(graphs, images, options)
    none = dict.fromkeys(graphs, (MOST_SNR, ""))
    return Accurate(made, none if not wanted.min_snr else {task: _kept(graphs[task], made[task], images) for task in graphs})


def _kept(graph: Graph, made: QGraph, images: Arrays | None) -> tuple[float, str]:
    """dB that the worst output keeps on the first images, and its name."""
    given = fresh_noise(graph) if images is None else images
    count = min(IMAGES, len(next(iter(given.values()))))
    wanted: dict[str, list[np.ndarray]] = {o.name: [] for o in graph.outputs}
    found: dict[str, list[np.ndarray]] = {o.name: [] for o in graph.outputs}
    for i in range(count):
        image = {name: given[name][i] for name in graph.inputs}
        for held, values in (
            (wanted, outputs(graph, evaluate(graph, image))),
            (found, quantised.outputs(made, quantised.evaluate(made, image))),
        ):
            for name in held:
                held[name].append(np.asarray(values[name]).reshape(-1))
    return min((snr_db(np.stack(wanted[name]), np.stack(found[name])), name) for name in wanted)


def told(made: Accurate, options: Quantisation, images: Arrays | None) -> list[str]:
    """A warning for each task of which an output keeps less than `min_snr`: by how much, and what may be done."""
    what = "on seeded noise, which may be unlike its images: --calibrate" if images is None else "on calibration images:"
    return [
        f"{f'task {task}: ' if task else ''}output {name!r} keeps {db:.1f} dB of the float model {what}, less than "
        f"min_snr={options.min_snr:g}, and 16 bits in more layers do not mend it; hwgen compare tells which layers lose it, "
        f"--set min_snr={max(db, 0):.0f} takes it as it is"
        for task, (db, name) in made.kept.items()
        if db < options.min_snr
    ]
