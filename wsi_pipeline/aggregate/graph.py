"""The graph of patches that touch: each with the up to eight around it, never stored as N x N."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PatchGraph:
    """N patches in the C cells of a grid; patches are joined within a cell and with the eight cells around it.

    Each is joined with itself, so that no degree is 0. Built by ``patch_graph``.
    """

    cell: Tensor  # (N,) int64, each patch's cell
    near: Tensor  # (C, 9) int64, each cell and the eight around it; C where no patch is

    def neighbour_sum(self, values: Tensor) -> Tensor:
        """A · values, (N, D) -> (N, D), for the adjacency A with its self-loops. O(N · D)."""
        cells = len(self.near)
        per_cell = values.new_zeros(cells + 1, values.shape[1]).index_add(0, self.cell, values)  # the last stays 0
        around = per_cell[self.near[:, 0]]  # (C, D)
        for side in range(1, 9):
            around = around + per_cell[self.near[:, side]]
        return around[self.cell]

    def propagate(self, values: Tensor) -> Tensor:
        """Ã · values, (N, D) -> (N, D), with Ã = D^-1/2 A D^-1/2 (Kipf and Welling, ICLR 2017).

        D holds the row sums of A, 1 where a patch stands alone. Half precision is widened.
        """
        precision = torch.promote_types(values.dtype, torch.float32)
        degrees = self.neighbour_sum(values.new_ones(len(self.cell), 1, dtype=precision))  # (N, 1)
        scale = degrees.rsqrt()
        return scale * self.neighbour_sum(scale * values)


def patch_graph(xy: Tensor) -> PatchGraph:
    """The graph of patches at ``xy`` (N, 2), units of the stride, in O(N log N).

    A patch's cell is its position, from the leftmost and topmost, rounded (half rounds up), so pieces of tissue with
    grids of their own are joined as well. Patches of one cell are neighbours.
    """
    if len(xy) == 1:  # nothing to look up, so that many bags of one patch can be one ``torch.vmap``
        near = torch.ones(1, 9, dtype=torch.long, device=xy.device)
        near[0, 4] = 0
        return PatchGraph(near[:, 4], near)
    at = (xy - xy.amin(0) + 0.5).floor().long()  # (N, 2) column, row
    width = int(at[:, 0].amax()) + 3  # an empty column on either side: no row runs on into the next
    used, cell = (at[:, 1] * width + at[:, 0] + 1).unique(return_inverse=True)  # (C,) ascending, (N,)
    steps = [dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    wanted = used[:, None] + torch.tensor(steps, device=used.device)  # (C, 9)
    found = torch.searchsorted(used, wanted).clamp(max=len(used) - 1)
    return PatchGraph(cell, torch.where(used[found] == wanted, found, len(used)))
