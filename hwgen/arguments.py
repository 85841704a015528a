"""The command line's options: what `cli` is asked for, before anything is done."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from .errors import UserError
from .version import __version__

USER_FAULT = 2
BUNDLE = "folder that `hwgen build` wrote"
BOARD = "one that `hwgen boards` lists, or a FILE.toml; default: %(default)s"
INPUT = "one array per ONNX input, or a folder of images"
DRAM = "rtl: DRAM as on the board, or without its limits; default: %(default)s"
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# One or two command lines for each command, which `--help` shows.
EXAMPLES = {
    "build": (
        "hwgen build vit.onnx --board zcu104 --calibrate images.npz -o vit.bundle",
        "hwgen build digit=d.onnx parity=p.onnx --set array_outputs=16 --set array_inputs=16",
    ),
    "run": (
        "hwgen run vit.bundle --engine rtl --input images.npz --output answers.npz --limit 2",
        "hwgen run vit.bundle --engine rtl --input images.npz --limit 1 --waves x.fst --cycles 1000:2000",
    ),
    "compare": ("hwgen compare vit.onnx vit.bundle --input images.npz --limit 8 --html errors.html",),
    "verify": (
        "hwgen verify vit.bundle --input images.npz --engine machine --labels label --min-accuracy 0.8 --junit hwgen.xml",
    ),
    "check": ("hwgen check vit.onnx --shape image=1,3,224,224", "hwgen check vit.onnx --html nodes.html --board kv260"),
    "report": ("hwgen report vit.bundle --html report.html",),
    "synth": ("hwgen synth vit.bundle --jobs 2",),
    "timing": ("hwgen timing vit.bundle --jobs 2",),
    "bitstream": ("hwgen bitstream digits.bundle -o digits.bit",),
    "disasm": ("hwgen disasm vit.bundle --task digit",),
    "package": ("hwgen package vit.bundle -o vit.package --bitstream hwgen.bit",),
    "config": ("hwgen config --board kv260",),
    "cache": ("hwgen cache --prune --older 30",),
    "boards": ("hwgen boards --json",),
    "explore": ("hwgen explore vit.onnx --board zcu104 --target-fps 500 --batch 1,4",),
    "completion": ("hwgen completion zsh",),
    "doctor": ("hwgen doctor",),
    "example": ("hwgen example m3vit-digits -o digits.onnx",),
    "demo": ("hwgen demo --images 2 --keep demo",),
}


class Parser(argparse.ArgumentParser):
    """Errors in one line, like all others."""

    def error(self, message: str):
        print(f"hwgen: error: {message} ({self.prog} --help tells more)", file=sys.stderr)
        raise SystemExit(USER_FAULT)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command line; those of a file named by --config are defaults for the others."""
    if held := next((a for a in arguments or () if "\0" in a), None):
        raise UserError(f"{held!r}: holds a NUL, which no name does")
    top, commands = parsers()
    options, unknown = top.parse_known_args(arguments)
    if unknown:
        commands[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    if getattr(options, "config", None) is not None:
        from . import buildfile

        commands[options.command].set_defaults(**buildfile.read(options.config))
        options = top.parse_args(arguments)
    return options


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the command line, and those of the commands by name."""
    about = "FPGA accelerators for Vision Transformers, generated from ONNX."
    more = (
        "First steps: `hwgen demo` shows the whole way in a few minutes. For a network of yours, `hwgen check` says whether "
        "it builds, `hwgen build` builds it, `hwgen run` and `hwgen verify` try it. `hwgen COMMAND --help` tells a command's "
        "options, with an example."
    )
    top = Parser(prog="hwgen", description=about, epilog=more)
    top.add_argument("--version", action="version", version=f"hwgen {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, description: str) -> argparse.ArgumentParser:
        lines = "\n".join(f"  {line}" for line in EXAMPLES[name])
        form = argparse.RawDescriptionHelpFormatter  # the examples keep their lines
        epilog = f"example:\n{lines}"
        sub = commands.add_parser(name, help=description, description=description, epilog=epilog, formatter_class=form)
        sub.set_defaults(command=name)
        return sub

    sub = command("build", "ONNX to bundle: program, weights, Verilog, report")
    what = "one model, or several tasks of one network"
    sub.add_argument("models", nargs="*", metavar="[TASK=]MODEL.onnx", help=what)
    what = "the whole build as a file, with files beside it; options here come on top"
    sub.add_argument("--config", type=Path, metavar="FILE.toml", help=what)
    sub.add_argument("--board", default="zcu104", metavar="NAME", help=BOARD)
    sub.add_argument("-o", "--output", type=Path, metavar="BUNDLE", help="default: the first model's name with .bundle")
    sub.add_argument("--calibrate", type=Path, metavar="DATA.npz", help="images that set the scales; or a folder")
    what = "a field of the machine or of quantisation; `hwgen config` lists them"
    sub.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help=what)
    sub.add_argument("--batch", type=int, default=1, metavar="N", help="images that share a run")
    sub.add_argument("--explore", action="store_true", help="search the machine's size even where the board stores one that fits")
    what = "run the program on one calibration image, and write no bundle unless it gives what golden gives"
    sub.add_argument("--verify", action="store_true", help=what)
    sub.add_argument("--stop-after", metavar="STEP|LEVEL", help="end after this step, and write no bundle")
    sub.add_argument("--print", dest="show", metavar="LEVEL", help="a level of the compiler as text: T L R Q M P")
    _shape(sub)
    _outputs(sub)

    sub = command("run", "run a bundle: golden model, machine model or simulated RTL")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE)
    what = "integer graph (fast), program, or simulated Verilog (cycles): the same numbers, bit for bit"
    sub.add_argument("--engine", required=True, metavar="golden|machine|rtl", help=what)
    sub.add_argument("--input", type=Path, required=True, metavar="IN.npz", help=INPUT)
    sub.add_argument("--output", type=Path, metavar="OUT.npz", help="one float32 array per ONNX output")
    _selection(sub)
    sub.add_argument("--dram", default="board", metavar="board|unlimited", help=DRAM)
    what = "rtl: when each instruction ran, where the cycles went; FILE.perfetto.json is for ui.perfetto.dev"
    sub.add_argument("--trace", type=Path, metavar="FILE.json", help=what)
    what = "rtl: every signal of the design, for GTKWave or Surfer; compiles a slower simulation once"
    sub.add_argument("--waves", type=Path, metavar="FILE.fst", help=what)
    what = "with --waves: only these cycles of every run, from A on, before B; either may be left out"
    sub.add_argument("--cycles", metavar="A:B", help=what)
    sub.add_argument("--progress", action="store_true", help="a line a second where stderr is no terminal, not one in 30")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command("compare", "per-layer error of a bundle against its float model")
    sub.add_argument("model", type=Path, metavar="MODEL.onnx", help="the float model")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE)
    sub.add_argument("--input", type=Path, required=True, metavar="IN.npz", help=INPUT)
    sub.add_argument(
        "--sensitivity", action="store_true", help="follow each layer's own error to the outputs on all images, not one"
    )
    _selection(sub, several=False)
    what = "write a page there: the errors of each layer, and its values against the 8-bit grid that the array reads"
    sub.add_argument("--html", type=Path, metavar="FILE.html", help=what)
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command("verify", "check what a bundle gives: equal to golden, cycles, SNR, accuracy; exit code 1 if it does not")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE)
    sub.add_argument("--input", type=Path, required=True, metavar="X.npz", help=INPUT)
    sub.add_argument("--engine", required=True, metavar="golden|machine|rtl", help="the last two are held against golden")
    _selection(sub)
    sub.add_argument("--dram", default="board", metavar="board|unlimited", help=DRAM)
    what = "cycles that an image may take: measured with rtl, else estimated"
    sub.add_argument("--max-cycles", type=int, metavar="N", help=what)
    what = "of every output, against --model or the arrays of X.npz that are named as the outputs"
    sub.add_argument("--min-snr", type=float, metavar="DB", help=what)
    sub.add_argument("--model", type=Path, metavar="MODEL.onnx", help="the float model, for --min-snr")
    what = "array of X.npz with the right classes; several outputs: OUTPUT=NAME, repeated"
    sub.add_argument("--labels", action="append", default=[], metavar="[OUTPUT=]NAME", help=what)
    sub.add_argument("--min-accuracy", type=float, metavar="P", help="share of the labels that must be hit, 0 to 1")
    sub.add_argument("--junit", type=Path, metavar="FILE.xml", help="write the checks there as JUnit's XML")
    sub.add_argument("--progress", action="store_true", help="a line a second where stderr is no terminal, not one in 30")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command("check", "what of a model is supported, what is not, and why")
    sub.add_argument("model", type=Path, metavar="MODEL.onnx", help="the float model")
    what = "write a page there: every node, where it goes, what it costs on the board, whether the whole fits"
    sub.add_argument("--html", type=Path, metavar="FILE.html", help=what)
    sub.add_argument("--board", metavar="NAME", help="with --html: whose Config; default: zcu104")
    _shape(sub)
    _outputs(sub)
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command("report", "estimated cycles, images per second, resources, traffic, energy of a bundle")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE)
    sub.add_argument("--trace", type=Path, metavar="FILE.json", help="measured runs, from hwgen run --trace")
    sub.add_argument("--html", type=Path, metavar="FILE.html", help="write the page with timeline and roofline there")
    what = "with --html: accuracy and more, from hwgen verify --json"
    sub.add_argument("--checks", type=Path, metavar="FILE.json", help=what)
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    for name, what in (
        ("synth", "resources and logic depth of a bundle's Verilog, by open synthesis (Yosys)"),
        ("timing", "the clock of a bundle's Verilog on its board's part, estimated from open data (needs Yosys)"),
    ):
        sub = command(name, what)
        sub.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE)
        sub.add_argument("--unit", metavar="NAME", help="only this unit, as the table names it")
        sub.add_argument("--jobs", type=int, default=1, metavar="N", help="units at a time; default: %(default)s")
        sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command("bitstream", "a bundle's bitstream for a board of Lattice's ECP5, by open tools (Yosys, nextpnr)")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE)
    sub.add_argument("-o", "--output", type=Path, metavar="FILE.bit", help="default: the bundle's name with .bit")
    sub.add_argument("--seed", type=int, default=1, metavar="N", help="of the placement; default: %(default)s")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command("disasm", "the program of a bundle, readable")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE)
    sub.add_argument("--task", metavar="T", help="only this one")

    sub = command("package", "a bundle with driver, self-test and notebook as a folder for the board")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE)
    sub.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: the bundle's name with .package")
    sub.add_argument("--bitstream", type=Path, metavar="FILE.bit", help="with its .hwh beside it")
    sub.add_argument("--input", type=Path, metavar="IN.npz", help="images of the self-test; default: seeded noise")

    sub = command("config", "every field that --set may name: default and meaning")
    sub.add_argument("--board", default="zcu104", metavar="NAME", help="whose Config is shown beside; default: %(default)s")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command("cache", "what is kept to save time: compiled simulations, Verilog, synthesised units; where, how much")
    sub.add_argument("--prune", action="store_true", help="remove it; what a process uses at the moment stays")
    sub.add_argument("--older", type=float, default=0.0, metavar="DAYS", help="with --prune: only what was not used so long")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command("boards", "the known boards")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command("explore", "search the Configs of a board for a network: estimated cycles against resources")
    sub.add_argument("models", nargs="+", metavar="[TASK=]MODEL.onnx", help="one model, or several tasks of one network")
    sub.add_argument("--board", default="zcu104", metavar="NAME", help=BOARD)
    sub.add_argument("--target-fps", type=float, metavar="F", help="choose the smallest Config that gives F images a second")
    sub.add_argument("--batch", default="1", metavar="N,...", help="images that share a run; of several each is tried")
    _shape(sub)
    _outputs(sub)
    sub.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each processor)")
    sub.add_argument("--cluster", metavar="tcp://HOST:PORT", help="a Dask cluster's scheduler, instead of processes")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")
    sub = command("completion", "completion of commands, options and files, as a shell reads it")
    what = "in ~/.bashrc: eval \"$(hwgen completion bash)\"; of zsh a file _hwgen in a folder of $fpath"
    sub.add_argument("shell", metavar="bash|zsh|fish", help=what)

    command("doctor", "what this machine lacks, and the command that installs it")

    sub = command("example", "write an example network with its images")
    sub.add_argument("name", metavar="NAME", nargs="?", help="without it: list the examples")
    what = "images and labels go beside it"
    sub.add_argument("-o", "--output", type=Path, metavar="FILE.onnx", help=what)

    sub = command("demo", "build a trained example, simulate its RTL and compare with the float model")
    sub.add_argument("--example", default="m3vit-digits", metavar="NAME", help="of `hwgen example`; default: %(default)s")
    sub.add_argument("--images", type=int, default=4, metavar="N", help="default: %(default)s")
    sub.add_argument("--keep", type=Path, metavar="FOLDER", help="leave model, images and bundle there")
    return top, commands.choices


def _shape(sub: argparse.ArgumentParser) -> None:
    what = "size of an input that the file leaves open, as image=1,3,224,224; repeat for several"
    sub.add_argument("--shape", dest="shapes", action="append", default=[], metavar="[INPUT=]N,...", help=what)


def _outputs(sub: argparse.ArgumentParser) -> None:
    what = "values of the file to end in, instead of its own outputs"
    sub.add_argument("--outputs", action="append", default=[], metavar="NAME,...", help=what)


def _selection(sub: argparse.ArgumentParser, several: bool = True) -> None:
    both = "; T,U: both of each image" if several else ""
    sub.add_argument("--task", metavar="T", help=f"needed where the bundle holds several{both}")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N images")


def parse_models(texts: list[str]) -> dict[str, Path]:
    """Task name -> file from MODEL or TASK=MODEL texts. Raises UserError for a bad, missing or doubled task name."""
    if not texts:
        raise UserError("no model: name [TASK=]MODEL.onnx, or a --config FILE.toml that does")
    if len(texts) == 1 and ("=" not in texts[0] or Path(texts[0]).exists()):
        return {"": Path(texts[0])}
    models: dict[str, Path] = {}
    for text in texts:
        task, equals, path = text.partition("=")
        if not equals:
            raise UserError(f"{text}: several models are several tasks, written TASK=MODEL.onnx")
        check_task(task, f"{text}: ")
        if task in models:
            raise UserError(f"{text}: task {task!r} is named twice")
        if not path:
            raise UserError(f"{text}: task {task!r} names no file")
        models[task] = Path(path)
    return models


def check_task(name: str, where: str = "") -> None:
    """Raise UserError unless `name` may be a task's; `where` begins the message."""
    if not TASK_NAME.fullmatch(name):
        raise UserError(f"{where}{name!r} is no task name (letters, digits, _ . -)")


def parse_labels(texts: list[str]) -> dict[str, str]:
    """Output -> array of its labels from `--labels [OUTPUT=]NAME`; the output is "" where it is left out."""
    labels: dict[str, str] = {}
    for text in texts:
        output, equals, name = text.rpartition("=")
        if not name or (equals and not output):
            raise UserError(f"--labels {text}: written as NAME or OUTPUT=NAME")
        if output in labels or (labels and "" in (output, *labels)):
            raise UserError(f"--labels {text}: several are written as OUTPUT=NAME, each output once")
        labels[output] = name
    return labels


def parse_settings(texts: list[str]) -> dict[str, str]:
    """Config field -> text from `--set KEY=VALUE`."""
    settings: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--set {text}: written as KEY=VALUE")
        settings[key] = value
    return settings


def parse_outputs(texts: list[str]) -> tuple[str, ...]:
    """Names of values from `--outputs NAME,...`."""
    names = [name for text in texts for name in text.split(",")]
    if "" in names:
        raise UserError(f"--outputs {','.join(texts)}: a name is missing")
    return tuple(names)


def parse_window(text: str | None) -> tuple[int, int | None] | None:
    """First and last cycle from `--cycles A:B`; A is 0 and B None where they are left out."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d*):(\d*)", text)
    if found is None or text == ":":
        raise UserError(f"--cycles {text}: written as A:B, whole numbers; either may be left out")
    return int(found[1] or 0), int(found[2]) if found[2] else None


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Input name -> shape from `--shape [INPUT=]N,...`; the name is "" where it is left out."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", sizes):
            raise UserError(f"--shape {text}: written as INPUT=1,3,224,224, whole numbers above 0")
        if name in shapes:
            raise UserError(f"--shape {text}: its input is named twice")
        shapes[name] = tuple(int(n) for n in sizes.split(","))
    return shapes
