"""Maps that draw themselves: an explanation of one slide, and the heatmap pyramid of a run folder. Without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UnknownNameError
from ..heatmap.metadata import Channel, display_range, primary
from ..heatmap.ngff import Pyramid
from ..heatmap.ngff import read_heatmap as read_pyramid
from ..types import Explanation, Float32, Slide, UInt8

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Background = Callable[[], UInt8]  # gives a picture of the whole slide, (h, w, 3)


@dataclass(frozen=True, eq=False)
class ExplanationMap(Explanation):
    """One score per patch that can be drawn; see ``types.Explanation`` for what it holds."""

    background: Background | None = None  # of a slide in a run folder

    def plot(
        self,
        ax: Axes | None = None,
        *,
        over: Slide | UInt8 | None = None,
        alpha: float = 0.6,
        window: tuple[float, float] | None = None,
        colorbar: bool = True,
    ) -> Axes:
        """Draw the map over its slide.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; default: axes of a new figure.
        over : Slide or ndarray of uint8 (h, w, 3), optional
            The open slide, or a picture of the whole slide; default: the thumbnail of the run folder that the map
            comes from, else white.
        alpha : float
            Opacity of the map, 0 to 1.
        window : (float, float), optional
            Scores at which the colours begin and end; default: symmetric about 0 for a signed map, else 0 to 1 for
            probabilities and fractions, else the 1st to the 99th percentile.
        colorbar : bool
            Whether to draw a legend with the unit.

        Returns
        -------
        matplotlib.axes.Axes
            Data coordinates are (x, y) in level-0 pixels.
        """
        from .map_plot import Raster, draw, picture_of, raster_of

        values, cell_px0 = raster_of(self.grid, self.scores)
        raster = Raster(
            values=values,
            cell_px0=cell_px0,
            slide_size_px0=self.grid.slide_size_px0,
            bounds_px0=self.grid.bounds_px0,
            window=window or display_range(self.scores, self.unit, self.signed)[1],
            signed=self.signed,
            title=self.label,
            unit=self.unit,
        )
        picture = picture_of(over) if over is not None else self.background() if self.background else None
        return draw(raster, picture, ax, alpha=alpha, colorbar=colorbar)

    def __repr__(self) -> str:
        return f"<{self.grid.slide_id}, {self.label}: {len(self.scores)} patches, {self.unit}, {self._range}>"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    @property
    def _range(self) -> str:
        finite = self.scores[np.isfinite(self.scores)]
        return f"{finite.min():.3g} to {finite.max():.3g}" if len(finite) else "no finite score"


@dataclass(frozen=True, eq=False)
class Heatmap(Pyramid):
    """A heatmap pyramid: one channel per model, method and class. ``read(channel, level)`` gives the values."""

    background: Background | None = None  # of a slide in a run folder

    def find(self, label: str) -> int:
        """Number of the channel with this label. Raises ``UnknownNameError`` that lists the labels."""
        labels = [channel.label for channel in self.channels]
        if label not in labels:
            raise UnknownNameError(f"{self.path} has no channel {label!r}; it has: {', '.join(labels)}")
        return labels.index(label)

    def plot(
        self,
        channel: int | str | None = None,
        ax: Axes | None = None,
        *,
        over: Slide | UInt8 | None = None,
        alpha: float = 0.6,
        colorbar: bool = True,
    ) -> Axes:
        """Draw one channel over its slide.

        Parameters
        ----------
        channel : int or str, optional
            Number or label of the channel; default: the one that viewers show first.
        ax, over, alpha, colorbar
            As in ``ExplanationMap.plot``.

        Returns
        -------
        matplotlib.axes.Axes
            Data coordinates are (x, y) in level-0 pixels.
        """
        from .map_plot import THUMBNAIL_PX, Raster, draw, picture_of

        number = self._number(channel)
        level = self.level_for(max(self.slide_size_px0) / THUMBNAIL_PX)
        shown: Channel = self.channels[number]
        raster = Raster(
            values=self.read(number, level),
            cell_px0=self.cell_px0 * 2.0**level,
            slide_size_px0=self.slide_size_px0,
            bounds_px0=(0, 0, *self.slide_size_px0),
            window=shown.window,
            signed=shown.signed,
            title=shown.label,
            unit=shown.unit,
        )
        picture = picture_of(over) if over is not None else self.background() if self.background else None
        return draw(raster, picture, ax, alpha=alpha, colorbar=colorbar)

    def values(self, channel: int | str | None = None, level: int = 0) -> Float32:
        """Values of one channel, (rows, columns), NaN where there is no patch; ``channel`` as in ``plot``."""
        return self.read(self._number(channel), _one_of(level, len(self.shapes), f"{self.path} has no level"))

    def _number(self, channel: int | str | None) -> int:
        if channel is None:
            return primary([(c.model, c.method) for c in self.channels], [c.selected for c in self.channels])
        if isinstance(channel, str):
            return self.find(channel)
        return _one_of(channel, len(self.channels), f"{self.path} has no channel")

    def __repr__(self) -> str:
        rows, columns = self.shapes[0]
        size = f"{rows} x {columns} cells of {self.cell_px0} px"
        return f"<heatmap of {self.slide_id}: {size}; {', '.join(c.label for c in self.channels)}>"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"


def _one_of(number: int, count: int, fault: str) -> int:
    """``number``, from the end where it is negative; raises ``UnknownNameError`` where it is not below ``count``."""
    if not -count <= number < count:
        raise UnknownNameError(f"{fault} {number}; it has {count}, from 0")
    return number % count


def read_heatmap(path: str | os.PathLike[str]) -> Heatmap:
    """Open a heatmap pyramid of a run folder.

    Parameters
    ----------
    path : str or os.PathLike
        ``heatmap/<slide_id>.ome.zarr``.

    Returns
    -------
    Heatmap
        ``channels``, ``shapes`` (rows, columns) of each level, ``values(channel, level)`` and ``plot``. Cell (row,
        column) of level 0 covers ``cell_px0`` x ``cell_px0`` level-0 pixels from (column, row) * ``cell_px0`` on.

    Raises
    ------
    ArtifactError
        There is no heatmap that this package wrote.
    """
    return Heatmap(**vars(read_pyramid(path)))
