"""PPEG, TransMIL's pyramid position encoding generator: three depthwise convolutions, as one, on a raster of tokens.

Shao et al., "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide Image Classification",
NeurIPS 2021: x + conv7(x) + conv5(x) + conv3(x). Convolution is linear in its kernel, so the three kernels are laid
over each other and one pass is made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ArtifactError

RADIUS = 3  # of the widest kernel, in cells
RASTER_VALUES = 2**26  # most numbers of a raster held at once (256 MB of float32)


class PPEG(nn.Module):
    """Position encoding from the tokens' neighbours. Parameter names are those of the published implementation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.proj1 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def on_square(self, tokens: Tensor) -> Tensor:
        """The published form: tokens (side², dim) laid row by row on a square. Returns (side², dim)."""
        side = round(len(tokens) ** 0.5)
        image = tokens.view(1, side, side, -1).permute(0, 3, 1, 2)  # (1, dim, side, side), channels last
        around = F.conv2d(image, *self.summed_kernel(), padding=RADIUS, groups=image.shape[1])
        return tokens + around.permute(0, 2, 3, 1).reshape(tokens.shape)

    def on_grid(self, tokens: Tensor, xy: Tensor) -> Tensor:
        """Tokens (N, dim) at their own positions ``xy`` (N, 2), units of the stride; no tissue is zero.

        Tokens that fall into one cell (a grid of its own for each piece of tissue gives such) show their neighbours
        their mean. Empty rows and columns that no kernel can bridge are left out, which changes no number. A raster
        of more than ``RASTER_VALUES`` numbers is made a group of channels at a time, made again for the gradient.
        Raises ``ArtifactError`` where one channel alone is larger.
        """
        cell, (rows, columns) = raster_cells(xy)
        if rows * columns > RASTER_VALUES:
            raise ArtifactError(
                f"the patches are strewn over {rows} x {columns} cells, too many for position='grid'; "
                f"train with position='sequence', or check that the bag's stride is right"
            )
        dim = tokens.shape[1]
        group = min(dim, RASTER_VALUES // (rows * columns))
        kernel, bias = self.summed_kernel()
        sharing = torch.bincount(cell, minlength=rows * columns)[cell, None].to(tokens.dtype)  # (N, 1)
        around = []
        for start in range(0, dim, group):
            part = slice(start, start + group)
            given = (tokens[:, part] / sharing, cell, rows, columns, kernel[part], bias[part])
            if group < dim:
                around.append(checkpoint(_convolve, *given, use_reentrant=False, preserve_rng_state=False))
            else:
                around.append(_convolve(*given))
        return tokens + torch.cat(around, dim=1)

    def summed_kernel(self) -> tuple[Tensor, Tensor]:
        """One 7 x 7 kernel (dim, 1, 7, 7) and bias (dim,) for the three."""
        weight = self.proj.weight + F.pad(self.proj1.weight, (1,) * 4) + F.pad(self.proj2.weight, (2,) * 4)
        biases = [conv.bias for conv in (self.proj, self.proj1, self.proj2)]
        return weight, torch.stack([b for b in biases if b is not None]).sum(0)


def raster_cells(xy: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Row-major cell (N,) of each position on its bounding raster without wide gaps, and the raster's (rows, columns).

    Half a cell rounds up, so that tokens half a stride off the first stay one cell apart.
    """
    at = (xy - xy.amin(0) + 0.5).floor().long()  # (N, 2) column, row
    column, columns = _without_gaps(at[:, 0])
    row, rows = _without_gaps(at[:, 1])
    return row * columns + column, (rows, columns)


def _without_gaps(index: Tensor) -> tuple[Tensor, int]:
    """Indices (N,) with each step beyond a kernel's reach cut to the shortest such step, and their extent."""
    used, which = index.unique(return_inverse=True)  # ascending
    closer = F.pad(used.diff().clamp(max=RADIUS + 1).cumsum(0), (1, 0))
    return closer[which], int(closer[-1]) + 1


def _convolve(tokens: Tensor, cell: Tensor, rows: int, columns: int, kernel: Tensor, bias: Tensor) -> Tensor:
    """What the raster's kernel sees at each token: (N, g) -> (N, g)."""
    raster = tokens.new_zeros(rows * columns, tokens.shape[1]).index_add(0, cell, tokens)  # (cells, g)
    image = raster.view(1, rows, columns, -1).permute(0, 3, 1, 2)  # (1, g, rows, columns), channels last
    around = F.conv2d(image, kernel, bias, padding=RADIUS, groups=image.shape[1])
    return around.permute(0, 2, 3, 1).reshape(rows * columns, -1)[cell]
