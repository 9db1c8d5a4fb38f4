"""The sections of the config, one a stage: every key with its default, its meaning and its rule.

Lengths are micrometres (``_um``) or micrometres per pixel (``mpp``), so that no result depends on a scanner's
pyramid. A field marked ``runtime`` changes how fast a result comes, never the result, and stays out of the keys.
"""

from __future__ import annotations

from .base import Count, Options, Positive, Section
from .maps import EvaluateConfig, ExplainConfig, HeatmapConfig, ViewConfig
from .models import AggregateConfig, ModelChoice, PredictConfig, TrainConfig
from .slides import EmbedConfig, ReadConfig, TileConfig
from .work import EngineConfig

__all__ = [
    "AggregateConfig",
    "Count",
    "EmbedConfig",
    "EngineConfig",
    "EvaluateConfig",
    "ExplainConfig",
    "HeatmapConfig",
    "ModelChoice",
    "Options",
    "Positive",
    "PredictConfig",
    "ReadConfig",
    "Section",
    "TileConfig",
    "TrainConfig",
    "ViewConfig",
]
