"""What goes into DRAM before a run of a program, and what comes out of it: by the task's entry in the manifest."""

from __future__ import annotations

from typing import Any

import numpy as np

from .config import Config
from .host.pack import pack_input, unpack_output

Images = dict[str, np.ndarray]
Entry = dict[str, Any]


def batches(images: list[Images], size: int) -> list[list[Images]]:
    """The images in runs of `size`; the last image fills the last run."""
    padded = images + images[-1:] * (-len(images) % size)
    return [padded[first : first + size] for first in range(0, len(padded), size)]


def writes(entry: Entry, batch: list[Images]) -> list[tuple[int, bytes]]:
    """(byte offset in DRAM, data) of every input of a batch."""
    return [(slot["dram"], pack_input(slot, batch[slot["index"]][slot["name"]])) for slot in entry["inputs"]]


def reads(entry: Entry) -> list[tuple[int, int]]:
    """(byte offset in DRAM, bytes) of every output of a batch."""
    return [(slot["dram"], slot["bytes"]) for slot in entry["outputs"]]


def outputs(entry: Entry, data: list[bytes], batch: int) -> list[Images]:
    """Outputs of every image of a batch, from what lies where `reads` says."""
    found: list[Images] = [{} for _ in range(batch)]
    for slot, part in zip(entry["outputs"], data, strict=True):
        found[slot["index"]][slot["name"]] = unpack_output(slot, part)
    return found


def on_machine(
    config: Config, entry: Entry, dram: np.ndarray, data_base: int, weight_bases: list[int], batch: list[Images]
) -> list[Images]:
    """Outputs of every image of a batch by the machine model, whose memory is `dram`."""
    from .sim.machine import Machine

    for offset, data in writes(entry, batch):
        dram[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
    program = entry["program"]
    Machine(config).run(dram, program["offset_bytes"], program["instructions"], data_base, weight_bases)
    return outputs(entry, [dram[at : at + size].tobytes() for at, size in reads(entry)], len(batch))
