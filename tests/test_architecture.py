"""The house rules: imports go one way, files stay short, nothing names this machine, every module says what it is."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hwgen", "sim", "host", "boards", "rtl_templates")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TEXT = {".py", ".v", ".vh", ".toml", ".md", ".cpp", ".h", ".tcl", ".html", ""}
MAX_LINES = 500

# Layer of each module of hwgen: it may import modules of lower layers, and of its own package. A package's layer is its
# directory's.
CONTRACTS = {"errors", "numerics", "config", "intgraph", "isa", "graph"}
CONTRACT_IMPORTS = {
    "errors": set(),
    "numerics": set(),
    "config": {"errors"},
    "graph": set(),
    "intgraph": {"numerics"},
    "isa": {"intgraph"},
}
HARDWARE = {"numerics", "config", "isa", "intgraph", "errors", "registers", "rtl"}
EVERYTHING = {"cli", "build", "run", "compare", "demo", "__main__"}  # the only ones that may import sim and host


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Absolute names of everything that a module imports, wherever in it the import stands."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
            if node.module:
                names.add(module)
    return names


def hwgen_parts(path: Path) -> set[str]:
    """Second components of the hwgen modules that are imported: `config`, `rtl`, ..."""
    known = {p.stem for p in (ROOT / "hwgen").iterdir()}
    return {name.split(".")[1] for name in imported(path) if name.startswith("hwgen.")} & known


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p).startswith("hwgen")], ids=identify)
def test_hwgen_imports_go_one_way(path):
    parts = name_of(path).split(".")
    part = parts[1] if len(parts) > 1 else ""
    if part not in EVERYTHING:
        assert not tops(path) & {"sim", "host"}, "only the command line's modules see sim and host"
    if part in CONTRACT_IMPORTS:
        assert hwgen_parts(path) <= CONTRACT_IMPORTS[part]
    elif part == "rtl":
        assert hwgen_parts(path) <= HARDWARE
    elif part == "registers":
        assert hwgen_parts(path) <= CONTRACTS
    elif part not in EVERYTHING:
        assert not hwgen_parts(path) & (EVERYTHING | {"rtl"}), "the compiler does not read the hardware or the commands"
    if part in ("frontend", "fuse"):
        assert not hwgen_parts(path) & {"isa", "config", "intgraph", "quantise", "schedule", "program", "boards"}
    if part == "quantise":
        assert not hwgen_parts(path) & {"isa", "config", "schedule", "program", "boards"}


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p).startswith("host")], ids=identify)
def test_host_runs_without_the_compiler(path):
    """The board has numpy and pynq, nothing else. `--device rtl` and `sim` load their device by name."""
    import sys

    allowed = {"host", "numpy", "pynq", *sys.stdlib_module_names}
    assert tops(path) <= allowed


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p).startswith("sim")], ids=identify)
def test_simulators_do_not_read_the_commands(path):
    assert not hwgen_parts(path) & EVERYTHING


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_module_is_short_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "no docstring"


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_file_names_a_place_on_one_machine():
    place = re.compile(r"(?<![\w.>-])/(?:home|root|work|Users|tmp|opt|usr/local)/\w")
    found = []
    for path in tracked():
        if path.suffix in TEXT and path.name != "LICENSE":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if place.search(line) and path != Path(__file__).resolve():
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found


def test_tests_do_not_import_each_other():
    for path in (ROOT / "tests").rglob("*.py"):
        assert path.name != "__init__.py"
        assert "tests" not in tops(path), path


def test_generated_files_are_not_tracked():
    for path in tracked():
        assert path.suffix not in {".pyc", ".vcd", ".fst"} and path.name != "results.xml", path
