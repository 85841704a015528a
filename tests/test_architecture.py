"""The house rules: imports go one way, files stay short, nothing names this machine, every module says what it is."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hwgen import checkout
from hwgen.files import read_toml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hwgen", "sim", "host", "boards", "rtl_templates")
TOP_LEVEL = {
    *(*PACKAGES, "tests", "docs", "findings", ".ci", ".gitignore", "pyproject.toml", "README.md", "CONTRIBUTING.md"),
    *("CHANGELOG.md", "LICENSE"),
}
TESTS = {"boards", "fuzz", "hwgen", "proofs", "rtl", "sim", "host", "system", "bench"}
INSTALLED = {folder: name for name, folder in checkout.FOLDERS.items()}  # `sim` is hwgen.sim
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TEXT = {".py", ".v", ".vh", ".toml", ".md", ".cpp", ".h", ".tcl", ".html", ""}
MAX_LINES = 500

# What each module or package of hwgen may read of the others, lowest first. The commands at the end may read everything.
HWGEN = {
    "version": "",
    "checkout": "",
    "naming": "",
    "progress": "",
    "errors": "",
    "cache": "errors",
    "processes": "errors",
    "numerics": "",
    "patches": "",
    "isa": "numerics",
    "walks": "isa",
    "resampling": "numerics walks",
    "intgraph": "isa numerics patches resampling walks",
    "intgraph_checks": "intgraph isa numerics walks",
    "intgraph_order": "intgraph",
    "config": "errors isa numerics",
    "graph": "patches resampling walks",
    "files": "errors",
    "buildfile": "errors files",
    "arguments": "buildfile errors version",
    "completion": "arguments errors",
    "fields": "",
    "doctor": "",
    "boards": "config errors files",
    "registers": "config isa",
    "counts": "config isa",
    "energy": "config numerics",
    "tensor": "",
    "layers": "tensor",
    "importer": "errors layers tensor",
    "recognise": "errors importer layers tensor",
    "rows": "errors graph layers naming numerics recognise resampling tensor walks",
    "proof": "errors graph importer tensor",
    "levels": "errors graph importer proof recognise rows tensor",
    "qgraph": "isa numerics patches resampling walks",
    "quantise": "errors graph isa naming numerics qgraph walks",
    "select": "graph intgraph intgraph_checks isa naming numerics qgraph quantise walks",
    "leveltext": "isa resampling walks",
    "distributions": "intgraph isa numerics",
    "compare": "distributions errors graph intgraph numerics",
    "verify": "compare errors",
    "intgraph_io": "errors intgraph leveltext",
    "program": "config errors files isa patches version",
    "schedule": "config counts errors intgraph intgraph_checks intgraph_order isa numerics program walks",
    "latency": "config numerics",
    "memories": "config isa numerics",
    "rtl": "config errors isa latency memories numerics registers",
    "timeline": "config counts isa",
    "dram": "boards config errors",
    "cost": "config counts dram isa latency memories timeline walks",
    "listing": "isa program",
    "mapping": "config cost dram errors intgraph isa latency numerics program resampling schedule walks",
    "resources": "boards config latency memories numerics",
    "explore": "boards config cost dram energy errors intgraph isa latency mapping processes resources schedule timeline",
    "synth": "boards config errors processes progress",
    "bitstream": "boards config errors files processes progress rtl synth",
    "timing": "boards errors files progress synth",
    "dataflow": "intgraph",
    "report": "boards cost counts dram energy isa program resources timeline version",
    "parts": "timeline",
    "origins": "errors graph importer tensor timeline",
    "perfetto": "",
    "pages": "compare distributions isa numerics origins parts timeline version",
    "vendor": "boards config registers rtl",
    "notebook": "",
    "example": "errors files",
}
COMMANDS = {
    *("", "accuracy", "agreement", "api", "images", "inspection", "steps", "transfer", "run", "demo", "package"),
    *("cli", "__main__"),
}
SIM = {
    *("boards", "cache", "config", "counts", "doctor", "dram", "energy", "errors", "graph"),
    *("intgraph", "isa", "numerics", "patches", "processes", "progress", "qgraph", "registers", "timeline", "walks"),
}
# What is not ours and not of the standard library. The host's list is what a board has.
NUMPY = {"numpy", "scipy"}
LIBRARIES = {
    "hwgen.rtl": {"amaranth"},
    "hwgen.importer": NUMPY | {"onnx", "google", "onnxruntime"},
    "hwgen.explore": {"distributed"},  # where a cluster is asked for
    "hwgen.example": {"numpy", "onnx"},
    "hwgen.timing": NUMPY | {"tomli", "tomllib"},
    "hwgen.boards": {"tomli", "tomllib"},  # the second one since Python 3.11
    "hwgen.images": {"numpy", "PIL"},
    "hwgen.files": {"numpy", "tomli", "tomllib"},
    "hwgen.config": set(),
    "hwgen.cli": set(),
    "hwgen.pages": {"jinja2", "markupsafe"},
    "hwgen.arguments": set(),
    "hwgen.completion": {"shtab"},
    "hwgen.progress": set(),
    "hwgen.doctor": {"find_libpython"},
    "hwgen": NUMPY,
    "hwgen.sim": {"numpy", "cocotb", "cocotb_tools", "pynq"},
    "hwgen.host": {"numpy", "pynq"},
    "hwgen.board_files": set(),
    "hwgen.rtl_templates": set(),
}


def name_of(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    parts = (INSTALLED.get(folder, folder), *rest)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named(path: Path) -> list[list[str]]:
    """What each import of a module names, wherever in it the import stands: absolute names, the most exact first."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [[alias.name] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [[f"{module}.{alias.name}", *([module] if node.module else [])] for alias in node.names]
    return found


def imported(path: Path) -> set[str]:
    """Absolute names of everything that a module imports."""
    return {name for names in named(path) for name in names}


def hwgen_parts(path: Path) -> set[str]:
    """Second components of the hwgen modules that are imported: `config`, `rtl`, ..."""
    known = {p.stem for p in (ROOT / "hwgen").iterdir()}
    return {name.split(".")[1] for name in imported(path) if name.startswith("hwgen.")} & known


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def folders(path: Path) -> set[str]:
    """What stands beside hwgen here of which a module imports something: `sim`, `host`, ..."""
    return {folder for folder, known in INSTALLED.items() for name in imported(path) if f"{name}.".startswith(f"{known}.")}


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def modules(package: str) -> list[Path]:
    return [path for path in MODULES if path.relative_to(ROOT).parts[0] == package]


@pytest.mark.parametrize("path", modules("hwgen"), ids=identify)
def test_hwgen_imports_go_one_way(path):
    part = (name_of(path).split(".") + [""])[1]
    if part in COMMANDS:
        return
    assert part in HWGEN, f"say in HWGEN what {part} may import"
    assert hwgen_parts(path) <= {part, *HWGEN[part].split()}
    assert not folders(path) & {"sim", "host"}, "only the commands see sim and host"


def test_layers_have_no_cycle():
    done = set()
    for part, allowed in HWGEN.items():
        assert set(allowed.split()) <= done, part
        done.add(part)


def test_files_have_no_circle():
    """Nor do imports inside functions make one: a file can be read after those that it names, and only those."""
    files = {name_of(path): path for path in MODULES}
    reads = {
        name: {next((n for n in names if n in files), name) for names in named(path)} - {name}
        for name, path in files.items()
    }
    while ready := [name for name, others in reads.items() if not others & reads.keys()]:
        for name in ready:
            del reads[name]
    assert not reads, f"a circle among, or before: {sorted(reads)}"


@pytest.mark.parametrize("path", modules("sim"), ids=identify)
def test_sim_reads_contracts_and_no_hardware(path):
    """The Verilog that it simulates is text to it; it neither compiles networks nor talks to boards."""
    assert hwgen_parts(path) <= SIM
    assert "host" not in folders(path)


@pytest.mark.parametrize("path", modules("host"), ids=identify)
def test_host_runs_without_the_compiler(path):
    """The board has numpy and pynq, nothing else. `--device rtl` and `sim` load their device by name. It names itself by
    relative imports alone: hwgen.host here, part of a package there, `host` in a folder for the board."""
    assert all(f"{name}.".startswith("hwgen.host.") for name in imported(path) if name.split(".")[0] == "hwgen")
    absolute = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom) and not n.level]
    assert not {node.module.split(".")[0] for node in absolute} & {"hwgen", *PACKAGES}


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_libraries(path):
    name = name_of(path)
    allowed = next(LIBRARIES[key] for key in (".".join(name.split(".")[:2]), "hwgen") if key in LIBRARIES)
    assert tops(path) - {*sys.stdlib_module_names, "hwgen"} <= allowed


def test_the_command_line_starts_without_any_library():
    """So that `hwgen doctor` can say which are missing."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from hwgen.cli import main; sys.exit(main(['doctor']))"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT)], capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    assert "MISSING   numpy" in run.stdout and "pip install 'numpy" in run.stdout


def test_only_the_rtl_loads_amaranth():
    code = "import sys, hwgen.cost, hwgen.explore, hwgen.mapping, hwgen.steps; sys.exit('amaranth' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_module_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "no docstring"


def test_one_name_is_installed():
    """setuptools does not look for packages that it renames: all are listed, and stand where the checkout finds them."""
    how = read_toml(ROOT / "pyproject.toml")["tool"]["setuptools"]
    assert how["package-dir"] == checkout.FOLDERS
    assert sorted(how["packages"]) == sorted(name_of(path) for path in MODULES if path.name == "__init__.py")
    assert all(name.split(".")[0] == "hwgen" for name in how["packages"])


def test_folders_are_imported_by_the_names_that_are_installed():
    """`import sim` works in this folder alone, and where an old editable install has it."""
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]:
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
        assert not names & INSTALLED.keys(), path


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_files_are_short():
    for path in tracked():
        if path.suffix in {".py", ".v", ".toml"}:
            assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, path


def test_no_file_names_a_place_on_one_machine():
    place = re.compile(r"(?<![\w.>-])/(?:home|root|work|Users|tmp|opt|usr/local)/\w")
    found = []
    for path in tracked():
        if path.suffix in TEXT and path.name != "LICENSE":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if place.search(line) and path != Path(__file__).resolve():
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found


def test_layout():
    """Top level and tests hold what the README says, and nothing else."""
    for path in tracked():
        parts = path.relative_to(ROOT).parts
        assert parts[0] in TOP_LEVEL, path
        if parts[0] == "tests" and len(parts) > 2:
            assert parts[1] in TESTS, path
    assert {package for package in PACKAGES if (ROOT / package / "__init__.py").is_file()} == set(PACKAGES)


def test_tests_do_not_import_each_other():
    for path in (ROOT / "tests").rglob("*.py"):
        assert path.name != "__init__.py"
        assert "tests" not in tops(path), path


def test_generated_files_are_not_tracked():
    for path in tracked():
        assert path.suffix not in {".pyc", ".vcd", ".fst"} and path.name != "results.xml", path
