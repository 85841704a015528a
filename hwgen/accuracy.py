"""Whether the integers keep of the float model what the options promise: measured, mended by 16 bits where that helps, told."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .compare import snr_db
from .graph import Graph, evaluate, outputs
from .qgraph import QGraph
from .quantise import Quantisation, calibrated, fresh_noise, integers
from .quantise.options import MOST_SNR
from .sim import quantised

IMAGES = 2  # that are measured
MORE = 6.0  # dB beyond what is missing that the estimate is asked for, where it promised too much
GAIN = 1.0  # dB, without which more layers in 16 bits are not worth their cycles
Arrays = dict[str, np.ndarray]
Sample = list[tuple[Arrays, Arrays]]  # images by input, with the float model's outputs


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
    known = calibrated(graphs, images, options)
    made = integers(known, options)
    if not options.min_snr:
        return Accurate(made, dict.fromkeys(graphs, (MOST_SNR, "")))
    samples = {task: _sample(graph, images) for task, graph in graphs.items()}
    first = best = _measured(made, samples)
    asked = options.min_snr
    while best.worst < options.min_snr and asked < MOST_SNR:
        asked = min(asked + options.min_snr - best.worst + MORE, MOST_SNR) if asked == options.min_snr else MOST_SNR
        found = _measured(integers(known, replace(options, min_snr=asked)), samples)
        if found.worst > best.worst + GAIN:
            best = found
    return best if best is first else replace(best, before=first.worst)


def _sample(graph: Graph, images: Arrays | None) -> Sample:
    """The first images of a task and what the float model makes of each."""
    given = fresh_noise(graph) if images is None else images
    count = min(IMAGES, len(next(iter(given.values()))))
    chosen = [{name: given[name][i] for name in graph.inputs} for i in range(count)]
    return [(image, outputs(graph, evaluate(graph, image))) for image in chosen]


def _measured(made: dict[str, QGraph], samples: dict[str, Sample]) -> Accurate:
    return Accurate(made, {task: _kept(graph, samples[task]) for task, graph in made.items()})


def _kept(made: QGraph, sample: Sample) -> tuple[float, str]:
    """dB that the worst output keeps, and its name."""
    wanted = [output for _, output in sample]
    found = [quantised.outputs(made, quantised.evaluate(made, image)) for image, _ in sample]
    flat = {name: [np.stack([o[name].reshape(-1) for o in side]) for side in (wanted, found)] for name in wanted[0]}
    return min((snr_db(*sides), name) for name, sides in flat.items())


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
