"""The generated Verilog in units that are synthesised one by one."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from ..errors import UserError

TOP = "hwgen_top"
# Modules whose children are units of their own; what remains of them is wiring and a little logic.
CONTAINERS = (TOP, f"{TOP}.core", f"{TOP}.core.vector")

_MODULE = re.compile(r"^(?:\(\*[^\n]*\*\)\n)*module (\\\S+|\w+).*?^endmodule\n", re.S | re.M)
_FIRST_WORD = re.compile(r"^ +\\?(\S+) +(?:\\?[\w$.<>]+ +\(|#\()", re.M)
_CHOICE = re.compile(r"^`ifdef (\w+)\n(.*?)^`else\n(.*?)^`endif\n", re.S | re.M)
_ESCAPED = re.compile(r"\\\S+ ")


@dataclass(frozen=True)
class Unit:
    """A piece of the design: `source` holds its modules, and those of its child units as empty shells."""

    name: str  # as it is reported
    module: str  # its top module
    source: str
    instances: dict[str, int]  # child unit -> how many of it


def split(verilog: str, defines: tuple[str, ...] = ()) -> dict[str, str]:
    """Module name -> text, `ifdef` resolved.

    Brackets leave escaped names: ABC9 takes a net named x[0] for bit 0 of x, if both are there, and fails.
    """
    text = _ESCAPED.sub(lambda name: name[0].replace("[", "<").replace("]", ">"), verilog)
    text = _CHOICE.sub(lambda choice: choice[2 if choice[1] in defines else 3], text)
    return {m[1].lstrip("\\"): m[0] for m in _MODULE.finditer(text)}


def units(verilog: dict[str, str], defines: tuple[str, ...] = (), top: str = TOP) -> list[Unit]:
    """The units of a design (file name -> text) from module `top` down, each before those that it contains."""
    modules = split("".join(verilog.values()), defines)
    if top not in modules:
        raise UserError(f"the Verilog holds no module {top}")
    children = {
        name: {c: n for c, n in Counter(_FIRST_WORD.findall(text)).items() if c in modules and c != name}
        for name, text in modules.items()
    }
    tops = {top, *CONTAINERS}
    for name, inside in children.items():
        # Shared modules stand many times in the design; templates are memories of the module around them.
        tops |= {c for c in inside if name in CONTAINERS or (not c.startswith(TOP) and not _is_template(modules[c]))}
    result, todo = [], [top]
    while todo:
        module = todo.pop(0)
        inside, instances = _inside(module, children, tops)
        todo += [c for c in instances if c not in todo and all(c != u.module for u in result)]
        source = "".join(modules[name] for name in inside) + "".join(_shell(modules[name]) for name in instances)
        named = {unit_name(c): n for c, n in instances.items()}
        result.append(Unit(unit_name(module), module, source, named))
    return result


def _is_template(text: str) -> bool:
    return "parameter" in text


def _inside(module: str, children: dict[str, dict[str, int]], tops: set[str]) -> tuple[list[str], dict[str, int]]:
    """(modules of a unit, child units and how many of each)."""
    modules, instances = [], Counter()

    def visit(name: str, times: int) -> None:
        if name not in modules:
            modules.append(name)
        for child, count in children[name].items():
            if child in tops:
                instances[child] += times * count
            else:
                visit(child, times * count)

    visit(module, 1)
    return modules, dict(instances)


def unit_name(module: str) -> str:
    """`core.post` for hwgen_top.core.post, `mac_pair` for hwgen_mac_pair."""
    return module if module == TOP else module.removeprefix(f"{TOP}.").removeprefix("hwgen_")


def _shell(text: str) -> str:
    """A module's ports without its contents."""
    head = text[text.index("module ") : text.index(";") + 2]
    ports = re.findall(r"^ +(?:input|output|inout) [^\n]*;\n", text, re.M)
    return f"(* blackbox *)\n{head}{''.join(ports)}endmodule\n"
