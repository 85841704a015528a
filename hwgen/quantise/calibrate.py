"""Observes the float graph on calibration images: the range of every column of every value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .. import graph as fg
from ..errors import UserError
from ..numerics import INT16_MAX, SCORE_STEPS
from .clipping import covered, histogram

Array = np.ndarray
NOISE_IMAGES = 4
NOISE_LIMIT = 2.5  # standard deviations; about the range of a normalised photograph
NOISE_MARGIN = 4.0  # of what a quantised model does not limit and noise has to show
HIDDEN_MAX = 100.0  # room is given to the hidden layers of experts up to here: the machine holds 128
MANTISSA_BITS = 12
SCORES_MAX = float(np.log(2)) * INT16_MAX / SCORE_STEPS  # scores that int16 holds, in nats
ENOUGH = 4096  # numbers, the largest of which few others exceed, and by little
FEW = 32  # rows of a value in all images, fewer of which do not tell what a column holds: then it is what all columns hold


@dataclass(frozen=True, eq=False)
class Range:
    """What the columns of a value were seen to hold, over all images and rows: smallest and largest, [columns].

    seen  how many numbers of a column that was; 0 where the range is known, as that of a quantised file
    """

    low: Array
    high: Array
    seen: int = 0

    @property
    def room(self) -> float:
        """What an int8 step has to leave beyond the range, as a factor: the largest of few numbers says little of others.

        The largest of n normal numbers is near sqrt(2 ln n) deviations; room is left up to that of ENOUGH.
        """
        return float(max(np.log(ENOUGH) / np.log(max(self.seen, 2)), 1.0) ** 0.5) if self.seen else 1.0

    def magnitude(self, offset: Array | float = 0.0) -> Array:
        """Largest |value - offset| of each column, [columns]."""
        return np.maximum(np.abs(self.high - offset), np.abs(self.low - offset))

    def merge(self, other: Range) -> Range:
        return Range(np.minimum(self.low, other.low), np.maximum(self.high, other.high), max(self.seen, other.seen))


@dataclass(frozen=True, eq=False)
class Stats:
    """
    values  Range of every input (one column) and value
    hidden  of each `Experts` and `SlotExperts`: largest |pre-activation|; of each `Scan`: largest |state|
    chosen  of the logits of each router: Range (one column) of those that were among a token's top k
    load    of the logits of each router, sums over images, int64 [3, experts]: by expert whether the image used it and how many
            tokens chose it; by rank how many tokens chose the expert that most chose, the next one and so on
    covered of Q, K, V and the inputs: see `part`; none where all of their range is covered
    below, above  of each `Clip`: mean square of what it takes away at either bound
    scores  of each `Attention` that may leave the range of scores: the largest of each head over centred keys, without bias
    """

    values: dict[str, Range]
    hidden: dict[str, float]
    chosen: dict[str, Range]
    covered: dict[str, Array] = field(default_factory=dict)
    below: dict[str, float] = field(default_factory=dict)
    above: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Array] = field(default_factory=dict)
    load: dict[str, Array] = field(default_factory=dict)

    def part(self, name: str) -> Array | float:
        """The part of a value's range that its int8 step covers: of Q and K by head, of V by column."""
        return self.covered.get(name, 1.0)

    def reach(self, name: str) -> Array | float:
        """The same with room for what was not seen."""
        return self.part(name) * self.values[name].room


def noise(shape: tuple[int, ...], limits: tuple[Array, Array] | None = None, seed: int = 0) -> Array:
    """Seeded stand-in for calibration images [n, C, H, W]: clipped normal noise, moved to `limits` where they are known."""
    rng = np.random.default_rng(seed)
    images = np.clip(rng.standard_normal((NOISE_IMAGES, *shape)), -NOISE_LIMIT, NOISE_LIMIT)
    if limits is not None:
        images = limits[0][0] + (images + NOISE_LIMIT) * ((limits[1][0] - limits[0][0]) / (2 * NOISE_LIMIT))
    return images.astype(np.float32)


def limited(graph: fg.Graph, stats: Stats, trusted: bool) -> Stats:
    """The statistics within `graph.ranges`. Unless they are `trusted` (of real images), the file's ranges replace them.

    Then what the file does not limit gets NOISE_MARGIN of room, which costs 16-bit tensors nothing that matters.
    """
    if not graph.ranges:
        return stats
    values = {}
    for name, seen in stats.values.items():
        low, high = graph.ranges.get(name, (-np.inf, np.inf))
        if trusted:
            values[name] = replace(seen, low=np.clip(seen.low, low, high), high=np.clip(seen.high, low, high))
        else:
            known = np.isfinite(low) & np.isfinite(high)
            low, high = np.where(known, low, seen.low * NOISE_MARGIN), np.where(known, high, seen.high * NOISE_MARGIN)
            values[name] = Range(low, high)
    hidden = (
        stats.hidden if trusted else {n: max(p, min(p * NOISE_MARGIN, HIDDEN_MAX)) for n, p in stats.hidden.items()}
    )
    return replace(stats, values=values, hidden=hidden)


def check_images(graph: fg.Graph, images: dict[str, Array]) -> dict[str, Array]:
    """The arrays of the graph's inputs, or UserError naming the input and what the data holds."""
    found = {}
    for name, shape in graph.inputs.items():
        if name not in images:
            raise UserError(f"calibration data has no array {name!r} (the model's input); it has {_names(images)}")
        data = np.asarray(images[name])
        if data.dtype.kind not in "fiub":
            raise UserError(f"calibration data {name!r} holds {data.dtype}, not numbers")
        if data.ndim != len(shape) + 1 or data.shape[1:] != tuple(shape) or not len(data):
            wanted = ", ".join(["n", *map(str, shape)])
            raise UserError(f"calibration data {name!r} has shape {list(data.shape)}, the model's input [{wanted}]")
        if not np.isfinite(data).all():
            raise UserError(f"calibration data {name!r} holds NaN or infinity")
        found[name] = data
    counts = {name: len(data) for name, data in found.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"calibration data has different numbers of images: {counts}")
    return found


def observe(graph: fg.Graph, images: dict[str, Array], method: str = "max") -> Stats:
    """Evaluate the graph in float64 on every image, twice unless the method is "max"; `images` as `check_images` returns them."""
    low: dict[str, Array] = {}
    high: dict[str, Array] = {}
    hidden: dict[str, float] = {}
    chosen: dict[str, Range] = {}
    load: dict[str, Array] = {}
    below: dict[str, float] = {}
    above: dict[str, float] = {}
    count = len(next(iter(images.values())))
    routes = {node.name for node in graph.nodes if isinstance(node, fg.Route)}
    for i in range(count):
        values = fg.evaluate(graph, {name: data[i] for name, data in images.items()}, np.float64, hidden)
        for node in graph.nodes:
            if isinstance(node, fg.Clip):
                lost = values[node.x] - values[node.name]
                for total, side in ((below, np.minimum(lost, 0)), (above, np.maximum(lost, 0))):
                    total[node.name] = total.get(node.name, 0.0) + float(np.square(side).mean()) / count
            if isinstance(node, fg.Route):
                best = np.take_along_axis(values[node.logits], values[node.name][0], axis=1)
                seen = Range(_tidy(best.min(keepdims=True)[0]), _tidy(best.max(keepdims=True)[0]))
                chosen[node.logits] = seen.merge(chosen.get(node.logits, seen))
                tokens = np.bincount(values[node.name][0].reshape(-1), minlength=values[node.logits].shape[1])
                seen_now = np.stack([tokens > 0, tokens, np.sort(tokens)[::-1]]).astype(np.int64)
                load[node.logits] = load.get(node.logits, 0) + seen_now
        for name, value in values.items():
            if name in routes:
                continue
            columns = value.reshape(-1, 1) if name in graph.inputs else value
            if not np.isfinite(columns).all():
                raise UserError(f"{name}: the float model computes NaN or infinity on the calibration data")
            low[name] = np.minimum(low.get(name, np.inf), columns.min(axis=0))
            high[name] = np.maximum(high.get(name, -np.inf), columns.max(axis=0))
    rows = {name: len(value) * count for name, value in values.items() if name in low}
    divided = {node.x for node in graph.nodes if isinstance(node, fg.Ratio)}  # their last column is another thing than the others
    for name in {name for name in rows if rows[name] < FEW} - {*graph.inputs, *chosen}:
        alike = slice(-1) if name in divided else slice(None)
        low[name][alike], high[name][alike] = low[name][alike].min(), high[name][alike].max()
    values = {name: Range(_tidy(low[name]), _tidy(high[name]), rows[name]) for name in low}
    peaks = {name: float(_tidy(peak)) for name, peak in hidden.items()}
    stats = Stats(values, peaks, chosen, below=below, above=above, load=load, scores=_scores(graph, images, values))
    return stats if method == "max" else replace(stats, covered=_covered(graph, images, values, method))


def centre(keys: Range, turned: bool) -> Array:
    """What is taken from all keys [columns], which softmax does not see; nothing where it would turn with their positions."""
    return np.zeros_like(keys.low) if turned else (keys.low + keys.high) / 2


def _scores(graph: fg.Graph, images: dict[str, Array], ranges: dict[str, Range]) -> dict[str, Array]:
    """The largest score of each head, where the ranges of queries and keys allow more than SCORES_MAX."""
    turned = {node.name for node in graph.nodes if isinstance(node, fg.Rotate)}
    large: dict[str, tuple[fg.Attention, Array, Array]] = {}
    for node in graph.nodes:
        if isinstance(node, fg.Attention):
            middle = centre(ranges[node.k], node.k in turned)
            factor = node.scale * (np.ones(node.heads) if node.factors is None else node.factors.astype(np.float64))
            bound = (ranges[node.q].magnitude() * ranges[node.k].magnitude(middle)).reshape(node.heads, -1).sum(axis=1)
            if (bound * np.abs(factor) > SCORES_MAX).any():
                large[node.name] = node, middle, factor
    found: dict[str, Array] = {}
    for i in range(len(next(iter(images.values()))) if large else 0):
        values = fg.evaluate(graph, {name: data[i] for name, data in images.items()}, np.float64)
        for name, (node, middle, factor) in large.items():
            sides = values[node.q], values[node.k] - middle
            q, k = (x.reshape(node.windows, -1, node.heads, x.shape[1] // node.heads).swapaxes(1, 2) for x in sides)
            peak = (q @ k.swapaxes(2, 3) * factor[:, None, None]).max(axis=(0, 2, 3))
            found[name] = np.maximum(found.get(name, 0.0), peak)
    return {name: _tidy(peak) for name, peak in found.items()}


def unseen(graph: fg.Graph, images: dict[str, Array]) -> float:
    """Share of the values of one half of the images that lie beyond what the other half shows; at least two images."""
    half = len(next(iter(images.values()))) // 2
    seen = observe(graph, {name: data[half:] for name, data in images.items()}).values
    beyond = total = 0
    for i in range(half):
        values = fg.evaluate(graph, {name: data[i] for name, data in images.items()}, np.float64)
        for name in seen:
            low, high = seen[name].low.min(), seen[name].high.max()
            beyond += int(((values[name] < low) | (values[name] > high)).sum())
            total += values[name].size
    return beyond / total


def _covered(graph: fg.Graph, images: dict[str, Array], ranges: dict[str, Range], method: str) -> dict[str, Array]:
    """What the method makes of every value that has a fixed int8 step: Q and K by head, V by column, the inputs."""
    groups = dict.fromkeys(graph.inputs, 1)
    fixed = {node.name for node in graph.nodes if isinstance(node, fg.Rotate)}  # keys that are not centred
    for node in graph.nodes:
        if isinstance(node, fg.Attention):
            groups |= {node.q: node.heads, node.k: node.heads, node.v: len(ranges[node.v].low)}
    counts: dict[str, Array] = {}
    for i in range(len(next(iter(images.values())))):
        values = fg.evaluate(graph, {name: data[i] for name, data in images.items()}, np.float64)
        for name, count in groups.items():
            columns = values[name].reshape(-1, 1) if name in graph.inputs else values[name]
            middle = centre(ranges[name], name in fixed)
            peak = ranges[name].magnitude(middle).reshape(count, -1).max(axis=1)
            magnitudes = np.abs(columns - middle).T.reshape(count, -1)
            counts[name] = counts.get(name, 0) + histogram(magnitudes, peak)
    return {name: covered(count, method) for name, count in counts.items()}


def _tidy(x: Array | float) -> Array:
    """Rounded to MANTISSA_BITS: the last bits of a sum differ between machines, a bundle should not.

    Of float64 sums, as those of float32 lie near enough to the middle between two results once in a few hundred times.
    """
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, MANTISSA_BITS)), exponent - MANTISSA_BITS)


def _names(images: dict[str, Array]) -> str:
    return ", ".join(repr(name) for name in images) or "no arrays"
