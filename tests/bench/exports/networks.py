"""Vision transformers as people write them: by hand, from timm and from Hugging Face, small enough to run in a second."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import timm
import torch
import torch.nn.functional as F
import transformers
from mixtures import MIXTURES, WIDTH
from torch import nn

HEADS, CLASSES, SIZE, PATCH = 2, 10, 32, 8
GRID = SIZE // PATCH

# --- attention: (block, x [B, T, D]) -> [B, T, D] ----------------------------------------------------------------------


def split(block, x):
    return (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in block.qkv(x).chunk(3, dim=-1))


def one_operator(block, x):
    q, k, v = split(block, x)
    return block.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def products(block, x):
    q, k, v = split(block, x)
    scores = (q @ k.transpose(-2, -1)) * (WIDTH // HEADS) ** -0.5
    return block.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def einsum(block, x):
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in block.qkv(x).chunk(3, dim=-1))
    scores = torch.einsum("bihd,bjhd->bhij", q / math.sqrt(WIDTH // HEADS), k)
    return block.out(torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2))


def batched(block, x):
    """Heads in the batch, softmax written out as exponentials."""
    q, k, v = (part.flatten(0, 1) for part in split(block, x))
    weights = torch.exp(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(WIDTH // HEADS))
    y = torch.bmm(weights / weights.sum(-1, keepdim=True), v)
    return block.out(y.view(-1, HEADS, x.shape[1], WIDTH // HEADS).transpose(1, 2).flatten(2))


def open_mask(block, x):
    """The mask of a tokeniser that pads nothing."""
    q, k, v = split(block, x)
    mask = (1.0 - torch.ones(x.shape[0], 1, 1, x.shape[1])) * -10000.0
    return block.out(((q @ k.transpose(-2, -1) * 0.25 + mask).softmax(-1) @ v).transpose(1, 2).flatten(2))


def module(block, x):
    return block.mha(x, x, x, need_weights=False)[0]


def windows_of_blocks(block, x):
    """Windows of 2 x 2 tokens without a class token, as in ViTDet."""
    side = GRID // 2
    x = x.view(-1, side, 2, side, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, WIDTH)
    x = one_operator(block, x)
    return x.view(-1, side, side, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, GRID * GRID, WIDTH)


def rotary(block, x):
    q, k, v = split(block, x)
    angle = torch.arange(x.shape[1])[:, None] / 100 ** (torch.arange(8) / 8)
    sin, cos = (torch.cat([f(angle)] * 2, -1) for f in (torch.sin, torch.cos))
    q, k = (t * cos + torch.cat([-t[..., 8:], t[..., :8]], -1) * sin for t in (q, k))
    return block.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def written_out_norm(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return norm.weight * centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + norm.eps) + norm.bias


def written_out_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


class Block(nn.Module):
    """Pre-norm block; `mixture` makes the mixture of experts that takes the MLP's place, `gated` makes it a SwiGLU."""

    def __init__(self, attention, mixture=None, act=F.gelu, gated=False, norm=None):
        super().__init__()
        self.attention, self.act, self.gated, self.norm = attention, act, gated, norm or (lambda module, x: module(x))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        if attention is module:
            self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        else:
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        if mixture:
            self.moe = mixture()
        else:
            self.fc1, self.fc2 = nn.Linear(WIDTH, 64 * (2 if gated else 1)), nn.Linear(64, WIDTH)

    def mlp(self, x):
        if hasattr(self, "moe"):
            return self.moe(x)
        hidden = self.fc1(x)
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            return self.fc2(self.act(gate) * value)
        return self.fc2(self.act(hidden))

    def forward(self, x):
        x = x + self.attention(self, self.norm(self.norm1, x))
        return x + self.mlp(self.norm(self.norm2, x))


# --- from the image to tokens, and from tokens to what comes out ---------------------------------------------------------

EMBED: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(3, WIDTH, PATCH, PATCH),
    "batch_norm": lambda: nn.Sequential(nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False), nn.BatchNorm2d(WIDTH)),
    "stem": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, WIDTH, 4, 4)),
    "overlapping": lambda: nn.Conv2d(3, WIDTH, PATCH, PATCH // 2, PATCH // 4),
}
ROWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "unfold": lambda x: F.unfold(x, PATCH, stride=PATCH).transpose(1, 2),
    "unfold_twice": lambda x: (
        x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    ),
    "reshape": lambda x: (
        x.reshape(x.shape[0], 3, GRID, PATCH, GRID, PATCH)
        .permute(0, 2, 4, 3, 5, 1)
        .reshape(x.shape[0], GRID * GRID, -1)
    ),
    "unshuffle": lambda x: F.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2),
}


def sincos(x):
    place = torch.arange(x.shape[1], dtype=torch.float32)[:, None]
    angle = place * torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10000.0) / WIDTH))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[None]


POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "class_token": lambda x: x[:, 0],
    "mean": lambda x: x.mean(dim=1),
    "mean_without_class": lambda x: x[:, 1:].mean(dim=1),
    "adaptive": lambda x: F.adaptive_avg_pool1d(x.transpose(1, 2), 1).flatten(1),
    "sum": lambda x: x.sum(1) / x.shape[1],
    "tokens": lambda x: x,
    "max": lambda x: x.max(1)[0],
}


class Vit(nn.Module):
    def __init__(self, attention=one_operator, embed="conv", pool="class_token", sines=False, prefix=1, **block):
        super().__init__()
        self.rows, self.pool, self.sines = ROWS.get(embed), POOLS[pool], sines
        self.embed = nn.Linear(3 * PATCH * PATCH, WIDTH) if self.rows else EMBED[embed]()
        self.prefix = nn.Parameter(torch.zeros(1, prefix, WIDTH))
        self.position = None if sines else nn.Parameter(torch.zeros(1, prefix + self.patches(), WIDTH))
        mixture = block.pop("mixture", None)
        self.blocks = nn.ModuleList([Block(attention, **block), Block(attention, mixture, **block)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def tokens(self, image):
        return self.embed(self.rows(image)) if self.rows else self.embed(image).flatten(2).transpose(1, 2)

    def patches(self):
        with torch.no_grad():
            return self.eval().tokens(torch.zeros(1, 3, SIZE, SIZE)).shape[1]

    def forward(self, image):
        x = self.tokens(image)
        if self.prefix.shape[1]:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1)
        x = x + (sincos(x) if self.sines else self.position)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(self.norm(x)))


# --- timm and Hugging Face ---------------------------------------------------------------------------------------------


def from_timm(name, fused=True, **options):
    """`fused`: attention as one operator, which TorchScript cannot export everywhere; else step by step."""
    small = dict(img_size=SIZE, patch_size=PATCH, embed_dim=96, depth=2, num_heads=3, num_classes=CLASSES)
    model = timm.create_model(name, **{**small, **options})
    for part in model.modules():
        if not fused and hasattr(part, "fused_attn"):
            part.fused_attn = False
    return model


def windows(**options):
    """Shifted windows with relative positions."""
    sizes = dict(patch_size=4, window_size=4, embed_dim=32, depths=(2, 2), num_heads=(1, 2), num_classes=CLASSES)
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=SIZE, **{**sizes, **options})


class Part(nn.Module):
    """One field of what a Hugging Face model gives."""

    def __init__(self, model, field):
        super().__init__()
        self.model, self.field = model, field

    def forward(self, image):
        return getattr(self.model(image), self.field)


def from_transformers(model, config, field="logits", attention="sdpa", **options):
    small = dict(image_size=SIZE, patch_size=PATCH, hidden_size=96, num_hidden_layers=2, num_attention_heads=3)
    settings = getattr(transformers, config)(**small, num_labels=CLASSES, **{"intermediate_size": 192, **options})
    return Part(getattr(transformers, model)._from_config(settings, attn_implementation=attention), field)


TINY, DINO = "vit_tiny_patch16_224", "vit_small_patch14_dinov2"
TIMM = {
    "vit": (TINY, {}),
    "vit_average": (TINY, dict(global_pool="avg")),
    "vit_no_class_token": (TINY, dict(global_pool="avg", class_token=False)),
    "vit_registers": (TINY, dict(reg_tokens=4, no_embed_class=True, init_values=1e-5)),
    "vit_dense": (TINY, dict(global_pool="", num_classes=0)),
    "vit_pre_norm": (TINY, dict(pre_norm=True)),
    "vit_no_bias": (TINY, dict(qkv_bias=False)),
    "vit_dynamic_size": (TINY, dict(dynamic_img_size=True)),
    "vit_norm_of_queries": (TINY, dict(qk_norm=True)),
    "vit_attention_pool": (TINY, dict(global_pool="map")),
    "deit": ("deit_tiny_patch16_224", {}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "dinov2": (DINO, {}),
    "dinov2_swiglu": ("vit_giant_patch14_dinov2", {}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "beit": ("beit_base_patch16_224", {}),
    "parallel": ("vit_small_patch16_18x2_224", {}),
    "relative_position": ("vit_relpos_small_patch16_224", {}),
    "eva02": ("eva02_tiny_patch14_224", {}),
    "eva02_small": ("eva02_small_patch14_224", {}),
    "eva02_norm_inside": ("eva02_base_patch14_224", {}),
    "eva02_packed": ("eva02_tiny_patch14_224", dict(qkv_fused=True)),
    "eva02_eager": ("eva02_small_patch14_224", dict(fused=False)),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "dinov3_qkv_bias": ("vit_small_patch16_dinov3_qkvb", {}),
    "dinov3_eager": ("vit_small_patch16_dinov3", dict(fused=False)),
    "cait": ("cait_xxs24_224", {}),
}
TRANSFORMERS = {
    "vit": ("ViTForImageClassification", "ViTConfig", {}),
    "vit_eager": ("ViTForImageClassification", "ViTConfig", dict(attention="eager")),
    "vit_tokens": ("ViTModel", "ViTConfig", dict(field="last_hidden_state")),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {}),
    "deit_teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {}),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", dict(mlp_ratio=2)),
    "dinov2_swiglu": ("Dinov2ForImageClassification", "Dinov2Config", dict(mlp_ratio=2, use_swiglu_ffn=True)),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", dict(field="last_hidden_state")),
    "dinov3_gated": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        dict(field="last_hidden_state", use_gated_mlp=True, hidden_act="silu"),
    ),
    "beit": ("BeitForImageClassification", "BeitConfig", {}),
    "clip": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", dict(field="image_embeds", projection_dim=64)),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", dict(field="last_hidden_state")),
}
ATTENTIONS = (one_operator, products, einsum, batched, open_mask, module, rotary)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"timm_{name}": partial(from_timm, model, **options) for name, (model, options) in TIMM.items()},
    "timm_swin": windows,
    "timm_swin_one_stage": partial(windows, depths=(2,), num_heads=(2,)),
    **{f"hf_{name}": partial(from_transformers, *names, **options) for name, (*names, options) in TRANSFORMERS.items()},
    **{f"attention_{attention.__name__}": partial(Vit, attention) for attention in ATTENTIONS},
    "attention_windows": partial(Vit, windows_of_blocks, pool="mean", prefix=0),
    **{f"embed_{embed}": partial(Vit, embed=embed) for embed in (*EMBED, *ROWS)},
    **{f"pool_{pool}": partial(Vit, pool=pool) for pool in POOLS},
    "position_sines": partial(Vit, sines=True),
    "mlp_silu": partial(Vit, act=F.silu),
    "mlp_relu": partial(Vit, act=F.relu),
    "mlp_quick_gelu": partial(Vit, act=lambda x: x * torch.sigmoid(1.702 * x)),
    "mlp_written_out": partial(Vit, act=written_out_gelu, norm=written_out_norm),
    "mlp_swiglu": partial(Vit, act=F.silu, gated=True),
    **{name: partial(Vit, mixture=mixture) for name, mixture in MIXTURES.items()},
}
