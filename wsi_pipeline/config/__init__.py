"""YAML -> one frozen config: one file a section, and ``Config``, which names them once.

Lengths are in micrometres (``_um``) or micrometres per pixel (``mpp``), so that no result depends on a scanner's
pyramid. A field marked ``runtime`` changes speed, never a result, and is left out of the content keys.
"""

from __future__ import annotations

from .aggregate import AggregateConfig, ModelChoice
from .base import Count, Options, Positive, Section
from .embed import EmbedConfig
from .engine import EngineConfig
from .evaluate import EvaluateConfig
from .explain import ExplainConfig
from .heatmap import HeatmapConfig
from .loading import Config, build_config, dump_config, load_config, train_of, with_values
from .predict import PredictConfig
from .read import ReadConfig
from .tile import TileConfig
from .train import TrainConfig
from .view import ViewConfig

__all__ = [
    "AggregateConfig",
    "Config",
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
    "build_config",
    "dump_config",
    "load_config",
    "train_of",
    "with_values",
]
