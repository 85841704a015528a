"""What may be chosen about quantisation, as `--set` gives it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase

from ..errors import UserError
from ..numerics import NARROW_BITS

METHODS = ("max", "mse", "entropy")
INT8_BITS = 8
WEIGHTS = {"auto": 0, "8": INT8_BITS, **{str(bits): bits for bits in sorted(NARROW_BITS, reverse=True)}}
MOST_SNR = 100.0  # dB; 16 bits do not give more


@dataclass(frozen=True)
class Quantisation:
    """Bad values raise UserError naming field and value. The comments of a field are its meaning, which `hwgen config` prints.

    `wide` are names of `hwgen compare`'s table, or patterns with * and ?, separated by commas; so are those in `weights`.
    """

    # how much of the range seen the int8 steps of Q, K, V and the image cover: all of it (max), or what makes the mean square
    # error (mse) or the divergence of the distributions (entropy) smallest
    calibration: str = "max"
    # 0..1: how much of the differences between the channels of a LayerNorm goes into the weights of the layers that read it
    # (SmoothQuant's alpha); 0 moves nothing
    equalise: float = 0.5
    # dB that the worst output must keep of the float model where every layer has int8, by an estimate on the calibration images
    # and by running the integers on some; below it the layers whose rounding the outputs hear most of have 16 bits, which costs
    # cycles, and what that does not mend is told. With 0 nothing is widened, nor measured
    min_snr: float = 20.0
    # linear layers, stored or added, that read their activations with 16 bits, as high byte and rest: names or patterns
    wide: str = ""
    # bits of the weights of linear layers and experts in DRAM: 8, 6, 5, 4, or auto, which takes from each layer as many as cost
    # the outputs little, by an estimate on the calibration images; LAYER:BITS for single ones, names or patterns, the last
    # that fits. Fewer bits save DRAM traffic where the Config has narrow_weights, and cost accuracy
    weights: str = "8"

    def __post_init__(self):
        if self.calibration not in METHODS:
            raise UserError(f"calibration={self.calibration!r}: must be {', '.join(METHODS[:-1])} or {METHODS[-1]}")
        if not isinstance(self.equalise, float) or not math.isfinite(self.equalise) or not 0 <= self.equalise <= 1:
            raise UserError(f"equalise={self.equalise!r}: must be a number from 0 to 1")
        if not isinstance(self.min_snr, float) or not 0 <= self.min_snr <= MOST_SNR:
            raise UserError(f"min_snr={self.min_snr!r}: must be a number of dB from 0 to {MOST_SNR:g}")
        for entry, (pattern, bits) in zip(self.weights.split(","), self.bits_by_layer, strict=True):
            if ":" in entry and not pattern:
                raise UserError(f"weights={self.weights}: {entry.strip()!r} names no layer")
            if bits not in WEIGHTS:
                raise UserError(f"weights={self.weights}: {bits!r} must be {', '.join([*WEIGHTS][:-1])} or {[*WEIGHTS][-1]}")

    @property
    def bits_by_layer(self) -> list[tuple[str, str]]:
        """(pattern of layers, "" for all, bits as text) of `weights`, in order."""
        found = (entry.strip().rpartition(":") for entry in self.weights.split(","))
        return [(pattern.strip(), bits.strip()) for pattern, _, bits in found]

    @property
    def plain_weights(self) -> bool:
        """Whether every layer has int8 weights, and none is named."""
        return all(not pattern and WEIGHTS[bits] == INT8_BITS for pattern, bits in self.bits_by_layer)

    def bits_of(self, names: set[str]) -> int:
        """Bits of the weights of a layer of these names, 0 where they are to be found."""
        chosen = INT8_BITS
        for pattern, bits in self.bits_by_layer:
            if not pattern or any(matches(pattern, name) for name in names):
                chosen = WEIGHTS[bits]
        return chosen

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def names(cls) -> set[str]:
        """Fields that `--set` may name."""
        return {f.name for f in fields(cls)}

    @classmethod
    def from_texts(cls, settings: dict[str, str]) -> Quantisation:
        """From `--set KEY=VALUE` texts, all of them fields of this class."""
        values: dict[str, str | float] = dict(settings)
        for name in [f.name for f in fields(cls) if f.type == "float" and f.name in settings]:
            try:
                values[name] = float(settings[name])
            except ValueError:
                raise UserError(f"--set {name}={settings[name]}: not a number") from None
        return cls(**values)


def patterns_of(text: str) -> list[str]:
    """Patterns separated by commas."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def matches(patterns: str, name: str) -> bool:
    """Whether a layer's name is one of the comma-separated patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns_of(patterns))


def check_patterns(setting: str, patterns: list[str], names: set[str], what: str) -> None:
    """Raise UserError for a pattern of a `--set` text which fits none of the names, those of each `what`."""
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            some = f", for example {min(names)!r}" if names else ""
            raise UserError(f"--set {setting}: {pattern!r} is no {what}{some}")
