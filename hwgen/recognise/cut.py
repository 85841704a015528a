"""What lies between the logits of a router and what may be its mixture: evaluated on random numbers, and judged by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil

import numpy as np

from ..layers import Combine, Dispatch, Experts, SlotExperts
from ..tensor import FLOAT, Builder, Concat, Const, Copy, Gather, Input, Layout, Map, Node, Pad, Program, Ref, reached
from ..tensor.evaluate import apply, evaluate
from .experts import Expert
from .routers import NEAR, NoMixture, OfAll, ReadsMore, explain

Array = np.ndarray
SCALES = (0.02, 0.7, 2.0, 5.0)  # of random logits: near ties, and clear choices
ROWS, DRAWS = 256, 16  # of logits, on which a router is compared, and into how many images at most they go
OTHERS, MASKED = -2, -1  # in place of a row's token: the row of another expert, a row under a mask


class Cut:
    """One pair of logits and mixture. x [T, K] is what the experts read, y [T, D] the mixture."""

    def __init__(self, t: Builder, experts: Callable[[Node], list[Expert]], logits: Node, depend: set[Node]):
        self.t, self.experts, self.logits, self.depend = t, experts, logits, depend
        self.seen: set[Node] = set()
        self.branches: dict[Node, list[Expert]] = {}  # by the values that hold the outputs of experts
        self.rests: dict[Node, Ref] = {}  # what else is read, and how it is rows
        self.rng = np.random.default_rng(12)
        self.turn = 0  # the expert that is to be the best of the next token

    def walk(self, y: Node) -> None:
        """Collect the outputs of experts, and what else `y` is computed from."""
        stack = [y]
        while stack:
            node = stack.pop()
            if node in self.seen or node is self.logits or isinstance(node.op, Const):
                continue
            self.seen.add(node)
            held = self._held(node)
            if held is not None:
                self.branches |= {n: self.experts(n) for n in held}
            elif node in self.depend:
                stack += [r.node for r in reversed(node.operands)]
            else:
                self.rests[node] = node.ref

    def _held(self, node: Node) -> list[Node] | None:
        """The outputs of experts that a value consists of, without the router's doing; None where it is something else."""
        if isinstance(node.op, Const):
            return []
        if self.experts(node):
            return [node]
        if node in self.depend or not isinstance(node.op, Concat | Copy | Gather | Pad | Map):
            return None
        parts = [self._held(r.node) for r in node.operands]
        return None if None in parts or not any(parts) else [n for part in parts for n in part or ()]

    def judge(self, y: Node) -> Ref:
        """The mixture as layers. Raises NoMixture."""
        self.cells = [(node, e) for node, experts in self.branches.items() for e in experts]
        first = self.cells[0][1]
        sources = {self._source(e) for _, e in self.cells}
        if len(sources) != 1:
            raise NoMixture("the experts do not read the same tokens")
        (self.x,) = sources
        self.inputs, self.outputs = first.places.shape[1], first.w2.shape[0]
        self.tokens = self.x.size // self.inputs
        if self.tokens * self.inputs != self.x.size or y.size != self.tokens * self.outputs or self.logits.size % self.tokens:
            raise NoMixture
        if len({(e.w2.shape, e.w1[0].shape, len(e.w1), e.act) for _, e in self.cells}) != 1:
            raise NoMixture("the experts do not have one form")
        if any(n.dtype != FLOAT or n.size != y.size for n in self.rests):
            raise NoMixture("the weights of the experts depend on more than the logits of one router")
        self.rests = {n: _rows(n, self.outputs) for n in self.rests}
        self.gates = _rows(self.logits, self.logits.size // self.tokens)
        self.read = _rows(self.x, self.inputs)
        self.fixed: list[Array] | None = None
        self.channels = np.zeros(0, int)  # of x, in the order in which the experts read them
        mixing = self._inputs(self.draw()) is None
        value = self.t.reshape(self._soft(y) if mixing else self._chosen(y), y.shape)
        for rest in self.rests.values():
            value = self.t.map("add", value, self.t.reshape(rest, y.shape))
        return value

    def _source(self, expert: Expert) -> Node:
        """What an expert's rows are taken from, however they are gathered, masked or mixed."""
        front: dict[Node, None] = {}
        stack, seen = [expert.rows], set()
        while stack:
            n = stack.pop()
            if n in self.depend and n is not self.logits and n not in seen:
                stack += [r.node for r in n.operands]
            elif n not in self.depend and not isinstance(n.op, Const):
                while isinstance(n.op, Copy | Gather) and all(isinstance(r.op, Const) for r in n.operands[1:]):
                    n = n.operands[0].node
                front[n] = None
            seen.add(n)
        if len(front) != 1:
            raise ReadsMore("the experts read more than the tokens")
        return next(iter(front))

    # --- evaluation ---

    def run(self, nodes: Iterable[Node], given: dict[Node, Array]) -> dict[Node, Array]:
        nodes = list(nodes)
        if any(isinstance(n.op, Input) for n in reached(nodes, given) if n not in given):
            raise NoMixture("the weights of the experts depend on more than the logits of one router")
        values: dict[Node, Array] = evaluate(Program({}), {}, np.float64, nodes, given)[1]
        return values

    def draw(self, crowded: bool = False) -> Array:
        """Random logits [T, E], every expert in turn the best of a token, so that none goes unseen; where `crowded`, all
        tokens choose one expert first, which a capacity would not bear."""
        logits: Array = self.rng.standard_normal(self.gates.shape) * self.rng.choice(SCALES, (self.tokens, 1))
        for row in logits:
            best, turn = int(row.argmax()), self.turn % len(row)
            row[best], row[turn] = row[turn], row[best]
            self.turn += 1
        logits[:, -1] += 25.0 * crowded
        return logits

    def routed(self, logits: Array) -> dict[Node, Array]:
        return {self.logits: _filled(self.gates, logits)}

    def beside(self, rests: Array) -> dict[Node, Array]:
        return {n: _filled(ref, rest) for (n, ref), rest in zip(self.rests.items(), rests, strict=True)}

    def value(self, y: Node, logits: Array, outputs: Array, rests: Array) -> Array:
        """The mixture [T, D] where the experts give `outputs` [cells, T, D], and `rests` [.., T, D] are what else is read;
        rows under a mask hold junk."""
        rows = self._inputs(logits)
        if rows is None:
            raise NoMixture("the experts read the means of tokens for some logits")
        given = self.routed(logits) | self.beside(rests)
        for (node, e), tokens, output in zip(self.cells, rows, outputs, strict=True):
            flat = given.setdefault(node, np.zeros(node.size))
            masked, good = e.out[tokens == MASKED], tokens >= 0
            flat[masked] = 100 * self.rng.standard_normal(masked.shape)
            flat[e.out[good]] = output[tokens[good]]
        return self.run([y], given)[y].reshape(self.tokens, self.outputs)

    def _inputs(self, logits: Array) -> list[Array] | None:
        """By cell, the token that each row holds, OTHERS or MASKED; None where rows mix tokens."""
        nodes = {e.rows for _, e in self.cells}
        if self.fixed:
            return self.fixed
        codes = np.meshgrid(1.0 + np.arange(self.tokens), 1.0 + np.arange(self.inputs), indexing="ij")
        by_token, by_channel = (self.run(nodes, self.routed(logits) | {self.x: _filled(self.read, c)}) for c in codes)
        picks = {e.pick[0].node for _, e in self.cells if e.pick}
        picked = self.run(picks, self.routed(logits)) if picks else {}
        found = []
        for _, e in self.cells:
            rows = by_token[e.rows].reshape(-1)[e.places]
            channels = by_channel[e.rows].reshape(-1)[e.places]
            tokens = rows[:, 0].round().astype(int) - 1
            if not self.channels.size and tokens.max() >= 0:
                self.channels = channels[tokens.argmax()].round().astype(int) - 1
            if not (rows == 1 + tokens[:, None]).all() or tokens.max() >= self.tokens or tokens.min() < MASKED:
                return None
            if tokens.max() >= 0 and not (channels[tokens >= 0] == 1 + self.channels).all():
                return None
            if e.pick:
                index, places, number = e.pick
                named = index.layout.apply(picked[index.node].reshape(-1)).reshape(-1)[places]
                tokens = np.where(named == number, tokens, OTHERS)
            found.append(tokens)
        self.fixed = found if not picks and not nodes & self.depend else None
        return found

    # --- tokens that choose experts ---

    def weights(self, y: Node, logits: Array) -> Array:
        """[T, cells] of the outputs in the mixture: with ones in a channel of its own for each expert."""
        found = np.empty((self.tokens, len(self.cells)))
        nothing = np.zeros((len(self.rests), self.tokens, self.outputs))
        for start in range(0, len(self.cells), self.outputs):
            outputs = np.zeros((len(self.cells), self.tokens, self.outputs))
            lanes = range(min(self.outputs, len(self.cells) - start))
            for d in lanes:
                outputs[start + d, :, d] = 1
            found[:, start : start + len(lanes)] = self.value(y, logits, outputs, nothing)[:, : len(lanes)]
        return found

    def _chosen(self, y: Node) -> Ref:
        draws = max(min(DRAWS, ceil(ROWS / self.tokens)), ceil(2 * self.gates.shape[1] / self.tokens))
        logits = [self.draw(crowded=True), *(self.draw() for _ in range(draws))]
        weights = [self.weights(y, part) for part in logits]
        order = np.roll(np.arange(self.tokens), 1)

        def alone() -> bool:
            """Whether other tokens in other places leave the weights of a token as they are."""
            pairs = zip(logits[:2], weights, strict=False)
            return all(np.allclose(self.weights(y, part[order]), w[order], rtol=NEAR, atol=NEAR) for part, w in pairs)

        router, experts = explain(np.concatenate(logits), np.concatenate(weights), alone)
        part = self.draw()
        outputs = self.rng.standard_normal((len(self.cells), self.tokens, self.outputs))
        rests = self.rng.standard_normal((len(self.rests), self.tokens, self.outputs))
        scores = apply(router, [part], np.float64)
        wanted = sum(factor * scores[:, e, None] * out for (e, factor), out in zip(experts, outputs, strict=True))
        wanted = wanted + rests.sum(axis=0)
        if not np.allclose(self.value(y, part, outputs, rests), wanted, rtol=NEAR, atol=NEAR):
            raise NoMixture("the outputs of the experts are not only weighted and summed, each token by itself")
        self.t.source, self.t.name = self.logits.source, ""
        made = router.score == "softmax" or self.gates.shape[1] == 1  # others are numbers like any that the network computes
        gates = self.t.node(router, self.gates) if made else router.define(self.t, self.gates)
        places = {e: (cell, factor) for (e, factor), (_, cell) in zip(experts, self.cells, strict=True)}
        nothing = (self.cells[0][1], 0.0)
        parameters = self._parameters([places.get(e, nothing) for e in range(self.gates.shape[1])])
        return self._layer(Experts, self.read, gates, *parameters)

    def _layer(self, kind: type[Experts] | type[SlotExperts], *operands: Ref) -> Ref:
        first = self.cells[0][1]
        self.t.source, self.t.name = self.cells[0][0].source, first.label
        return self.t.node(kind(first.act.form, first.act.slope, len(first.w1) == 2), *operands)

    def _parameters(self, experts: list[tuple[Expert, float]]) -> list[Ref]:
        """w1, b1, w2, b2 of experts, each with a factor on its output; of biases that no expert has, one zero everywhere."""

        def stacked(parts: list[Array | None], size: int) -> Ref:
            given = [p for p in parts if p is not None]
            if not given:
                return self.t.full((len(parts), size), np.float32(0))
            return self.t.const(np.stack([np.zeros_like(given[0]) if p is None else p for p in parts]).astype(np.float32))

        order, hidden = np.argsort(self.channels), sum(len(w) for w in experts[0][0].w1)
        w1 = stacked([np.concatenate(e.w1)[:, order] for e, _ in experts], hidden)
        b1 = stacked([_joined(e) for e, _ in experts], hidden)
        w2 = stacked([e.w2 * np.float32(f) for e, f in experts], self.outputs)
        b2 = stacked([None if e.b2 is None else e.b2 * np.float32(f) for e, f in experts], self.outputs)
        return [w1, b1, w2, b2]

    # --- slots that mix tokens ---

    def _soft(self, y: Node) -> Ref:
        """A soft mixture, or NoMixture."""
        slots = self.gates.shape[1]
        alike = {len(e.places) * len(self.cells) for _, e in self.cells} == {slots}
        logits = self.draw()
        tokens = self.rng.standard_normal((self.tokens, self.inputs))
        values = self.run({e.rows for _, e in self.cells}, self.routed(logits) | {self.x: _filled(self.read, tokens)})
        wanted = apply(Dispatch(), [logits, tokens], np.float64)
        read = [values[e.rows].reshape(-1)[e.places] for _, e in self.cells]
        order = np.argsort([np.abs(wanted - rows[0]).max(axis=1).argmin() for rows in read])  # the slots of each expert
        self.cells = [self.cells[i] for i in order]
        if not alike or not np.allclose(np.concatenate([read[i] for i in order]), wanted):
            raise OfAll("the experts read neither single tokens nor their means weighted by a softmax over the tokens")
        outputs = self.rng.standard_normal((slots, self.outputs))
        rests = self.rng.standard_normal((len(self.rests), self.tokens, self.outputs))
        given = self.routed(logits) | self.beside(rests)
        start = 0
        for node, e in self.cells:
            given.setdefault(node, np.zeros(node.size))[e.out] = outputs[start : start + len(e.out)]
            start += len(e.out)
        wanted = apply(Combine(), [logits, outputs], np.float64) + rests.sum(axis=0)
        if not np.allclose(self.run([y], given)[y].reshape(wanted.shape), wanted):
            raise NoMixture("the slots are not combined by a softmax over all of them")
        self.channels = np.arange(self.inputs)
        self.t.source = self.cells[0][1].rows.source
        inputs = self.t.node(Dispatch(), self.gates, self.read)
        made = self._layer(SlotExperts, inputs, *self._parameters([(e, 1.0) for _, e in self.cells]))
        self.t.source = y.source
        return self.t.node(Combine(), self.gates, made)


def _rows(node: Node, columns: int) -> Ref:
    """All of a value as [rows, columns]; the columns first where it holds them first."""
    rows = node.size // columns
    long = [n for n in node.shape if n != 1]
    turned = len(long) > 1 and long[0] == columns not in (long[-1], rows)
    return Ref(node, Layout.dense((columns, rows)).transpose((1, 0)) if turned else Layout.dense((rows, columns)))


def _filled(r: Ref, value: Array) -> Array:
    """The elements of a node of which `r` shows `value`."""
    flat: Array = np.empty(r.node.size)
    flat[r.layout.positions()] = value
    return flat


def _joined(e: Expert) -> Array | None:
    """The biases of the first layer, or layers, in one row."""
    if all(b is None for b in e.b1):
        return None
    rows: list[Array] = [np.zeros(len(w), np.float32) if b is None else b for w, b in zip(e.w1, e.b1, strict=True)]
    joined: Array = np.concatenate(rows)
    return joined
