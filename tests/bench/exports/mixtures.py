"""Mixtures of experts as people write them in PyTorch: a router, and a way to bring tokens to experts and back."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HIDDEN = 32, 24

# --- routers: logits [T, E] -> (scores [T, k], experts [T, k]) ---------------------------------------------------------


def softmax_then_top(logits, k):
    return logits.softmax(-1).topk(k, dim=-1)


def renormalised(logits, k):
    values, indices = logits.softmax(-1).topk(k, dim=-1)
    return values / values.sum(-1, keepdim=True), indices


def renormalised_above_a_bound(logits, k):
    values, indices = logits.softmax(-1).topk(k, dim=-1)
    return values / values.sum(-1, keepdim=True).clamp(min=1e-9), indices


def unsorted_and_scaled(logits, k):
    values, indices = torch.topk(logits.softmax(-1), k, dim=-1, sorted=False)
    return 2.5 * values / (values.sum(-1, keepdim=True) + 1e-20), indices


def top_then_softmax(logits, k):
    values, indices = logits.topk(k, dim=-1)
    return values.softmax(-1), indices


def temperature(logits, k):
    return softmax_then_top(logits / 0.7, k)


def noise_of_training(logits, k):
    """M3ViT's noisy gate, whose noise is zero in inference and who asks for one expert more."""
    logits = logits + torch.randn_like(logits) * 0.0
    values, indices = logits.softmax(-1).topk(k + 1, dim=-1)
    return values[:, :k], indices[:, :k]


def sigmoid_of_chosen(logits, k):
    values, indices = logits.topk(k, dim=-1)
    return values.sigmoid(), indices


def sigmoid_then_top(logits, k):
    return logits.sigmoid().topk(k, dim=-1)


ROUTERS = [
    softmax_then_top,
    renormalised,
    renormalised_above_a_bound,
    unsorted_and_scaled,
    top_then_softmax,
    temperature,
    noise_of_training,
    sigmoid_of_chosen,
    sigmoid_then_top,
]

# --- ways to the experts and back: (mixture, tokens [T, D], scores, experts) -> [T, D] -----------------------------------


def dense_gates(m, values, indices):
    zeros = values.new_zeros(values.shape[0], m.count)
    return zeros.scatter(-1, indices, values)


def boolean_loop(m, x, values, indices):
    """out[mask] = expert(x[mask]), for top 1."""
    y = torch.zeros_like(x)
    for e in range(m.count):
        mask = indices[:, 0] == e
        y[mask] = m.expert(e, x[mask])
    return y * values[:, :1]


def boolean_add(m, x, values, indices):
    gates, y = dense_gates(m, values, indices), torch.zeros_like(x)
    for e in range(m.count):
        mask = (indices == e).any(dim=-1)
        y[mask] += m.expert(e, x[mask]) * gates[mask, e].unsqueeze(1)
    return y


def index_add(m, x, values, indices):
    """Mixtral in Hugging Face."""
    y, mask = torch.zeros_like(x), F.one_hot(indices, num_classes=m.count).permute(2, 1, 0)
    for e in range(m.count):
        slot, token = torch.where(mask[e])
        y.index_add_(0, token, m.expert(e, x[None, token].reshape(-1, WIDTH)) * values[token, slot, None])
    return y


def index_put(m, x, values, indices):
    y = torch.zeros_like(x)
    for e in range(m.count):
        token, slot = torch.where(indices == e)
        y[token] += values[token, slot, None] * m.expert(e, x[token])
    return y


def buffer_of_slots(m, x, values, indices):
    """FastMoE without CUDA: one row for each token and slot."""
    y = x.new_zeros(x.shape[0], m.k, WIDTH)
    for e in range(m.count):
        token, slot = torch.nonzero(indices == e, as_tuple=True)
        y[token, slot] = m.expert(e, x[token])
    return torch.bmm(values.unsqueeze(1), y).squeeze(1)


def repeated_tokens(m, x, values, indices):
    chosen, repeated = indices.reshape(-1), x.repeat_interleave(m.k, 0)
    y = torch.zeros_like(repeated)
    for e in range(m.count):
        y[chosen == e] = m.expert(e, repeated[chosen == e])
    return (y.view(-1, m.k, WIDTH) * values.unsqueeze(-1)).sum(1)


def all_experts_in_turn(m, x, values, indices):
    gates = dense_gates(m, values, indices)
    return sum(gates[:, e : e + 1] * m.expert(e, x) for e in range(m.count))


def stacked_experts(m, x, values, indices):
    y = torch.stack([m.expert(e, x) for e in range(m.count)], dim=1)
    return torch.einsum("te,ted->td", dense_gates(m, values, indices), y)


def where_masks(m, x, values, indices):
    zeros = torch.zeros_like(values)
    return sum(torch.where(indices == e, values, zeros).sum(-1, keepdim=True) * m.expert(e, x) for e in range(m.count))


def where_chain(m, x, values, indices):
    y = torch.zeros_like(x)
    for s in range(m.k):
        mine = torch.zeros_like(x)
        for e in range(m.count):
            mine = torch.where((indices[:, s] == e).unsqueeze(-1), m.expert(e, x), mine)
        y = y + values[:, s : s + 1] * mine
    return y


def einsum(m, x, values, indices):
    hidden = F.gelu(torch.einsum("td,edh->teh", x, m.experts1) + m.bias1)
    y = torch.einsum("teh,ehd->ted", hidden, m.experts2) + m.bias2
    return torch.einsum("ted,te->td", y, dense_gates(m, values, indices))


def batched(m, x, values, indices):
    y = F.gelu(torch.bmm(x.unsqueeze(0).expand(m.count, -1, -1), m.experts1) + m.bias1[:, None])
    y = (torch.bmm(y, m.experts2) + m.bias2[:, None]).permute(1, 0, 2)
    y = y.gather(1, indices.unsqueeze(-1).expand(-1, -1, WIDTH))
    return (y * values.unsqueeze(-1)).sum(1)


def gathered_weights(m, x, values, indices):
    hidden = F.gelu(torch.einsum("td,tkdh->tkh", x, m.experts1[indices]) + m.bias1[indices])
    y = torch.einsum("tkh,tkhd->tkd", hidden, m.experts2[indices]) + m.bias2[indices]
    return (y * values.unsqueeze(-1)).sum(1)


def expert_capacity(m, x, values, indices):
    """V-MoE with room for all tokens, which cumulative sums count."""
    hot = F.one_hot(indices, m.count)
    place = torch.cumsum(hot.permute(1, 0, 2).reshape(-1, m.count), 0).view(m.k, -1, m.count).permute(1, 0, 2) - 1
    rooms = F.one_hot((place * hot).sum(-1), x.shape[0]).float()
    combine = torch.einsum("tk,tke,tkc->tec", values, hot.float(), rooms)
    inputs = torch.einsum("tec,td->ecd", (combine > 0).float(), x)
    return torch.einsum("tec,ecd->td", combine, torch.stack([m.expert(e, inputs[e]) for e in range(m.count)]))


WAYS = [
    boolean_add,
    index_add,
    index_put,
    buffer_of_slots,
    repeated_tokens,
    all_experts_in_turn,
    stacked_experts,
    where_masks,
    where_chain,
    einsum,
    batched,
    gathered_weights,
    expert_capacity,
]


class Mixture(nn.Module):
    """The mixture of `count` experts that a router and a way make. x [B, T, D] -> [B, T, D]."""

    def __init__(self, router=softmax_then_top, way=index_put, count=4, k=2, gate_bias=False, shared="", act=F.gelu):
        super().__init__()
        self.router, self.way, self.count, self.k, self.act = router, way, count, k, act
        self.gate = nn.Linear(WIDTH, count, bias=gate_bias)
        self.experts1 = nn.Parameter(torch.zeros(count, WIDTH, HIDDEN))
        self.experts2 = nn.Parameter(torch.zeros(count, HIDDEN, WIDTH))
        self.bias1, self.bias2 = (nn.Parameter(torch.zeros(count, n)) for n in (HIDDEN, WIDTH))
        self.shared = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)) if shared else None
        self.shared_gate = nn.Linear(WIDTH, 1, bias=False) if shared == "gated" else None

    def expert(self, e, x):
        return self.act(x @ self.experts1[e] + self.bias1[e]) @ self.experts2[e] + self.bias2[e]

    def logits(self, x):
        return self.gate(x)

    def forward(self, x):
        batch, tokens, _ = x.shape
        x = x.reshape(-1, WIDTH)
        y = self.way(self, x, *self.router(self.logits(x), self.k))
        if self.shared is not None:
            own = self.shared(x)
            y = y + (own if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * own)
        return y.reshape(batch, tokens, WIDTH)


class TaskGate(Mixture):
    """M3ViT's gate for several tasks: it reads the token and an embedding of the task."""

    def __init__(self):
        super().__init__()
        self.gate, self.task = nn.Linear(WIDTH + 6, self.count, bias=False), nn.Parameter(torch.zeros(2, 6))
        self.embed = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))

    def logits(self, x):
        return self.gate(torch.cat([x, self.embed(self.task[1:2]).expand(x.shape[0], -1)], -1))


class WholeSoftmax(Mixture):
    """All experts, weighted by the softmax; or (`masked`) by that of the chosen, whose mask is one-hot."""

    def __init__(self, masked=False):
        super().__init__()
        self.masked = masked

    def forward(self, x):
        gates = self.gate(x).softmax(-1)
        if self.masked:
            gates = gates * F.one_hot(gates.topk(self.k, dim=-1).indices, self.count).sum(-2).to(gates.dtype)
        return torch.einsum("bte,bted->btd", gates, torch.stack([self.expert(e, x) for e in range(self.count)], dim=-2))


class Soft(Mixture):
    """Soft MoE: every slot reads a mean of all tokens."""

    def __init__(self):
        super().__init__()
        self.slots = nn.Parameter(torch.zeros(WIDTH, self.count, self.k))

    def forward(self, x):
        logits = torch.einsum("btd,des->btes", x, self.slots)
        inputs = torch.einsum("btd,btes->besd", x, logits.softmax(1))
        outputs = torch.stack([self.expert(e, inputs[:, e]) for e in range(self.count)], 1)
        return torch.einsum("besd,btes->btd", outputs, logits.flatten(2).softmax(-1).view_as(logits))


MIXTURES = {
    **{f"moe_{router.__name__}": partial(Mixture, router) for router in ROUTERS},
    **{f"moe_{way.__name__}": partial(Mixture, way=way) for way in WAYS},
    "moe_boolean_loop": partial(Mixture, way=boolean_loop, k=1),
    "moe_one_of_8": partial(Mixture, way=batched, count=8, k=1, gate_bias=True),
    "moe_4_of_7": partial(Mixture, count=7, k=4),
    "moe_one_expert": partial(Mixture, count=1, k=1),
    "moe_silu": partial(Mixture, way=stacked_experts, act=F.silu),
    "moe_relu": partial(Mixture, way=stacked_experts, act=F.relu),
    "moe_shared": partial(Mixture, shared="plain"),
    "moe_shared_gated": partial(Mixture, shared="gated"),
    "moe_task_gate": TaskGate,
    "moe_whole_softmax": WholeSoftmax,
    "moe_masked_softmax": partial(WholeSoftmax, masked=True),
    "moe_soft": Soft,
}
