# ruff: noqa: E501  # a network a line
"""Micro forms of timm's families: the structure of the published network, a few narrow layers, images of 64 x 64."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import timm
from torch import nn

CLASSES, SIZE = 10, 64


def named(name: str, sized: bool = False, prepare: str = "", inside: bool = False, **options: Any) -> nn.Module:
    """A model of timm by name. sized: its size is an argument. prepare: a method that makes the deployed form of it.

    inside: the options replace those that the function of that name gives to the model's class.
    """
    if sized:
        options.setdefault("img_size", SIZE)
    options = {"num_classes": CLASSES, **options}
    if inside:
        module = sys.modules[timm.model_entrypoint(name).__module__]
        build = module.build_model_with_cfg
        with mock.patch.object(module, "build_model_with_cfg", lambda *a, **k: build(*a, **{**k, **options})):
            model = timm.create_model(name)
    else:
        model = timm.create_model(name, **options)
    if prepare:
        for part in [*model.modules()]:
            if part is not model and hasattr(part, prepare):
                getattr(part, prepare)()
    return model


def mvit(**options: Any) -> nn.Module:
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    cfg = MultiScaleVitCfg(depths=(1, 1, 2, 1), embed_dim=32, num_heads=1, **options)
    return MultiScaleVit(cfg, img_size=(SIZE, SIZE), num_classes=CLASSES)


INSIDE = dict(inside=True, depths=(1, 1, 2, 1))
F4 = dict(depths=(1, 1, 2, 1))
W4 = (32, 48, 64, 96)
VIT = dict(sized=True, patch_size=16, embed_dim=64, depth=2, num_heads=2)
MAXXVIT = dict(sized=True, embed_dim=(32, 64, 64, 96), depths=(1, 1, 1, 1))
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "aimv2": ("aimv2_large_patch14_224", VIT),
    "beit": ("beit_base_patch16_224", VIT),
    "beitv2": ("beitv2_base_patch16_224", VIT),
    "caformer": ("caformer_s18", dict(INSIDE, dims=W4)),
    "convformer": ("convformer_s18", dict(INSIDE, dims=W4)),
    "poolformer": ("poolformer_s12", dict(INSIDE, dims=W4)),
    "poolformerv2": ("poolformerv2_s12", dict(INSIDE, dims=W4)),
    "cait": ("cait_xxs24_224", VIT),
    "coat_lite": ("coat_lite_mini", dict(sized=True, embed_dims=(32, 64, 64, 96), serial_depths=(1, 1, 1, 1), num_heads=8)),
    "coat": ("coat_mini", dict(sized=True, embed_dims=(64,) * 4, serial_depths=(1, 1, 1, 1), parallel_depth=1, num_heads=8)),
    "coatnet": ("coatnet_0_224", MAXXVIT),
    "coatnet_rw": ("coatnet_nano_rw_224", MAXXVIT),
    "coatnet_rmlp": ("coatnet_rmlp_nano_rw_224", MAXXVIT),
    "coatnet_cc": ("coatnet_nano_cc_224", MAXXVIT),
    "coatnext": ("coatnext_nano_rw_224", dict(MAXXVIT, embed_dim=(64, 64, 128, 128))),
    "maxvit": ("maxvit_tiny_tf_224", MAXXVIT),
    "maxvit_rw": ("maxvit_nano_rw_256", MAXXVIT),
    "maxvit_rmlp": ("maxvit_rmlp_nano_rw_256", MAXXVIT),
    "maxxvit": ("maxxvit_rmlp_nano_rw_256", dict(MAXXVIT, embed_dim=(64, 64, 128, 128))),
    "convit": ("convit_tiny", dict(sized=True, embed_dim=64, depth=3, num_heads=2, local_up_to_layer=2)),
    "convmixer": ("convmixer_768_32", dict(inside=True, dim=48, depth=2, kernel_size=5, patch_size=4)),
    "convnext": ("convnext_tiny", dict(F4, dims=W4)),
    "convnext_ols": ("convnext_atto_ols", dict(F4, dims=W4)),
    "convnext_rms": ("convnext_atto_rms", dict(F4, dims=W4)),
    "convnextv2": ("convnextv2_atto", dict(F4, dims=W4)),
    "crossvit": ("crossvit_9_240", dict(sized=True, img_scale=(1.0, 1.0), patch_size=(8, 16), embed_dim=(32, 64), depth=((1, 1, 0),) * 2, num_heads=(2, 2))),
    "crossvit_dagger": ("crossvit_9_dagger_240", dict(img_size=240, embed_dim=(32, 64), depth=((1, 1, 0),), num_heads=(2, 2))),
    "cpubone": ("cpubone_b0_bfrobust", dict()),
    "csatv2": ("csatv2", dict(img_size=None)),
    "davit": ("davit_tiny", dict(depths=(1, 1, 2, 1), embed_dims=W4, num_heads=(2, 2, 2, 2), window_size=4)),
    "davit_fl": ("davit_base_fl", dict(depths=(1, 1, 2, 1), embed_dims=W4, num_heads=(2, 2, 2, 2), window_size=4)),
    "deepseek": ("deepseek_vit_412m", dict(img_size=84, embed_dim=64, depth=2, num_heads=2)),
    "deit3": ("deit3_small_patch16_224", VIT),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "edgenext": ("edgenext_small", dict(depths=(1, 1, 2, 1), dims=W4, heads=(2, 2, 2, 2))),
    "edgenext_rw": ("edgenext_small_rw", dict(depths=(1, 1, 2, 1), dims=(64, 64, 64, 64), heads=(2, 2, 2, 2))),
    "efficientformer": ("efficientformer_l1", dict(F4, img_size=224, embed_dims=W4, num_vit=1)),
    "efficientformerv2": ("efficientformerv2_s0", dict(sized=True, depths=(1, 1, 2, 2), embed_dims=W4, num_vit=1, mlp_ratios=((4,), (4,), (4, 4), (4, 4)))),
    "efficientvim": ("efficientvim_m1", dict(embed_dim=(32, 48, 64), depths=(1, 1, 1))),
    "efficientvit_mit": ("efficientvit_b0", dict()),
    "efficientvit_mit_l": ("efficientvit_l1", dict(widths=(16, 32, 48, 64, 96), depths=(1, 1, 1, 2, 2), head_widths=(96, 96))),
    "efficientvit_msra": ("efficientvit_m0", dict(img_size=128, embed_dim=(32, 48, 64), depth=(1, 2, 2), key_dim=(16, 16, 16), num_heads=(2, 2, 2))),
    "eva": ("eva_giant_patch14_224", VIT),
    "eva02": ("eva02_tiny_patch14_224", VIT),
    "rope_vit": ("vit_small_patch16_rope_224", VIT),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", VIT),
    "rope_reg": ("vit_medium_patch16_rope_reg1_gap_256", VIT),
    "pe_core": ("vit_pe_core_tiny_patch16_384", VIT),
    "pe_spatial": ("vit_pe_spatial_tiny_patch16_512", VIT),
    "dinov3": ("vit_small_patch16_dinov3", VIT),
    "fasternet": ("fasternet_t0", dict(F4, embed_dim=32)),
    "fastvit_t": ("fastvit_t8", dict(layers=(1, 1, 1, 1), embed_dims=(32, 64, 64, 128))),
    "fastvit_s": ("fastvit_sa12", dict(layers=(1, 1, 1, 1), embed_dims=(32, 32, 64, 64))),
    "fastvit_t_deployed": ("fastvit_t8", dict(layers=(1, 1, 1, 1), embed_dims=(32, 64, 64, 128), prepare="reparameterize")),
    "fastvit_mci": ("fastvit_mci0", dict(layers=(1, 1, 1, 1), embed_dims=(32, 32, 64, 64))),
    "focalnet": ("focalnet_tiny_srf", dict(INSIDE, embed_dim=32)),
    "focalnet_lrf": ("focalnet_tiny_lrf", dict(INSIDE, embed_dim=32)),
    "gcvit": ("gcvit_xxtiny", dict(inside=True, sized=True, depths=(1, 1, 1, 1), embed_dim=32, num_heads=(2, 2, 2, 2))),
    "gemma4": ("gemma4_vit_167m", dict(img_size=96, embed_dim=64, depth=2, num_heads=2, head_dim=32, intermediate_size=128)),
    "ghostnetv2": ("ghostnetv2_100", dict()),
    "hgnet": ("hgnetv2_b0", dict()),
    "hiera": ("hiera_tiny_224", dict(img_size=(SIZE, SIZE), embed_dim=32, stages=(1, 1, 2, 1), q_pool=2, mask_unit_size=(4, 4))),
    "hiera_abswin": ("hiera_small_abswin_256", dict(img_size=(128, 128), embed_dim=32, stages=(1, 1, 2, 1))),
    "iformer": ("iformer_t", dict(depths=(1, 1, 4, 3), attn_groups=(0, 0, 1, 1), dims=W4)),
    "inception_next": ("inception_next_atto", dict(F4, dims=W4)),
    "levit": ("levit_128s", dict(sized=True, embed_dim=(32, 48, 64), key_dim=16, depth=(1, 1, 1), num_heads=(2, 3, 4))),
    "levit_conv": ("levit_conv_128s", dict(sized=True, embed_dim=(32, 48, 64), key_dim=16, depth=(1, 1, 1), num_heads=(2, 3, 4))),
    "levit_conv_256d": ("levit_conv_256d", dict(sized=True, embed_dim=(32, 48, 64), key_dim=16, depth=(1, 1, 1), num_heads=(2, 3, 4))),
    "lowformer": ("lowformer_b0", dict()),
    "mambaout": ("mambaout_femto", dict(F4, dims=W4)),
    "mambaout_rw": ("mambaout_base_short_rw", dict(F4, dims=W4)),
    "mobilenetv4_hybrid": ("mobilenetv4_hybrid_medium", dict()),
    "mobilevit": ("mobilevit_xxs", dict()),
    "mobilevitv2": ("mobilevitv2_050", dict()),
    "naflexvit": ("naflexvit_base_patch16_gap", dict(sized=True, embed_dim=64, depth=2, num_heads=2)),
    "naflexvit_map": ("naflexvit_base_patch16_map", dict(sized=True, embed_dim=64, depth=2, num_heads=2)),
    "naflexvit_siglip": ("naflexvit_base_patch16_siglip", dict(sized=True, embed_dim=64, depth=2, num_heads=2)),
    "nest": ("nest_tiny", dict(inside=True, sized=True, embed_dims=(32, 48, 64), num_heads=(2, 2, 2), depths=(1, 1, 1))),
    "nest_jx": ("nest_tiny_jx", dict(inside=True, img_size=64, embed_dims=(32, 48, 64), num_heads=(2, 2, 2), depths=(1, 1, 1))),
    "nextvit": ("nextvit_small", dict(stem_chs=(16, 16, 32), depths=(1, 2, 5, 1))),
    "pit": ("pit_ti_224", dict(sized=True, base_dims=(32, 32, 32), depth=(1, 1, 1), heads=(1, 2, 4))),
    "pit_distilled": ("pit_ti_distilled_224", dict(sized=True, base_dims=(32, 32, 32), depth=(1, 1, 1), heads=(1, 2, 4))),
    "pvt_v2": ("pvt_v2_b0", dict(F4, embed_dims=W4, num_heads=(1, 2, 2, 4))),
    "pvt_v2_linear": ("pvt_v2_b2_li", dict(F4, embed_dims=W4, num_heads=(1, 2, 2, 4))),
    "qwen3": ("qwen3_vit_88m", dict(img_size=64, embed_dim=64, depth=2, num_heads=2)),
    "rdnet": ("rdnet_tiny", dict(growth_rates=(16, 24, 32, 32), num_blocks_list=(2, 2, 2, 2), block_type=("Block", "BlockESE", "BlockESE", "BlockESE"), is_downsample_block=(None, True, True, True), num_init_features=32)),
    "repvit": ("repvit_m0_9", dict(sized=True, embed_dim=W4, depth=(1, 1, 2, 1))),
    "repvit_deployed": ("repvit_m0_9", dict(sized=True, embed_dim=W4, depth=(1, 1, 2, 1), prepare="fuse")),
    "samvit": ("samvit_base_patch16", dict(img_size=128, embed_dim=64, depth=2, num_heads=2, window_size=4, global_attn_indexes=(1,))),
    "sequencer": ("sequencer2d_s", dict(sized=True, layers=(1, 1, 1, 1), embed_dims=(32, 48, 48, 48), hidden_sizes=(8, 12, 12, 12))),
    "shvit": ("shvit_s1", dict(img_size=None, embed_dim=(32, 48, 64), partial_dim=(8, 12, 16), depth=(1, 2, 2), types=("i", "s", "s"))),
    "starnet": ("starnet_s1", dict(base_dim=16, depths=(1, 1, 2, 1))),
    "swiftformer": ("swiftformer_xs", dict(layers=(1, 1, 1, 1), embed_dims=(32, 64, 64, 128))),
    "swin": ("swin_tiny_patch4_window7_224", dict(sized=True, window_size=4, embed_dim=32, depths=(2, 2, 2), num_heads=(1, 2, 2))),
    "swin_s3": ("swin_s3_tiny_224", dict(sized=True, window_size=(4, 4, 2), embed_dim=32, depths=(2, 2, 2), num_heads=(1, 2, 2))),
    "swinv2": ("swinv2_tiny_window8_256", dict(sized=True, window_size=4, embed_dim=32, depths=(2, 2, 2), num_heads=(1, 2, 2))),
    "swinv2_cr": ("swinv2_cr_tiny_224", dict(sized=True, window_size=4, embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 2))),
    "swinv2_cr_ns": ("swinv2_cr_tiny_ns_224", dict(sized=True, window_size=4, embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 2))),
    "relpos_mlp": ("vit_relpos_small_patch16_224", VIT),
    "relpos_bias": ("vit_relpos_base_patch32_plus_rpn_256", VIT),
    "srelpos": ("vit_srelpos_small_patch16_224", VIT),
    "relpos_cls": ("vit_relpos_base_patch16_cls_224", VIT),
    "tiny_vit": ("tiny_vit_5m_224", dict(F4, embed_dims=W4, num_heads=(1, 2, 2, 3), window_sizes=(4, 4, 4, 2))),
    "tnt": ("tnt_s_patch16_224", dict(sized=True, embed_dim=64, inner_dim=24, depth=2, num_heads_inner=2, num_heads_outer=2)),
    "tnt_legacy": ("tnt_s_legacy_patch16_224", dict(sized=True, embed_dim=64, inner_dim=24, depth=2, num_heads_inner=2, num_heads_outer=2)),
    "twins_pcpvt": ("twins_pcpvt_small", dict(sized=True, embed_dims=W4, num_heads=(1, 2, 2, 4), depths=(1, 1, 1, 1))),
    "twins_svt": ("twins_svt_small", dict(sized=True, embed_dims=W4, num_heads=(1, 2, 2, 4), depths=(2, 2, 2, 2), wss=(4, 4, 4, 2))),
    "visformer": ("visformer_tiny", dict(sized=True, init_channels=16, embed_dim=64, depth=(1, 1, 1), num_heads=2)),
    "volo": ("volo_d1_224", dict(inside=True, sized=True, layers=(1, 1, 1, 1), embed_dims=(32, 64, 64, 64), num_heads=(2, 2, 2, 2))),
    "xcit": ("xcit_tiny_12_p16_224", dict(sized=True, embed_dim=64, depth=2, num_heads=2)),
    "mixer": ("mixer_s16_224", dict(inside=True, sized=True, num_blocks=2, embed_dim=64)),
    "gmixer": ("gmixer_12_224", dict(inside=True, sized=True, num_blocks=2, embed_dim=64)),
    "gmlp": ("gmlp_s16_224", dict(inside=True, sized=True, num_blocks=2, embed_dim=64)),
    "resmlp": ("resmlp_12_224", dict(inside=True, sized=True, num_blocks=2, embed_dim=64)),
    "vit_resnet": ("vit_tiny_r_s16_p8_224", dict(sized=True, embed_dim=64, depth=2, num_heads=2)),
    "vitamin": ("vitamin_small_224", dict(sized=True, depth=2)),
    "vit_mci": ("vit_base_mci_224", dict(sized=True, depth=1)),
    "vit_gap": ("vit_tiny_patch16_224", dict(VIT, global_pool="avg")),
    "vit_reg4": ("vit_medium_patch16_reg4_gap_256", VIT),
    "vit_so150m": ("vit_so150m_patch16_reg4_map_256", VIT),
    "vit_parallel": ("vit_small_patch16_36x1_224", VIT),
    "vit_ppp": ("vit_base_patch16_plus_clip_240", VIT),
    "siglip": ("vit_base_patch16_siglip_224", VIT),
    "flexivit": ("flexivit_small", VIT),
    "botnet": ("botnet26t_256", dict(img_size=128)),
    "halonet": ("halonet26t", dict(img_size=256)),
    "sebotnet": ("eca_botnext26ts_256", dict(img_size=128)),
    "lambda": ("lambda_resnet26rpt_256", dict(img_size=128)),
    "lamhalobotnet": ("lamhalobotnet50ts_256", dict(img_size=128)),
}
TESTS = tuple(name for name in timm.list_models("test_*"))

TIMM_SYSTEMS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(named, model, **options) for name, (model, options) in ROWS.items()},
    "mvitv2": partial(mvit),
    "mvitv2_cls": partial(mvit, use_cls_token=True),
    **{name: partial(named, name, img_size=160) for name in TESTS if name.startswith(("test_vit", "test_coat", "test_max"))},
    **{name: partial(named, name) for name in TESTS if not name.startswith(("test_vit", "test_coat", "test_max"))},
}


def shape(maker: Callable[[], nn.Module]) -> tuple[int, ...]:
    """Of the images of a network of `TIMM_SYSTEMS`."""
    size = maker.keywords.get("img_size") or SIZE
    return (3, *size) if isinstance(size, tuple) else (3, size, size)
