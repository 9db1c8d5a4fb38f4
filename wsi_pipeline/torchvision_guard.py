"""Make ``import torchvision`` work where its compiled operators cannot be loaded.

With a CPU-only torch and the package index's torchvision (built for CUDA), importing torchvision raises an
ImportError: it describes two detection operators that its compiled library should have declared. We use none of its
compiled operators, so this module declares the missing names and changes nothing else. Import it before torchvision,
timm or lightning.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_MISSING = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # a declaration lives as long as its Library


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to guard; the caller gets the ordinary error
    for binary in Path(spec.origin).parent.glob("_C*.*"):
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            return False
    return True


def _declare() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _MISSING:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


if not _declared and not _compiled_operators_load():
    _declare()
