"""From Syms to the nodes of `hwgen.graph`, made when something needs them and only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from hwgen import graph

from . import mixture
from .heads import bias_of
from .op import Unsupported
from .params import parent, scaled
from .pixels import as_patches
from .symbols import (
    Activated,
    Array,
    Attended,
    Dispatched,
    Embedding,
    HeadNorm,
    Heads,
    Image,
    Lin,
    Mixed,
    Mixture,
    Norm,
    Opaque,
    Padded,
    Patches,
    Pooled,
    Product,
    Rotated,
    SoftMixed,
    Sum,
    Sym,
)
from .views import View, describe, need_rows, token_layout


@dataclass(eq=False)
class Context:
    """One fusion: the nodes made so far, and memos that keep one idea one object."""

    nodes: list[graph.Node] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    memo: dict[Any, tuple[Sym, Any]] = field(default_factory=dict)
    interned: dict[Any, Array] = field(default_factory=dict)
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # of ONNX tensors of a quantised model
    # What `note_range` was told, by the id of the sym: (rows that it is about, smallest, largest value by column).
    noted: dict[int, tuple[Sym, list[tuple[Array, Array, Array]]]] = field(default_factory=dict)
    ranges: dict[str, tuple[Array, Array]] = field(default_factory=dict)  # the same by the names of values

    def once(self, key: tuple, owner: Sym, make: Callable[[], Any]) -> Any:
        """What `make` gives, the same object whenever `key` and `owner` are the same."""
        full = (id(owner), *key)
        if full not in self.memo:
            self.memo[full] = (owner, make())  # holding the owner keeps its id from being used again
        return self.memo[full][1]

    def settle(self, view: View) -> View:
        """The view, or that of the finished mixture of experts where it is one."""
        return mixture.settle(self, view)

    def plain(self, view: View) -> View:
        """The settled view with its scale absorbed into the layer that makes it."""
        view = self.settle(view)
        if isinstance(view.sym, Image):
            view = self.once(("patches", view.scale, view.positions.tobytes()), view.sym, lambda: as_patches(view)) or view
        if abs(view.scale - 1) < 1e-6:
            return view if view.scale == 1 else view.of(view.sym, 1.0)
        return view.of(self.once(("scale", view.scale), view.sym, lambda: scaled(view.sym, view.scale)), 1.0)

    def note_range(self, view: Any, limits: tuple[float, float] | None) -> None:
        """Remember the smallest and largest value that a quantised model lets a tensor have, once it has a name.

        A view of some columns limits only those, a view of some rows a value that has no others.
        """
        if limits is None or not isinstance(view, View) or view.scale == 0:
            return
        sym = view.sym
        low, high = sorted(limit / view.scale for limit in limits)
        if isinstance(sym, Image):
            self.ranges[sym.name] = np.array([low]), np.array([high])
        if len(sym.shape) == 2:
            seen = np.zeros(sym.shape, bool)
            seen.reshape(-1)[view.positions] = True
            rows = seen.any(axis=1)
            columns = seen[rows].all(axis=0)
            noted = rows, np.where(columns, low, -np.inf), np.where(columns, high, np.inf)
            self.noted.setdefault(id(sym), (sym, []))[1].append(noted)  # holding the sym keeps its id

    def _limit(self, name: str, sym: Sym, start: int, stop: int) -> None:
        """Give the value that holds rows start..stop of sym the limits noted for them."""
        notes = [n for n in self.noted.get(id(sym), (sym, []))[1] if n[0][start:stop].all()]
        if notes:
            self.ranges[name] = np.max([n[1] for n in notes], axis=0), np.min([n[2] for n in notes], axis=0)

    # --- making nodes ---

    def emit(self, view: View) -> str:
        """Name of a value that holds what the view shows, rows in order, all channels."""
        view = self.plain(view)
        layout = token_layout(view)
        sym = view.sym
        if layout is None and not isinstance(sym, Image):
            raise Unsupported(f"needs {describe(sym)} in a layout that is not tokens by channels")
        if layout is not None and len(sym.shape) == 2:
            sym = self.columns(sym, layout[1])
        else:
            need_rows(view)
        rows = layout[0].reshape(-1)
        start, stop = int(rows[0]), int(rows[0]) + len(rows)
        if not np.array_equal(rows, np.arange(start, stop)):
            hint = "keep the tokens in order outside the windows of attention"
            raise Unsupported(f"needs tokens of {describe(sym)} in another order", hint)
        return self.value(sym, start, stop)

    def columns(self, sym: Sym, columns: Array) -> Sym:
        """The given columns of sym, by keeping those rows of its weight."""
        if np.array_equal(columns, np.arange(sym.shape[-1])):
            return sym
        if len(sym.shape) != 2:
            raise Unsupported(f"uses some channels of {describe(sym)}")
        if isinstance(sym, Activated | Product):
            names = ("x",) if isinstance(sym, Activated) else ("a", "b")
            part = {name: self.columns(getattr(sym, name), columns) for name in names}
            shape = (sym.shape[0], len(columns))
            return self.once(("columns", columns.tobytes()), sym, lambda: replace(sym, shape=shape, **part))
        if isinstance(sym, HeadNorm):
            return self._columns_of_heads(sym, columns)
        if not isinstance(sym, Lin):
            sym = self.as_linear(sym)

        def make() -> Lin:
            bias = None if sym.bias is None else sym.bias[columns]
            shape = (sym.shape[0], len(columns))
            return Lin(x=sym.x, weight=sym.weight[columns], bias=bias, shape=shape, label=sym.label, source=sym.source)

        part = self.once(("columns", columns.tobytes()), sym, make)
        if id(sym) in self.noted:
            notes = [(rows, low[columns], high[columns]) for rows, low, high in self.noted[id(sym)][1]]
            self.noted.setdefault(id(part), (part, notes))
        return part

    def _columns_of_heads(self, sym: HeadNorm, columns: Array) -> HeadNorm:
        """All channels of some heads, in any order in each."""
        d = sym.shape[1] // sym.heads
        by_head = columns.reshape(-1, d) if columns.size % d == 0 else columns[None]
        first = by_head.min(axis=1, keepdims=True)
        if by_head.shape[1] != d or (first % d).any() or (np.sort(by_head, axis=1) != first + np.arange(d)).any():
            raise Unsupported(f"uses some channels of {describe(sym)}")

        def make() -> HeadNorm:
            x = self.columns(sym.x, columns)
            gamma, beta = sym.gamma[columns], sym.beta[columns]
            return replace(sym, x=x, gamma=gamma, beta=beta, heads=len(by_head), shape=(sym.shape[0], len(columns)))

        return self.once(("columns", columns.tobytes()), sym, make)

    def as_linear(self, sym: Sym) -> Lin:
        """The tensor as the result of a linear layer, which some operations of the machine must have before them."""
        if isinstance(sym, Lin):
            return sym

        def make() -> Lin:
            return Lin(x=sym, weight=np.eye(sym.shape[-1], dtype=np.float32), shape=sym.shape, source=sym.source)

        return self.once(("linear",), sym, make)

    def value(self, sym: Sym, start: int, stop: int) -> str:
        """Name of rows start..stop of sym. Layers that treat rows alike are computed on those rows only."""
        name = self.once(("value", start, stop), sym, lambda: self._make(sym, start, stop))
        self._limit(name, sym, start, stop)
        return name

    def _make(self, sym: Sym, start: int, stop: int) -> str:
        common = {"source": sym.source}
        match sym:
            case Lin(x=x, weight=w, bias=b, shape=(_, _)):
                if isinstance(x, Padded):
                    rest = w @ x.constant
                    w, b, x = w[:, x.place], rest if b is None else b + rest, x.x
                x = self.value(x, start, stop)
                w, b = self.intern(w), self.intern(b)
                return self.node(graph.Linear, sym.label, "linear", x=x, weight=w, bias=b, **common)
            case Norm(x=x, gamma=g, beta=b) | HeadNorm(x=x, gamma=g, beta=b):
                heads = sym.heads if isinstance(sym, HeadNorm) else 1
                g, b = (a.reshape(heads, -1) for a in (g, b))
                if (g != g[0]).any() or (b != b[0]).any():
                    raise Unsupported("normalises the heads with a scale or bias of their own", "share them between the heads")
                kind = {"epsilon": float(sym.epsilon), "centred": sym.centred, "heads": heads}
                x, g, b = self.value(x, start, stop), self.intern(g[0]), self.intern(b[0])
                return self.node(graph.LayerNorm, sym.label, "layernorm", x=x, gamma=g, beta=b, **kind, **common)
            case Activated(x=x, shape=(_, _)):
                x = self.value(self.as_linear(x), start, stop)
                return self._activation(sym, x, common)
            case Product(a=a, b=b):
                a, b = self.value(a, start, stop), self.value(b, start, stop)
                return self.node(graph.Multiply, sym.label, "multiply", a=a, b=b, **common)
            case Rotated(x=x, columns=columns, cos=cos, sin=sin):
                part = self.columns(x, columns.reshape(-1))
                if part is not x:
                    part.label = f"{sym.label}.linear" if sym.label else ""
                x = self.value(part, sym.start + start, sym.start + stop)
                cos, sin = (self.intern(table[start:stop]) for table in (cos, sin))
                return self.node(graph.Rotate, sym.label, "rotate", x=x, cos=cos, sin=sin, heads=len(columns), **common)
            case Opaque():
                return "?"
        if (start, stop) != (0, sym.shape[0]):
            whole = self.value(sym, 0, sym.shape[0])
            return self.node(graph.Rows, "", "rows", x=whole, start=start, stop=stop, **common)
        return self._make_whole(sym, common)

    def _make_whole(self, sym: Sym, common: dict[str, str]) -> str:
        match sym:
            case Patches(image=image, weight=w, bias=b, stride=stride, pads=pads):
                cut = {"weight": self.intern(w), "bias": self.intern(b), "stride": stride, "pads": pads}
                return self.node(graph.PatchEmbed, sym.label, "patch_embed", image=image.name, **cut, **common)
            case Embedding(x=x, prefix=prefix, position=position):
                x = self.value(x, 0, x.shape[0])
                prefix, position = self.intern(prefix), self.intern(position)
                return self.node(graph.Embed, "", "embed", x=x, prefix=prefix, position=position, **common)
            case Sum(a=a, b=b):
                a, b = self.emit(a), self.emit(b)
                return self.node(graph.Add, sym.label, "add", a=a, b=b, **common)
            case Pooled(x=x, start=start, stop=stop):
                x = self.value(x, 0, x.shape[0])
                return self.node(graph.Mean, sym.label, "mean", x=x, start=start, stop=stop, **common)
            case Attended(probabilities=p, v=v):
                scores = p.scores
                q, k, x = (self._heads(h, part, sym.label) for h, part in ((scores.q, "q"), (scores.k, "k"), (v, "v")))
                heads, scale = scores.shape[-3], float(p.scale)
                bias = self.intern(bias_of(scores, scale))
                return self.node(
                    graph.Attention, sym.label, "attention", q=q, k=k, v=x, heads=heads, scale=scale, bias=bias, **common
                )
            case Mixed():
                return self._experts(sym, common)
            case Dispatched(keys=keys, x=x, weight=w):
                keys, x = (self.value(part, 0, part.shape[0]) for part in (keys, x))
                label = f"{sym.label}.dispatch" if sym.label else ""
                return self.node(graph.Dispatch, label, "dispatch", keys=keys, x=x, weight=self.intern(w), **common)
            case SoftMixed():
                return self._soft(sym, common)
            case Mixture():
                raise Unsupported(f"the mixture of experts is matched only in part: {mixture.missing(sym)}")
        raise Unsupported(f"cannot use {describe(sym)} as a tensor of its own")

    def _heads(self, heads: Heads, part: str, label: str) -> str:
        sym = self.columns(heads.x, heads.columns.reshape(-1))
        if isinstance(sym, Rotated):
            sym.label = f"{label}.{part}" if label else ""
        elif not isinstance(sym, HeadNorm):
            sym = self.as_linear(sym)
        if sym is not heads.x:
            sym.label = f"{label}.{part}" if label else ""
        return self.value(sym, heads.start, heads.stop)

    def _soft(self, m: SoftMixed, common: dict[str, str]) -> str:
        last, first = m.outputs, m.outputs.x.x
        slots = self.value(first.x, 0, first.x.shape[0])
        w1, b1, w2, b2 = (
            self.intern(a if a is None or len(last.shape) == 3 else a[None])
            for a in (first.weight, first.bias, last.weight, last.bias)
        )
        kind = {"form": last.x.form, "slope": last.x.slope}
        y = self.node(
            graph.SlotExperts, parent(first.label), "experts", x=slots, w1=w1, b1=b1, w2=w2, b2=b2, **kind, **common
        )
        logits = m.logits
        x = self.value(logits.x, 0, logits.x.shape[0])
        weight, bias = self.intern(logits.weight), self.intern(logits.bias)
        label = f"{m.label}.combine" if m.label else ""
        return self.node(graph.Combine, label, "combine", x=x, y=y, weight=weight, bias=bias, **common)

    def _experts(self, m: Mixed, common: dict[str, str]) -> str:
        logits = self.value(m.logits, 0, m.logits.shape[0])

        def route() -> str:
            label = f"{m.logits.label}.route" if m.logits.label else ""
            source = m.logits.source
            return self.node(
                graph.Route, label, "route", logits=logits, top_k=m.top_k, renormalise=m.renormalise, source=source
            )

        routing = self.once(("route", m.top_k, m.renormalise), m.logits, route)
        x = self.value(m.x, 0, m.x.shape[0])
        w1, b1, w2, b2 = (self.intern(a) for a in (m.w1, m.b1, m.w2, m.b2))
        return self.node(
            graph.Experts,
            m.label,
            "experts",
            x=x,
            routing=routing,
            w1=w1,
            b1=b1,
            w2=w2,
            b2=b2,
            form=m.form,
            slope=m.slope,
            **common,
        )

    def _activation(self, sym: Activated, x: str, common: dict[str, str]) -> str:
        if sym.form == "relu":
            return self.node(graph.Relu, sym.label, "relu", x=x, **common)
        if sym.form == "sigmoid":
            return self.node(graph.Silu, sym.label, "silu", x=x, slope=sym.slope, **common)
        return self.node(graph.Gelu, sym.label, "gelu", x=x, approximate=sym.form, **common)

    def node(self, kind: type[graph.Node], label: str, fallback: str, **parameters: Any) -> str:
        """Append a node of a unique readable name and return that name."""
        name, n = label, 0
        while not name or name in self.names:
            name, n = f"{label or fallback}_{n if not label else n + 1}", n + 1
        self.names.add(name)
        self.nodes.append(kind(name, **parameters))
        return name

    def intern(self, array: Array | None) -> Array | None:
        """The array as contiguous float32, one object for all arrays of the same content."""
        if array is None:
            return None
        array = np.ascontiguousarray(array, np.float32)
        key = (array.shape, blake2b(array, digest_size=16).digest())
        return self.interned.setdefault(key, array)


def finish(nodes: list[graph.Node], outputs: list[graph.Output]) -> list[graph.Node]:
    """The nodes that the outputs need, in order."""
    needed = {o.value for o in outputs}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return [n for n in nodes if n.name in needed]
