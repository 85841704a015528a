"""Names that nothing has yet."""

from __future__ import annotations

from collections.abc import Container


def unused(name: str, taken: Container[str]) -> str:
    """`name`, or one like it that is not taken."""
    candidate, n = name, 2
    while candidate in taken:
        candidate, n = f"{name}.{n}", n + 1
    return candidate


def claimed(name: str, taken: set[str]) -> str:
    """`unused`; it is taken then."""
    taken.add(found := unused(name, taken))
    return found
