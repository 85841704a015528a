"""The operations of a run gathered under the model's own names: parts (qkv, scores, projection, experts) in blocks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from .timeline import CAUSES

WHOLE_BLOCK = 3  # parts under a number that make it a block of the network: fewer are a layer of a Sequential
Key = tuple[str, str]  # block, part
SUMS = (*CAUSES, "macs", "dram_bytes", "vector", "load", "store")
_COUNTER = re.compile(r"([a-z]*)(\d+)")  # not layernorm_3, which is the third of a network without names
_MOVED = re.compile(r"(load|fetch|spill|maxima|ones)\d*")  # as `mapping.spills` names transfers, and what takes maxima again
_TWICE = re.compile(r"\b(\w+)\.\1\.(?=\d)")


def places(operations: Iterable[Mapping[str, Any]]) -> dict[str, Key]:
    """Operation name -> (block, part), from entries with `of` and, of an expert's product, `expert`.

    `blocks.1.mlp.experts.7.w1` of expert 7 is part `mlp.experts.w1` of block `blocks.1`; `blocks.0.attn.scores.0` and
    `.1`, a head each, are part `attn.scores`; `head` stands in no block, "". Exporters that name a list twice
    (`blocks.blocks.1`) name it once here.
    """
    operations = list(operations)
    experts = {entry["of"]: entry["expert"] for entry in operations if "expert" in entry}
    words = {entry["of"]: _TWICE.sub(r"\1.", entry["of"]).split(".") for entry in operations}
    for name, expert in experts.items():
        at = [i for i, word in enumerate(words[name]) if word == str(expert)]
        if at:
            del words[name][at[-1]]
    _drop_counts(words)
    below: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for parts in words.values():
        for i in range(1, len(parts)):
            below[tuple(parts[:i])].add(".".join(parts[i:]))
    found = {}
    for name, parts in words.items():
        ends = [i for i in range(1, len(parts)) if parts[i - 1].isdigit() and len(below[tuple(parts[:i])]) >= WHOLE_BLOCK]
        if not ends and len(below[tuple(parts[:1])]) > 1:
            ends = [1]
        end = ends[-1] if ends else 0
        found[name] = (".".join(parts[:end]), ".".join(parts[end:]))
    return found


def _drop_counts(words: dict[str, list[str]]) -> None:
    """Drop numbers at the end that count heads, windows, tiles or blocks: those that run from 0 without a gap, and are several.

    A last word with such a number goes as a whole where the rest is an operation, too: the last of its blocks. What only
    moves a value goes by the value's name.
    """
    for parts in words.values():
        while len(parts) > 1 and _MOVED.fullmatch(parts[-1]):
            parts.pop()
    while True:
        known = {tuple(parts) for parts in words.values()}
        counters = {name: found for name, parts in words.items() if parts[1:] and (found := _COUNTER.fullmatch(parts[-1]))}
        counts: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for name, (word, number) in ((name, found.groups()) for name, found in counters.items()):
            counts[(*words[name][:-1], word)].add(int(number))
        counted = {
            stem
            for stem, numbers in counts.items()
            if max(numbers) + 1 == len(numbers) and (len(numbers) > 1 or (stem[-1] and stem[:-1] in known))
        }
        if not counted:
            return
        for name, found in counters.items():
            parts, word = words[name], found[1]
            if (*parts[:-1], word) in counted:
                parts[-1:] = [word] if word and tuple(parts[:-1]) not in known else []


def parts(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a run, as timeline.breakdown gives it, in the order in which they begin to compute.

    Each with `block`, `part`, `start` and `end` of its computing, and sums over its operations: cycles of the row issuer by
    cause, `cycles` as their sum, `macs`, `dram_bytes`, busy cycles of the units `vector`, `load` and `store`. Every cycle
    up to the last Matmul's last row belongs to one part; units that work beside the array have columns of their own.
    """
    where = places(run["operations"])
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in run["operations"]:
        key = where[entry["of"]]
        row = found.setdefault(key, {"block": key[0], "part": key[1], "start": None, "end": 0, **dict.fromkeys(SUMS, 0)})
        for name in (*CAUSES, "macs", "dram_bytes"):
            row[name] += entry.get(name, 0)
        if entry["unit"] in row:
            row[entry["unit"]] += entry["end"] - entry["start"]
        if entry["unit"] in ("matmul", "vector", "store"):
            row["start"] = entry["start"] if row["start"] is None else min(row["start"], entry["start"])
            row["end"] = max(row["end"], entry["end"])
    for row in found.values():
        row["cycles"] = sum(row[cause] for cause in CAUSES)
        if row["start"] is None:  # only loads or weights: it computes nothing
            row["start"] = row["end"] = 0
    return sorted(found.values(), key=lambda row: (row["start"], row["end"]))


def experts(run: Mapping[str, Any]) -> dict[str, dict[int, int]]:
    """Of each layer of experts the tokens of each expert, summed over a batch: block -> expert -> tokens."""
    where = places(run["operations"])
    tokens: dict[str, dict[str, dict[int, int]]] = {}
    for entry in run["operations"]:
        if "expert" in entry and "rows" in entry:
            block, part = where[entry["of"]]
            of = tokens.setdefault(block or part, {}).setdefault(part, {})
            of[entry["expert"]] = of.get(entry["expert"], 0) + entry["rows"]
    return {block: dict(sorted(next(iter(found.values())).items())) for block, found in tokens.items()}


def links(edges: Iterable[tuple[str, str]], where: Mapping[str, Key]) -> list[tuple[Key, Key]]:
    """Edges between operations as edges between parts, each once, in order; those within a part go."""
    found: dict[tuple[Key, Key], None] = {}
    for source, target in edges:
        if source in where and target in where and where[source] != where[target]:
            found[where[source], where[target]] = None
    return list(found)
