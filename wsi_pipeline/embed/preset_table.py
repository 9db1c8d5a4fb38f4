"""Pathology encoders whose files have timm's tensor names.

``mpp`` is as stated by the authors, mostly as 20x or 0.5 µm/px. Virchow 2 was trained at 0.25 to 2 µm/px and Lunit's
encoders at 0.25 and 0.5; UNI 2, Kaiko's and GigaPath-Flash have the customary 0.5, because their cards state none.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from . import Colour
from .layouts import timm_names
from .preset import HALF, Preset

_BIOPTIMUS: tuple[Colour, Colour] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_LUNIT: tuple[Colour, Colour] = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
_H_OPTIMUS = {"init_values": 1e-5, "dynamic_img_size": False}
_VIRCHOW = {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "dynamic_img_size": True}
_NO_DERIVATIVES = "CC-BY-NC-ND-4.0"
_UNI_PAPER = "Chen et al., Nature Medicine 2024, doi:10.1038/s41591-024-02857-3"
_BIN = ("pytorch_model.bin",)

# The authors' releases (github.com/kaiko-ai/towards_large_pathology_fms, lunit-io/benchmark-ssl-pathology) as copied
# by 1aurent to the hub, as safetensors under timm's names.
_KAIKO: dict[str, Any] = {
    "paper": "Aben et al. 2024, arXiv:2404.15217",
    "licence": "Kaiko non-commercial",
    "colour": HALF,
    "interpolation": "bilinear",
    "gated": False,
}
_LUNIT_VIT: dict[str, Any] = {
    "paper": "Kang et al., CVPR 2023, arXiv:2212.04690",
    "licence": "Lunit non-commercial",
    "colour": _LUNIT,
    "gated": False,
}

TABLE = (
    Preset(
        name="uni",
        hub="MahmoodLab/UNI",
        dim=1024,
        summary="UNI: ViT-L/16, DINOv2 on 100,000 slides; 1,024 features.",
        paper=_UNI_PAPER,
        licence=_NO_DERIVATIVES,
        architecture="vit_large_patch16_224",
        arguments={"init_values": 1e-5, "dynamic_img_size": True},
        interpolation="bilinear",
        files=_BIN,
    ),
    Preset(
        name="uni2-h",
        hub="MahmoodLab/UNI2-h",
        dim=1536,
        summary="UNI 2: ViT-H/14 with 8 registers, DINOv2 on 350,000 H&E and IHC slides; 1,536 features.",
        paper=_UNI_PAPER,
        licence=_NO_DERIVATIVES,
        architecture="vit_giant_patch14_224",
        arguments={
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
        },
        swiglu=True,
        interpolation="bilinear",
        files=_BIN,
    ),
    Preset(
        name="virchow",
        hub="paige-ai/Virchow",
        dim=2560,
        summary="Virchow: ViT-H/14, DINOv2 on 1.5 million slides; class token and mean of patches, 2,560 features.",
        paper="Vorontsov et al., Nature Medicine 2024, doi:10.1038/s41591-024-03141-0",
        licence="Apache-2.0",
        architecture="vit_huge_patch14_224",
        arguments=_VIRCHOW,
        pool="cls+mean",
        swiglu=True,
    ),
    Preset(
        name="virchow2",
        hub="paige-ai/Virchow2",
        dim=2560,
        summary="Virchow 2: ViT-H/14 with 4 registers, 3.1 million slides at 0.25 to 2 µm/px; 2,560 features.",
        paper="Zimmermann et al. 2024, arXiv:2408.00738",
        licence=_NO_DERIVATIVES,
        architecture="vit_huge_patch14_224",
        arguments={**_VIRCHOW, "reg_tokens": 4},
        pool="cls+mean",
        swiglu=True,
    ),
    Preset(
        name="h-optimus-0",
        hub="bioptimus/H-optimus-0",
        dim=1536,
        summary="H-optimus-0: ViT-g/14 with 4 registers, DINOv2 on 500,000 slides; 1,536 features.",
        paper="Saillard et al. 2024, github.com/bioptimus/releases",
        licence="Apache-2.0",
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments=_H_OPTIMUS,
        colour=_BIOPTIMUS,
    ),
    Preset(
        name="h-optimus-1",
        hub="bioptimus/H-optimus-1",
        dim=1536,
        summary="H-optimus-1: ViT-g/14 with 4 registers, more than a million slides; 1,536 features.",
        paper="Bioptimus 2025, huggingface.co/bioptimus/H-optimus-1",
        licence=_NO_DERIVATIVES,
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments=_H_OPTIMUS,
        colour=_BIOPTIMUS,
    ),
    Preset(  # from its card and its 86 M parameters, not from its config; positions are placed as in H-optimus-0
        name="h0-mini",
        hub="bioptimus/H0-mini",
        dim=1536,
        summary="H0-mini: ViT-B/14 with 4 registers, distilled from H-optimus-0; class token and mean, 1,536 features.",
        paper="Filiot et al. 2025, arXiv:2501.16239",
        licence=_NO_DERIVATIVES,
        architecture="vit_base_patch14_reg4_dinov2",
        arguments={"mlp_ratio": 2.66667 * 2},
        pool="cls+mean",
        swiglu=True,
        colour=_BIOPTIMUS,
    ),
    Preset(
        name="gigapath",
        hub="prov-gigapath/prov-gigapath",
        dim=1536,
        summary="Prov-GigaPath's patch encoder: ViT-g/16, DINOv2 on 171,000 slides; 1,536 features.",
        paper="Xu et al., Nature 2024, doi:10.1038/s41586-024-07441-w",
        licence="Apache-2.0 (research use)",
        architecture="vit_giant_patch14_dinov2",
        arguments={"patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334},
        files=_BIN,
    ),
    Preset(
        name="gigapath-flash",
        hub="prov-gigapath/prov-gigapath-flash",
        dim=384,
        summary="GigaPath-Flash's patch encoder: ViT-S/16, distilled from Prov-GigaPath; 384 features.",
        paper="doi:10.48550/arXiv.2607.18218",
        licence="Apache-2.0 (research use)",
        architecture="vit_small_patch16_224",
        arguments={"init_values": 1e-5, "mlp_ratio": 2048 / 384},
        swiglu=True,
        files=_BIN,
    ),
    Preset(
        name="mstar",
        hub="Wangyh/mSTAR",
        dim=1024,
        summary="mSTAR: ViT-L/16, UNI tuned with reports and genes of whole slides; 1,024 features.",
        paper="Xu et al., Nature Communications 2025, doi:10.1038/s41467-025-66220-x",
        licence=_NO_DERIVATIVES,
        architecture="vit_large_patch16_224",
        arguments={"init_values": 1e-5, "dynamic_img_size": True},
        interpolation="bilinear",
    ),
    Preset(
        name="digepath",
        hub="xtxx/Digepath",
        dim=1024,
        summary="Digepath: ViT-L/16, DINOv2 on slides of the digestive tract; 1,024 features.",
        paper="arXiv:2505.21928",
        licence="CC-BY-NC-4.0",
        architecture="vit_large_patch16_224",
        arguments={"init_values": 1e-5, "dynamic_img_size": True},
        interpolation="bilinear",
        files=("model.safetensors",),
    ),
    Preset(
        name="kaiko-vits16",
        hub="1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms",
        dim=384,
        summary="Kaiko ViT-S/16: DINO on TCGA; 384 features.",
        architecture="vit_small_patch16_224",
        **_KAIKO,
    ),
    Preset(
        name="kaiko-vits8",
        hub="1aurent/vit_small_patch8_224.kaiko_ai_towards_large_pathology_fms",
        dim=384,
        summary="Kaiko ViT-S/8: DINO on TCGA; 384 features.",
        architecture="vit_small_patch8_224",
        **_KAIKO,
    ),
    Preset(
        name="kaiko-vitb16",
        hub="1aurent/vit_base_patch16_224.kaiko_ai_towards_large_pathology_fms",
        dim=768,
        summary="Kaiko ViT-B/16: DINO on TCGA; 768 features.",
        architecture="vit_base_patch16_224",
        **_KAIKO,
    ),
    Preset(
        name="kaiko-vitb8",
        hub="1aurent/vit_base_patch8_224.kaiko_ai_towards_large_pathology_fms",
        dim=768,
        summary="Kaiko ViT-B/8: DINO on TCGA; 768 features.",
        architecture="vit_base_patch8_224",
        **_KAIKO,
    ),
    Preset(  # the file's position embeddings are for 518 px; timm interpolates them at every call, here once
        name="kaiko-vitl14",
        hub="1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms",
        dim=1024,
        summary="Kaiko ViT-L/14 with 4 registers: DINOv2 on TCGA; 1,024 features.",
        architecture="vit_large_patch14_reg4_dinov2",
        names=partial(timm_names, cells=16, antialias=True),
        **_KAIKO,
    ),
    Preset(
        name="lunit-vits16",
        hub="1aurent/vit_small_patch16_224.lunit_dino",
        dim=384,
        summary="Lunit DINO ViT-S/16: TCGA at 0.25 and 0.5 µm/px; 384 features.",
        architecture="vit_small_patch16_224",
        **_LUNIT_VIT,
    ),
    Preset(
        name="lunit-vits8",
        hub="1aurent/vit_small_patch8_224.lunit_dino",
        dim=384,
        summary="Lunit DINO ViT-S/8: TCGA at 0.25 and 0.5 µm/px; 384 features.",
        architecture="vit_small_patch8_224",
        **_LUNIT_VIT,
    ),
)
