# ruff: noqa: E501  # a network a line
"""Whole networks at the size of their papers, with random weights: what `full_size.py` measures beside the shipped ones.

    python tests/bench/exports/whole.py FILE.onnx NAME

NAME is one of those in NETWORKS, or evit_deit_small. It needs torch and transformers, which hwgen does not; without them exit status 2.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

try:
    import torch
    from exporters import EXPORTS, seeded
    from from_transformers import BOXES, MASKS, made
    from torch import nn
except ImportError as error:
    print(f"whole.py: {error}; it needs an environment with torch and transformers", file=sys.stderr)
    sys.exit(2)



class Evit(nn.Module):
    """DeiT-S that goes on with the 70 % of patches which the class token looks at most, and one that holds the others, after
    layers 4, 7 and 10 (Liang et al. 2022)."""

    width, heads, kept, at = 384, 6, 0.7, (3, 6, 9)

    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        d = self.width
        self.patches = nn.Conv2d(3, d, 16, 16)
        self.first, self.places = (nn.Parameter(torch.zeros(1, n, d)) for n in (1, 197))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2 * depth + 1))
        self.qkv, self.out = (nn.ModuleList(nn.Linear(d, n * d) for _ in range(depth)) for n in (3, 1))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)) for _ in range(depth))
        self.head = nn.Linear(d, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.first, x], 1) + self.places
        for i, mlp in enumerate(self.mlp):
            q, k, v = self.qkv[i](self.norms[2 * i](x)).reshape(1, -1, 3, self.heads, self.width // self.heads).permute(2, 0, 3, 1, 4)
            p = (q @ k.transpose(-1, -2) * k.shape[-1] ** -0.5).softmax(-1)
            x = x + self.out[i]((p @ v).transpose(1, 2).reshape(1, -1, self.width))
            if i in self.at:
                x = self.fewer(x, p[:, :, 0, 1:].mean(1))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x)[:, 0])

    def fewer(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        count = x.shape[1] - 1
        scores, order = scores.topk(count, dim=1)
        keep = math.ceil(self.kept * count)
        patches = torch.gather(x[:, 1:], 1, order.unsqueeze(-1).expand(-1, -1, self.width))
        rest = (patches[:, keep:] * scores[:, keep:].unsqueeze(-1)).sum(1, keepdim=True)
        return torch.cat([x[:, :1], patches[:, :keep], rest], 1)


STAGES = ["stage1", "stage2", "stage3", "stage4"]
SMALL = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)


def swin(size: int) -> tuple[str, dict]:
    """Swin-T."""
    shape = dict(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)
    return "Swin", dict(shape, image_size=size, out_features=STAGES)


RESNET18 = ("ResNet", dict(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", out_features=["stage4"]))
DECODER = dict(d_model=256, num_queries=100, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=2048, decoder_ffn_dim=2048, encoder_attention_heads=8, decoder_attention_heads=8)
DETR = dict(DECODER, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None)
NETWORKS = {
    "upernet_swin_t_512": ("UperNetForSemanticSegmentation", "UperNet", dict(hidden_size=512, num_labels=150, use_auxiliary_head=False, parts=dict(backbone_config=swin(512))), (3, 512, 512)),
    "segformer_b0_512x1024": ("SegformerForSemanticSegmentation", "Segformer", dict(num_labels=19), (3, 512, 1024)),
    "dpt_small_384": ("DPTForDepthEstimation", "DPT", dict(SMALL, image_size=384, patch_size=16, backbone_out_indices=[2, 5, 8, 11], neck_hidden_sizes=[48, 96, 192, 384], fusion_hidden_size=64, fields="predicted_depth"), (3, 384, 384)),
    "vivit_small_16f": ("VivitForVideoClassification", "Vivit", dict(SMALL, image_size=224, num_frames=16, tubelet_size=[2, 16, 16], num_labels=400), (16, 3, 224, 224)),
    "detr_r18_512": ("DetrForObjectDetection", "Detr", dict(DETR, parts=dict(backbone_config=RESNET18), fields=BOXES), (3, 512, 512)),
    "maskformer_swin_t_384": ("MaskFormerForInstanceSegmentation", "MaskFormer", dict(parts=dict(backbone_config=swin(384), decoder_config=("Detr", DETR)), fields=MASKS), (3, 384, 384)),
}  # fmt: skip


def main(path: str, name: str) -> int:
    torch.manual_seed(0)
    if name == "evit_deit_small":
        model, shape = Evit(), (3, 224, 224)
    else:
        *names, options, shape = NETWORKS[name]
        model = made(*names, **options)
    EXPORTS["ts17"].write(seeded(model), torch.randn(1, *shape), Path(path))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
