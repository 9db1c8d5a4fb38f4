"""From a slide file to a bag of features, step by step: the stages ``tile`` and ``embed`` without a run folder."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..config import EmbedConfig, ReadConfig, TileConfig, with_values
from ..errors import EmptySlideError, SlideError
from ..project import slide_id_of
from ..read import open_slide as open_with
from ..read import read_overview
from ..store import select
from ..tile.contours import rasterise
from ..tile.detection import detect_tissue
from ..tile.grid import SlideFacts, patch_grid
from ..tile.outlines import read_roi, roi_path
from ..types import FeatureBag, PatchGrid, Slide, TissueMask
from .arguments import require_opened

if TYPE_CHECKING:
    from ..read.slide import CheckedSlide

_MPP_TOLERANCE = 0.1  # relative
_log = logging.getLogger("wsi_pipeline")


def open_slide(
    path: str | os.PathLike[str], *, mpp: float | tuple[float, float] | None = None, reader: str = "auto"
) -> CheckedSlide:
    """Open a whole-slide image. Close it, or use it as a context manager.

    Parameters
    ----------
    path : str or os.PathLike
        The slide file.
    mpp : float or (float, float), optional
        µm per level-0 pixel, (x, y); takes precedence over the resolution that the file states.
    reader : str
        Name of a reader (``wsi list readers``); ``auto``: the first that opens the file.

    Returns
    -------
    CheckedSlide
        A ``types.Slide`` with ``sizes``, ``downsamples``, ``mpp``, ``read`` and ``thumbnail``. Coordinates are (x, y)
        in level-0 pixels; pixels are uint8 RGB, white outside the slide.

    Raises
    ------
    SlideError
        No reader opens the file, or its resolution is unknown.
    UnknownNameError
        There is no such reader.
    ConfigError
        ``mpp`` cannot be a resolution.

    Examples
    --------
    >>> import wsi_pipeline as wsi
    >>> with wsi.open_slide("case.svs") as slide:  # doctest: +SKIP
    ...     region = slide.read((0, 0), level=0, size=(512, 256))  # (256, 512, 3)
    """
    config = with_values(ReadConfig(reader=reader), "open_slide", mpp=mpp)
    return open_with(path, config)


def find_tissue(slide: Slide, *, config: TileConfig | None = None, slide_id: str | None = None) -> TissueMask:
    """Find the tissue of a slide.

    Parameters
    ----------
    slide : Slide
        An open slide.
    config : TileConfig, optional
        The section ``tile`` of a config: ``detector``, ``detector_options``, ``tissue_mpp`` and ``roi`` are used.
    slide_id : str, optional
        Which file of a folder ``config.roi`` belongs to this slide; default: the name of the slide file.

    Returns
    -------
    TissueMask
        ``tissue`` (h, w), True where there is tissue; one mask pixel is ``side_px0`` level-0 pixels wide and high.

    Raises
    ------
    SlideError
        Nothing of the slide can be decoded, or its region of interest is missing.
    UnknownNameError, ConfigError
        The detector or its options do not exist.
    """
    require_opened(slide, "find_tissue", "an open slide", "open_slide(path)")
    config = config or TileConfig()
    overview = read_overview(slide, mpp=config.tissue_mpp)
    tissue = detect_tissue(overview, slide.mpp, config)
    slide_id = slide_id or slide_id_of(slide.path)
    roi = roi_path(config, slide_id)
    if roi is not None:
        area, _ = read_roi(roi, config, slide_id, slide.bounds_px0)
        tissue &= rasterise(area, tissue.shape, overview.side_px0)
    return TissueMask(tissue, overview.side_px0, overview.unreadable_px0)


def make_grid(
    slide: Slide,
    tissue: TissueMask,
    *,
    mpp: float | None = None,
    side_px: int | None = None,
    overlap: float | None = None,
    min_tissue: float | None = None,
    config: TileConfig | None = None,
    slide_id: str | None = None,
) -> PatchGrid:
    """Lay a regular grid of square patches on the tissue.

    Parameters
    ----------
    slide : Slide
        The slide, open or closed: only its size, resolution and bounds are used.
    tissue : TissueMask
        From ``find_tissue``.
    mpp : float, optional
        µm per pixel of the patches; default 0.5. It is met exactly, whatever the levels of the slide.
    side_px : int, optional
        Side of a patch in pixels at ``mpp``; default 224.
    overlap : float, optional
        Fraction of the side that neighbours share, 0 <= overlap < 1; default 0.
    min_tissue : float, optional
        Least fraction of a patch that tissue must cover; default 0.5.
    config : TileConfig, optional
        The section ``tile`` of a config; the arguments above take precedence over it.
    slide_id : str, optional
        Name of the slide; default: the name of the slide file.

    Returns
    -------
    PatchGrid
        N patches in row-major order; ``xy_px0`` (N, 2) are their top-left corners in level-0 pixels.

    Raises
    ------
    EmptySlideError
        No patch holds enough tissue.
    SlideError
        The slide is coarser than ``mpp``.
    ConfigError
        An argument is out of its range.
    """
    require_opened(slide, "make_grid", "an open slide", "open_slide(path)")
    values = {"mpp": mpp, "side_px": side_px, "overlap": overlap, "min_tissue": min_tissue}
    config = with_values(config or TileConfig(), "make_grid", **values)
    grid = patch_grid(SlideFacts.of(slide_id or slide_id_of(slide.path), slide), tissue, config)
    if not len(grid):
        raise EmptySlideError(
            f"{grid.slide_id}: tissue covers {tissue.tissue.mean():.2%} of the slide, but no patch holds "
            f"{config.min_tissue:.0%} of it; lower min_tissue or side_px, or look at the tissue mask"
        )
    return grid


def embed_patches(
    slide: Slide,
    grid: PatchGrid,
    *,
    encoder: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
    scaling: Literal["exact", "dct"] = "exact",
    config: EmbedConfig | None = None,
) -> FeatureBag:
    """Encode every patch of a grid.

    Parameters
    ----------
    slide : Slide
        The open slide that the grid was made for.
    grid : PatchGrid
        The patches, N of them.
    encoder : str, optional
        Name of an encoder (``wsi list encoders``); default ``lite0``.
    weights : str or os.PathLike, optional
        Local file with its weights; default: the published ones.
    device : str, optional
        ``auto`` (the default), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
    scaling : {"exact", "dct"}
        See ``read.scaling`` of a config.
    config : EmbedConfig, optional
        The section ``embed`` of a config; the arguments above take precedence over it.

    Returns
    -------
    FeatureBag
        ``features`` (M, D) as a run folder stores them (float16 by default); row i belongs to ``bag.grid.xy_px0[i]``.
        Patches that cannot be read are left out and listed in ``unreadable_px0``.

    Raises
    ------
    SlideError
        No patch can be read, or a feature is not finite.
    UnknownNameError, ConfigError
        The encoder, an option or the device does not exist.
    """
    from ..embed.encoding import encode_batches, stored
    from ..embed.identity import identity
    from ..embed.prefetch import Patches
    from ..embed.stage import runner_of
    from ..engine import cores

    require_opened(slide, "embed_patches", "an open slide", "open_slide(path)")
    read = with_values(ReadConfig(), "embed_patches", scaling=scaling)
    embed = with_values(config or EmbedConfig(), "embed_patches", encoder=encoder, weights=weights, device=device)
    known = identity(embed.encoder, embed.weights, embed.pretrained, embed.encoder_options)
    runner = runner_of(embed.model_dump_json(), str(known["weights"]))
    _warn_of_mpp(grid, embed.encoder, runner.encoder.recommended_mpp)
    batches = Patches.of(slide, grid, runner, embed, read.scaling).batches
    encoded = encode_batches(batches, runner, (embed.threads or cores()) if runner.device.type == "cpu" else 1)
    readable: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    try:
        for mask, features, _ in encoded:
            start = sum(map(len, readable))
            readable.append(mask)
            if mask.any():
                xy_px0 = grid.xy_px0[start : start + len(mask)][mask]
                rows.append(stored(features, embed.dtype, grid.slide_id, xy_px0))
    finally:
        encoded.close()
        batches.close()
    if not rows:
        raise SlideError(f"{slide.path}: none of its {len(grid)} patches can be read; the file is damaged")
    kept = np.concatenate(readable)
    return FeatureBag(
        select(grid, kept),
        np.concatenate(rows),
        runner.encoder.name,
        runner.encoder.weights_digest,
        grid.xy_px0[~kept],
    )


def _warn_of_mpp(grid: PatchGrid, encoder: str, recommended: float) -> None:
    if abs(grid.target_mpp / recommended - 1) > _MPP_TOLERANCE:
        _log.warning(
            "the patches are %g µm/px, but the encoder %s is made for %g; make_grid(mpp=%g) unless you mean it",
            *(grid.target_mpp, encoder, recommended, recommended),
        )
