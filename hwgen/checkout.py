"""In a checkout, the folders that stand beside `hwgen/` and that setuptools installs in it, under the names they have there.

Everything runs from a plain checkout (`PYTHONPATH`, `python -m hwgen` in its folder) as it does once installed, and never with
the simulator of another checkout, to which an editable install may point.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FOLDERS = {  # as in [tool.setuptools.package-dir] of pyproject.toml
    "hwgen.board_files": "boards",
    "hwgen.host": "host",
    "hwgen.rtl_templates": "rtl_templates",
    "hwgen.sim": "sim",
}


class Finder:
    """Finds the packages of FOLDERS."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in FOLDERS:
            return None
        return spec_from_file_location(name, HERE.parent / FOLDERS[name] / "__init__.py")


def find_folders() -> None:
    """Let Python find them, where this is a checkout: first of all, since an editable install finds them too."""
    if not (HERE / "sim").is_dir() and Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)
