"""More parts that set a system apart, each between the patch embedding and the head of `by_hand.Net`: x [B, 8, 8, C]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from by_hand import HEADS, SIDE, WIDTH, Net, channels_first
from torch import nn

TOKENS = SIDE * SIDE


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention of [B, tokens, C] with HEADS heads."""
    q, k, v = (a.unflatten(-1, (HEADS, -1)).transpose(1, 2) for a in (q, k, v))
    y = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return y.transpose(1, 2).flatten(2)


def depthwise(size: int, stride: int = 1, width: int = WIDTH) -> nn.Conv2d:
    return nn.Conv2d(width, width, size, stride, size // 2, groups=width)


class Forward(nn.Module):
    """FcaFormer: keys and values of tokens that an earlier block left behind, merged by a depthwise convolution and weighed
    (Zhang et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.first = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.merge, self.weight, self.norm = depthwise(4, 4), nn.Parameter(torch.ones(WIDTH)), nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = channels_first(self.merge, x)[:, :2, :2].flatten(1, 2) * self.weight
        tokens = x.flatten(1, 2)
        tokens = self.norm(tokens + attend(*self.first(tokens).chunk(3, -1)))
        k, v = self.kv(torch.cat([tokens, left], 1)).chunk(2, -1)
        return attend(self.q(tokens), k, v).unflatten(1, (SIDE, SIDE))


class Sliced(nn.Module):
    """SReT: one block applied twice, attention in groups of tokens that are permuted between, a learned share of what went in
    (Shen et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))
        self.shares = nn.Parameter(torch.ones(4))
        self.register_buffer("order", torch.randperm(TOKENS, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1, 2)
        for i in range(2):
            groups = x.unflatten(1, (4, TOKENS // 4)).flatten(0, 1)
            y = self.out(attend(*self.qkv(self.norm(groups)).chunk(3, -1))).unflatten(0, (-1, 4)).flatten(1, 2)
            x = x * self.shares[2 * i] + y
            x = x * self.shares[2 * i + 1] + self.mlp(x)
            x = x[:, self.order]
        return x.unflatten(1, (SIDE, SIDE))


class Scales(nn.Module):
    """MAFormer: attention in windows, and to tokens that a learned matrix makes of all, added (Wang et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.kv, self.fewer = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(TOKENS, 12)
        self.out, self.local = nn.Linear(WIDTH, WIDTH), depthwise(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = x.unflatten(2, (2, 4)).unflatten(1, (2, 4)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        near = attend(*self.qkv(w).chunk(3, -1))
        near = near.unflatten(0, (-1, 2, 2)).unflatten(3, (4, 4)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        few = self.fewer(x.flatten(1, 2).transpose(1, 2)).transpose(1, 2)
        k, v = self.kv(few).chunk(2, -1)
        far = attend(near.flatten(1, 2), k, v).unflatten(1, (SIDE, SIDE))
        return self.out(near + far) + channels_first(self.local, x)


class Frequencies(nn.Module):
    """FMViT: channels for low frequencies attend to means of blocks, those for high ones are convolved (Tan et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // 2
        self.low, self.kv = nn.Conv2d(half, half, 1), nn.Conv2d(half, 2 * half, 1)
        grouped = nn.Conv2d(half, half, 3, padding=1, groups=2), nn.BatchNorm2d(half)
        self.high = nn.Sequential(*grouped, nn.ReLU(), nn.Conv2d(half, half, 1))
        self.out = nn.Conv2d(WIDTH, WIDTH, 1)

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        low, high = x.chunk(2, 1)
        k, v = self.kv(F.avg_pool2d(low, 2)).flatten(2).transpose(1, 2).chunk(2, -1)
        y = attend(self.low(low).flatten(2).transpose(1, 2), k, v).transpose(1, 2).unflatten(2, (SIDE, SIDE))
        return self.out(torch.cat([y, self.high(high)], 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channels_first(self.mixed, x)


class Neighbours(nn.Module):
    """TiC: attention of each place to the 3 x 3 around it, as a convolution would (Zhang et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(WIDTH, 3 * WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)

    def near(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, 1)
        q = q.flatten(2).unflatten(1, (HEADS, -1))  # [B, heads, d, tokens]
        k, v = (F.unfold(a, 3, padding=1).unflatten(1, (HEADS, WIDTH // HEADS, 9)) for a in (k, v))
        weights = ((q[:, :, :, None] * k).sum(2) * 0.25).softmax(2)
        return self.out((v * weights[:, :, None]).sum(3).flatten(1, 2).unflatten(2, (SIDE, SIDE)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channels_first(self.near, x)


class DualTokens(nn.Module):
    """DualToken-ViT: convolution for what is near; learned global tokens gather the pooled map, which attends to them
    (Chu et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(depthwise(3), nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1))
        self.globals, self.gate = nn.Parameter(torch.randn(1, 6, WIDTH)), nn.Linear(WIDTH, WIDTH)
        self.q, self.kv, self.q2, self.kv2 = (nn.Linear(WIDTH, n * WIDTH) for n in (1, 2, 1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = channels_first(partial(F.avg_pool2d, kernel_size=2), x).flatten(1, 2)
        k, v = self.kv(pooled).chunk(2, -1)
        g = self.globals + attend(self.q(self.globals.expand(x.shape[0], -1, -1)), k, v)
        k, v = self.kv2(g * torch.sigmoid(self.gate(g))).chunk(2, -1)
        far = attend(self.q2(x.flatten(1, 2)), k, v).unflatten(1, (SIDE, SIDE))
        return channels_first(self.near, x) + far


class Sparse(nn.Module):
    """Sparsifiner: a cheap product of low rank says which keys each query keeps (Wei et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q, self.k = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1, 2)
        guess = self.q(x) @ self.k(x).transpose(1, 2)
        least = guess.topk(16, dim=-1)[0][..., -1:]
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = (q @ k.transpose(1, 2)) * WIDTH**-0.5
        y = scores.masked_fill(guess < least, float("-inf")).softmax(-1) @ v
        return self.out(y).unflatten(1, (SIDE, SIDE))


class SuperTokens(nn.Module):
    """STViT: super tokens of 2 x 2, tokens given to the nine nearest by a softmax, attention among them, and back
    (Huang et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(WIDTH, 3 * WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)

    def sampled(self, x: torch.Tensor) -> torch.Tensor:
        batch, half = x.shape[0], SIDE // 2
        few = F.adaptive_avg_pool2d(x, half)
        pixels = x.reshape(batch, WIDTH, half, 2, half, 2).permute(0, 2, 4, 3, 5, 1).reshape(batch, half * half, 4, WIDTH)
        near = F.unfold(few, 3, padding=1).transpose(1, 2).reshape(batch, half * half, WIDTH, 9)
        share = (pixels @ near * WIDTH**-0.5).softmax(-1)  # [B, 16, 4, 9]
        amount = F.fold(share.sum(2).transpose(1, 2), (half, half), 3, padding=1)
        made = pixels.transpose(-1, -2) @ share  # [B, 16, C, 9]
        made = F.fold(made.permute(0, 2, 3, 1).reshape(batch, WIDTH * 9, half * half), (half, half), 3, padding=1)
        few = made / (amount + 1e-12)
        q, k, v = self.qkv(few).flatten(2).transpose(1, 2).chunk(3, -1)
        few = self.out(attend(q, k, v).transpose(1, 2).unflatten(2, (half, half)))
        near = F.unfold(few, 3, padding=1).transpose(1, 2).reshape(batch, half * half, WIDTH, 9)
        y = near @ share.transpose(-1, -2)  # [B, 16, C, 4]
        return y.reshape(batch, half, half, WIDTH, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(batch, WIDTH, SIDE, SIDE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channels_first(self.sampled, x)


class Binary(nn.Module):
    """ShiftAddViT: queries and keys of one bit, keys times values first; weights that are powers of two (You et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.local = nn.Linear(WIDTH, 3 * WIDTH), depthwise(3)
        power = torch.randint(-5, 0, (WIDTH, WIDTH), generator=torch.Generator().manual_seed(2)).float()
        sign = torch.randint(0, 2, (WIDTH, WIDTH), generator=torch.Generator().manual_seed(4)) * 2 - 1
        self.register_buffer("shift", sign * 2.0**power)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2).chunk(3, 1)
        q, k = (torch.where(a > 0, 1.0, 0.0) for a in (q, k))
        y = q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(2)[..., None] + 1)
        y = F.linear(y.transpose(1, 2).flatten(2), self.shift).unflatten(1, (SIDE, SIDE))
        return y + channels_first(self.local, x)


class Scattering(nn.Module):
    """SVT: a wavelet transform; the low part mixed by weights per place, the high ones by small matrices of channels
    (Patro et al. 2023). Here of Haar; the original's trees are longer filters of the same kind."""

    def __init__(self) -> None:
        super().__init__()
        half = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
        self.register_buffer("bank", torch.einsum("ax,by->abxy", half, half).reshape(4, 1, 2, 2).repeat(WIDTH, 1, 1, 1))
        self.low = nn.Parameter(torch.randn(1, WIDTH, SIDE // 2, SIDE // 2))
        self.high, self.shift = nn.Parameter(torch.randn(3, 4, 8, 8)), nn.Parameter(torch.randn(3, 4, 1, 8))

    def scattered(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(x, self.bank, stride=2, groups=WIDTH).unflatten(1, (WIDTH, 4))
        low, high = y[:, :, 0] * self.low, y[:, :, 1:]
        high = high.transpose(1, 2).flatten(3).unflatten(2, (4, 8)).transpose(3, 4)  # [B, 3, 4, places, 8]
        high = F.relu(high @ self.high + self.shift).transpose(3, 4).flatten(2, 3).unflatten(3, (SIDE // 2, SIDE // 2))
        y = torch.cat([low[:, :, None], high.transpose(1, 2)], 2).flatten(1, 2)
        return F.conv_transpose2d(y, self.bank, stride=2, groups=WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channels_first(self.scattered, x)


class Hyena(nn.Module):
    """Hyena N-D: gates around a convolution as large as the map, done by a Fourier transform (Zimerman and Wolf 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.short = nn.Conv2d(WIDTH, 3 * WIDTH, 1), depthwise(3, width=3 * WIDTH)
        self.out = nn.Conv2d(WIDTH, WIDTH, 1)
        self.long, self.skip = nn.Parameter(torch.randn(WIDTH, SIDE, SIDE)), nn.Parameter(torch.randn(WIDTH, 1, 1))

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        a, b, v = self.short(self.enter(x)).chunk(3, 1)
        v = v * b
        size = (2 * SIDE, 2 * SIDE)
        decay = torch.exp(-0.3 * torch.arange(SIDE, dtype=torch.float32))
        kernel = torch.fft.rfft2(self.long * decay[:, None] * decay, s=size)
        y = torch.fft.irfft2(torch.fft.rfft2(v, s=size) * kernel, s=size)[..., :SIDE, :SIDE]
        return self.out((y + v * self.skip) * a)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channels_first(self.gated, x)


MIXERS: dict[str, Callable[[], nn.Module]] = {
    "fcaformer": partial(Net, Forward),
    "sret": partial(Net, Sliced),
    "maformer": partial(Net, Scales),
    "fmvit": partial(Net, Frequencies),
    "tic": partial(Net, Neighbours),
    "dualtoken": partial(Net, DualTokens),
    "sparsifiner": partial(Net, Sparse),
    "super_token": partial(Net, SuperTokens),
    "shiftadd": partial(Net, Binary),
    "svt": partial(Net, Scattering),
    "hyena": partial(Net, Hyena),
}
