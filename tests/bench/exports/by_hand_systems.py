"""Whole systems that no package holds, written from their papers with few narrow layers: decoders, several tasks, video."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from by_hand import CLASSES, SIDE, WIDTH
from by_hand_mixers import attend, depthwise
from torch import nn

SHAPES: dict[str, tuple[int, ...]] = {"uniformerv2": (3, 4, 32, 32), "lavin_dit": (WIDTH, 2, 4, 4)}


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, act: bool = True) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *[nn.ReLU()] * act)


class Block(nn.Module):
    """Attention to `context` (itself without one) and an MLP, norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        y = self.norms[0](x)
        k, v = self.kv(y if context is None else context).chunk(2, -1)
        x = x + self.out(attend(self.q(y), k, v))
        return x + self.mlp(self.norms[1](x))


def tokens(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def a_map(x: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    return x.transpose(1, 2).unflatten(2, (side, side))


def larger(x: torch.Tensor, factor: int) -> torch.Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class TaskExpert(nn.Module):
    """Features of several experts, which gates of each task mix pixel by pixel (Ye and Xu 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Conv2d(3, WIDTH, 8, 8), Block()
        self.experts = nn.ModuleList([nn.Sequential(conv(WIDTH, 16, 1), conv(16, WIDTH)) for _ in range(3)])
        self.gates = nn.ModuleList([nn.Sequential(nn.Conv2d(WIDTH, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1)) for _ in range(2)])
        self.heads = nn.ModuleList([nn.Conv2d(WIDTH, n, 1) for n in (5, 1)])

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = a_map(self.block(tokens(self.embed(image))))
        every = torch.stack([expert(x) for expert in self.experts], 1)
        outputs = []
        for gate, head in zip(self.gates, self.heads, strict=True):
            weights = gate(x).softmax(1)
            outputs.append(larger(head((every * weights[:, :, None]).sum(1)), 2))
        return tuple(outputs)


class Generalist(nn.Module):
    """GiT: a plain ViT in windows whose tokens are joined with queries of a grid, features sampled at their places; words by
    products with a vocabulary (Wang et al. 2024). One step of its decoding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.words = nn.Conv2d(3, WIDTH, 8, 8), nn.Parameter(torch.randn(20, WIDTH))
        self.task = nn.Parameter(torch.randn(1, 2, WIDTH))
        self.windows, self.all, self.norm = Block(), Block(), nn.LayerNorm(WIDTH)
        self.place = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        at = torch.linspace(-0.75, 0.75, 4)
        self.register_buffer("grid", torch.stack(torch.meshgrid(at, at, indexing="ij"), -1)[None].flip(-1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = tokens(self.embed(image)) + self.place
        w = x.unflatten(1, (2, 4, 2, 4)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        w = self.windows(w)
        x = w.unflatten(0, (-1, 2, 2)).unflatten(3, (4, 4)).transpose(2, 3).flatten(1, 4)
        grid = self.grid.expand(x.shape[0], -1, -1, -1)
        queries = tokens(F.grid_sample(a_map(x), grid, mode="bilinear", align_corners=False))
        every = torch.cat([x, self.task.expand(x.shape[0], -1, -1), queries], 1)
        every = self.norm(self.all(every))
        return every[:, -16:] @ self.words.T


TOKENS = SIDE * SIDE


class ResNas(nn.Module):
    """ViT-ResNAS: where tokens become fewer, a convolution beside a mean, the class token by a layer of its own
    (Liao et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, 16), nn.Conv2d(16, WIDTH, 4, 4))
        self.first, self.second, self.cls = Block(), Block(), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.norm, self.fewer, self.own = nn.LayerNorm(WIDTH), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = tokens(self.stem(image))
        x = self.first(torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1))
        rest, y = a_map(x[:, 1:]), self.norm(x)
        fewer = F.avg_pool2d(rest, 2) + self.fewer(a_map(y[:, 1:]))
        x = torch.cat([x[:, :1] + self.own(y[:, :1]), tokens(fewer)], 1)
        return self.head(self.second(x)[:, 0])


class Deformable(nn.Module):
    """Attention of `places` [1, n, 1, 2] (x, y of 0 .. 1) to points around them in several maps (Zhu et al. 2021)."""

    def __init__(self, levels: int, points: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.levels, self.points, self.heads = levels, points, heads
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.offsets, self.weights = (nn.Linear(WIDTH, heads * levels * points * n) for n in (2, 1))

    def forward(self, x: torch.Tensor, places: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        batch, count = x.shape[:2]
        offsets = self.offsets(x).reshape(batch, count, self.heads, self.levels, self.points, 2)
        weights = self.weights(x).reshape(batch, count, self.heads, -1).softmax(-1)
        sampled = []
        for i, m in enumerate(maps):
            height, width = m.shape[2:]
            v = self.value(tokens(m)).transpose(1, 2).reshape(batch * self.heads, -1, height, width)
            scale = torch.tensor([width, height], dtype=torch.float32)
            at = places[:, :, :, None] + offsets[:, :, :, i] / scale  # [B, n, heads, points, 2]
            at = (2 * at - 1).transpose(1, 2).flatten(0, 1)
            sampled.append(F.grid_sample(v, at, mode="bilinear", padding_mode="zeros", align_corners=False))
        weights = weights.transpose(1, 2).reshape(batch * self.heads, 1, count, self.levels * self.points)
        y = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1)
        return self.out(y.reshape(batch, WIDTH, count).transpose(1, 2))


class Comer(nn.Module):
    """ViT-CoMer: a pyramid by convolutions beside the ViT, which exchange by deformable attention over all scales
    (Xia et al. 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.eighth = conv(3, 16, 3, 2), nn.Sequential(conv(16, 16, 3, 2), conv(16, WIDTH, 3, 2))
        self.sixteenth, self.embed = conv(WIDTH, WIDTH, 3, 2), nn.Conv2d(3, WIDTH, 16, 16)
        self.sizes = nn.ModuleList([nn.Conv2d(16, 16, 3 + 2 * i, padding=1 + i, groups=16) for i in range(2)])
        self.enter, self.leave, self.block = Deformable(2), Deformable(1), Block()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])
        self.up = nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2)

    def fields(self, m: torch.Tensor) -> torch.Tensor:
        return m + torch.cat([f(part) for f, part in zip(self.sizes, m.chunk(2, 1), strict=True)], 1)

    def places(self, side: int) -> torch.Tensor:
        at = (torch.arange(side) + 0.5) / side
        return torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).flip(-1).reshape(1, -1, 1, 2)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        one = self.fields(self.eighth(self.stem(image)))
        two = self.fields(self.sixteenth(one))
        x = tokens(self.embed(image))
        x = x + self.enter(self.norms[0](x), self.places(4), [one, two])
        x = self.block(x)
        y = torch.cat([tokens(one), tokens(two)], 1)
        y = y + self.leave(self.norms[1](y), torch.cat([self.places(8), self.places(4)], 1), [a_map(self.norms[2](x), 4)])
        one, two = a_map(y[:, :64]), a_map(y[:, 64:], 4) + a_map(x, 4)
        return self.up(one) + larger(two, 4), two


class BiSeNet(nn.Module):
    """Two paths joined by gates of channels; queries that attend to pixels of their last mask (The revenge of BiSeNet,
    2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.detail = nn.Sequential(conv(3, 16, 3, 2), conv(16, 16, 3, 2), conv(16, WIDTH, 3, 2))
        small = conv(3, 16, 3, 2), nn.MaxPool2d(3, 2, 1)
        self.context = nn.Sequential(*small, conv(16, WIDTH, 3, 2), conv(WIDTH, WIDTH, 3, 2))
        self.refine = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(WIDTH, WIDTH, 1), nn.Sigmoid())
        self.all, self.joined = conv(WIDTH, WIDTH, 1), conv(2 * WIDTH, WIDTH, 1)
        squeeze = nn.AdaptiveAvgPool2d(1), nn.Conv2d(WIDTH, 8, 1), nn.ReLU()
        self.gate = nn.Sequential(*squeeze, nn.Conv2d(8, WIDTH, 1), nn.Sigmoid())
        self.queries, self.norm = nn.Parameter(torch.randn(1, 6, WIDTH)), nn.LayerNorm(WIDTH)
        self.q, self.kv, self.mask, self.classes = (nn.Linear(WIDTH, n) for n in (WIDTH, 2 * WIDTH, WIDTH, 4))
        self.block = Block()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        detail, context = self.detail(image), self.context(image)
        context = context * self.refine(context) + self.all(F.adaptive_avg_pool2d(context, 1))
        x = self.joined(torch.cat([detail, larger(context, 2)], 1))
        x = x + x * self.gate(x)
        pixels = tokens(x)
        queries = self.queries.expand(x.shape[0], -1, -1)
        mask = self.mask(queries) @ pixels.transpose(1, 2)
        k, v = self.kv(pixels).chunk(2, -1)
        scores = self.q(self.norm(queries)) @ k.transpose(1, 2) * WIDTH**-0.5
        closed = mask.sigmoid() < 0.5
        closed = closed & ~closed.all(-1, keepdim=True)
        queries = self.block(queries + scores.masked_fill(closed, float("-inf")).softmax(-1) @ v)
        return self.classes(queries), (self.mask(queries) @ pixels.transpose(1, 2)).unflatten(2, (SIDE, SIDE))


class InterFormer(nn.Module):
    """Features made once; what the user drew is pooled to tokens that attend within reach; a light decoder of several sizes
    (Huang et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Conv2d(3, WIDTH, 8, 8), Block()
        self.drawn, self.block2 = nn.Conv2d(3, WIDTH, 8, 8), Block()
        self.norm, self.local = nn.GroupNorm(4, WIDTH), nn.Sequential(depthwise(3), nn.Hardswish(), nn.Conv2d(WIDTH, WIDTH, 1))
        self.pools = nn.ModuleList([nn.AvgPool2d(n) for n in (2, 4)])
        self.head = nn.Sequential(nn.Conv2d(2 * WIDTH, WIDTH, 1), nn.GroupNorm(4, WIDTH), nn.GELU(), nn.Conv2d(WIDTH, 2, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.block(tokens(self.embed(image)))
        x = x + tokens(self.drawn(image.flip(1)))
        m = self.norm(a_map(x))
        few = torch.cat([tokens(pool(m)) for pool in self.pools], 1)
        y = a_map(self.block2(x, few))
        y = y + self.local(y)
        return larger(self.head(torch.cat([y, larger(F.avg_pool2d(y, 2), 2)], 1)), 4)


class UniFormerV2(nn.Module):
    """Video: each frame through a ViT, with depthwise convolutions over time before; a query gathers all frames
    (Li et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cls = nn.Conv2d(3, WIDTH, 8, 8), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.time = nn.Conv3d(WIDTH, WIDTH, (3, 1, 1), padding=(1, 0, 0), groups=WIDTH)
        self.place = nn.Conv3d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.enter, self.leave, self.block = nn.Conv3d(WIDTH, WIDTH, 1), nn.Conv3d(WIDTH, WIDTH, 1), Block()
        self.query, self.gather, self.head = nn.Parameter(torch.randn(1, 1, WIDTH)), Block(), nn.Linear(WIDTH, CLASSES)
        self.share = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        batch, _, frames = video.shape[:3]
        x = self.embed(video.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)
        x = x + self.leave(self.time(self.enter(x)))  # [B, C, frames, 4, 4]
        x = x.transpose(1, 2).flatten(3).transpose(2, 3).flatten(0, 1)
        x = self.block(torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1))
        rest = x[:, 1:].unflatten(0, (batch, frames)).transpose(2, 3).unflatten(3, (4, 4)).transpose(1, 2)
        rest = (rest + self.place(rest)).flatten(2).transpose(1, 2)
        query = self.gather(self.query.expand(batch, -1, -1), rest)[:, 0]
        mean, share = x[:, 0].unflatten(0, (batch, frames)).mean(1), self.share.sigmoid()
        return self.head((1 - share) * mean + share * query)


class Fuser(nn.Module):
    """LeTFuser: attention on convolved queries, keys and values; then way points, one after another, by a recurrent cell
    (Agand et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.kv = nn.Conv2d(3, WIDTH, 7, 4, 3), depthwise(3), depthwise(3, 2)
        self.block, self.norm, self.join = Block(), nn.LayerNorm(WIDTH), nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU())
        self.cell, self.step = nn.GRUCell(4, 16), nn.Linear(16, 2)
        self.seg = nn.Sequential(nn.Conv2d(WIDTH, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 5, 1))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = a_map(self.norm(tokens(self.embed(image))), 16)
        x = self.block(tokens(self.q(x)), tokens(self.kv(x)))
        state, at, goal, points = self.join(x.mean(1)), x[:, 0, :2] * 0, x.mean(1)[:, :2], []
        for _ in range(3):
            state = self.cell(torch.cat([at, goal], 1), state)
            at = at + self.step(state)
            points.append(at)
        return torch.stack(points, 1), larger(self.seg(a_map(x, 16)), 2)


class Faces(nn.Module):
    """FaceXFormer: maps of several scales joined by an MLP; tokens of tasks and pixels attend to each other both ways; a mask
    of upsampled pixels times tokens (Narayan et al. 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList([nn.Conv2d(3, WIDTH, 4, 4), nn.Conv2d(WIDTH, WIDTH, 2, 2), nn.Conv2d(WIDTH, WIDTH, 2, 2)])
        self.same, self.fuse = nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(3)]), conv(3 * WIDTH, WIDTH, 1)
        self.tasks, self.own, self.ahead, self.back = nn.Parameter(torch.randn(1, 5, WIDTH)), Block(), Block(), Block()
        first = nn.ConvTranspose2d(WIDTH, 16, 2, 2), nn.GroupNorm(1, 16), nn.GELU()
        self.up = nn.Sequential(*first, nn.ConvTranspose2d(16, 8, 2, 2), nn.GELU())
        self.mask, self.pose = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 8)), nn.Linear(WIDTH, 9)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps, x = [], image
        for scale, same in zip(self.scales, self.same, strict=True):
            x = scale(x)
            maps.append(F.interpolate(same(x), size=(16, 16), mode="bilinear", align_corners=False))
        pixels = tokens(self.fuse(torch.cat(maps, 1)))
        t = self.own(self.tasks.expand(image.shape[0], -1, -1))
        t = self.ahead(t, pixels)
        pixels = self.back(pixels, t)
        masks = self.mask(t[:, :3]) @ self.up(a_map(pixels, 16)).flatten(2)
        return masks.unflatten(2, (64, 64)), self.pose(t[:, 3])


class Decathlon(nn.Module):
    """Video Task Decathlon up to what counts boxes: a pyramid, heads of boxes at each scale, masks of all scales joined
    (Huang et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, WIDTH, 3, 4), conv(WIDTH, WIDTH, 3, 2), conv(WIDTH, WIDTH, 3, 2)])
        self.same, self.smooth = (nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, n, padding=n // 2) for _ in range(3)]) for n in (1, 3))
        self.share = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(4, WIDTH), nn.ReLU())
        self.score, self.box, self.seg = nn.Conv2d(WIDTH, 3, 1), nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(WIDTH, 5, 1)
        self.size = nn.Parameter(torch.ones(3))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps, x = [], image
        for stage, same in zip(self.stages, self.same, strict=True):
            x = stage(x)
            maps.append(same(x))
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2, mode="nearest")
        maps = [smooth(m) for smooth, m in zip(self.smooth, maps, strict=True)]
        heads = [self.share(m) for m in maps]
        scores = torch.cat([tokens(self.score(h)) for h in heads], 1)
        boxes = torch.cat([tokens(torch.exp(self.box(h) * s * 0.1)) for h, s in zip(heads, self.size, strict=True)], 1)
        seg = self.seg(maps[0] + larger(maps[1], 2) + larger(maps[2], 4))
        return scores, boxes, larger(seg, 4)


class Diffusion(nn.Module):
    """LaVin-DiT: one step of denoising: latents of a video whose norms are scaled and moved by the time, grouped queries
    (Wang et al. 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.time = nn.Sequential(nn.Linear(16, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.q, self.kv, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate, self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(n)) for n in (WIDTH, WIDTH, 8, 8)])
        self.register_buffer("waves", torch.exp(-torch.arange(8) * 0.8))

    def rms(self, x: torch.Tensor, i: int) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.gains[i]

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        x = self.embed(latents.flatten(2).transpose(1, 2))
        noise = x.mean((1, 2))[:, None] * 3 * self.waves  # stands for the step that it is at, of which the cell is told
        shift, scale, gate, shift2, scale2, gate2 = self.time(torch.cat([noise, noise * 0.5], 1))[:, None].chunk(6, -1)
        y = self.rms(x, 0) * (1 + scale) + shift
        q, (k, v) = self.q(y).unflatten(-1, (4, 8)), self.kv(y).unflatten(-1, (2, 2, 8)).unbind(2)
        q, k, v = self.rms(q, 2).transpose(1, 2), self.rms(k, 3).transpose(1, 2), v.transpose(1, 2)
        k, v = (a.repeat_interleave(2, 1) for a in (k, v))
        y = ((q @ k.transpose(-2, -1)) * 8**-0.5).softmax(-1) @ v
        x = x + gate * self.o(y.transpose(1, 2).flatten(2))
        y = self.rms(x, 1) * (1 + scale2) + shift2
        x = x + gate2 * self.down(F.silu(self.gate(y)) * self.up(y))
        return self.out(x)


class Fused(nn.Module):
    """MCTF: tokens joined by likeness, by what they tell and by their sizes: the best matches between two halves, summed by size
    (Lee et al. 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norms = nn.Conv2d(3, WIDTH, 8, 8), nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])
        self.qkv, self.out = (nn.ModuleList([nn.Linear(WIDTH, n * WIDTH) for _ in range(2)]) for n in (3, 1))
        self.mlp, self.head = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH)), nn.Linear(WIDTH, CLASSES)

    def fused(self, x: torch.Tensor, size: torch.Tensor, told: torch.Tensor, few: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = x[:, ::2], x[:, 1::2]
        like = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(1, 2)
        score = (like + 1) * told[:, ::2, None] * told[:, None, 1::2] / (size[:, ::2] + size[:, 1::2].transpose(1, 2))
        best, to = score.max(-1)
        order = best.argsort(dim=-1, descending=True)
        rest, gone = order[:, few:, None], order[:, :few]
        one = F.one_hot(to.gather(1, gone), TOKENS // 2).to(x.dtype).transpose(1, 2)  # [B, half, few]
        both = torch.cat([x * size, size], 2)
        a, b = both[:, ::2], both[:, 1::2]
        b = b + one @ a.gather(1, gone[..., None].expand(-1, -1, WIDTH + 1))
        both = torch.cat([a.gather(1, rest.expand(-1, -1, WIDTH + 1)), b], 1)
        return both[..., :-1] / both[..., -1:], both[..., -1:]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = tokens(self.embed(image))
        size = torch.ones_like(x[..., :1])
        for i in range(2):
            q, k, v = self.qkv[i](self.norms[i](x)).chunk(3, -1)
            attention = (q @ k.transpose(1, 2) * WIDTH**-0.5 + size.log().transpose(1, 2)).softmax(-1)
            x = x + self.out[i](attention @ v)
            if i == 0:  # what many attend to already tells little
                x, size = self.fused(x, size, 1 - attention.mean(1))
            x = x + self.mlp(self.norms[2](x))
        return self.head(x.mean(1))


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "task_expert": TaskExpert,
    "mctf": Fused,
    "git": Generalist,
    "vit_resnas": ResNas,
    "vit_comer": Comer,
    "bisenet": BiSeNet,
    "interformer": InterFormer,
    "uniformerv2": UniFormerV2,
    "letfuser": Fuser,
    "facexformer": Faces,
    "decathlon": Decathlon,
    "lavin_dit": Diffusion,
}
