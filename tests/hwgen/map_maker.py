"""Small random float graphs of maps for tests: convolutions, windows, gathered rows, attention by windows."""

import numpy as np

from hwgen import graph as fg


class Maker:
    """A graph under construction, from an image [C, H, W] by patches of 2 x 2 to a map of `size` and `columns`."""

    def __init__(self, size=(6, 8), columns=16, seed=0):
        self.rng = np.random.default_rng(seed)
        self.size, self.columns = size, columns
        self.inputs = {"image": (3, 2 * size[0], 2 * size[1])}
        patches = fg.PatchEmbed(
            "patches", "image", self.normal(columns, 3, 2, 2, scale=0.3), self.normal(columns, scale=0.2)
        )
        self.nodes = [patches]
        self.shapes = {"patches": (size[0] * size[1], columns)}
        self.count = 0

    def normal(self, *shape, scale=None):
        scale = np.prod(shape[1:]) ** -0.5 if scale is None else scale
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def name(self, kind):
        self.count += 1
        return f"{self.count}.{kind}"

    def put(self, kind, *args, **fields):
        self.nodes.append(kind(self.name(kind.__name__.lower()), *args, **fields))
        return self.nodes[-1].name

    def norm(self, x, columns=None):
        columns = columns or self.columns
        return self.put(fg.LayerNorm, x, 1 + self.normal(columns, scale=0.2), self.normal(columns, scale=0.2), 1e-5)

    def linear(self, x, inputs=None, outputs=None):
        inputs, outputs = inputs or self.columns, outputs or self.columns
        return self.put(fg.Linear, x, self.normal(outputs, inputs), self.normal(outputs, scale=0.2))

    def act(self, x, form="gelu"):
        return self.put(fg.Activation, x, form)

    def conv(self, x, kernel=(3, 3), inputs=None, outputs=None, size=None, **slide):
        weight = self.normal(outputs or self.columns, *kernel, inputs or self.columns)
        weight *= np.exp(self.normal(weight.shape[3], scale=0.7))
        slide = {"pads": (kernel[0] // 2, kernel[1] // 2) * 2} | slide
        return self.put(fg.Conv, x, weight, self.normal(len(weight), scale=0.2), size or self.size, **slide)

    def window(self, x, form, kernel=(3, 3), columns=None, size=None, **slide):
        slide = {"pads": (kernel[0] // 2, kernel[1] // 2) * 2} | slide
        if form == "weighted":
            columns = columns or self.columns
            weight = self.normal(*kernel, columns, scale=(kernel[0] * kernel[1]) ** -0.5)
            slide |= {
                "weight": weight * np.exp(self.normal(columns, scale=0.7)),
                "bias": self.normal(columns, scale=0.2),
            }
        return self.put(fg.Window, x, form, size or self.size, kernel, **slide)

    def partition(self, shift=(0, 0), window=(3, 4)):
        """Rows of the map, window after window, of a map that is rolled by `shift` first."""
        (h, w), (a, b) = self.size, window
        rolled = np.roll(np.arange(h * w).reshape(h, w), (-shift[0], -shift[1]), (0, 1))
        return rolled.reshape(h // a, a, w // b, b).transpose(0, 2, 1, 3).reshape(-1)

    def attention(self, x, heads=2, shift=(0, 0), window=(3, 4), masks=False):
        """Attention by windows, with a bias of each head, or with one of each window too; before the residual."""
        rows = self.partition(shift, window)
        g = self.put(fg.Gather, x, rows)
        q, k, v = (self.linear(g) for _ in range(3))
        tokens = window[0] * window[1]
        count = len(rows) // tokens
        bias = -np.abs(self.normal(heads, tokens, tokens, scale=1.0))
        bias -= bias.max(axis=-1, keepdims=True)
        if masks:
            far = self.rng.integers(0, 2, (count, 1, tokens, tokens)) * np.float32(-100)
            far[..., np.arange(tokens), np.arange(tokens)] = 0
            bias = bias + far
            bias -= bias.max(axis=-1, keepdims=True)
        y = self.put(fg.Attention, q, k, v, heads, (self.columns / heads) ** -0.5, bias, count)
        return self.put(fg.Gather, self.linear(y), np.argsort(rows))

    def merge(self, x):
        """Patches of 2 x 2 side by side, normalised and halved, as Swin does (Liu et al. 2021)."""
        whole = np.arange(self.size[0] * self.size[1]).reshape(self.size)
        parts = [self.put(fg.Gather, x, whole[a::2, b::2].reshape(-1)) for b in range(2) for a in range(2)]
        joined = self.put(fg.Join, tuple(parts))
        return self.linear(self.norm(joined, 4 * self.columns), 4 * self.columns, 2 * self.columns)

    def add(self, a, b):
        return self.put(fg.Add, a, b)

    def graph(self, *outputs):
        known = fg.shapes(fg.Graph(self.inputs, self.nodes, []))
        made = fg.Graph(self.inputs, self.nodes, [fg.Output(f"y{i}", x, known[x]) for i, x in enumerate(outputs)])
        fg.verify(made)
        return made


def images(graph, count=4, seed=0):
    """{input name: [count, C, H, W]}, smooth enough to look like images."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal((count, *shape)) + rng.standard_normal((count, shape[0], 1, 1))).astype(np.float32)
        for name, shape in graph.inputs.items()
    }
