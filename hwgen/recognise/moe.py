"""Mixtures of experts, recognised by what they compute: y[t] = sum over e of W[t, e] * f_e(x[t]), and perhaps something added.

Exporters write them as batched experts and GatherElements, Where over masks, gather and scatter of each expert's tokens,
dense gate weights, one-hot products, cumulative sums. None of that is looked at. A softmax or a top-k tells where logits may
be; the first value through which all passes that depends on them, and that has a row for each token, may be the mixture
(`Search`). In between, the outputs of the experts' networks are cut out, and the rest is evaluated on random logits and
random outputs (`cut.Cut`). That gives the weights W, which are compared with those of routers (`routers.explain`).
"""

from __future__ import annotations

from ..errors import Finding
from ..tensor import FLOAT, Builder, Const, Contract, Input, Map, Node, Program, Reduce, Ref, TopK, reached, users
from .cut import Cut
from .experts import Expert, parse, rebuild
from .limits import is_limit, unlimited
from .routers import PLAIN, NoMixture, OfAll, ReadsMore

FAR = 16  # values behind the logits that are looked at
TRIES = 4  # of those that experts' outputs lead to


def mixtures(program: Program) -> tuple[Program, list[Finding], bool]:
    """The program with layers in place of its mixtures of experts, what keeps others that choose experts from being one, and
    whether that is that there are none: what is chosen for each token is something else, which stays."""
    plain, under, over = unlimited(program) if any(is_limit(n) for n in program.nodes()) else (program, {}, {})
    search = Search(plain)
    made: dict[Node, Ref] = {}
    findings: list[Finding] = []
    others: list[Finding] = []  # said where nothing else is
    inside: set[Node] = set()
    none = True
    for node in search.order:
        reasons: list[tuple[NoMixture, Node]] = []
        candidates = search.logits(node) if node not in inside else []
        for logits in candidates:
            try:
                y, value, between = search.mixture(logits)
            except NoMixture as no:
                reasons += [(no, search.last)] if no.reason else []
                continue
            made[y], reasons, candidates = value, [], []
            inside |= between
            break
        if not isinstance(node.op, TopK):
            continue
        if reasons and not all(isinstance(why, ReadsMore) for why, _ in reasons):
            reasons = [r for r in reasons if not isinstance(r[0], ReadsMore)]
            why, y = reasons[0]
            none = none and all(isinstance(r, OfAll) for r, _ in reasons)
            findings.append(Finding(node.source, "TopK", "recognise", why.reason, why.hint))
            made.setdefault(y, search.t.input(f"?{y.source}", y.shape))  # what lies inside is not judged again
        elif (candidates or reasons) and sum(n > 1 for n in node.shape[: node.op.axis]) and node.op.axis == len(node.shape) - 1:
            count = f"{node.op.count} of {node.operands[0].shape[-1]}"
            what = f"chooses the best {count} for each token, but no experts of that token alone follow"
            others.append(Finding(node.source, "TopK", "recognise", what, PLAIN))
    findings = findings or others
    if not made:
        return program, findings, none
    if under:  # of a quantised file: what is read, with its limits
        limited = {n: over[n].ref for n in search.order}
        made = {under[y]: rebuild(search.t, r, dict(limited)) for y, r in made.items()}
        search.place = {n: i for i, n in enumerate(program.nodes())}
    changed: dict[Node, Ref] = {}
    for y in sorted(made, key=search.place.__getitem__):
        changed[y] = rebuild(search.t, made[y], changed)
    outputs = {name: rebuild(search.t, r, changed) for name, r in program.outputs.items()}
    return Program(outputs, program.notes), findings, none


class Search:
    """A program's nodes, in order, and what has been found out about them."""

    def __init__(self, program: Program):
        self.t = Builder()
        self.order = program.nodes()
        self.place = {n: i for i, n in enumerate(self.order)}
        self.users = users(self.order)
        self.ends = {r.node for r in program.outputs.values()}
        self.parsed: dict[Node, list[Expert]] = {}
        self.last: Node  # value of which the last reason was said

    def experts(self, node: Node) -> list[Expert]:
        if node not in self.parsed:
            self.parsed[node] = parse(self.t, node)
        return self.parsed[node]

    def logits(self, node: Node) -> list[Node]:
        """What may be the logits of a router that `node` belongs to: values through which everything passes that it is
        computed from, from a linear layer (with its bias) on. Only a top-k, a softmax and the gate of one expert have any."""
        gate = isinstance(node.op, Map) and node.op.function == "sigmoid" and node.shape[-1:] == (1,)
        softmax = isinstance(node.op, Reduce) and node.op.function == "max"
        if not (isinstance(node.op, TopK) or gate or softmax):
            return []
        found = []
        order = reached([node.operands[0].node])
        place = {n: i for i, n in enumerate(order)}
        far = len(order)
        for n in reversed(order):
            if isinstance(n.op, Const):
                continue
            computed = [r.node for r in n.operands if not isinstance(r.op, Const)]
            if place[n] <= far:
                found += [n] if n.dtype == FLOAT else []
                if isinstance(n.op, Contract | Input):
                    bias = [m for m in found[-2:-1] if isinstance(m.op, Map) and m.op.function == "add"]
                    return [*bias, *found[::-1]] if len(computed) == 1 else []
            far = min([far, *(place[c] for c in computed)])
        return []

    def mixture(self, logits: Node) -> tuple[Node, Ref, set[Node]]:
        """(the mixture whose router has these logits, the same value as layers, what lies between). Raises NoMixture."""
        depend, passed = self.behind(logits)
        why: list[NoMixture] = []
        for y in passed[:FAR]:
            cut = Cut(self.t, self.experts, logits, depend)
            cut.walk(y)
            if cut.branches and y.dtype == FLOAT:
                try:
                    return y, cut.judge(y), cut.seen & depend
                except NoMixture as no:
                    if no.reason and not any(n.reason for n in why):
                        self.last = y
                    why.append(no)
                if len(why) == TRIES:
                    break
        raise next((no for no in why if no.reason), NoMixture())

    def behind(self, node: Node) -> tuple[set[Node], list[Node]]:
        """(what depends on `node`, those of it through which everything passes that does)."""

        def last(n: Node) -> int:
            return len(self.order) if n in self.ends else max((self.place[u] for u in self.users.get(n, [])), default=-1)

        depend, passed, far = {node}, [], last(node)
        for n in self.order[self.place[node] + 1 :]:
            if any(r.node in depend for r in n.operands):
                depend.add(n)
                if far <= self.place[n]:
                    passed.append(n)
                far = max(far, last(n))
        return depend, passed
