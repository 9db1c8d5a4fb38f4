"""Write the store ``<slide_id>.ome.zarr``, completely or not at all, and read it.

QuPath opens OME-Zarr 0.4 on Zarr 2; 0.5 on Zarr 3 is an option. QuPath's reader treats the part of a path up to its
first ".zarr" as the store, reads blosc or zlib only, and needs ``OME/METADATA.ome.xml`` inside.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from ..artifacts import Provenance, atomic_path, require_schema
from ..config import HeatmapConfig
from ..errors import ArtifactError, ConfigError
from ..types import Explanation, Float32
from .metadata import Channel, channels_from, channels_of, multiscales, ome_xml, omero, own_block
from .paint import cell_side_px0, raster_shape
from .pyramid import fill, level_shapes

_BLOCK = "heatmap"
_ZARR_2 = {
    "compressors": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1},
    "chunk_key_encoding": {"name": "v2", "separator": "/"},
}
_ZARR_3 = {
    "compressors": BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=4),
    "dimension_names": ("c", "y", "x"),
}


@dataclass(frozen=True, eq=False)
class Pyramid:
    """A heatmap store, read by level and channel."""

    path: Path
    slide_id: str
    slide_size_px0: tuple[int, int]
    cell_px0: int
    channels: tuple[Channel, ...]
    shapes: tuple[tuple[int, int], ...]  # (rows, columns) of each level

    def level_for(self, px0: float) -> int:
        """The coarsest level whose cells are at most ``px0`` level-0 pixels wide, else the finest."""
        return max((i for i in range(len(self.shapes)) if self.cell_px0 * 2**i <= px0), default=0)

    def read(self, channel: int, level: int = 0) -> Float32:
        """Values of one channel, array (rows, columns), NaN where there is no patch."""
        array = zarr.open_array(str(self.path), path=str(level), mode="r")
        values: Float32 = np.asarray(array[channel], np.float32)
        return values


def write_heatmap(
    path: Path, explanations: Sequence[Explanation], config: HeatmapConfig, provenance: Provenance
) -> int:
    """Write the pyramid of one slide.

    Parameters
    ----------
    path : Path
        The store, ``….ome.zarr``.
    explanations : sequence of Explanation
        One channel each, all on the same grid.
    config : HeatmapConfig
    provenance : Provenance

    Returns
    -------
    int
        Number of cells painted.

    Raises
    ------
    ConfigError
        Where a parent folder of ``path`` contains ".zarr", or ``config.cell_px0`` is too large for the slide.
    ArtifactError
        Where the explanations have different grids.
    """
    if ".zarr" in str(path.parent):
        raise ConfigError(
            f"out: {path.parents[1]} contains '.zarr', so QuPath would look for the map there; rename the folder"
        )
    grid = explanations[0].grid
    for other in explanations[1:]:
        if not np.array_equal(other.grid.xy_px0, grid.xy_px0) or other.grid.side_px0 != grid.side_px0:
            raise ArtifactError(
                f"the explanations of slide {grid.slide_id} have different patches; run `wsi explain` again"
            )
    cell_px0 = cell_side_px0(grid, config.cell_px0)
    scores = np.stack([e.scores for e in explanations])  # (C, N)
    channels = channels_of(explanations)
    shapes = level_shapes(raster_shape(grid.slide_size_px0, cell_px0))
    scales = multiscales(grid.slide_id, grid.mpp, cell_px0, len(shapes))
    display = omero(grid.slide_id, channels)
    own = {_BLOCK: own_block(grid, cell_px0, channels), "wsi_pipeline": provenance.attributes()}
    with atomic_path(path) as beside:
        group = _create(beside, config.ngff, {"multiscales": [scales], "omero": display}, own)
        levels = [_create_level(group, str(i), (len(scores), *s), config.chunk) for i, s in enumerate(shapes)]
        fill(levels, grid, scores, cell_px0)
        xml = ome_xml(grid.slide_id, shapes[0], grid.mpp, cell_px0, channels)
        (beside / "OME" / "METADATA.ome.xml").write_bytes(xml)
    return len(channels) * shapes[0][0] * shapes[0][1]


def read_heatmap(path: str | os.PathLike[str]) -> Pyramid:
    """Open a pyramid that ``write_heatmap`` wrote.

    Parameters
    ----------
    path : str or os.PathLike
        The store, ``….ome.zarr``.

    Returns
    -------
    Pyramid

    Raises
    ------
    ArtifactError
        Where it does not exist, is damaged, has another schema, or was written by another program.
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"the heatmap {path} does not exist; run `wsi heatmap`")
    try:
        group = zarr.open_group(str(path), mode="r")
        attributes: dict[str, Any] = dict(group.attrs)
        block = attributes[_BLOCK]
        require_schema(path, attributes["wsi_pipeline"]["schema"])
        scales = attributes.get("ome", attributes)["multiscales"][0]
        shapes = tuple(_raster(group, dataset["path"]) for dataset in scales["datasets"])
        width, height = block["slide_size_px0"]
        return Pyramid(path, block["slide_id"], (width, height), block["cell_px0"], channels_from(block), shapes)
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not a heatmap written by wsi_pipeline ({error!r}); run `wsi heatmap` again"
        ) from error


def _create(path: Path, version: str, ome: dict[str, Any], own: dict[str, Any]) -> zarr.Group:
    """The root with its attributes, and the group ``OME`` that names the image which the OME-XML describes."""
    if version == "0.4":
        scales = [{"version": version, **scale} for scale in ome["multiscales"]]
        group = zarr.create_group(str(path), zarr_format=2, attributes={**ome, "multiscales": scales, **own})
        group.create_group("OME", attributes={"series": ["0"]})
    else:
        group = zarr.create_group(str(path), zarr_format=3, attributes={"ome": {"version": version, **ome}, **own})
        group.create_group("OME", attributes={"ome": {"version": version, "series": ["0"]}})
    return group


def _create_level(group: zarr.Group, name: str, shape: tuple[int, ...], chunk: int) -> zarr.Array[Any]:
    options: dict[str, Any] = _ZARR_2 if group.metadata.zarr_format == 2 else _ZARR_3
    return group.create_array(
        name, shape=shape, chunks=(1, chunk, chunk), dtype="<f4", fill_value=float("nan"), **options
    )


def _raster(group: zarr.Group, name: str) -> tuple[int, int]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{name} is a group")
    _, rows, cols = array.shape
    return rows, cols
