"""Graph of touching patches: each is joined with the up to eight around it; no N x N matrix is stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PatchGraph:
    """N patches in the C cells of a grid; a patch is joined with those of its own cell and of the eight around it.

    Every patch is joined with itself, so no degree is 0. Built by ``patch_graph``.
    """

    cell: Tensor  # (N,) int64, each patch's cell
    near: Tensor  # (C, 9) int64, each cell and the eight around it; C for a cell without patches

    def neighbour_sum(self, values: Tensor) -> Tensor:
        """A · values, (N, D) -> (N, D), for the adjacency A with self-loops, in O(N · D)."""
        cells = len(self.near)
        per_cell = values.new_zeros(cells + 1, values.shape[1]).index_add(0, self.cell, values)  # the last stays 0
        around = per_cell[self.near[:, 0]]  # (C, D)
        for side in range(1, 9):
            around = around + per_cell[self.near[:, side]]
        return around[self.cell]

    def propagate(self, values: Tensor) -> Tensor:
        """Ã · values, (N, D) -> (N, D), with Ã = D^-1/2 A D^-1/2 (Kipf and Welling, ICLR 2017).

        D holds the row sums of A, 1 for an isolated patch. Half precision is widened.
        """
        precision = torch.promote_types(values.dtype, torch.float32)
        degrees = self.neighbour_sum(values.new_ones(len(self.cell), 1, dtype=precision))  # (N, 1)
        scale = degrees.rsqrt()
        return scale * self.neighbour_sum(scale * values)


def patch_graph(xy: Tensor) -> PatchGraph:
    """Build the graph of patches, in O(N log N).

    A patch's cell is its position relative to the leftmost and topmost patch, rounded (half rounds up), so that pieces
    of tissue with their own grids are joined as well. Patches of one cell are neighbours.

    Parameters
    ----------
    xy : Tensor, (N, 2)
        Positions in units of the patch stride.
    """
    if len(xy) == 1:  # no data-dependent shape, so that many bags of one patch can share one ``torch.vmap``
        near = torch.ones(1, 9, dtype=torch.long, device=xy.device)
        near[0, 4] = 0
        return PatchGraph(near[:, 4], near)
    at = (xy - xy.amin(0) + 0.5).floor().long()  # (N, 2) column, row
    width = int(at[:, 0].amax()) + 3  # an empty column on either side keeps the ends of rows apart
    used, cell = (at[:, 1] * width + at[:, 0] + 1).unique(return_inverse=True)  # (C,) ascending, (N,)
    steps = [dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    wanted = used[:, None] + torch.tensor(steps, device=used.device)  # (C, 9)
    found = torch.searchsorted(used, wanted).clamp(max=len(used) - 1)
    return PatchGraph(cell, torch.where(used[found] == wanted, found, len(used)))
