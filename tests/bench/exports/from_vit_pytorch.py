# ruff: noqa: E501  # a network a line
"""Micro forms of the models of vit-pytorch, as its documentation makes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

CLASSES, SIZE = 10, 64


def made(module: str, name: str, **options: Any) -> nn.Module:
    return getattr(import_module(f"vit_pytorch.{module}"), name)(num_classes=CLASSES, **options)


def efficient() -> nn.Module:
    """Any transformer in the place of the encoder; here PyTorch's own."""
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
    return made("efficient", "ViT", image_size=SIZE, patch_size=16, dim=32, transformer=nn.TransformerEncoder(layer, 2))


PLAIN = dict(image_size=SIZE, patch_size=16, dim=48, depth=2, heads=2, mlp_dim=96, dim_head=16)
VIDEO = dict(image_size=32, image_patch_size=8, frames=4, frame_patch_size=2, dim=48, heads=2, mlp_dim=96, dim_head=16)
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("vit", "ViT", PLAIN),
    "simple_vit": ("simple_vit", "SimpleViT", PLAIN),
    "ats": ("ats_vit", "ViT", dict(PLAIN, max_tokens_per_depth=(12, 6))),
    "dca_residual": ("attn_residual_with_dca_simple_vit", "SimpleViT", PLAIN),
    "cait": ("cait", "CaiT", dict(PLAIN, cls_depth=1)),
    "cct": ("cct", "CCT", dict(img_size=SIZE, embedding_dim=48, n_conv_layers=2, kernel_size=7, stride=2, padding=3, pooling_kernel_size=3, pooling_stride=2, pooling_padding=1, num_layers=2, num_heads=2, mlp_ratio=2.0, positional_embedding="learnable")),
    "cross_vit": ("cross_vit", "CrossViT", dict(image_size=SIZE, depth=1, sm_dim=32, sm_patch_size=16, sm_enc_depth=1, sm_enc_heads=2, sm_enc_mlp_dim=64, sm_enc_dim_head=16, lg_dim=48, lg_patch_size=32, lg_enc_depth=1, lg_enc_heads=2, lg_enc_mlp_dim=64, lg_enc_dim_head=16, cross_attn_depth=1, cross_attn_heads=2, cross_attn_dim_head=16)),
    "crossformer": ("crossformer", "CrossFormer", dict(dim=(32, 48, 64, 96), depth=(1, 1, 1, 1), global_window_size=(4, 2, 2, 1), local_window_size=(4, 4, 2, 2))),
    "cvt": ("cvt", "CvT", dict(s1_emb_dim=32, s2_emb_dim=48, s2_heads=2, s2_depth=1, s3_emb_dim=64, s3_heads=2, s3_depth=1)),
    "deepvit": ("deepvit", "DeepViT", PLAIN),
    "jet": ("jet_vit", "JetViT", PLAIN),
    "jumbo": ("jumbo_vit", "JumboViT", PLAIN),
    "learnable_memory": ("learnable_memory_vit", "ViT", PLAIN),
    "levit": ("levit", "LeViT", dict(image_size=SIZE, stages=2, dim=(32, 48), depth=1, heads=(2, 2), mlp_mult=2, dim_key=16, dim_value=16)),
    "look_vit": ("look_vit", "LookViT", dict(image_size=SIZE, dim=48, depth=2, heads=2, dim_head=16, patch_size=16, highres_patch_size=8, cross_attn_heads=2, cross_attn_dim_head=16)),
    "looped": ("looped_vit", "LoopedViT", dict(dim=48, image_size=SIZE, patch_size=16, pre_loop_depth=1, num_looped_blocks=1, post_loop_depth=1, loop_depth=2, heads=2, dim_head=16, mlp_dim=96)),
    "max_vit": ("max_vit", "MaxViT", dict(dim=32, depth=(1, 1), dim_head=16, window_size=4, dim_conv_stem=16)),
    "max_vit_registers": ("max_vit_with_registers", "MaxViT", dict(dim=32, depth=(1, 1), dim_head=16, window_size=4, dim_conv_stem=16)),
    "mobile_vit": ("mobile_vit", "MobileViT", dict(image_size=(SIZE, SIZE), dims=(32, 48, 64), channels=(16, 16, 24, 24, 32, 32, 48, 48, 64, 64, 96))),
    "nest": ("nest", "NesT", dict(image_size=SIZE, patch_size=4, dim=32, heads=2, num_hierarchies=3, block_repeats=(1, 1, 1), dim_head=16)),
    "normalized": ("normalized_vit", "nViT", PLAIN),
    "parallel": ("parallel_vit", "ViT", PLAIN),
    "pit": ("pit", "PiT", dict(PLAIN, patch_size=8, depth=(1, 1))),
    "regionvit": ("regionvit", "RegionViT", dict(dim=(32, 48, 64, 96), depth=(1, 1, 1, 1), window_size=2, use_peg=True)),
    "rvt": ("rvt", "RvT", PLAIN),
    "scalable": ("scalable_vit", "ScalableViT", dict(dim=32, heads=(2, 2, 2, 2), depth=(1, 1, 1, 1), reduction_factor=(8, 4, 2, 1), window_size=(8, 4, None, None))),
    "sep": ("sep_vit", "SepViT", dict(dim=32, dim_head=16, heads=(1, 2, 2), depth=(1, 1, 1), window_size=4)),
    "flash": ("simple_flash_attn_vit", "SimpleViT", PLAIN),
    "uvit": ("simple_uvit", "SimpleUViT", PLAIN),
    "simple_vit_3d": ("simple_vit_3d", "SimpleViT", dict(VIDEO, depth=2)),
    "attn_residual": ("simple_vit_attn_residual", "SimpleViTAttnResidual", PLAIN),
    "orthogonal": ("simple_vit_orthog_residual_update", "SimpleViT", PLAIN),
    "fft": ("simple_vit_with_fft", "SimpleViT", dict(PLAIN, freq_patch_size=16)),
    "hyper": ("simple_vit_with_hyper_connections", "SimpleViT", dict(PLAIN, num_residual_streams=2)),
    "patch_dropout": ("simple_vit_with_patch_dropout", "SimpleViT", PLAIN),
    "qk_norm": ("simple_vit_with_qk_norm", "SimpleViT", PLAIN),
    "registers": ("simple_vit_with_register_tokens", "SimpleViT", PLAIN),
    "relative_proj": ("simple_vit_with_relative_proj_pos_bias", "SimpleViT", PLAIN),
    "sparse_gating": ("simple_vit_with_sparse_gating", "SimpleViTWithSparseGating", PLAIN),
    "specialized_cls": ("simple_vit_with_specialized_cls", "SimpleViT", PLAIN),
    "value_residual": ("simple_vit_with_value_residual", "SimpleViT", PLAIN),
    "t2t": ("t2t", "T2TViT", dict(image_size=SIZE, dim=48, depth=2, heads=2, mlp_dim=96, dim_head=16, t2t_layers=((7, 4), (3, 2)))),
    "twins_svt": ("twins_svt", "TwinsSVT", dict(s1_emb_dim=32, s1_local_patch_size=4, s2_emb_dim=48, s2_local_patch_size=4, s3_emb_dim=64, s3_local_patch_size=4, s3_depth=1, s4_emb_dim=96, s4_local_patch_size=2, s4_depth=1, s1_global_k=4, s2_global_k=4, s3_global_k=4, s4_global_k=2)),
    "vit_3d": ("vit_3d", "ViT", dict(VIDEO, depth=2)),
    "vit_5": ("vit_5", "ViT", PLAIN),
    "detpool": ("vit_detpool", "ViTDetPool", PLAIN),
    "small_dataset": ("vit_for_small_dataset", "ViT", PLAIN),
    "vit_nd": ("vit_nd", "ViTND", dict(PLAIN, ndim=2, input_shape=SIZE)),
    "vit_nd_rotary": ("vit_nd_rotary", "ViTND", dict(PLAIN, ndim=2, input_shape=SIZE)),
    "vit_nd_pope": ("vit_nd_pope", "ViTND", dict(PLAIN, ndim=2, input_shape=SIZE)),
    "keel": ("vit_with_keel_post_ln", "ViT", PLAIN),
    "vit_patch_dropout": ("vit_with_patch_dropout", "ViT", PLAIN),
    "patch_merger": ("vit_with_patch_merger", "ViT", dict(PLAIN, depth=3, patch_merge_layer=1, patch_merge_num_tokens=4)),
    "vivit": ("vivit", "ViViT", dict(VIDEO, spatial_depth=1, temporal_depth=1)),
    "vivit_factorised": ("vivit", "ViViT", dict(VIDEO, spatial_depth=1, temporal_depth=1, variant="factorized_self_attention")),
    "wwt": ("wwt", "WWT", dict(image_size=SIZE, patch_size=16, dim=48, depth=2, num_slots=4, heads=2, dim_head=16)),
    "xcit": ("xcit", "XCiT", dict(PLAIN, cls_depth=1)),
}
for _name in ("vit_nd", "vit_nd_rotary", "vit_nd_pope"):
    ROWS[_name][2].pop("image_size")

VIT_PYTORCH_SYSTEMS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(made, *names, **options) for name, (*names, options) in ROWS.items()},
    "efficient": efficient,
}
SHAPES = {"sep": (3, 112, 112), **{name: (3, 4, 32, 32) for name in ("simple_vit_3d", "vit_3d", "vivit", "vivit_factorised")}}
