"""Example networks with their images: trained ones that ship with the package, seeded ones made on the spot."""

from .catalogue import EXAMPLES, write

__all__ = ["EXAMPLES", "write"]
