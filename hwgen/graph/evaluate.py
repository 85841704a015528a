"""The float reference: what every node of a graph computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import erf, expit

from .. import patches, walks
from .nodes import (
    Activation,
    Add,
    Attention,
    Clip,
    Combine,
    Conv,
    Dispatch,
    Embed,
    Experts,
    Gather,
    Graph,
    Hard,
    Join,
    LayerNorm,
    Linear,
    Mean,
    Multiply,
    Node,
    PatchEmbed,
    Product,
    Ratio,
    Received,
    Resample,
    Rotate,
    Route,
    Rows,
    Scan,
    Select,
    SlotExperts,
    Softmax,
    Stack,
    Step,
    Transpose,
    Window,
)

Array = np.ndarray


def evaluate(graph: Graph, images: dict[str, Array], dtype=np.float32, peaks: dict[str, float] | None = None) -> dict[str, Array]:
    """Every value for one image. `images` maps input names to arrays in the shapes of `graph.inputs`; pixels beyond what a
    quantised file lets an input hold are the limits.

    `peaks` receives the largest |pre-activation| of each `Experts` and `SlotExperts`, and the largest |state| of each `Scan`,
    where it is larger.
    """
    values = {name: np.asarray(images[name], dtype).reshape(shape) for name, shape in graph.inputs.items()}
    values |= {name: np.clip(values[name], *map(dtype, graph.ranges[name])) for name in values if name in graph.ranges}
    for node in graph.nodes:
        values[node.name] = _evaluate(node, *(values[name] for name in node.inputs), peaks=peaks)
    return values


def outputs(graph: Graph, values: dict[str, Array]) -> dict[str, Array]:
    """The ONNX outputs, in ONNX shapes without the batch axis, from what `evaluate` returned."""
    return {o.name: (values[o.value].T if o.transposed else values[o.value]).reshape(o.shape) for o in graph.outputs}


FORMS: dict[str, Callable[[Array, float], Array]] = {
    "gelu": lambda x, _: 0.5 * x * (1 + erf(x / np.sqrt(2).astype(x.dtype))),  # Hendrycks & Gimpel 2016
    "gelu_tanh": lambda x, _: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (x + 0.044715 * x**3))),
    "silu": lambda x, slope: x * expit(np.asarray(slope, x.dtype) * x),
    "hardswish": lambda x, _: x * np.clip(x / 6 + 0.5, 0, 1),
    "relu": lambda x, _: np.maximum(x, 0),
    "sigmoid": lambda x, _: expit(x),
    "tanh": lambda x, _: np.tanh(x),
    "softplus": lambda x, _: np.logaddexp(x, np.zeros((), x.dtype)),
    "exp": lambda x, _: np.exp(x),
}


def softmax(x: Array) -> Array:
    """Softmax along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def top_k(logits: Array, k: int) -> Array:
    """Indices [T, k] of the k largest, best first, ties to the lower index."""
    return np.argsort(-logits, axis=-1, kind="stable")[:, :k]


def _linear(x: Array, w: Array, b: Array | None) -> Array:
    y = x @ w.T.astype(x.dtype)
    return y if b is None else y + b.astype(x.dtype)


def _taps(node: Conv | Window, kernel: tuple[int, ...]) -> Array:
    """Row of the map that each tap and position reads, negative beyond the border: [taps, positions]."""
    return walks.window(node.size, (kernel[0], kernel[1]), node.stride, node.pads, node.dilation).x_rows()


def _window(node: Window, x: Array) -> Array:
    rows = _taps(node, node.kernel)
    inside = (rows >= 0)[..., None]
    if node.form == "max":
        return np.where(inside, x[rows], -np.inf).max(axis=0).astype(x.dtype)
    taps = walks.taken(x, rows)
    if node.form == "mean":
        total = taps.sum(axis=0)
        return total / np.asarray(len(rows) if node.count_pads else inside.sum(axis=0), x.dtype)
    assert node.weight is not None
    y = np.einsum("tpc,tc->pc", taps, node.weight.reshape(len(rows), -1).astype(x.dtype))
    return y if node.bias is None else y + node.bias.astype(x.dtype)


def _scan(node: Scan, x: Array, steps: Array, mix: Array, peaks: dict[str, float] | None) -> Array:
    step, count = np.logaddexp(steps, 0).astype(x.dtype), node.rates.shape[1]
    fed, state, y = step * x, np.zeros(node.rates.shape, x.dtype), x * node.skip.astype(x.dtype)
    largest = 0.0
    for i in range(len(x))[:: -1 if node.backwards else 1]:
        b, g = np.split(mix[i], [count])
        state = state * np.exp(step[i][:, None] * node.rates.astype(x.dtype)) + fed[i][:, None] * b
        largest = max(largest, float(np.abs(state).max()))
        y[i] += state @ g
    if peaks is not None:
        peaks[node.name] = max(peaks.get(node.name, 0.0), largest)
    return y


def evaluate_node(node: Node, values: dict[str, Array]) -> Array:
    """The value of one node, from those of its inputs."""
    return _evaluate(node, *(values[name] for name in node.inputs))


def _expert(node: Experts | SlotExperts, e: int, x: Array, peaks: dict[str, float] | None) -> Array:
    """What one expert makes of its rows."""
    h = _linear(x, node.w1[e], None if node.b1 is None else node.b1[e])
    if peaks is not None:
        peaks[node.name] = max(peaks.get(node.name, 0.0), float(np.abs(h).max()))
    return _linear(FORMS[node.form](h, node.slope), node.w2[e], None if node.b2 is None else node.b2[e])


def _evaluate(node: Node, *v: Array, peaks: dict[str, float] | None = None) -> Array:
    match node:
        case PatchEmbed(weight=w, bias=b):
            rows = patches.patchify(patches.pad(v[0], node.pads), node.patch, node.stride)
            return _linear(rows, w.reshape(w.shape[0], -1), b)
        case Embed(prefix=prefix, position=position):
            y = position.astype(v[0].dtype)
            y[: len(prefix)] += prefix
            y[len(prefix) : len(prefix) + len(v[0])] += v[0]
            return y
        case LayerNorm(gamma=g, beta=b, epsilon=eps, heads=h):
            x = v[0].astype(np.float64).reshape(-1, v[0].shape[1] // h)
            if node.centred:
                x = x - x.mean(axis=1, keepdims=True)
            x = (x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps)).reshape(len(v[0]), -1, len(g))
            return (x * g + b).astype(v[0].dtype).reshape(v[0].shape)
        case Linear(weight=w, bias=b):
            return _linear(v[0], w, b)
        case Activation(form=form, slope=slope):
            return FORMS[form](v[0], slope)
        case Clip(low=low, high=high):
            return np.clip(v[0], low, high).astype(v[0].dtype, copy=False)
        case Attention(heads=h, scale=scale, bias=bias, windows=w, factors=factors):
            q, k, x = (a.reshape(w, a.shape[0] // w, h, -1).transpose(0, 2, 1, 3) for a in v)
            scores = q @ k.transpose(0, 1, 3, 2) * np.asarray(scale, q.dtype)
            scores = scores if factors is None else scores * factors[:, None, None].astype(q.dtype)
            p = softmax(scores if bias is None else scores + bias.astype(q.dtype))
            return (p @ x).transpose(0, 2, 1, 3).reshape(v[0].shape[0], -1)
        case Gather(rows=rows):
            return walks.taken(v[0], rows)
        case Resample(resampling=resampling):
            return resampling.evaluate(v[0])
        case Select(first=first, count=count):
            return v[0][np.argsort(-v[1].reshape(-1), kind="stable")[first : first + count]]
        case Scan():
            return _scan(node, *v, peaks=peaks)
        case Step(at_zero=at_zero):
            return (v[0] >= 0 if at_zero else v[0] > 0).astype(v[0].dtype)
        case Hard(place=place):
            best = np.argsort(-v[0], axis=0, kind="stable")[place]
            return (best == np.arange(len(v[0]))[:, None]).astype(v[0].dtype)
        case Received():
            return softmax(v[0]).sum(axis=0, keepdims=True)
        case Join():
            return np.concatenate(v, axis=1)
        case Stack():
            return np.concatenate(v, axis=0)
        case Conv(weight=w, bias=b):
            taps = walks.taken(v[0], _taps(node, w.shape[1:3])).transpose(1, 0, 2)
            return _linear(taps.reshape(len(taps), -1), w.reshape(len(w), -1), b)
        case Window():
            return _window(node, v[0])
        case Add():
            return v[0] + v[1]
        case Multiply():
            return v[0] * np.tile(v[1], (1, v[0].shape[1] // v[1].shape[1]))
        case Rotate(cos=cos, sin=sin, heads=h):
            c, s = (part.astype(v[0].dtype)[:, None] for part in (cos, sin))
            a, b = np.moveaxis(v[0].reshape(len(cos), h, -1, 2), -1, 0)
            return np.stack([a * c - b * s, b * c + a * s], axis=-1).reshape(v[0].shape)
        case Route(top_k=k, renormalise=again):
            chosen = top_k(v[0], k)
            scores = np.take_along_axis(softmax(v[0]), chosen, axis=1)
            return chosen, scores / scores.sum(axis=1, keepdims=True) if again else scores
        case Experts(w2=w2):
            x, (chosen, scores) = v
            y = np.zeros((x.shape[0], w2.shape[1]), x.dtype)
            for e in np.unique(chosen):
                t, slot = np.nonzero(chosen == e)
                y[t] += scores[t, slot, None] * _expert(node, e, x[t], peaks)
            return y
        case Dispatch(weight=w):
            return softmax(w.astype(v[0].dtype) @ v[0].T) @ v[1]
        case SlotExperts():
            return np.concatenate([_expert(node, e, x, peaks) for e, x in enumerate(np.split(v[0], len(node.w1)))])
        case Combine(weight=w, bias=b):
            return softmax(_linear(v[0], w, b)) @ v[1]
        case Product(scale=scale):
            return v[0] @ v[1].T * np.asarray(scale, v[0].dtype)
        case Transpose():
            return v[0].T
        case Ratio(epsilon=epsilon):
            return v[0][:, :-1] / (v[0][:, -1:] + np.asarray(epsilon, v[0].dtype))
        case Softmax():
            return softmax(v[0])
        case Rows(start=a, stop=b):
            return v[0][a:b]
        case Mean(start=a, stop=b):
            return v[0][a:b].mean(axis=0, keepdims=True)
    raise ValueError(f"{node.name}: unknown node type {type(node).__name__}")
