"""Walks: the rows that one instruction goes through, as nested loops, with zeros beyond a border and with taps.

A walk names for every row r of an instruction the row of its input and the row of its output, counted from the operands'
first rows; a windowed operation has several taps a row, each with an input row of its own. Golden, scheduler and
machine take their rows from the functions here; the row issuer's counters make the same ones step by step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .isa import COORDINATE_BITS, INDEX_BITS, TAP_BITS, WALK_LOOPS, Border, WalkFields

Array = np.ndarray
ZERO_ROW = -1  # of a tap that lies beyond the border


@dataclass(frozen=True)
class Plane:
    """Coordinates (u, v) of an input row: row u * width + v of a map. What a border does to rows beyond the map.

    u, v      of row 0 and tap (0, 0)
    u_strides, v_strides  by loop, as the strides of a `Walk`
    """

    height: int
    width: int
    border: Border = Border.ZERO
    u: int = 0
    v: int = 0
    u_strides: tuple[int, ...] = ()
    v_strides: tuple[int, ...] = ()


@dataclass(frozen=True)
class Walk:
    """Row r = (..(i0 * loops[1] + i1) * loops[2] + ..) reads and writes the rows below; i0 is the outermost loop's index.

    loops    counts, outermost first, at most WALK_LOOPS
    x, y     what a step of each loop adds to the input row and the output row; x_start and y_start, those rows at the start
    kernel   taps (down, across): tap (a, b) reads the row a * taps[0] + b * taps[1] behind, at u + a * dilation[0],
             v + b * dilation[1]
    plane    None: every row exists
    """

    loops: tuple[int, ...]
    x: tuple[int, ...]
    y: tuple[int, ...]
    x_start: int = 0
    y_start: int = 0
    kernel: tuple[int, int] = (1, 1)
    taps: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (0, 0)
    plane: Plane | None = field(default=None)

    @property
    def rows(self) -> int:
        """Output rows."""
        return int(np.prod(self.loops, dtype=np.int64))

    @property
    def count(self) -> int:
        """Taps of a row."""
        return self.kernel[0] * self.kernel[1]

    @property
    def run(self) -> int:
        """Rows of the innermost loop, if from each to the next is a tap's step along v, so that they share input rows; else 1."""
        p = self.plane
        steps = (p.u_strides[-1], p.v_strides[-1]) if p else (0, 0)
        if len(self.loops) < 2 or self.kernel[1] == 1 or self.x[-1] != self.taps[1] or steps != (0, self.dilation[1]):
            return 1
        return self.loops[-1]

    def x_rows(self) -> Array:
        """Input row of each tap and row, ZERO_ROW beyond the border: int64 [taps, rows]."""
        a, b = (i.reshape(-1, 1) for i in np.divmod(np.arange(self.count), self.kernel[1]))
        index = self.x_start + self._sum(self.x) + a * self.taps[0] + b * self.taps[1]
        if self.plane is None or self.plane.border == Border.WRAP_Y:
            return index
        inside, wrapped = self._at(self.plane, a, b)
        return np.where(inside, index, ZERO_ROW) if self.plane.border == Border.ZERO else index - wrapped

    def y_rows(self) -> Array:
        """Output row of each row: int64 [rows]."""
        index = self.y_start + self._sum(self.y)
        if self.plane is None or self.plane.border != Border.WRAP_Y:
            return index
        return index - self._at(self.plane, np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64))[1][0]

    def parts(self, most: int) -> list[Walk]:
        """Walks of at most so many rows each that make the rows of this one, in order: whole inner loops, where one has no
        more rows; else pieces of the innermost loop."""
        inner = [int(np.prod(self.loops[k + 1 :], dtype=np.int64)) for k in range(len(self.loops))]
        cut = next(k for k, rows in enumerate(inner) if rows <= most)  # the loop that is cut into pieces
        pieces = -(-self.loops[cut] // (most // inner[cut]))
        step = -(-self.loops[cut] // pieces)
        found = []
        for outer in np.ndindex(*self.loops[:cut]):
            for first in range(0, self.loops[cut], step):
                count = min(step, self.loops[cut] - first)
                found.append(self.part((*outer, first), (count, *self.loops[cut + 1 :])))
        return found

    def repeated(self, count: int, x: int, y: int) -> Walk:
        """So many times this walk, each `x` input rows and `y` output rows behind the one before."""
        plane = self.plane and replace(
            self.plane, u_strides=(0, *self.plane.u_strides), v_strides=(0, *self.plane.v_strides)
        )
        return replace(self, loops=(count, *self.loops), x=(x, *self.x), y=(y, *self.y), plane=plane)

    def part(self, at: tuple[int, ...], loops: tuple[int, ...]) -> Walk:
        """The walk of inner loops from where the outer ones, down to the first of these, stand at `at`."""

        def behind(start: int, strides: tuple[int, ...]) -> int:
            return start + sum(i * stride for i, stride in zip(at, strides, strict=False))

        def left(strides: tuple[int, ...]) -> tuple[int, ...]:
            return strides[len(at) - 1 :]

        plane = self.plane and replace(
            self.plane,
            u=behind(self.plane.u, self.plane.u_strides),
            v=behind(self.plane.v, self.plane.v_strides),
            u_strides=left(self.plane.u_strides),
            v_strides=left(self.plane.v_strides),
        )
        starts = {"x_start": behind(self.x_start, self.x), "y_start": behind(self.y_start, self.y)}
        return replace(self, loops=loops, x=left(self.x), y=left(self.y), plane=plane, **starts)

    def _sum(self, strides: tuple[int, ...]) -> Array:
        total = np.zeros(1, np.int64)
        for n, stride in zip(self.loops, strides, strict=True):
            total = (total[:, None] + np.arange(n) * stride).reshape(-1)
        return total

    def _at(self, plane: Plane, a: Array, b: Array) -> tuple[Array, Array]:
        """(whether a row lies in the map, what wrapping subtracts from its index)."""
        u = plane.u + self._sum(plane.u_strides) + a * self.dilation[0]
        v = plane.v + self._sum(plane.v_strides) + b * self.dilation[1]
        inside = (u >= 0) & (u < plane.height) & (v >= 0) & (v < plane.width)
        return inside, (u >= plane.height) * (plane.height * plane.width) + (v >= plane.width) * plane.width

    # --- as fields of an instruction --------------------------------------------------------------------------------

    def fields(self) -> dict[str, int]:
        """The fields of `isa.WalkFields`. ValueError where one does not fit, with its name."""
        if not 1 <= len(self.loops) <= WALK_LOOPS:
            raise ValueError(f"a walk of {len(self.loops)} loops")
        counts = [*self.loops[:0:-1], *[1] * (WALK_LOOPS - len(self.loops))][: WALK_LOOPS - 1]
        values = {f"n{k}": n for k, n in enumerate(counts)}
        values |= self._steps("x", self.x, INDEX_BITS) | self._steps("y", self.y, INDEX_BITS)
        values |= {f"{c}_start": start % (1 << INDEX_BITS) for c, start in (("x", self.x_start), ("y", self.y_start))}
        values |= {"kernel_u": self.kernel[0], "kernel_v": self.kernel[1]}
        values |= {f"tap_{c}": t % (1 << INDEX_BITS) for c, t in zip("uv", self.taps, strict=True)}
        values |= {f"dilation_{c}": d for c, d in zip("uv", self.dilation, strict=True)}
        if self.plane is not None:
            p = self.plane
            values |= {"border": p.border, "height": p.height, "width": p.width}
            if p.border != Border.ZERO:
                values["area"] = p.height * p.width % (1 << INDEX_BITS)
            for c, start, strides, taps, dilation in (
                ("u", p.u, p.u_strides, self.kernel[0], self.dilation[0]),
                ("v", p.v, p.v_strides, self.kernel[1], self.dilation[1]),
            ):
                ways = [(n - 1) * s for n, s in zip((*self.loops, taps), (*strides, dilation), strict=True)]
                low, high = start + sum(min(way, 0) for way in ways), start + sum(max(way, 0) for way in ways)
                if not -(1 << COORDINATE_BITS - 1) <= low <= high < 1 << COORDINATE_BITS - 1:
                    raise ValueError(f"coordinates {c} from {low} to {high} do not fit {COORDINATE_BITS} bits")
            values |= {"u": p.u % (1 << COORDINATE_BITS), "v": p.v % (1 << COORDINATE_BITS)}
            values |= self._steps("u", p.u_strides, COORDINATE_BITS) | self._steps("v", p.v_strides, COORDINATE_BITS)
        return values

    def _steps(self, name: str, strides: tuple[int, ...], bits: int) -> dict[str, int]:
        """What the index advances by when loop k does (0 the innermost) and those inside it begin anew."""
        result, inside = {}, 0
        outermost = len(self.loops) - 1
        for level, (n, stride) in enumerate(zip(self.loops[::-1], strides[::-1], strict=True)):
            k = WALK_LOOPS - 1 if level == outermost else level  # the outermost is the one without a count
            result[f"{name}{k}"] = (stride - inside) % (1 << bits)
            inside += (n - 1) * stride
        return result

    @staticmethod
    def of(insn: WalkFields, rows: int) -> Walk:
        """The walk that an instruction's fields say, for so many rows; ValueError where inner loops do not divide them."""
        inner = [insn.n0, insn.n1, insn.n2]
        whole = inner[0] * inner[1] * inner[2]
        if not whole or rows % whole:
            raise ValueError(f"{rows} rows in loops of {inner}")
        loops = [*inner, rows // whole]

        def signed(value: int, bits: int) -> int:
            return value - (1 << bits) if value >> (bits - 1) else value

        def strides(name: str, bits: int) -> tuple[int, ...]:
            found, inside = [], 0
            for k in range(WALK_LOOPS):
                found.append(signed((getattr(insn, f"{name}{k}") + inside) % (1 << bits), bits))
                inside += (loops[k] - 1) * found[-1]
            return tuple(found[::-1])

        plane = None
        if insn.border != Border.NONE:
            u, v = (signed(value, COORDINATE_BITS) for value in (insn.u, insn.v))
            ways = strides("u", COORDINATE_BITS), strides("v", COORDINATE_BITS)
            plane = Plane(insn.height, insn.width, insn.border, u, v, *ways)
        taps = signed(insn.tap_u, INDEX_BITS), signed(insn.tap_v, INDEX_BITS)
        kernel, dilation = (insn.kernel_u, insn.kernel_v), (insn.dilation_u, insn.dilation_v)
        ways = strides("x", INDEX_BITS), strides("y", INDEX_BITS)
        starts = signed(insn.x_start, INDEX_BITS), signed(insn.y_start, INDEX_BITS)
        return Walk(tuple(loops[::-1]), *ways, *starts, kernel, taps, dilation, plane)


def taken(x: Array, rows: Array) -> Array:
    """x[rows], a row of zeros where the number is ZERO_ROW: x [R, C], rows of any shape -> [*rows.shape, C]."""
    return np.where(rows[..., None] == ZERO_ROW, np.zeros((), x.dtype), x[rows])


def block(rows: int) -> tuple[int, int] | None:
    """So many rows as a map that one window covers, height and width; None where there is none."""
    most = (1 << TAP_BITS) - 1
    return next(((n, rows // n) for n in range(1, most + 1) if rows % n == 0 and rows // n <= most), None)


def window(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Walk:
    """A window that slides over a map [height, width], row-major, with zeros around it (`pads` top, left, bottom, right)."""
    (height, width), (top, left, bottom, right) = size, pads
    down = (height + top + bottom - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    across = (width + left + right - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    plane = Plane(height, width, Border.ZERO, -top, -left, (stride[0], 0), (0, stride[1]))
    return Walk(
        (down, across),
        (stride[0] * width, stride[1]),
        (across, 1),
        -top * width - left,
        0,
        kernel,
        (dilation[0] * width, dilation[1]),
        dilation,
        plane,
    )
