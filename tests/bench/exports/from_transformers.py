# ruff: noqa: E501  # a network a line
"""Micro forms of the vision models of transformers; a model gives the named fields of its answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

SIZE = 64


class Fields(nn.Module):
    """What a model answers, as tensors."""

    def __init__(self, model: nn.Module, fields: tuple[str, ...], keyword: str | None = None) -> None:
        super().__init__()
        self.model, self.fields, self.keyword = model, fields, keyword

    def forward(self, image: torch.Tensor) -> Any:
        answer = self.model(image) if self.keyword is None else self.model(**{self.keyword: image})
        values = [getattr(answer, field) for field in self.fields]
        values = [value[-1] if isinstance(value, (tuple, list)) else value for value in values]
        return values[0] if len(values) == 1 else tuple(values)


class Segmenter(nn.Module):
    """OneFormer, asked for one task."""

    def __init__(self) -> None:
        super().__init__()
        sizes = dict(conv_dim=32, mask_dim=32, hidden_dim=32, encoder_feedforward_dim=64, dim_feedforward=64, text_encoder_width=32)
        layers = dict(encoder_layers=1, decoder_layers=3, query_dec_layers=1, num_attention_heads=2, num_queries=6, task_seq_len=8)
        settings = config("OneFormer", backbone_config=config(SWIN4[0], **SWIN4[1]), is_training=False, **sizes, **layers)
        self.model = transformers.OneFormerForUniversalSegmentation(settings)

    def forward(self, image: torch.Tensor) -> Any:
        answer = self.model(image, task_inputs=torch.ones(1, 8))
        return answer.class_queries_logits, answer.masks_queries_logits


def config(name: str, **options: Any) -> Any:
    return getattr(transformers, f"{name}Config")(**options)


def made(
    model: str, name: str, fields: str = "logits", attention: str = "", parts: dict[str, Any] | None = None, **options: Any
) -> nn.Module:
    """A model with a configuration. fields: of its answer, divided by blanks. parts: configurations inside of it."""
    parts = {key: config(inner, **settings) for key, (inner, settings) in (parts or {}).items()}
    settings = config(name, **options, **parts)
    if attention:
        settings._attn_implementation = attention
    return Fields(getattr(transformers, model)(settings), tuple(fields.split()))


W4 = [32, 48, 64, 96]
LAST = "last_hidden_state"
PLAIN = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
VIT = dict(PLAIN, intermediate_size=128, image_size=SIZE, patch_size=16)
RATIO = dict(PLAIN, mlp_ratio=2, image_size=SIZE, patch_size=16)
SWIN = dict(image_size=SIZE, embed_dim=32, depths=[2, 2, 2], num_heads=[1, 2, 2], window_size=4)
STAGES = dict(depths=[1, 1, 1, 1], hidden_sizes=W4, num_attention_heads=[1, 2, 2, 3])
RESNET = ("ResNet", dict(embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]))
DETR = dict(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, parts=dict(backbone_config=RESNET), d_model=32, num_queries=6, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=2, decoder_attention_heads=2)
BOXES = "logits pred_boxes"
DINO4 = ("Dinov2", dict(RATIO, patch_size=16, num_hidden_layers=4, out_indices=[1, 2, 3, 4], apply_layernorm=False, reshape_hidden_states=False))
RT = ("RTDetrResNet", dict(embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage2", "stage3", "stage4"]))
RTDETR = dict(parts=dict(backbone_config=RT), encoder_hidden_dim=32, encoder_in_channels=[24, 32, 48], encoder_ffn_dim=64, encoder_attention_heads=2, d_model=32, num_queries=6, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=64, decoder_layers=2, decoder_attention_heads=2, num_denoising=0, anchor_image_size=[SIZE, SIZE], hidden_expansion=0.5)
SWIN4 = ("Swin", dict(image_size=SIZE, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=2, out_features=["stage1", "stage2", "stage3", "stage4"]))
MASKS = "class_queries_logits masks_queries_logits"
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViT", VIT),
    "deit": ("DeiTForImageClassificationWithTeacher", "DeiT", VIT),
    "beit": ("BeitForImageClassification", "Beit", dict(VIT, use_relative_position_bias=True)),
    "beit_shared": ("BeitForImageClassification", "Beit", dict(VIT, use_shared_relative_position_bias=True)),
    "data2vec": ("Data2VecVisionForImageClassification", "Data2VecVision", dict(VIT, use_relative_position_bias=True)),
    "swin": ("SwinForImageClassification", "Swin", SWIN),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2", SWIN),
    "swin2sr": ("Swin2SRForImageSuperResolution", "Swin2SR", dict(image_size=16, embed_dim=36, depths=[2, 2], num_heads=[2, 2], window_size=4, fields="reconstruction")),
    "swin2sr_direct": ("Swin2SRForImageSuperResolution", "Swin2SR", dict(image_size=16, embed_dim=36, depths=[2, 2], num_heads=[2, 2], window_size=4, upsampler="pixelshuffledirect", fields="reconstruction")),
    "dinov2": ("Dinov2Model", "Dinov2", dict(RATIO, fields=LAST)),
    "dinov2_registers": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegisters", RATIO),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViT", dict(VIT, fields=LAST)),
    "dinov3_convnext": ("DINOv3ConvNextModel", "DINOv3ConvNext", dict(hidden_sizes=W4, depths=[1, 1, 1, 1], fields=LAST)),
    "ijepa": ("IJepaForImageClassification", "IJepa", VIT),
    "vit_msn": ("ViTMSNForImageClassification", "ViTMSN", VIT),
    "levit": ("LevitForImageClassification", "Levit", dict(image_size=SIZE, hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[16, 16, 16], down_ops=[["Subsample", 16, 2, 4, 2, 2], ["Subsample", 16, 3, 4, 2, 2]])),
    "mobilevit": ("MobileViTForImageClassification", "MobileViT", dict(image_size=SIZE, hidden_sizes=[32, 48, 64], neck_hidden_sizes=[16, 16, 24, 32, 48, 64, 96])),
    "mobilevit_segmentation": ("MobileViTForSemanticSegmentation", "MobileViT", dict(image_size=SIZE, hidden_sizes=[32, 48, 64], neck_hidden_sizes=[16, 16, 24, 32, 48, 64, 96], aspp_out_channels=32)),
    "mobilevitv2": ("MobileViTV2ForImageClassification", "MobileViTV2", dict(image_size=SIZE, base_attn_unit_dims=[32, 48, 64], n_attn_blocks=[1, 1, 1], width_multiplier=0.5)),
    "cvt": ("CvtForImageClassification", "Cvt", dict(embed_dim=[32, 48, 64], num_heads=[1, 2, 2], depth=[1, 2, 2])),
    "poolformer": ("PoolFormerForImageClassification", "PoolFormer", dict(depths=[1, 1, 1, 1], hidden_sizes=W4)),
    "pvt": ("PvtForImageClassification", "Pvt", dict(STAGES, image_size=SIZE)),
    "pvt_v2": ("PvtV2ForImageClassification", "PvtV2", dict(STAGES, image_size=SIZE)),
    "pvt_v2_linear": ("PvtV2ForImageClassification", "PvtV2", dict(STAGES, image_size=SIZE, linear_attention=True)),
    "segformer": ("SegformerForSemanticSegmentation", "Segformer", dict(STAGES, decoder_hidden_size=32)),
    "segformer_classes": ("SegformerForImageClassification", "Segformer", STAGES),
    "glpn": ("GLPNForDepthEstimation", "GLPN", dict(STAGES, decoder_hidden_size=32, fields="predicted_depth")),
    "dpt": ("DPTForDepthEstimation", "DPT", dict(VIT, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=W4, fusion_hidden_size=32, fields="predicted_depth")),
    "dpt_segmentation": ("DPTForSemanticSegmentation", "DPT", dict(VIT, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=W4, fusion_hidden_size=32, use_batch_norm_in_fusion_residual=True)),
    "upernet": ("UperNetForSemanticSegmentation", "UperNet", dict(hidden_size=32, use_auxiliary_head=False, parts=dict(backbone_config=("ConvNext", dict(hidden_sizes=W4, depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]))))),
    "upernet_swin": ("UperNetForSemanticSegmentation", "UperNet", dict(hidden_size=32, use_auxiliary_head=False, parts=dict(backbone_config=SWIN4))),
    "convnext": ("ConvNextForImageClassification", "ConvNext", dict(hidden_sizes=W4, depths=[1, 1, 1, 1])),
    "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2", dict(hidden_sizes=W4, depths=[1, 1, 1, 1])),
    "focalnet": ("FocalNetForImageClassification", "FocalNet", dict(image_size=SIZE, embed_dim=32, depths=[1, 1, 1], focal_levels=[2, 2, 2], focal_windows=[3, 3, 3])),
    "efficientnet": ("EfficientNetForImageClassification", "EfficientNet", dict(image_size=SIZE, width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640)),
    "bit": ("BitForImageClassification", "Bit", dict(embedding_size=32, hidden_sizes=[32, 64, 64, 96], depths=[1, 1, 1, 1], num_groups=8)),
    "yolos": ("YolosForObjectDetection", "Yolos", dict(VIT, image_size=[SIZE, SIZE], num_detection_tokens=4, fields=BOXES)),
    "detr": ("DetrForObjectDetection", "Detr", dict(DETR, fields=BOXES)),
    "detr_segmentation": ("DetrForSegmentation", "Detr", dict(DETR, d_model=30, fields="logits pred_boxes pred_masks")),
    "conditional_detr": ("ConditionalDetrForObjectDetection", "ConditionalDetr", dict(DETR, fields=BOXES)),
    "table_transformer": ("TableTransformerForObjectDetection", "TableTransformer", dict(DETR, fields=BOXES)),
    "dab_detr": ("DabDetrForObjectDetection", "DabDetr", dict({k: v for k, v in DETR.items() if k != "d_model"}, hidden_size=32, fields=BOXES)),
    "deformable_detr": ("DeformableDetrForObjectDetection", "DeformableDetr", dict(DETR, num_feature_levels=2, fields=BOXES)),
    "deformable_detr_refined": ("DeformableDetrForObjectDetection", "DeformableDetr", dict(DETR, num_feature_levels=2, with_box_refine=True, fields=BOXES)),
    "deformable_detr_two_stage": ("DeformableDetrForObjectDetection", "DeformableDetr", dict(DETR, num_feature_levels=2, with_box_refine=True, two_stage=True, two_stage_num_proposals=6, fields=BOXES)),
    "rt_detr": ("RTDetrForObjectDetection", "RTDetr", dict(RTDETR, fields=BOXES)),
    "rt_detr_v2": ("RTDetrV2ForObjectDetection", "RTDetrV2", dict(RTDETR, fields=BOXES)),
    "d_fine": ("DFineForObjectDetection", "DFine", dict(RTDETR, fields=BOXES)),
    "maskformer": ("MaskFormerForInstanceSegmentation", "MaskFormer", dict(fpn_feature_size=32, mask_feature_size=32, parts=dict(backbone_config=SWIN4, decoder_config=("Detr", {k: v for k, v in DETR.items() if k != "parts"})), fields=MASKS)),
    "mask2former": ("Mask2FormerForUniversalSegmentation", "Mask2Former", dict(feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=64, encoder_layers=1, decoder_layers=3, num_attention_heads=2, dim_feedforward=64, num_queries=6, parts=dict(backbone_config=SWIN4), fields=MASKS)),
    "eomt": ("EomtForUniversalSegmentation", "Eomt", dict(PLAIN, num_hidden_layers=3, num_blocks=1, image_size=SIZE, num_queries=6, fields=MASKS)),
    "mgp_str": ("MgpstrForSceneTextRecognition", "Mgpstr", dict(PLAIN, mlp_ratio=2.0, num_bpe_labels=50, num_wordpiece_labels=40, image_size=[32, 64])),
    "vitpose": ("VitPoseForPoseEstimation", "VitPose", dict(num_labels=5, parts=dict(backbone_config=("VitPoseBackbone", dict(PLAIN, mlp_ratio=2, image_size=[SIZE, 48], patch_size=[16, 16]))), fields="heatmaps")),
    "vitpose_classic": ("VitPoseForPoseEstimation", "VitPose", dict(num_labels=5, use_simple_decoder=False, parts=dict(backbone_config=("VitPoseBackbone", dict(PLAIN, mlp_ratio=2, image_size=[SIZE, 48], patch_size=[16, 16]))), fields="heatmaps")),
    "vitmatte": ("VitMatteForImageMatting", "VitMatte", dict(hidden_size=64, convstream_hidden_sizes=[16, 24, 32], fusion_hidden_sizes=[48, 32, 24, 16], parts=dict(backbone_config=("VitDet", dict(RATIO, num_channels=4, pretrain_image_size=SIZE, residual_block_indices=[1], use_relative_position_embeddings=True, window_block_indices=[0], window_size=2, out_features=["stage2"]))), fields="alphas")),
    "vitdet": ("VitDetModel", "VitDet", dict(RATIO, pretrain_image_size=SIZE, residual_block_indices=[1], use_relative_position_embeddings=True, window_block_indices=[0], window_size=3, fields=LAST)),
    "vivit": ("VivitForVideoClassification", "Vivit", dict(VIT, image_size=32, num_frames=4, tubelet_size=[2, 8, 8])),
    "timesformer": ("TimesformerForVideoClassification", "Timesformer", dict(VIT, image_size=32, patch_size=8, num_frames=2)),
    "timesformer_space": ("TimesformerForVideoClassification", "Timesformer", dict(VIT, image_size=32, patch_size=8, num_frames=2, attention_type="space_only")),
    "videomae": ("VideoMAEForVideoClassification", "VideoMAE", dict(VIT, image_size=32, patch_size=8, num_frames=4)),
    "vjepa2": ("VJEPA2ForVideoClassification", "VJEPA2", dict(PLAIN, mlp_ratio=2.0, crop_size=32, patch_size=16, frames_per_clip=4, num_pooler_layers=1)),
    "clip": ("CLIPVisionModel", "CLIPVision", dict(VIT, fields="pooler_output")),
    "siglip": ("SiglipVisionModel", "SiglipVision", dict(VIT, fields="pooler_output")),
    "blip": ("BlipVisionModel", "BlipVision", dict(VIT, fields="pooler_output")),
    "owlvit": ("OwlViTVisionModel", "OwlViTVision", dict(VIT, fields="pooler_output")),
    "aimv2": ("Aimv2VisionModel", "Aimv2Vision", dict(VIT, fields="pooler_output")),
    "sam": ("SamVisionModel", "SamVision", dict(PLAIN, image_size=SIZE, patch_size=8, window_size=3, global_attn_indexes=[1], output_channels=32, mlp_dim=128, fields=LAST)),
    "depth_anything": ("DepthAnythingForDepthEstimation", "DepthAnything", dict(patch_size=16, reassemble_hidden_size=64, neck_hidden_sizes=W4, fusion_hidden_size=32, head_hidden_size=16, parts=dict(backbone_config=DINO4), fields="predicted_depth")),
    "zoedepth": ("ZoeDepthForDepthEstimation", "ZoeDepth", dict(neck_hidden_sizes=W4, fusion_hidden_size=32, bottleneck_features=32, num_attractors=[4, 2, 2, 1], bin_embedding_dim=16, num_relative_features=16, bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}], parts=dict(backbone_config=("Beit", dict(VIT, num_hidden_layers=4, use_relative_position_bias=True, out_indices=[1, 2, 3, 4], out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False))), fields="predicted_depth")),
    "textnet": ("TextNetForImageClassification", "TextNet", dict(image_size=[SIZE, SIZE], stem_out_channels=16, hidden_sizes=[16, 16, 24, 32, 48])),
    "hiera": ("HieraForImageClassification", "Hiera", dict(embed_dim=32, image_size=[SIZE, SIZE], depths=[1, 1, 2], num_heads=[1, 2, 4], num_query_pool=2, masked_unit_size=[4, 4], masked_unit_attention=[True, True, False])),
    "swiftformer": ("SwiftFormerForImageClassification", "SwiftFormer", dict(image_size=SIZE, depths=[1, 1, 1, 1], embed_dims=W4)),
    "regnet": ("RegNetForImageClassification", "RegNet", dict(embedding_size=16, hidden_sizes=[32, 32, 48, 64], depths=[1, 1, 1, 1], groups_width=16)),
    "pixio": ("PixioModel", "Pixio", dict(RATIO, n_cls_tokens=2, fields=LAST)),
    "perceiver": ("PerceiverForImageClassificationLearned", "Perceiver", dict(num_latents=8, d_latents=64, num_blocks=1, num_self_attends_per_block=1, num_self_attention_heads=2, num_cross_attention_heads=1, image_size=16)),
    "superpoint": ("SuperPointForKeypointDetection", "SuperPoint", dict(encoder_hidden_sizes=[16, 16, 32, 32], decoder_hidden_size=32, descriptor_decoder_dim=32, fields="descriptors")),
}
TRANSFORMERS_SYSTEMS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(made, *names, **options) for name, (*names, options) in ROWS.items()},
    "oneformer": Segmenter,
}
SHAPES = {
    "deformable_detr": (3, 128, 128), "deformable_detr_refined": (3, 128, 128), "deformable_detr_two_stage": (3, 128, 128),
    "swin2sr": (3, 16, 16), "swin2sr_direct": (3, 16, 16), "vitmatte": (4, 64, 64), "vivit": (4, 3, 32, 32),
    "timesformer": (2, 3, 32, 32), "timesformer_space": (2, 3, 32, 32), "videomae": (4, 3, 32, 32),
    "vjepa2": (4, 3, 32, 32), "mgp_str": (3, 32, 64), "vitpose": (3, 64, 48), "vitpose_classic": (3, 64, 48),
    "perceiver": (3, 16, 16), "textnet": (3, 64, 64),
}  # fmt: skip
