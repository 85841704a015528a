import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def prover():
    """The module prover.py; `tests` is no package, so it is loaded from its file."""
    pytest.importorskip("pyosys", reason="no Yosys")
    pytest.importorskip("z3", reason="no z3")
    spec = importlib.util.spec_from_file_location("prover", Path(__file__).with_name("prover.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
