"""One network with what goes beyond the plain ViT, on every rung: golden, machine and RTL."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen import graph as fg
from hwgen.config import Config
from hwgen.select import integers

T, D, HEADS, HIDDEN = 7, 24, 2, 40


def network() -> fg.Graph:
    """Overlapping patches over the border, positions on a linear layer, tokens behind, attention with a bias and within
    windows, SiLU, ReLU, mean pooling, a feature map out."""
    rng = np.random.default_rng(0)

    def normal(*shape, scale=0.2):
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    nodes = [
        fg.PatchEmbed("patches", "image", normal(D, 2, 3, 3), None, stride=(2, 2, 2), pads=(0, 1, 1) * 2),
        fg.LayerNorm("patch_norm", "patches", 1 + normal(D), normal(D), 1e-6),
        fg.Embed("embed", "patch_norm", normal(1, D), normal(T + 1, D, scale=1.0)),
    ]
    x = "embed"
    for i, kind in enumerate(("silu", "relu")):
        nodes += [fg.LayerNorm(f"{i}.n", x, 1 + normal(D), normal(D), 1e-6)]
        nodes += [fg.Linear(f"{i}.{p}", f"{i}.n", normal(D, D), normal(D)) for p in "qkv"]
        window = np.arange(T + 1) % 2
        apart = np.broadcast_to(np.where(window[:, None] == window, 0.0, -1e4), (HEADS, T + 1, T + 1))
        bias = apart.astype(np.float32) if i else -np.abs(normal(HEADS, T + 1, T + 1, scale=2.0))
        nodes += [
            fg.Attention(f"{i}.a", f"{i}.q", f"{i}.k", f"{i}.v", HEADS, 0.3, bias),
            fg.Linear(f"{i}.o", f"{i}.a", normal(D, D), None),
            fg.Add(f"{i}.r", x, f"{i}.o"),
            fg.LayerNorm(f"{i}.m", f"{i}.r", 1 + normal(D), normal(D), 1e-6),
            fg.Linear(f"{i}.f", f"{i}.m", normal(HIDDEN, D), normal(HIDDEN)),
            fg.Activation(f"{i}.g", f"{i}.f", "silu", 1.702) if kind == "silu" else fg.Activation(f"{i}.g", f"{i}.f", "relu"),
            fg.Linear(f"{i}.h", f"{i}.g", normal(D, HIDDEN), None),
            fg.Add(f"{i}.s", f"{i}.r", f"{i}.h"),
        ]
        x = f"{i}.s"
    nodes += [
        fg.Mean("mean", x, 1, T + 1),
        fg.LayerNorm("norm", "mean", 1 + normal(D), normal(D), 1e-6),
        fg.Linear("head", "norm", normal(5, D), normal(5)),
        fg.Rows("map_rows", x, 1, T),
    ]
    outputs = [fg.Output("logits", "head", (5,)), fg.Output("map", "map_rows", (D, 2, 3), True)]
    graph = fg.Graph({"image": (2, 4, 6)}, nodes, outputs)
    fg.verify(graph)
    return graph


@pytest.mark.xdist_group("16x16")
def test_every_form_on_every_rung(climb):
    graph = network()
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (8, 2, 4, 6)).astype(np.float32)
    integer = integers({"": graph}, {"image": images})
    ladder = climb(integer, Config(array_outputs=16, array_inputs=16), "", [{"image": i} for i in images[:2]], stall=60)
    assert all(result.registers["ARRAY_ACTIVE"] > 0 for result in ladder.rtl)
