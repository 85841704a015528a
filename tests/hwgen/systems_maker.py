"""Small networks with the part that made a published system be refused, written as exporters write them."""


import numpy as np

import chosen_maker as maker

IMAGE, PATCHES, D, CLASSES, SIDE = maker.IMAGE, maker.PATCHES, maker.D, maker.CLASSES, maker.SIDE
ints = maker.ints


def rms(w, x, width):
    square = w.op("ReduceMean", w.op("Mul", x, x), ints(-1), keepdims=1)
    y = w.op("Mul", x, w.op("Div", 1.0, w.op("Sqrt", w.op("Add", square, 1e-6))))
    return w.op("Mul", y, 1 + w.normal(width, scale=0.2))


def shared_keys(w):
    """Normalised keys of two heads that four heads of queries share (LaVin-DiT: Wang et al. 2024)."""
    x = w.tokens()
    y = w.norm(x)
    q, k, v = (w.op("Reshape", w.linear(y, D, n * 8), [1, PATCHES, n, 8]) for n in (4, 2, 2))
    q, k = rms(w, q, 8), rms(w, k, 8)
    twice = (w.op("Expand", w.op("Unsqueeze", r, ints(3)), ints(1, PATCHES, 2, 2, 8)) for r in (k, v))
    k, v = (w.op("Reshape", r, [1, PATCHES, 4, 8]) for r in twice)
    q, v = (w.op("Transpose", r, perm=[0, 2, 1, 3]) for r in (q, v))
    p = w.softmax(w.op("Mul", w.op("MatMul", q, w.op("Transpose", k, perm=[0, 2, 3, 1])), float(8**-0.5)))
    y = w.op("Reshape", w.op("Transpose", w.op("MatMul", p, v), perm=[0, 2, 1, 3]), [1, PATCHES, D])
    return w.classes(w.op("Add", x, w.linear(y)))


def normalised_values(w):
    """Heads of unit length that a linear layer reads (looped transformers of vit-pytorch)."""
    x = w.tokens()
    heads = w.unit(w.op("Reshape", w.linear(x), [1, PATCHES, 2, D // 2]))
    return w.classes(w.op("Add", x, w.linear(w.op("Reshape", heads, [1, PATCHES, D]))))


def centres(w):
    """Tokens given to centres by a softmax, summed over the tokens and divided by what each centre got, channels first (super
    tokens: Huang et al. 2023)."""
    x = w.norm(w.tokens())
    share = w.softmax(w.op("MatMul", x, w.turned(w.op("MatMul", w.normal(1, 6, PATCHES, scale=0.2), x))))
    total = w.op("ReduceSum", share, ints(1), keepdims=1)
    made = w.op("Div", w.op("MatMul", w.turned(x), share), w.op("Add", total, 1e-6))
    back = w.op("MatMul", share, w.turned(made))
    return w.classes(w.op("Add", x, w.linear(back)))


def none_left(w):
    """A mask that opens where it closes all, which PyTorch's exporter writes as a least number (BiSeNet with queries, 2024)."""
    x = w.norm(w.tokens())
    queries = w.op("Add", w.linear(w.op("Reshape", w.mean(x), [1, 1, D])), w.normal(1, 5, D))
    closed = w.op("Less", w.op("Sigmoid", w.op("MatMul", w.linear(queries), w.turned(x))), 0.5)
    every = w.op("Cast", w.op("ReduceMin", w.op("Cast", closed, to=7), ints(2), keepdims=1), to=9)
    scores = w.op("Mul", w.op("MatMul", w.linear(queries), w.turned(w.linear(x))), float(D**-0.5))
    scores = w.op("Where", w.op("And", closed, w.op("Not", every)), float("-inf"), scores)
    return w.classes(w.op("Add", queries, w.linear(w.op("MatMul", w.softmax(scores), w.linear(x)))))


def fused(w):
    """Tokens joined to the most similar of the others by likeness and by how little they tell, twice, which looks like a choice
    of experts (MCTF: Lee et al. 2024)."""
    x = w.tokens()
    for _ in range(2):
        x = w.mlp(w.op("Add", x, _joined(w, w.norm(x))))
    return w.classes(x)


def _joined(w, x, few=3):
    half = PATCHES // 2
    y, p = w.attention(x, PATCHES)
    told = w.op("Sub", 1.0, w.op("ReduceMean", p, ints(1, 2), keepdims=0))  # [1, PATCHES]
    a, b = (w.every(w.unit(y), 1, i, PATCHES, 2) for i in (0, 1))
    score = w.op("Mul", w.op("MatMul", a, w.turned(b)), w.op("Unsqueeze", w.every(told, 1, 0, PATCHES, 2), ints(2)))
    best, to = w.op("ReduceMax", score, ints(2), keepdims=0), w.op("ArgMax", score, axis=2, keepdims=0)
    order = w.op("TopK", best, ints(half), outputs=2, axis=1)[1]
    gone, rest = w.cut(order, 1, 0, few), w.cut(order, 1, few, half)
    at = w.op("Unsqueeze", w.op("GatherElements", to, gone, axis=1), ints(2))
    one = w.op("Cast", w.op("Equal", at, np.arange(half)), to=1)  # [1, few, half]
    first, other = (w.every(y, 1, i, PATCHES, 2) for i in (0, 1))
    other = w.op("Add", other, w.op("MatMul", w.turned(one), w.picked(first, gone, few)))
    size = w.op("Add", w.op("ReduceSum", one, ints(1), keepdims=0), 1.0)
    other = w.op("Div", other, w.op("Unsqueeze", size, ints(2)))
    x = w.op("Concat", w.picked(first, rest, half - few), other, axis=1)
    return w.turned(w.op("MatMul", w.turned(x), w.normal(PATCHES - few, PATCHES, scale=0.3)))


def shuffled(w):
    """Pixels made finer twice by transposed convolutions, normalised together between, times a token each (FaceXFormer: Narayan
    et al. 2024)."""
    x = w.norm(w.tokens())
    y = w.op("Reshape", w.turned(x), [1, D, SIDE, SIDE])
    y = w.op("ConvTranspose", y, w.normal(D, 48, 2, 2, scale=0.2), w.normal(48, scale=0.1), strides=[2, 2])
    y = w.op("InstanceNormalization", w.op("Reshape", y, [1, 1, -1]), np.ones(1), np.zeros(1))
    y = w.op("Reshape", y, [1, 48, 2 * SIDE, 2 * SIDE])
    y = w.op("Gelu", w.op("Add", w.op("Mul", y, 1 + w.normal(48, 1, 1, scale=0.2)), w.normal(48, 1, 1, scale=0.2)))
    y = w.op("ConvTranspose", y, w.normal(48, 8, 2, 2, scale=0.2), w.normal(8, scale=0.1), strides=[2, 2])
    y = w.op("Reshape", w.op("Gelu", y), [1, 8, 16 * SIDE * SIDE])
    masks = w.op("MatMul", w.linear(w.cut(x, 1, 0, 3), D, 8), y)
    return w.linear(w.op("Reshape", masks, [1, 48 * SIDE * SIDE]), 48 * SIDE * SIDE, CLASSES)


def sampled(w):
    """Values of two heads at places that are the same for every image, of which one head needs more pixels than the other, times
    weights of each (the first layer of a Deformable DETR's decoder: Zhu et al. 2021)."""
    x = w.norm(w.tokens())
    values = w.op("Reshape", w.turned(w.linear(x)), [2, D // 2, SIDE, SIDE])
    places = np.stack([np.full((5, 3, 2), 0.25), w.rng.uniform(-0.7, 0.7, (5, 3, 2))])
    y = w.op("GridSample", values, places, mode="linear", padding_mode="zeros", align_corners=0)  # [2, D / 2, 5, 3]
    y = w.op("ReduceSum", w.op("Mul", y, w.rng.uniform(0.1, 0.5, (2, 1, 5, 3))), ints(3), keepdims=0)
    return w.classes(w.op("Add", w.linear(w.turned(w.op("Reshape", y, [1, D, 5]))), w.normal(1, 5, D)))


def steady_gate(w):
    """A gate by a sigmoid that is nearly the same for all (sizes of boxes in D-FINE: Peng et al. 2024)."""
    x = w.norm(w.tokens())
    gate = w.op("Sigmoid", w.op("Sub", w.op("Mul", w.linear(x), 1e-3), 2.5))
    return w.classes(w.op("Mul", w.linear(x), gate))


def refined(w):
    """Places that each layer moves, two channels of four in place, from the inverse of the sigmoid of the last (refined boxes of
    Deformable DETR: Zhu et al. 2021)."""
    x = w.norm(w.tokens())
    box, every = w.linear(x, D, 4), np.stack(np.meshgrid([0], np.arange(PATCHES), np.arange(2), indexing="ij"), -1)
    box = w.op("ScatterND", box, every, w.op("Add", w.cut(box, 2, 0, 2), w.normal(1, PATCHES, 2, scale=0.3)))
    boxes = [w.op("Sigmoid", box)]
    boxes.append(w.op("Sigmoid", w.op("Add", w.linear(x, D, 4), _inverse(w, boxes[0]))))
    both = w.op("Concat", *(w.op("Unsqueeze", b, ints(1)) for b in boxes), axis=1)
    last = w.op("Add", w.linear(x, D, 4), _inverse(w, w.op("Gather", both, np.array(1), axis=1)))
    return w.classes(w.op("Add", x, w.linear(w.op("Sigmoid", last), 4, D)))


def _inverse(w, x):
    x = w.op("Clip", x, np.float32(0), np.float32(1))
    one, other = (w.op("Clip", part, np.float32(1e-5)) for part in (x, w.op("Sub", 1.0, x)))
    return w.op("Log", w.op("Div", one, other))


def _stepped(w, x, scale, kind=np.int8):
    """A pair of QuantizeLinear and DequantizeLinear."""
    zero = np.array(0, kind)
    return w.op("DequantizeLinear", w.op("QuantizeLinear", x, np.float32(scale), zero), np.float32(scale), zero)


def sized(w):
    """Attention by sizes of tokens, and to tokens that the network keeps, in a file that is quantised."""
    x = _stepped(w, w.norm(w.tokens()), 0.03)
    size = w.op("Add", w.op("Sigmoid", w.linear(x, D, 1)), 1.0)
    q, k, v = (_stepped(w, w.linear(x), 0.03) for _ in range(3))
    scores = _stepped(w, w.op("Mul", w.op("MatMul", q, w.turned(k)), float(D**-0.5)), 0.02)
    sizes = _stepped(w, w.turned(w.op("Log", size)), 0.006)
    p = _stepped(w, w.softmax(w.op("Add", scores, sizes)), 1 / 255, np.uint8)
    x = w.op("Add", x, w.linear(w.op("MatMul", p, v)))
    closed = w.op("Less", w.turned(w.linear(x, D, 1)), 0.5)
    p = _stepped(w, w.softmax(w.op("Where", closed, float("-inf"), scores)), 1 / 255, np.uint8)
    return w.classes(w.op("Add", x, w.linear(w.op("MatMul", p, v))))


def of_windows(w):
    """Windows that attend to windows, of which each brings all its tokens (SepViT: Li et al. 2022)."""
    x = w.norm(w.tokens())
    one = w.mean(w.op("Reshape", x, [2, 8, D]))
    q, k = (w.op("Reshape", w.linear(one), [2, 2, D // 2]) for _ in range(2))
    q, k = w.op("Transpose", q, perm=[1, 0, 2]), w.op("Transpose", k, perm=[1, 2, 0])
    p = w.softmax(w.op("Mul", w.op("MatMul", q, k), float((D // 2) ** -0.5)))
    v = w.op("Transpose", w.op("Reshape", w.linear(x), [2, 8, 2, D // 2]), perm=[2, 0, 1, 3])
    y = w.op("MatMul", p, w.op("Reshape", v, [2, 2, 4 * D]))
    y = w.op("Transpose", w.op("Reshape", y, [2, 2, 8, D // 2]), perm=[1, 2, 0, 3])
    return w.classes(w.op("Add", x, w.linear(w.op("Reshape", y, [1, PATCHES, D]))))


def sparse(w):
    """Scores with the logarithm of a sigmoid of each pair of tokens, of which one lets all through; once kept from zero, once not
    (sparse gating of vit-pytorch)."""
    x = w.norm(w.tokens())
    for least in (0.0, 1e-9):
        q, k, v, a, b = (w.linear(x) for _ in range(5))
        gate = w.op("Sigmoid", w.op("MatMul", a, w.op("Mul", w.turned(w.cut(b, 1, 1, PATCHES)), 0.5)))
        gate = w.op("Log", w.op("Clip", gate, np.float32(least)) if least else gate)
        gate = w.op("Pad", gate, ints(0, 0, 1, 0, 0, 0))
        scores = w.op("Add", w.op("Mul", w.op("MatMul", q, w.turned(k)), float(D**-0.5)), gate)
        x = w.op("Add", x, w.linear(w.op("MatMul", w.softmax(scores), v)))
    return w.classes(x)


def efficient_attention(w):
    """Channels weighed by what the means of their neighbours are, a convolution along the channels (ECA: Wang et al. 2020)."""
    x = w.op("Reshape", w.turned(w.norm(w.tokens())), [1, D, SIDE, SIDE])
    mean = w.op("Reshape", w.op("GlobalAveragePool", x), [1, 1, D])
    gate = w.op("Sigmoid", w.op("Conv", mean, w.normal(1, 1, 5, scale=1.0), kernel_shape=[5], pads=[2, 2]))
    x = w.op("Mul", x, w.op("Reshape", gate, [1, D, 1, 1]))
    return w.classes(w.turned(w.op("Reshape", x, [1, D, PATCHES])))


def _gated_expert(w, x, biased):
    gate, up = (w.linear(x, D, 24) if biased else w.op("MatMul", x, w.normal(D, 24, scale=0.2)) for _ in range(2))
    hidden = w.op("Mul", w.op("Mul", gate, w.op("Sigmoid", gate)), up)
    return w.linear(hidden, 24, D) if biased else w.op("MatMul", hidden, w.normal(24, D, scale=0.2))


def gated_experts(w):
    """Experts that are gated MLPs, the best two of four for each token, with biases and without (Mixtral: Jiang et al. 2024)."""
    x = w.tokens()
    for biased in (True, False):
        y = w.norm(x)
        scores = w.softmax(w.op("MatMul", y, w.normal(D, 4, scale=0.3)))
        x = w.op("Add", x, _mixture(w, scores, [_gated_expert(w, y, biased) for _ in range(4)]))
    return w.classes(x)


def sigmoid_experts(w):
    """Experts that are weighed by sigmoids, over their sum, by which they are chosen too (DeepSeek-V3 2024), and one of all."""
    x = w.tokens(lead=1)  # more of them than lists that are sorted one by one
    y = w.norm(x)
    scores = w.op("Sigmoid", w.op("MatMul", y, w.normal(D, 4, scale=0.3)))
    experts = [w.linear(w.op("Gelu", w.linear(y, D, 24)), 24, D) for _ in range(4)]
    return w.classes(w.op("Add", w.op("Add", x, _gated_expert(w, y, True)), _mixture(w, scores, experts, PATCHES + 1)))


def _mixture(w, scores, experts, count=PATCHES):
    """The best two of the experts for each token, by scores over their sum."""
    chance, best = w.op("TopK", scores, ints(2), outputs=2, axis=-1)
    chance = w.op("Div", chance, w.op("ReduceSum", chance, ints(-1), keepdims=1))
    gates = w.op("ScatterElements", np.zeros((1, count, len(experts)), np.float32), best, chance, axis=2)
    each = w.op("Concat", *(w.op("Unsqueeze", y, ints(2)) for y in experts), axis=2)
    return w.op("Reshape", w.op("MatMul", w.op("Unsqueeze", gates, ints(2)), each), [1, count, D])


def embedded_boxes(w):
    """Positions of boxes that the network finds, by sines and cosines of several frequencies, as queries have them (DAB-DETR: Liu
    et al. 2022; DINO: Zhang et al. 2022)."""
    x = w.norm(w.tokens())
    box = w.op("Mul", w.op("Sigmoid", w.linear(x, D, 4)), float(2 * np.pi))
    steps = w.op("Div", w.op("Unsqueeze", box, ints(3)), 10.0 ** np.repeat(np.arange(2), 2))  # [1, PATCHES, 4, 4]
    waves = [w.op(f, w.every(steps, 3, i, 4, 2)) for i, f in enumerate(("Sin", "Cos"))]
    places = w.op("Concat", *(w.op("Unsqueeze", y, ints(4)) for y in waves), axis=4)
    return w.classes(w.op("Add", x, w.linear(w.op("Reshape", places, [1, PATCHES, 16]), 16, D)))


def resized_image(w):
    """An image that the network makes smaller for a branch, cut into patches there, and larger for another one, whose windows
    overlap (CrossViT's dagger: Chen et al. 2021)."""
    size = dict(coordinate_transformation_mode="half_pixel", mode="linear")
    small = w.op("Resize", "image", "", "", ints(1, 3, 12, 12), **size)
    small = w.op("Conv", small, w.normal(D, 3, 4, 4), w.normal(D), kernel_shape=[4, 4], strides=[4, 4])
    large = w.op("Resize", "image", "", "", ints(1, 3, 20, 20), **size)
    large = w.op("Conv", large, w.normal(D, 3, 7, 7), w.normal(D), kernel_shape=[7, 7], strides=[4, 4], pads=[3] * 4)
    tokens = [w.op("Reshape", y, [1, D, n]) for y, n in ((small, 9), (large, 25))]
    return w.classes(w.norm(w.linear(w.norm(w.turned(w.op("Concat", *tokens, axis=2))))))


def gated_slots(w):
    """Two gated experts, each on three means of all tokens, shared out to the tokens again (soft mixtures: Puigcerver et al.
    2024)."""
    x = w.norm(w.tokens())
    logits = w.op("MatMul", x, w.normal(D, 6, scale=0.3))
    slots = w.op("MatMul", w.turned(w.op("Softmax", logits, axis=1)), x)
    made = w.op("Concat", *(_gated_expert(w, w.cut(slots, 1, 3 * e, 3 * e + 3), True) for e in range(2)), axis=1)
    return w.classes(w.op("Add", x, w.op("MatMul", w.softmax(logits), made)))


NETWORKS = (
    *(shared_keys, normalised_values, centres, none_left, fused, shuffled, sampled, steady_gate, refined, sized),
    *(of_windows, sparse, efficient_attention, gated_experts, sigmoid_experts, gated_slots, embedded_boxes),
    resized_image,
)


def write(path, form):
    """The network `form`, a function of a Writer, as a file."""
    w = maker.Writer()
    return w.write(path, IMAGE, form(w), [1, CLASSES])
