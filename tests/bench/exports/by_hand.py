"""Micro forms of systems that no package holds: the part that sets each apart, written from its paper, between a patch
embedding and a head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, SIDE, CLASSES = 32, 2, 8, 10


class Net(nn.Module):
    """Patches of 8 x 8 of an image of 64 x 64 as a map [B, C, 8, 8], two blocks of a kind with an MLP behind each, a head."""

    def __init__(self, mixer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.mixers = nn.ModuleList([mixer(), mixer()])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(4)])
        self.mlps = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH)) for _ in range(2)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image).permute(0, 2, 3, 1)
        for i, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps, strict=True)):
            x = x + mixer(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x.mean((1, 2)))


def channels_first(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return f(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Gated(nn.Module):
    """HorNet's recursive gated convolution of order 3 (Rao et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = [8, 16, 32]
        self.enter, self.leave = nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.local = nn.Conv2d(56, 56, 7, padding=3, groups=56)
        self.steps = nn.ModuleList([nn.Conv2d(8, 16, 1), nn.Conv2d(16, 32, 1)])

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        first, rest = self.enter(x).split([8, 56], 1)
        parts = self.local(rest).split(self.dims, 1)
        y = first * parts[0]
        for step, part in zip(self.steps, parts[1:], strict=True):
            y = step(y) * part
        return self.leave(y)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channels_first(self.gated, x)


class Attention(nn.Module):
    """Attention of all places, with what `kind` says beside it."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.kind = kind
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.local = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        at = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).reshape(-1, 2).float()
        apart = (at[:, None] - at[None]).abs()
        rate = torch.log(1 - 2.0 ** torch.tensor([-1.0, -3.0]))
        self.register_buffer("decay", rate[:, None, None] * apart.sum(-1))
        self.register_buffer("line", rate[:, None, None] * (torch.arange(SIDE)[:, None] - torch.arange(SIDE)).abs())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        local = channels_first(self.local, v if self.kind in ("decay", "axes") else x)
        if self.kind == "axes":  # RMT's attention along rows, then columns, each with its decay (Fan et al. 2024)
            q, k, v = (a.unflatten(-1, (HEADS, -1)) for a in (q, k, v))
            for order in ((0, 1, 3, 2, 4), (0, 2, 3, 1, 4)):
                one, other, w = (a.permute(order) for a in (q, k, v))
                y = ((one @ other.transpose(-2, -1)) * 0.25 + self.line).softmax(-1) @ w
                v = y.permute((0, 1, 3, 2, 4) if order[1] == 1 else (0, 3, 1, 2, 4))
            return self.out(v.flatten(3) + local)
        q, k, v = (a.flatten(1, 2).unflatten(-1, (HEADS, -1)).transpose(1, 2) for a in (q, k, v))
        scores = q @ k.transpose(-2, -1) * 0.25
        if self.kind == "retention":  # ViR: decay in the place of softmax (Hatamizadeh et al. 2023)
            y = (scores * self.decay.exp()) @ v
        else:
            y = (scores + self.decay if self.kind == "decay" else scores).softmax(-1) @ v
        y = y.transpose(1, 2).flatten(2).unflatten(1, (SIDE, SIDE))
        return self.out(y + local if self.kind in ("decay", "position") else y)


class Local(nn.Module):
    """UniFormer's first stages: depthwise convolution in the place of attention (Li et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH), nn.Conv2d(WIDTH, WIDTH, 1)
        self.layers = nn.Sequential(nn.BatchNorm2d(WIDTH), *layers)
        self.position = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channels_first(lambda x: self.position(x) + self.layers(x), x)


class Spectral(nn.Module):
    """SpectFormer's gating of frequencies (Patro et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(SIDE, SIDE // 2 + 1, WIDTH, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(self.gate)
        return torch.fft.irfft2(y, s=(SIDE, SIDE), dim=(1, 2), norm="ortho")


class Modulated(nn.Module):
    """SMT's scale-aware modulation: depthwise convolutions of several sizes, mixed, times the values (Lin et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.s, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.sizes = nn.ModuleList([nn.Conv2d(8, 8, 3 + 2 * i, padding=1 + i, groups=8) for i in range(4)])
        self.mix = nn.Sequential(nn.Conv2d(WIDTH, 2 * WIDTH, 1, groups=8), nn.GELU(), nn.Conv2d(2 * WIDTH, WIDTH, 1))

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        parts = [f(part) for f, part in zip(self.sizes, x.chunk(4, 1), strict=True)]
        return self.mix(torch.stack(parts, 2).flatten(1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(channels_first(self.scaled, self.s(x)) * self.v(x))


class Additive(nn.Module):
    """CAS-ViT's convolutional additive attention (Zhang et al. 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(WIDTH, 3 * WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.places = nn.ModuleList([self.place() for _ in range(2)])
        self.channels = nn.ModuleList([self.channel() for _ in range(2)])

    def place(self) -> nn.Module:
        layers = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.BatchNorm2d(WIDTH), nn.ReLU()
        return nn.Sequential(*layers, nn.Conv2d(WIDTH, 1, 1), nn.Sigmoid())

    def channel(self) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(WIDTH, WIDTH, 1), nn.Sigmoid())

    def added(self, x: torch.Tensor) -> torch.Tensor:
        *both, v = self.qkv(x).chunk(3, 1)
        gated = []
        for y, place, channel in zip(both, self.places, self.channels, strict=True):
            y = y * place(y)
            gated.append(y * channel(y))
        return self.out((gated[0] + gated[1]) * v)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channels_first(self.added, x)


class HighLow(nn.Module):
    """LITv2's HiLo: heads within windows of 2 x 2, and heads that see the means of windows (Pan et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.q, self.kv = nn.Linear(WIDTH, 48), nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 32)
        self.out = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = SIDE // 2
        w = self.high(x).unflatten(2, (half, 2)).unflatten(1, (half, 2)).transpose(2, 3).flatten(3, 4)  # [B, 4, 4, 4, 48]
        q, k, v = w.chunk(3, -1)
        y = ((q @ k.transpose(-2, -1)) * 0.25).softmax(-1) @ v
        y = y.unflatten(3, (2, 2)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        low = channels_first(partial(F.avg_pool2d, kernel_size=2), x)
        k, v = self.kv(low).flatten(1, 2).chunk(2, -1)
        z = ((self.q(x).flatten(1, 2) @ k.transpose(-2, -1)) * 0.25).softmax(-1) @ v
        return torch.cat([self.out[0](y), self.out[1](z.unflatten(1, (SIDE, SIDE)))], -1)


class Prompted(nn.Module):
    """CODA-Prompt: keys and values before attention, mixed from parts by likeness to the mean (Smith et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.masks = nn.Parameter(torch.randn(6, WIDTH)), nn.Parameter(torch.randn(6, WIDTH))
        self.parts = nn.Parameter(torch.randn(6, 8, WIDTH))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2))
        looks = F.normalize(torch.einsum("bd,kd->bkd", mean, self.masks), dim=2)
        weights = torch.einsum("bkd,kd->bk", looks, F.normalize(self.keys, dim=1))
        prompt = torch.einsum("bk,kld->bld", weights, self.parts)
        q, k, v = self.qkv(x.flatten(1, 2)).chunk(3, -1)
        k, v = torch.cat([prompt[:, :4], k], 1), torch.cat([prompt[:, 4:], v], 1)
        y = ((q @ k.transpose(-2, -1)) * WIDTH**-0.5).softmax(-1) @ v
        return self.out(y).unflatten(1, (SIDE, SIDE))


class Channels(nn.Module):
    """ChannelViT: each channel of the image in patches of its own (Bao et al. 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(1, WIDTH, (1, 16, 16), (1, 16, 16))
        self.channel, self.place = nn.Parameter(torch.randn(1, WIDTH, 3, 1, 1)), nn.Parameter(torch.randn(1, WIDTH, 1, 4, 4))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True, norm_first=True, activation="gelu")
        self.blocks, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image[:, None]) + self.channel + self.place
        return self.head(self.blocks(x.flatten(2).transpose(1, 2)).mean(1))


SYSTEMS_BY_HAND: dict[str, Callable[[], nn.Module]] = {
    "hornet": partial(Net, Gated),
    "uniformer": partial(Net, Local),
    "spectformer": partial(Net, Spectral),
    "smt": partial(Net, Modulated),
    "cas_vit": partial(Net, Additive),
    "hilo": partial(Net, HighLow),
    "coda_prompt": partial(Net, Prompted),
    "channel_vit": Channels,
    "resformer": partial(Net, partial(Attention, "position")),
    "rmt": partial(Net, partial(Attention, "decay")),
    "rmt_axes": partial(Net, partial(Attention, "axes")),
    "vir": partial(Net, partial(Attention, "retention")),
}
