"""The drawn slides as files: pyramidal TIFFs that OpenSlide opens, their annotations, and the manifest."""

from __future__ import annotations

import csv
import io
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
from ..engine import cores
from ..errors import EngineError
from ..types import UInt8
from .asap_xml import write_asap
from .cohort_plan import TUMOUR, SlidePlan, plan_cohort, plan_slide
from .drawing import draw
from .layout import Site
from .nuclei import MPP

DRAWING = 1  # to be raised when the pictures change, so that older ones are drawn again
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
    """Draw one slide of ``side_px`` x ``side_px`` pixels at 0.5 µm/px and say what crowds of nuclei lie on it.

    ``burden`` is 0 (micrometastases only), 1 or 2 (a macrometastasis), in proportion to the side; ``pen`` blue,
    green, red, black or None. ``annotation`` is written where given and ``tumour`` is true. Without ``with_mpp``
    the file does not tell its resolution. Raises ``ConfigError`` for a side or pen that cannot be drawn.
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
    """Draw ``out/slides/*.tif`` and ``out/annotations/*.xml``; returns the manifest ``out/slides.csv``.

    Slides that are there, drawn with the same numbers, are left alone. ``workers`` processes draw (0: one for every
    core), each holding about 15 bytes a pixel; the files are the same for any number. ``progress`` is told how many
    of how many slides are done. Raises ``ConfigError``, ``StorageError``, ``EngineError``.
    """
    out = Path(out)
    plans = plan_cohort(slides, patients, side_px, seed)
    missing = [plan for plan in plans if not _is_drawn(plan, out)]
    done = len(plans) - len(missing)
    tell = progress or (lambda *_: None)
    tell(done, len(plans))
    workers = min(workers or cores(), len(missing))
    if workers <= 1:
        for i, plan in enumerate(missing, start=1):
            _draw_planned(plan, out)
            tell(done + i, len(plans))
    else:
        _draw_in_processes(missing, out, workers, lambda n: tell(done + n, len(plans)))
    manifest = out / "slides.csv"
    write_text(manifest, _manifest(plans))
    return manifest


def _draw_in_processes(plans: list[SlidePlan], out: Path, workers: int, tell: Callable[[int], None]) -> None:
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = [pool.submit(_draw_planned, plan, out) for plan in plans]
        for n, future in enumerate(as_completed(futures), start=1):
            future.result()
            tell(n)
    except BrokenProcessPool as error:
        raise EngineError(
            f"a process that draws slides into {out} was killed, most likely for want of memory; use fewer workers"
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
    """``rgb`` (h, w, 3) as a tiled JPEG TIFF with its levels as further directories: OpenSlide's generic-tiff.

    OpenSlide tells ``openslide.mpp-x`` only where the resolution is given per centimetre.
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
    """Tiles in row-major order, those at the edge continued with their last pixels: black would ring in the JPEG."""
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide_id", "path", "patient_id", "label", "annotation"])
    for plan in plans:
        annotation = _annotation(plan) if plan.label == TUMOUR else ""
        writer.writerow([plan.slide_id, f"slides/{plan.slide_id}.tif", plan.patient_id, plan.label, annotation])
    return text.getvalue()
