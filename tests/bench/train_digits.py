"""Trains the hierarchical and the hybrid example network on scikit-learn's digits and writes them as ONNX.

    python tests/bench/train_digits.py FOLDER

It needs torch and scikit-learn, which hwgen does not. The test images of `hwgen example` are left out of training. What it
writes ships in hwgen/example/assets as swin_digits.onnx and hybrid_digits.onnx; seeds are fixed, but another version of torch
may round otherwise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

ASSETS = Path(__file__).parents[2] / "hwgen" / "example" / "assets"
EPOCHS = 100


class WindowAttention(nn.Module):
    """Attention within windows of a map, the map rolled by `shift` before and back after it (Swin, Liu et al. 2021)."""

    def __init__(self, dim: int, heads: int, size: int, window: int, shift: int):
        super().__init__()
        self.heads, self.size, self.window, self.shift = heads, size, window, shift
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        distance = (at[:, :, None] - at[:, None, :]) + window - 1
        self.register_buffer("index", distance[0] * (2 * window - 1) + distance[1])
        region = torch.zeros(size, size)
        cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None)) if shift else (slice(None),)
        for i, rows in enumerate(cuts):
            for j, columns in enumerate(cuts):
                region[rows, columns] = 3 * i + j
        region = self.cut(region[None, :, :, None])[:, :, 0]
        self.register_buffer("mask", -100.0 * (region[:, None, :] != region[:, :, None]).float())

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        n, w = self.size // self.window, self.window
        return x.reshape(-1, n, w, n, w, x.shape[-1]).transpose(2, 3).reshape(-1, w * w, x.shape[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, H, W, C]
        n, w, c = self.size // self.window, self.window, x.shape[-1]
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = self.cut(x)
        q, k, v = self.qkv(x).reshape(-1, w * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1)
        scores = scores + self.table[self.index.flatten()].reshape(w * w, w * w, self.heads).permute(2, 0, 1)
        if self.shift:
            scores = scores.reshape(-1, n * n, self.heads, w * w, w * w) + self.mask[:, None]
            scores = scores.reshape(-1, self.heads, w * w, w * w)
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, c))
        x = x.reshape(-1, n, n, w, w, c).transpose(2, 3).reshape(-1, self.size, self.size, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class SwinBlock(nn.Module):
    def __init__(self, dim: int, heads: int, size: int, shift: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, size, 4, shift)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """Two stages: 8 x 8 tokens of overlapping patches in windows of 4 x 4, plain and shifted; merged two by two, 4 x 4 tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 32, 3, 1, 1)
        self.norm = nn.LayerNorm(32)
        self.stage1 = nn.Sequential(SwinBlock(32, 2, 8, 0), SwinBlock(32, 2, 8, 2))
        self.merge_norm, self.merge = nn.LayerNorm(128), nn.Linear(128, 64, bias=False)
        self.stage2 = nn.Sequential(SwinBlock(64, 4, 4, 0), SwinBlock(64, 4, 4, 0))
        self.last, self.head = nn.LayerNorm(64), nn.Linear(64, 10)
        self.position = nn.Parameter(torch.zeros(1, 8, 8, 32))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(image).permute(0, 2, 3, 1)) + self.position
        x = self.stage1(x)
        x = torch.cat([x[:, a::2, b::2] for b in range(2) for a in range(2)], -1)
        x = self.stage2(self.merge(self.merge_norm(x)))
        return self.head(self.last(x).mean((1, 2)))


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1, depthwise 3x3, 1x1 (MobileNetV2, Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        hidden = 2 * inputs
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.SiLU()),
            *(nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.SiLU()),
            *(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class Block(nn.Module):
    """A transformer's block on the pixels of a map."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, T, C]
        c = x.shape[-1]
        q, k, v = self.qkv(self.norm1(x)).reshape(-1, x.shape[1], 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.softmax(q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1), -1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(-1, x.shape[1], c))
        return x + self.mlp(self.norm2(x))


class Hybrid(nn.Module):
    """Convolutions, then attention on the 4 x 4 map that they leave, joined by a 3x3 convolution (MobileViT, Mehta 2022)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.convs = nn.Sequential(MBConv(16, 16, 1), MBConv(16, 32, 2))
        self.local = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU())
        self.blocks, self.norm = nn.Sequential(Block(32, 2), Block(32, 2)), nn.LayerNorm(32)
        self.fuse = nn.Sequential(nn.Conv2d(64, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU())
        self.last = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.SiLU())
        self.head = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.convs(self.stem(image))
        y = self.local(x)
        tokens = self.norm(self.blocks(y.flatten(2).transpose(1, 2)))
        y = tokens.transpose(1, 2).reshape(-1, 32, 4, 4)
        x = self.last(self.fuse(torch.cat((x, y), 1)))
        return self.head(x.mean((2, 3)))


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(training images, labels, test images, labels), normalised as the shipped ones are."""
    test = np.load(ASSETS / "digits_test.npz")
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    shipped = test["image"]
    # The shipped images are those of scikit-learn, shifted and scaled: two numbers tell which.
    step = (shipped.max() - shipped.min()) / 16
    images = images * step + shipped.min()
    known = {np.round(image, 3).tobytes() for image in shipped}
    rest = np.array([np.round(image, 3).tobytes() not in known for image in images])
    if (~rest).sum() < len(shipped):
        raise SystemExit(f"only {(~rest).sum()} of {len(shipped)} test images are among scikit-learn's")
    parts = images[rest], digits.target[rest], shipped, test["label_digit"].astype(np.int64)
    return tuple(torch.from_numpy(np.ascontiguousarray(p)) for p in parts)


def train(net: nn.Module, seed: int) -> float:
    """Accuracy on the test images after EPOCHS over the others, shifted by up to a pixel."""
    images, labels, test_images, test_labels = data()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for _ in range(EPOCHS):
        net.train()
        for part in torch.randperm(len(images), generator=generator).split(64):
            dy, dx = torch.randint(-1, 2, (2,), generator=generator).tolist()
            x = torch.roll(F.pad(images[part], (1, 1, 1, 1), value=float(images.min())), (dy, dx), (2, 3))[:, :, 1:-1, 1:-1]
            loss = F.cross_entropy(net(x), labels[part], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        return float((net(test_images).argmax(1) == test_labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, kind, seed in (("swin_digits", Swin, 1), ("hybrid_digits", Hybrid, 2)):
        torch.manual_seed(seed)
        net = kind()
        accuracy = train(net, seed)
        size = sum(p.numel() for p in net.parameters())
        print(f"{name}: {size:,} parameters, {accuracy:.1%} of the test images")
        axes = {"image": {0: "n"}, "digit": {0: "n"}}
        torch.onnx.export(
            net,
            (torch.zeros(2, 1, 8, 8),),
            str(folder / f"{name}.onnx"),
            input_names=["image"],
            output_names=["digit"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )


if __name__ == "__main__":
    main()
