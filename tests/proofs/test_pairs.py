# amaranth: UnusedElaboratable=no
"""Two products in one multiplier: the sums of both come out of the packed one, whatever they are.

A packed cell adds x (w1 2^18 + w0) = x w1 2^18 + x w0, in 36 bits that hold all sums of a cascade. What is proven here is
the rest of the hardware: how a cascade's packed sum is cut in two and the parts of all cascades are added up. (The products
themselves are too hard for z3; `tests/rtl/test_mac_pair.py` draws them.)
"""

import pytest
from amaranth.hdl import Signal, signed

from hwgen.config import Config
from hwgen.latency import PACKED_BITS
from hwgen.numerics import INT8_MAX
from hwgen.rtl.array import GROUP, LOW_BITS, SUM_BITS, TREE_LEVELS, MacPair, groups
from hwgen.rtl.claims import assume, claim
from hwgen.rtl.common import delay, tree

LARGEST = INT8_MAX + 1  # |x|; a weight is at least -127
MOST = GROUP * INT8_MAX * LARGEST  # of a cascade's sum


class _Sums(MacPair):
    """The pair with any sums in place of its cascades'."""

    def elaborate(self, platform):
        self.platform = platform
        m = super().elaborate(platform)
        for y, parts in ((self.y0, self.low), (self.y1, self.high)):
            added, _ = tree(m, parts, lambda a, b: a + b, TREE_LEVELS)
            claim(m, platform, y == delay(m, added, 1))
        return m

    def _described(self, m):
        self.low, self.high, totals = [], [], []
        for _ in groups(self.config.array_inputs):
            low, high = (self.platform.free(signed(LOW_BITS), name) for name in ("low", "high"))
            total = Signal(signed(SUM_BITS))
            m.d.comb += total.eq((high << LOW_BITS) + low)
            for part, parts in ((low, self.low), (high, self.high)):
                assume(m, self.platform, part <= MOST, part >= -MOST)
                parts.append(part)
            totals.append(total)
        return totals


@pytest.mark.parametrize("cascades", [1, 2, 3, 5])
def test_sums_of_packed_pairs(prover, tmp_path, cascades):
    dut = _Sums(Config(array_inputs=GROUP * cascades))
    prover.Bench(dut).hold(tmp_path, 2 + cascades)


def test_sums_fit():
    assert MOST < 1 << (LOW_BITS - 1)
    assert GROUP * LARGEST * (INT8_MAX << LOW_BITS | INT8_MAX) < 1 << (SUM_BITS - 1)
    assert (INT8_MAX << LOW_BITS | INT8_MAX) < 1 << (PACKED_BITS - 1)
