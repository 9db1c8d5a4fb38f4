"""The synthetic slides as files: pyramidal TIFFs that OpenSlide opens, their annotations, and the manifest."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from tifffile import TiffWriter

from ..artifacts import Provenance, atomic_path, content_key, is_current, write_provenance, write_text
from ..csvtable import csv_text
from ..engine import cores
from ..errors import EngineError
from ..types import UInt8
from .asap_xml import write_asap
from .cohort_plan import TUMOUR, SlidePlan, plan_cohort, plan_slide
from .drawing import draw
from .layout import Site
from .nuclei import MPP

DRAWING = 1  # to be raised when the images change, so that older ones are drawn again
DOWNSAMPLES = (1, 2, 4, 8)
_TILE_PX = 256
_JPEG_QUALITY = 80


def draw_slide(
    path: str | os.PathLike[str],
    *,
    side_px: int = 1500,
    seed: int = 0,
    tumour: bool = False,
    burden: int = 2,
    hole: bool = False,
    pen: str | None = None,
    with_mpp: bool = True,
    annotation: str | os.PathLike[str] | None = None,
) -> tuple[Site, ...]:
    """Draw one slide of ``side_px`` x ``side_px`` pixels at 0.5 µm/px.

    Parameters
    ----------
    path : Path
        TIFF to write.
    side_px : int
        Side in pixels.
    seed : int
        Seed of the slide.
    tumour : bool
        Whether there are lesions.
    burden : {0, 1, 2}
        0: micrometastases only, 1: one larger lesion, 2: a macrometastasis; in proportion to the side.
    hole : bool
        Whether there is normal tissue inside the largest lesion.
    pen : {"blue", "green", "red", "black"}, optional
        Colour of a pen mark.
    with_mpp : bool
        Whether the file states its resolution.
    annotation : Path, optional
        ASAP XML to write if there is tumour.

    Returns
    -------
    tuple of Site
        The lesions and infiltrates.

    Raises
    ------
    ConfigError
        The side or the pen cannot be drawn.
    """
    path = Path(path)
    plan = plan_slide(
        path.stem, path.stem, tumour=tumour, side_px=side_px, seed=(seed,), burden=burden, hole=hole, pen=pen
    )
    return _write_slide(plan, path, None if annotation is None else Path(annotation), with_mpp)


def draw_cohort(
    out: str | os.PathLike[str],
    *,
    slides: int = 24,
    patients: int = 20,
    side_px: int = 6000,
    seed: int = 0,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw ``out/slides/*.tif`` and ``out/annotations/*.xml``, half of the slides with tumour.

    Existing slides of the same plan are not drawn again. The files are the same for any number of workers.

    Parameters
    ----------
    out : Path
        Folder of the cohort.
    slides, patients : int
        Even numbers, with at least as many slides as patients.
    side_px : int
        Side of a slide in pixels.
    seed : int
        Seed of the cohort.
    workers : int
        Processes that draw, each with about 15 bytes of memory per pixel; 0: one per core.
    progress : callable, optional
        Called with the number of finished slides and of all slides.

    Returns
    -------
    Path
        The manifest ``out/slides.csv``.

    Raises
    ------
    ConfigError
        The numbers are not valid.
    StorageError, EngineError
        The files cannot be written, or a process was killed.
    """
    out = Path(out)
    plans = plan_cohort(slides, patients, side_px, seed)
    missing = [plan for plan in plans if not _is_drawn(plan, out)]
    done = len(plans) - len(missing)
    report = progress or (lambda *_: None)
    report(done, len(plans))
    workers = min(workers or cores(), len(missing))
    if workers <= 1:
        for i, plan in enumerate(missing, start=1):
            _draw_planned(plan, out)
            report(done + i, len(plans))
    else:
        _draw_in_processes(missing, out, workers, lambda n: report(done + n, len(plans)))
    manifest = out / "slides.csv"
    write_text(manifest, _manifest(plans))
    return manifest


def _draw_in_processes(plans: list[SlidePlan], out: Path, workers: int, report: Callable[[int], None]) -> None:
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = [pool.submit(_draw_planned, plan, out) for plan in plans]
        for n, future in enumerate(as_completed(futures), start=1):
            future.result()
            report(n)
    except BrokenProcessPool as error:
        raise EngineError(
            f"a process that draws slides into {out} was killed, most likely for lack of memory; use fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _draw_planned(plan: SlidePlan, out: Path) -> None:
    path = _slide_path(plan, out)
    _write_slide(plan, path, out / _annotation(plan) if plan.label == TUMOUR else None, with_mpp=True)
    write_provenance(path, Provenance.of(_key(plan), "demo", plan=asdict(plan)))


def _write_slide(plan: SlidePlan, path: Path, annotation: Path | None, with_mpp: bool) -> tuple[Site, ...]:
    drawing = draw(plan)
    if annotation is not None and plan.label == TUMOUR:
        lesions = [site for site in drawing.sites if site.tumour]
        holes = [site.hole_px0 for site in lesions if site.hole_px0 is not None]
        write_asap(annotation, [site.outline_px0 for site in lesions], holes)
    write_pyramid(path, drawing.rgb, MPP if with_mpp else None)
    return drawing.sites


def write_pyramid(path: Path, rgb: UInt8, mpp: float | None) -> None:
    """Write an image as a pyramidal TIFF of JPEG tiles that OpenSlide opens as generic-tiff.

    Parameters
    ----------
    path : Path
        TIFF to write.
    rgb : ndarray of uint8, (h, w, 3)
        Level 0; the others are ``DOWNSAMPLES``.
    mpp : float, optional
        µm per pixel. Stored per centimetre: OpenSlide gives ``openslide.mpp-x`` only for this unit.
    """
    with atomic_path(path) as beside, TiffWriter(beside) as tiff:
        for downsample in DOWNSAMPLES:
            level = rgb if downsample == 1 else np.asarray(Image.fromarray(rgb).reduce(downsample))
            per_cm = None if mpp is None else (1e4 / (mpp * downsample),) * 2
            tiff.write(
                _tiles(level),
                shape=level.shape,
                dtype=level.dtype,
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                subfiletype=0 if downsample == 1 else 1,
                resolution=per_cm,
                resolutionunit=None if mpp is None else "CENTIMETER",
                metadata=None,
                software="wsi_pipeline" if downsample == 1 else False,
                maxworkers=1,
            )


def _tiles(level: UInt8) -> Iterator[UInt8]:
    """Tiles in row-major order, padded with their edge pixels: black padding would cause ringing in the JPEG."""
    h, w = level.shape[:2]
    for top in range(0, h, _TILE_PX):
        for left in range(0, w, _TILE_PX):
            tile = level[top : top + _TILE_PX, left : left + _TILE_PX]
            short = [(0, _TILE_PX - tile.shape[0]), (0, _TILE_PX - tile.shape[1]), (0, 0)]
            yield np.pad(tile, short, mode="edge")


def _is_drawn(plan: SlidePlan, out: Path) -> bool:
    annotated = plan.label != TUMOUR or (out / _annotation(plan)).exists()
    return annotated and is_current(_slide_path(plan, out), _key(plan))


def _key(plan: SlidePlan) -> str:
    return content_key(drawing=DRAWING, plan=asdict(plan))


def _slide_path(plan: SlidePlan, out: Path) -> Path:
    return out / "slides" / f"{plan.slide_id}.tif"


def _annotation(plan: SlidePlan) -> str:
    return f"annotations/{plan.slide_id}.xml"


def _manifest(plans: tuple[SlidePlan, ...]) -> str:
    rows = []
    for plan in plans:
        annotation = _annotation(plan) if plan.label == TUMOUR else ""
        rows.append((plan.slide_id, f"slides/{plan.slide_id}.tif", plan.patient_id, plan.label, annotation))
    return csv_text(("slide_id", "path", "patient_id", "label", "annotation"), rows)
