"""The ViT-level graph: what a network computes for one image, in floating point.

The front end produces it, the quantiser consumes it. A value is a 2-D array `[rows, columns]` (tokens by channels)
except the image `[C, H, W]` and the result of `Route`. Every node makes one value, named like the node. Nodes stand in
execution order. `evaluate` is the definition of every node and what calibration observes.
"""

from .evaluate import FORMS, evaluate, evaluate_node, outputs, softmax, top_k
from .nodes import (
    Activation,
    Add,
    Attention,
    Clip,
    Combine,
    Dispatch,
    Embed,
    Experts,
    Graph,
    LayerNorm,
    Linear,
    Mean,
    Multiply,
    Node,
    Output,
    PatchEmbed,
    Rotate,
    Route,
    Rows,
    SlotExperts,
    value,
    without_range,
)
from .shapes import shapes, verify

__all__ = [
    "Activation",
    "Add",
    "Attention",
    "Clip",
    "Combine",
    "Dispatch",
    "Embed",
    "Experts",
    "FORMS",
    "Graph",
    "LayerNorm",
    "Linear",
    "Mean",
    "Multiply",
    "Node",
    "Output",
    "PatchEmbed",
    "Rotate",
    "Route",
    "Rows",
    "SlotExperts",
    "evaluate",
    "evaluate_node",
    "outputs",
    "shapes",
    "softmax",
    "top_k",
    "value",
    "verify",
    "without_range",
]
