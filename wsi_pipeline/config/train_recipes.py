"""How the papers train, as values of the ``train`` section; keys that the user sets take precedence.

TransMIL: Shao et al., NeurIPS 2021 (Lookahead over RAdam). CLAM: Lu et al., Nature Biomedical Engineering 2021.
DSMIL: Li, Li and Eliceiri, CVPR 2021. DTFD: Zhang et al., CVPR 2022; its two optimisers of disjoint parameters are a
single one here, which clips their gradients together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WHOLE = {"max_patches": None, "warmup_epochs": 0}  # the papers train on whole bags

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "transmil": {
        **_WHOLE,
        "optimizer": "lookahead_radam",
        "schedule": "constant",
        "lr": 2e-4,
        "weight_decay": 1e-5,
        "accumulate": 2,
        "epochs": 200,
        "patience": 10,
        "balanced": False,
        "clip_norm": 0.0,
    },
    "clam": {
        **_WHOLE,
        "optimizer": "adam",
        "schedule": "constant",
        "lr": 2e-4,
        "weight_decay": 1e-5,
        "epochs": 200,
        "patience": 20,
        "balanced": True,
        "clip_norm": 0.0,
    },
    "dsmil": {
        **_WHOLE,
        "optimizer": "adam",
        "betas": (0.5, 0.9),
        "schedule": "cosine",
        "lr": 1e-4,
        "weight_decay": 1e-3,
        "epochs": 50,
        "patience": 50,
        "balanced": False,
        "clip_norm": 0.0,
    },
    "dtfd": {
        **_WHOLE,
        "optimizer": "adam",
        "schedule": "constant",
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "epochs": 200,
        "patience": 20,
        "balanced": False,
        "clip_norm": 5.0,
    },
}
