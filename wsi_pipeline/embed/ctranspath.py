"""CTransPath: a Swin transformer (tiny) whose patches are embedded by three convolutions.

X. Wang et al., Transformer-based unsupervised contrastive learning for histopathological image classification, Medical
Image Analysis 2022. Its file follows timm 0.5.4, where patch merging ends a stage; in current timm it begins the next
stage, so the number in its name is one higher. The attention masks and position indices in the file follow from the
window's side: timm computes them, and they are left out.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from torch import Tensor, nn

from .preset import Preset, timm_network
from .state import State

_COMPUTED = (".attn_mask", ".attn.relative_position_index")


class ConvStem(nn.Module):
    """(B, 3, s, s) -> (B, s / 4, s / 4, C): replaces timm's linear patch embedding under the same names."""

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, norm_layer: type[nn.Module], **_: Any
    ) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        widths = (in_chans, embed_dim // 8, embed_dim // 4)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))
        self.norm = norm_layer(embed_dim)

    def forward(self, patches: Tensor) -> Tensor:
        embedded: Tensor = self.norm(self.proj(patches).permute(0, 2, 3, 1))
        return embedded


def ctranspath(preset: Preset) -> nn.Module:
    """Build the network, without weights."""
    return timm_network(preset, embed_layer=ConvStem)


def timm_names(state: State) -> State:
    """Rename the file's tensors as in current timm; a state with those names is kept."""
    old = "layers.0.downsample.reduction.weight" in state
    return {_one_later(name) if old else name: tensor for name, tensor in state.items() if not name.endswith(_COMPUTED)}


def _one_later(name: str) -> str:
    return re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.", name)
