"""docs/systems.md: published systems, and what shows each of them: a network of this bench, or a test.

A row is a system, its family and a job of the bench (NETWORK:EXPORT), a test (FILE::NAME) or nothing, where nothing shows it.
"""

from __future__ import annotations

from collections.abc import Callable

FAMILIES: dict[str, str] = {
    "Accelerators and mixtures of experts": """
        Edge-MoE | tests/hwgen/test_recognise_moe.py::test_every_form_is_one_mixture
        M^3ViT | tests/system/test_decoders.py::test_dense_heads
        MTHL modular (Mod-Squad) | tests/hwgen/chosen_maker.py::heads
        TaskExpert | own.task_expert:dy18
        Experts Weights Averaging | timm.deit3:dy18""",
    "Plain backbones, or nearly": """
        Visual analytics of attention | timm.deit3:dy18
        Path Ensemble | timm.vit_parallel:dy18
        Activator | timm.gmlp:dy18
        GiT | own.git:dy18
        Sliced Recursive Transformer | own.sret:dy18
        MVLPT (its image encoder) | hf.clip:ts17
        Transformer in Transformer | timm.tnt:dy18
        Uni4Eye | vp.vit_3d:ts17
        ChannelViT | own.channel_vit:dy18
        Polyhistor | timm.swin:dy18
        T2T-ViT | vp.t2t:ts17
        ConViT | timm.convit:dy18
        ResFormer | own.resformer:dy18
        Meta-Transformer | vp.vit_3d:ts17
        UNIT (its image encoder) | hf.vit:ts17
        CODA-Prompt | own.coda_prompt:dy18
        SN-Netv2 | timm.deit3:dy18
        MAE thorax | hf.vit:ts17
        Controllable MTA | hf.segformer:ts17
        SiT | timm.deit3:dy18""",
    "Cross attention, several branches": """
        CrossViT | timm.crossvit:dy18
        Dual-stream (Brain-Score) | timm.crossvit:dy18
        FcaFormer | own.fcaformer:dy18
        CroCo v2 | tests/system/test_decoders.py::test_whole_networks""",
    "Windows, axes, pooled attention": """
        ViT-ResNAS | own.vit_resnas:dy18
        MAFormer | own.maformer:dy18
        CrossFormer | vp.crossformer:ts17
        TurboViT | hf.hiera:dy18
        MaxViT | timm.maxvit:dy18
        HiLo / LITv2 | own.hilo:dy18
        TinyViT | timm.tiny_vit:dy18
        Swin | timm.swin:dy18
        DaViT | timm.davit:dy18
        BiFormer | tests/hwgen/chosen_maker.py::regions
        Revive equivariance | tests/hwgen/chosen_maker.py::shifted""",
    "Convolution hybrids": """
        FMViT | own.fmvit:dy18
        TiC | own.tic:dy18
        ConTraCon | vp.cct:ts17
        SHViT | timm.shvit:dy18
        ViT-CoMer | own.vit_comer:dy18
        CvT | vp.cvt:ts17
        EfficientFormer | timm.efficientformer:dy18
        EfficientViT (MSRA) | timm.efficientvit_msra:dy18
        Next-ViT | timm.nextvit:dy18
        BiSeNet revenge | own.bisenet:dy18
        SMT | own.smt:dy18
        ConvNeXt | timm.convnext:dy18
        DualToken-ViT | own.dualtoken:dy18
        CAS-ViT | own.cas_vit:dy18
        HorNet | own.hornet:dy18
        MetaFormer | timm.caformer:dy18
        UniFormer | own.uniformer:dy18""",
    "Tokens or scores chosen at run time": """
        EViT | tests/hwgen/selection_maker.py::evit
        ECO-M2F | hf.mask2former:dy18
        MCTF | own.mctf:dy18
        IA-RED2 | tests/hwgen/chosen_maker.py::gated
        LookupViT | vp.look_vit:ts17
        ATS | vp.ats:dy18
        Sparsifiner | own.sparsifiner:dy18
        Expedit | tests/hwgen/chosen_maker.py::returned
        Super Token | own.super_token:dy18
        Pruned PlainMamba | tests/hwgen/scan_maker.py::four""",
    "Quantisation and pruning": """
        ShiftAddViT | own.shiftadd:dy18
        Q-HyViT | timm.mobilevit:dy18
        LPViT | timm.deit3:dy18
        Quantisation survey | timm.deit3:dy18""",
    "Spectral, state-space, retention": """
        SpectFormer | own.spectformer:dy18
        SVT | own.svt:dy18
        ViR | own.vir:dy18
        Hyena N-D | own.hyena:dy18
        MSVMamba | tests/hwgen/scan_maker.py::four
        RetNet via convolution | own.rmt:dy18
        SSM survey | tests/hwgen/scan_maker.py::both
        RMT | own.rmt_axes:dy18""",
    "Over several devices": """
        ED-ViT | timm.deit3:dy18""",
    "Decoders, video, large systems": """
        InterFormer | own.interformer:dy18
        kMaX-DeepLab | tests/hwgen/chosen_maker.py::clusters
        OneFormer | hf.oneformer:ts17
        ViDT+ | hf.deformable_detr:ts17
        ViViT | hf.vivit:ts17
        UniFormerV2 | own.uniformerv2:dy18
        LeTFuser | own.letfuser:dy18
        PredFormer | hf.timesformer:ts17
        PEM | tests/hwgen/chosen_maker.py::prototypes
        FaceXFormer | own.facexformer:dy18
        Video Task Decathlon (up to its boxes) | own.decathlon:dy18
        eP-ALM (its image encoder) | hf.vit:ts17
        Vitron (its image encoder) | hf.clip:ts17
        LaVin-DiT | own.lavin_dit:dy18""",
}
HEAD = """# Published systems

What shows that a published system is taken: a micro network of its structure (random weights, the operators and shapes of the
original), or a test that holds its peculiar part on every engine. `python tests/bench/exports --table` prints this page: it
exports each network (PyTorch, `ts` TorchScript, `dy` dynamo, with the opset), imports, proves and quantises it, and compares the
golden model with onnxruntime on four images of noise. dB is signal to noise of the worst output: of random weights, which are
kept less well than trained ones where a network chooses by scores that lie close together. "Not run" says that nothing here
shows it; it may be taken all the same.

| system | shown by | outcome |
|---|---|---|
"""


def rows() -> list[tuple[str, str, str]]:
    """(family, system, what shows it)."""
    lines = [(family, line) for family, text in FAMILIES.items() for line in text.strip().splitlines()]
    return [(family, *(part.strip() for part in line.split("|"))) for family, line in lines]  # type: ignore[misc]


def document(judged: Callable[[str], str]) -> str:
    """The page. judged: outcome of a job of the bench."""
    text, before = HEAD, ""
    for family, system, shown in rows():
        text += f"| **{family}** | | |\n" if family != before else ""
        before = family
        outcome = "not run" if not shown else "held by the test" if "::" in shown else judged(shown).replace(" | ", "; ")[:150]
        text += f"| {system} | {f'`{shown}`' if shown else ''} | {outcome} |\n"
    return text
