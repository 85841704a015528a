"""Space in time: every item gets a range of addresses inside one bank, and no two items overlap in both.

Items in a fixed order, big ones first, each at the lowest free address of the bank where it clashes least with what is
used at the same time; other orders where that does not fit. Items that are only loaded (constants) are placed for as long
as they would like to be there; where that does not fit, for less and less, at last only for as long as they must, and then
get what time is free before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import Shortage

Array = np.ndarray

# Loads that may be waiting for their use, as many as there is room for; fewer than the sequencer's instruction FIFO holds.
LOAD_LEADS = (6, 3, 1)
SHOWN = 5  # items that an error names
RELAXED = 24  # attempts with less and less time for those that are in the way
AROUND = 8  # steps around one that found no place in which others give way, too, where those beside it have; then twice as many
SQUEAKS = 24  # attempts more, in each of which what found no place in the one before is placed first
WORTH = 0.8  # of what clashes, at which the second way of placing is taken
PASSES = 4  # over all items, to move those apart that clash
ORDERS: tuple[Callable[[Item], tuple[float, ...]], ...] = (
    lambda item: (-item.size, item.first),
    lambda item: (item.first - item.last, -item.size),  # long-lived ones first
    lambda item: (-item.size * (item.last - item.first + 1),),
    lambda item: (item.first, -item.size),
)


@dataclass
class Item:
    """`size` addresses needed in steps first..last (both included); `early`, rising, <= `first`: welcome from there on, from
    the first of them if there is room. `load`: not loaded before this step, so that nothing that lay there holds the load up.
    `held` >= last: better not given to another before this step, for then its last reader is still at work."""

    name: str
    size: int
    first: int
    last: int
    early: tuple[int, ...] = ()
    address: int = -1
    load: int = 0
    held: int = -1

    def __post_init__(self) -> None:
        self.early = self.early or (self.first,)

    def wishes(self) -> list[tuple[int, int]]:
        """(first, last) that it would like, best ones first; at the end what it must have."""
        late = max(self.last, self.held)
        return list(dict.fromkeys([*((min(e, self.first), late) for e in self.early), (self.first, self.last)]))


def set_lead(loads: list[Item]) -> None:
    """Let every load start as soon as the load so many places before it is used, for each of LOAD_LEADS."""
    order = sorted(loads, key=lambda item: item.first)
    for k, item in enumerate(order):
        item.early = tuple(order[k - lead].first if k >= lead else 0 for lead in LOAD_LEADS)


def place(
    items: list[Item], banks: int, bank_size: int, clashes: dict[tuple[int, int], int], memory: str, cure: str
) -> None:
    """Set `address` (and bring `first` forward to the start of the space) of all items.

    clashes[i, j]: cost of items i < j in the same bank. memory, cure: what the memory is called and the Config fields to
    raise, for the Shortage when it is too small.
    """
    field = cure.split(" or ")[0]
    for item in items:
        if item.size > bank_size:
            factor = 1 << (-(-item.size // bank_size) - 1).bit_length()  # memories are powers of two
            raise Shortage(
                f"{item.name} needs {item.size} {memory} in one piece, there are {bank_size}: "
                f"raise {field} by a factor of {factor}",
                field,
                factor,
                item.size - bank_size,
            )
    together = peak(items)
    need, have = sum(item.size for item in together), banks * bank_size
    failed = together[-1] if need > have else _best(items, banks, bank_size, clashes)
    if failed is None:
        return
    short = f"{need - have} short" if need > have else "enough in sum, but not in one piece"
    largest = sorted({item.name: item for item in together}.values(), key=lambda item: -item.size)[:SHOWN]
    raise Shortage(
        f"no room for {failed.name} ({failed.size} {memory}): what lives at one time ("
        + ", ".join(f"{item.name}: {item.size}" for item in largest)
        + f"{', ...' if len(together) > SHOWN else ''}) needs {need}, there are {have} ({short}): raise {cure}",
        field,
        max(need / have, 1 + 1 / bank_size),
        max(0, need - have),
    )


def _best(items: list[Item], banks: int, bank_size: int, clashes: dict[tuple[int, int], int]) -> Item | None:
    """Place all items, and once more with an eye on those that are still to come where that lets much less clash; the first
    one that finds no place."""
    wishes = [(item.first, item.last) for item in items]
    if (failed := _placed(items, banks, bank_size, clashes)) is not None or not (cost := _cost(items, bank_size, clashes)):
        return failed
    found = [(item.address, item.first, item.last) for item in items]
    for item, (first, last) in zip(items, wishes, strict=True):
        item.first, item.last = first, last
    if _placed(items, banks, bank_size, clashes, True) is None and _cost(items, bank_size, clashes) < WORTH * cost:
        return None
    for item, (address, first, last) in zip(items, found, strict=True):
        item.address, item.first, item.last = address, first, last
    return None


def _cost(items: list[Item], bank_size: int, clashes: dict[tuple[int, int], int]) -> int:
    """Of all that clash in one bank."""
    return sum(c for (i, j), c in clashes.items() if items[i].address // bank_size == items[j].address // bank_size)


def _placed(
    items: list[Item], banks: int, bank_size: int, clashes: dict[tuple[int, int], int], ahead: bool = False
) -> Item | None:
    """Place all items, for as long as they like where there is room; the first one that finds none in the last order that is
    tried. Where one finds none, those that could do with less of its time get less."""
    wishes = [item.wishes() for item in items]
    level = [0] * len(items)
    must = [choices[-1] for choices in wishes]
    steps = max((item.last for item in items), default=0)
    for _ in range(RELAXED):
        for item, choices, k in zip(items, wishes, level, strict=True):
            item.first, item.last = choices[k]
        failed = _fill(items, banks, bank_size, clashes, ORDERS[0], ahead)
        if failed is None:
            _bring_forward(items)
            for item, (_, last) in zip(items, must, strict=True):
                item.last = last
            return None
        could = [i for i in range(len(items)) if level[i] + 1 < len(wishes[i])]
        around, less = 0, list[int]()
        while not less and around <= steps:
            less = [i for i in could if _in_the_way(items[i], must[i], failed, around)]
            around = 2 * around or AROUND
        for i in less:
            level[i] += 1
        if not less:
            break
    for item, (first, last) in zip(items, must, strict=True):
        item.first, item.last = first, last
    squeaked: dict[int, int] = {}

    def squeaks(item: Item) -> tuple[float, ...]:
        return (-squeaked.get(id(item), 0), *ORDERS[0](item))

    for order in ORDERS:
        failed = _fill(items, banks, bank_size, clashes, order, ahead)
        if failed is None:
            _bring_forward(items)
            return None
    for _ in range(SQUEAKS):  # what found no place comes before the others
        squeaked[id(failed)] = len(squeaked) + 1
        failed = _fill(items, banks, bank_size, clashes, squeaks, ahead)
        if failed is None:
            _bring_forward(items)
            return None
    return failed


def _in_the_way(item: Item, must: tuple[int, int], failed: Item, around: int) -> bool:
    """Whether an item lives beside one that found no place, or so many steps around it, in time that it would like and need not
    have."""
    first, last = failed.first - around, failed.last + around
    return (item.first <= last and first < must[0]) or (item.last >= first and last > must[1])


def peak(items: list[Item]) -> list[Item]:
    """The items that live when most is needed."""
    changes: dict[int, int] = {}
    for item in items:
        changes[item.first] = changes.get(item.first, 0) + item.size
        changes[item.last + 1] = changes.get(item.last + 1, 0) - item.size
    used, most, step = 0, 0, 0
    for at, change in sorted(changes.items()):
        used += change
        if used > most:
            most, step = used, at
    return [item for item in items if item.first <= step <= item.last]


def _fill(
    items: list[Item],
    banks: int,
    bank_size: int,
    clashes: dict[tuple[int, int], int],
    order: Callable[[Item], tuple[float, ...]],
    ahead: bool = False,
) -> Item | None:
    """Place all items for first..last in rising order of `order`; returns the first one that found no place. ahead: what is
    placed leaves a bank, where it can, to what clashes with it and with others and is still to come."""
    partners: dict[int, list[tuple[int, int]]] = {}
    for (i, j), cost in clashes.items():
        partners.setdefault(i, []).append((j, cost))
        partners.setdefault(j, []).append((i, cost))
    first = np.array([item.first for item in items])
    last = np.array([item.last for item in items])
    size = np.array([item.size for item in items])
    address = np.full(len(items), -1)
    near = [[0] * banks for _ in items]  # what an item clashes with, of those that are placed, by bank
    for i in sorted(range(len(items)), key=lambda i: (*order(items[i]), items[i].name)):
        beside = np.flatnonzero((address >= 0) & (first <= last[i]) & (last >= first[i]))
        choices = []
        for bank in range(banks):
            there = beside[address[beside] // bank_size == bank]
            offset = _gap(address[there] - bank * bank_size, size[there], size[i], bank_size)
            if offset is not None:
                left = sum(_least(near[j], bank, c) for j, c in partners.get(i, ()) if address[j] < 0) if ahead else 0
                choices.append((near[i][bank] + left, offset, bank))
        if not choices:
            return items[i]
        _, offset, bank = min(choices)
        address[i] = bank * bank_size + offset
        for j, cost in partners.get(i, ()):
            near[j][bank] += cost
    _move_apart(address, first, last, size, partners, banks, bank_size)
    for item, a in zip(items, address, strict=True):
        item.address = int(a)
    return None


def _least(near: list[int], bank: int, cost: int) -> int:
    """How much more than now an item must clash at least, wherever it will be placed, with another of this cost in a bank."""
    return min(n + cost * (b == bank) for b, n in enumerate(near)) - min(near)


def _move_apart(
    address: Array,
    first: Array,
    last: Array,
    size: Array,
    partners: dict[int, list[tuple[int, int]]],
    banks: int,
    bank_size: int,
) -> None:
    """Move items, those that clash most first, to banks where they clash less, as long as that helps."""

    def costs(i: int) -> list[int]:
        sums = [0] * banks
        for j, cost in partners.get(i, ()):
            sums[address[j] // bank_size] += cost
        return sums

    for _ in range(PASSES):
        moved = False
        for i in sorted(partners, key=lambda i: (-costs(i)[address[i] // bank_size], i)):
            now = costs(i)
            here = address[i] // bank_size
            for bank in sorted(range(banks), key=lambda bank: (now[bank], bank)):
                if now[bank] >= now[here]:
                    break
                beside = np.flatnonzero((first <= last[i]) & (last >= first[i]) & (address // bank_size == bank))
                offset = _gap(address[beside] - bank * bank_size, size[beside], size[i], bank_size)
                if offset is not None:
                    address[i] = bank * bank_size + offset
                    moved = True
                    break
        if not moved:
            return


def _gap(starts: np.ndarray, sizes: np.ndarray, size: int, limit: int) -> int | None:
    """Lowest offset of a free range of `size` below `limit` between occupied ranges, which may overlap each other."""
    end = 0
    for k in np.argsort(starts, kind="stable"):
        if starts[k] - end >= size:
            return end
        end = max(end, int(starts[k] + sizes[k]))
    return end if end + size <= limit else None


def _bring_forward(items: list[Item]) -> None:
    """Start items that are welcome earlier as early as their addresses are free."""
    last, address, size = (np.array([getattr(item, name) for item in items]) for name in ("last", "address", "size"))
    for item in sorted(items, key=lambda item: item.first):
        if item.early[0] < item.first:
            over = (address < item.address + item.size) & (item.address < address + size)
            before = last[over & (last < item.first)]
            item.first = max(item.early[0], int(before.max(initial=-1)) + 1)
