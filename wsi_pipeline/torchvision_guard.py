"""Lets ``import torchvision`` pass where its compiled operators cannot load.

A site that installs a CPU-only torch beside the registry's torchvision (built for CUDA) gets an ImportError: at
import torchvision describes two detection operators that its compiled half would have declared. We use none of
its compiled operators, so where they are missing their names are declared, and nothing else changes. Import this
module before torchvision, timm or lightning.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_MISSING = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # a declaration lives as long as its Library


def _compiled_half_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to guard; the importer gets the ordinary error
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


if not _declared and not _compiled_half_loads():
    _declare()
