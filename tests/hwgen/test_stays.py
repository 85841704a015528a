"""What is short in the scratchpad, against a count buffer by buffer."""

import numpy as np

from hwgen.mapping.depth_first import Limits
from hwgen.mapping.stays import Stays


def first_fit(banks, chunks, sizes):
    """Chunks that find no place, the largest first, each in the first bank that has room."""
    free, short = [chunks] * banks, 0
    for size in sorted(sizes, reverse=True):
        bank = next((b for b in range(banks) if free[b] >= size), None)
        if bank is None:
            short += size
        else:
            free[bank] -= size
    return short


def test_short_of_banks():
    rng, found = np.random.default_rng(0), []
    for _ in range(2000):
        banks, chunks = int(rng.integers(1, 5)), int(rng.integers(1, 60))
        sizes = rng.integers(0, rng.integers(1, 40), rng.integers(0, 20)).tolist()
        limits, wanted = Limits(banks, chunks, 16, 64, 64), first_fit(banks, chunks, sizes)
        assert limits.over(sizes) == wanted
        sure = limits.surely(np.array([sum(sizes)]), np.array([max(sizes, default=0)]))[0]
        assert not sure or wanted == 0
        found.append((wanted > 0, bool(sure)))
    assert {(True, False), (False, False), (False, True)} == set(found)


def test_short_beside_what_stays():
    rng, results = np.random.default_rng(1), set()
    for _ in range(300):
        units = int(rng.integers(1, 12))
        names = [f"b{i}" for i in range(rng.integers(0, 6))]
        spans = {n: sorted(rng.integers(0, units + 1, 2).tolist()) for n in names}
        full, entries = ({n: int(rng.integers(0, most)) for n in names} for most in (30, 20))
        kept = [n for n in names if rng.random() < 0.7]
        stays = Stays(kept, full, entries, spans, units)
        first = int(rng.integers(0, units))
        end = int(rng.integers(first + 1, units + 1))
        places = []
        for _ in range(rng.integers(0, 6)):
            begin, last = sorted(rng.integers(first, end, 2).tolist())
            places.append((begin, last, int(rng.integers(0, 25)), int(rng.integers(1, 3)), int(rng.integers(0, 15))))
        limits = Limits(2, 40, 16, 64, 64, scales=25)
        most = 0
        for u in range(first, end):
            live = [n for n in kept if spans[n][0] <= u <= spans[n][1]]
            inside = [p for p in places if p[0] <= u <= p[1]]
            sizes = [full[n] for n in live] + [p[2] for p in inside for _ in range(p[3])]
            rows = sum(entries[n] for n in live) + sum(p[4] for p in inside)
            most = max(most, first_fit(2, 40, sizes), rows - 25)
            assert stays.held(u) == (sum(full[n] for n in live), sum(entries[n] for n in live))
        table = np.array(places, np.int64).reshape(-1, 5)
        assert stays.short(first, end, limits, table) == most
        assert (stays.short(first, end, limits, table, exact=False) > 0) == (most > 0)
        results.add(most > 0)
    assert results == {True, False}
