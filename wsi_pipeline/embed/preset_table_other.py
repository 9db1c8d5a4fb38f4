"""Pathology encoders whose files have tensor names or modules of their own.

If the authors state no resolution (Hibou, CONCH), ``mpp`` is the customary 0.5. GPFM was trained on tiles of 512 px at
the slides' first level, resized to 224. CTransPath's and RetCCL's authors recommend trying 1 µm/px first.
"""

from __future__ import annotations

from functools import partial

from . import Colour, conch, ctranspath
from .layouts import timm_names
from .preset import HALF, Preset, timm_cnn

_OPENAI: tuple[Colour, Colour] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HIBOU: tuple[Colour, Colour] = ((0.7068, 0.5755, 0.7220), (0.1950, 0.2316, 0.1816))
_HIBOU_PAPER = "Nechaev et al. 2024, arXiv:2406.05074"

TABLE_OTHER = (
    Preset(
        name="phikon",
        hub="owkin/phikon",
        dim=768,
        summary="Phikon: ViT-B/16, iBOT on 6,093 slides of TCGA; 768 features.",
        paper="Filiot et al. 2023, doi:10.1101/2023.07.21.23292757",
        licence="Owkin non-commercial",
        architecture="vit_base_patch16_224",
        interpolation="bilinear",
        gated=False,
        names=timm_names,
    ),
    Preset(
        name="phikon-v2",
        hub="owkin/phikon-v2",
        dim=1024,
        summary="Phikon-v2: ViT-L/16, DINOv2 on 58,000 public slides; 1,024 features.",
        paper="Filiot et al. 2024, arXiv:2409.09173",
        licence="Owkin non-commercial",
        architecture="vit_large_patch16_224",
        arguments={"init_values": 1.0},
        gated=False,
        names=timm_names,
    ),
    Preset(
        name="hibou-b",
        hub="histai/hibou-b",
        dim=768,
        summary="Hibou-B: ViT-B/14 with 4 registers, DINOv2 on 1.1 million slides; 768 features.",
        paper=_HIBOU_PAPER,
        licence="Apache-2.0",
        architecture="vit_base_patch14_reg4_dinov2",
        arguments={"mlp_ratio": 4096 / 768},
        swiglu=True,
        colour=_HIBOU,
        names=timm_names,
    ),
    Preset(
        name="hibou-l",
        hub="histai/hibou-L",
        dim=1024,
        summary="Hibou-L: ViT-L/14 with 4 registers, DINOv2 on 1.1 million slides; 1,024 features.",
        paper=_HIBOU_PAPER,
        licence="Apache-2.0",
        architecture="vit_large_patch14_reg4_dinov2",
        arguments={"mlp_ratio": 5472 / 1024},
        swiglu=True,
        colour=_HIBOU,
        names=timm_names,
    ),
    Preset(  # the grid of its file's positions is unknown: those of 518 px are interpolated as transformers does
        name="midnight",
        hub="kaiko-ai/midnight",
        dim=3072,
        summary="Midnight-12k: ViT-g/14, DINOv2 on 12,000 slides of TCGA; class token and mean, 3,072 features.",
        paper="Karasikov et al., MICCAI 2025, doi:10.1007/978-3-032-04984-1_55",
        licence="MIT",
        architecture="vit_giant_patch14_dinov2",
        pool="cls+mean",
        colour=HALF,
        interpolation="bilinear",
        gated=False,
        names=partial(timm_names, cells=16),
    ),
    Preset(
        name="gpfm",
        hub="majiabo/GPFM",
        dim=1024,
        summary="GPFM: ViT-L/14, distilled from UNI, Phikon and CONCH; 1,024 features.",
        paper="Ma et al., Nature Biomedical Engineering 2025, doi:10.1038/s41551-025-01488-4",
        licence="MIT (hub), CC-BY-NC-ND-4.0 (the authors' repository)",
        architecture="vit_large_patch14_dinov2",
        gated=False,
        files=("GPFM.pth",),
        names=partial(timm_names, cells=16, antialias=True),
    ),
    Preset(
        name="conch",
        hub="MahmoodLab/CONCH",
        dim=512,
        summary="CONCH's image tower: ViT-B/16 at 448 px, trained with captions; 512 features.",
        paper="Lu et al., Nature Medicine 2024, doi:10.1038/s41591-024-02856-4",
        licence="CC-BY-NC-ND-4.0",
        architecture="vit_base_patch16_224",
        pool="model",
        colour=_OPENAI,
        side_px=448,
        files=("pytorch_model.bin",),
        names=conch.image_tower,
        build=conch.conch,
    ),
    Preset(
        name="conch-v1.5",
        hub="MahmoodLab/conchv1_5",
        dim=768,
        summary="CONCH v1.5, TITAN's patch encoder: ViT-L/16 at 448 px, for tiles of 512 px; 768 features.",
        paper="Ding et al., Nature Medicine 2025, doi:10.1038/s41591-025-03982-3",
        licence="CC-BY-NC-ND-4.0",
        architecture="vit_large_patch16_224",
        arguments={"init_values": 1e-6},
        pool="model",
        interpolation="bilinear",
        side_px=448,
        files=("pytorch_model_vision.bin",),
        names=conch.at_448,
        build=conch.conch_v1_5,
    ),
    Preset(
        name="ctranspath",
        hub="jamesdolezal/CTransPath",  # a copy; the authors publish on Google Drive
        dim=768,
        summary="CTransPath: Swin-T with a convolutional stem, 32,000 slides of TCGA and PAIP; 768 features.",
        paper="Wang et al., Medical Image Analysis 2022, doi:10.1016/j.media.2022.102559",
        licence="GPL-3.0, non-commercial academic use",
        architecture="swin_tiny_patch4_window7_224",
        pool="model",
        interpolation="bilinear",
        mpp=1.0,
        gated=False,
        files=("ctranspath.pth",),
        names=ctranspath.timm_names,
        build=ctranspath.ctranspath,
    ),
    Preset(
        name="retccl",
        hub="jamesdolezal/RetCCL",  # a copy; the authors publish on Google Drive
        dim=2048,
        summary="RetCCL: ResNet-50, contrastive on 32,000 slides of TCGA and PAIP, at 256 px; 2,048 features.",
        paper="Wang et al., Medical Image Analysis 2023, doi:10.1016/j.media.2022.102645",
        licence="GPL-3.0, non-commercial academic use",
        architecture="resnet50",
        pool="model",
        interpolation="bilinear",
        side_px=256,
        mpp=1.0,
        gated=False,
        files=("retccl.pth",),
        build=timm_cnn,
    ),
)
