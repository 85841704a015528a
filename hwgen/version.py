"""The version, apart from everything, so that any module may read it."""

__version__ = "0.1.0"
