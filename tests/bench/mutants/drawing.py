"""Small faults in Python source, of the kinds that a slip of the hand makes: each is one changed expression."""

from __future__ import annotations

import ast
import random
from dataclasses import dataclass

COMPARED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
COMPUTED = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.FloorDiv: "*", ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "|",
    ast.LShift: ">>", ast.RShift: "<<", ast.Mod: "//",
}  # fmt: skip
RENAMED = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}
TEXTUAL = ast.JoinedStr | ast.Raise | ast.Assert  # what is said in errors changes nothing that is computed


@dataclass(frozen=True)
class Mutation:
    """One change of a file: characters `start` to `stop` of its text become `text`."""

    path: str
    line: int
    start: int
    stop: int
    text: str
    was: str

    def apply(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.stop :]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.was} -> {self.text}"


class _Places(ast.NodeVisitor):
    def __init__(self, path: str, source: str):
        self.path, self.source, self.found = path, source, []
        self.lines = [0]
        for line in source.encode().splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        if not source.isascii():
            raise ValueError(f"{path}: places are counted in ASCII")

    def put(self, node: ast.AST, text: str, start: int | None = None, stop: int | None = None) -> None:
        start = self.at(node.lineno, node.col_offset) if start is None else start
        stop = self.at(node.end_lineno, node.end_col_offset) if stop is None else stop
        was = self.source[start:stop]
        if was != text:
            self.found.append(Mutation(self.path, node.lineno, start, stop, text, " ".join(was.split())))

    def at(self, line: int, column: int) -> int:
        return self.lines[line - 1] + column

    def of(self, node: ast.AST) -> str:
        return self.source[self.at(node.lineno, node.col_offset) : self.at(node.end_lineno, node.end_col_offset)]

    def visit(self, node: ast.AST) -> None:
        if not isinstance(node, TEXTUAL | ast.AnnAssign | ast.arguments):
            super().visit(node)

    def visit_FunctionDef(self, node):
        for decorator in node.decorator_list:
            self.visit(decorator)
        for statement in node.body:
            self.visit(statement)

    def visit_Compare(self, node):
        if len(node.ops) == 1 and type(node.ops[0]) in COMPARED:
            left, right = self.of(node.left), self.of(node.comparators[0])
            self.put(node, f"{left} {COMPARED[type(node.ops[0])]} {right}")
        self.generic_visit(node)

    def visit_BinOp(self, node):
        if type(node.op) in COMPUTED and not isinstance(node.left, ast.Constant | ast.JoinedStr):
            self.put(node, f"({self.of(node.left)}) {COMPUTED[type(node.op)]} ({self.of(node.right)})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Invert | ast.Not | ast.USub):
            self.put(node, f"({self.of(node.operand)})")
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        self.put(node, f"({self.of(node.values[0])})")
        self.generic_visit(node)

    def visit_IfExp(self, node):
        self.put(node, f"({self.of(node.orelse)})")
        self.generic_visit(node)

    def visit_Constant(self, node):
        if type(node.value) is bool:
            self.put(node, str(not node.value))
        elif type(node.value) is int:
            self.put(node, str(node.value + 1))

    def visit_Call(self, node):
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name == "Mux" and len(node.args) == 3:
            test, one, other = map(self.of, node.args)
            self.put(node, f"Mux({test}, {other}, {one})")
        elif name in RENAMED:
            stop = self.at(node.func.end_lineno, node.func.end_col_offset)
            self.put(node, RENAMED[name], stop - len(name), stop)
        elif name == "claim" or name.startswith("claim_") or name == "assume":
            return  # a claim that is weaker is no fault of hardware
        self.generic_visit(node)

    def visit_keyword(self, node):
        if node.arg not in ("reset_less", "name", "attrs", "src_loc_at"):  # whether data is reset is no fault
            self.generic_visit(node)

    def visit_Expr(self, node):
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)


def places(path: str, source: str) -> list[Mutation]:
    """Every change that may be drawn in a file, in the order of its text."""
    visitor = _Places(path, source)
    visitor.visit(ast.parse(source))
    return visitor.found


def draw(sources: dict[str, str], count: int, seed: int) -> list[Mutation]:
    """So many different changes of these files; each file has the same chance, each of its places too."""
    rng = random.Random(seed)
    left = {path: places(path, source) for path, source in sources.items()}
    found: list[Mutation] = []
    while len(found) < count and (open_ := sorted(path for path, here in left.items() if here)):
        here = left[rng.choice(open_)]
        found.append(here.pop(rng.randrange(len(here))))
    return found
