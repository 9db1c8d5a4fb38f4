"""Patches per second from a slide: this package, common and optimised uses of OpenSlide, and other readers.

    python benchmarks/read.py                  # three large slides, made of real tissue if ../shared is available
    python benchmarks/read.py --side 15360 --repeats 3 --slides B

256-px patches in raster order, on a grid that is not aligned with the tiles: at 20x from a 40x slide (512 px of level 0
become 256), and at the stored level. Everything runs in one process (except the DataLoader's), in turn; figures are
medians, and ratios are to single-threaded OpenSlide + PIL in the same round. The page cache is warm, so decoding is
measured, not the disk. tiffslide, fastslide and cv2 are included if they are installed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch
from PIL import Image
from slides import KINDS, make_slide

from wsi_pipeline.config import ReadConfig
from wsi_pipeline.read import open_slide, read_batches
from wsi_pipeline.read.jpeg_tiles import TileLevel
from wsi_pipeline.read.memory import tile_memory
from wsi_pipeline.read.slide import tile_levels
from wsi_pipeline.types import Int64, PatchGrid, UInt8

ORIGIN, SIDE_PX = (74, 106), 256
Run = Callable[[], int]  # reads every patch; returns their number


@dataclass(frozen=True)
class Task:
    """Patches to read from a slide."""

    path: Path
    xy_px0: Int64  # (N, 2)
    side_px0: int  # 512: 20x from 40x; 256: the stored level

    @property
    def grid(self) -> PatchGrid:
        side = (float(self.side_px0),) * 2
        size = openslide.OpenSlide(self.path).dimensions
        return PatchGrid(
            "bench", self.xy_px0, SIDE_PX, side, side, 0.25 * side[0] / SIDE_PX, (0.25, 0.25), size, (0, 0, *size)
        )


def raster(path: Path, side_px0: int, most: int) -> Task:
    """About ``most`` patches: whole rows from the top."""
    width, height = openslide.OpenSlide(path).dimensions
    columns = np.arange(ORIGIN[0], width - side_px0, side_px0)
    rows = np.arange(ORIGIN[1], height - side_px0, side_px0)[: -(-most // len(columns))]
    return Task(path, np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2), side_px0)


def ours(task: Task, threads: int, scaling: str) -> Run:
    def run() -> int:
        with open_slide(task.path, ReadConfig(reader="jpeg_tiff")) as slide:
            batches = read_batches(slide, task.grid, batch=32, threads=threads, scaling=scaling)
            return sum(len(batch.pixels) for batch in batches)

    return run


def one_patch(slide: openslide.OpenSlide, xy: list[int], side: int) -> UInt8:
    """As in CLAM and TRIDENT."""
    patch = slide.read_region((xy[0], xy[1]), 0, (side, side)).convert("RGB")
    return np.asarray(patch if side == SIDE_PX else patch.resize((SIDE_PX, SIDE_PX)))


def openslide_pil(task: Task) -> Run:
    def run() -> int:
        with openslide.OpenSlide(task.path) as slide:
            return sum(one_patch(slide, xy, task.side_px0).shape[0] == SIDE_PX for xy in task.xy_px0.tolist())

    return run


class Patches(torch.utils.data.Dataset[Any]):
    """The same as a torch dataset; each worker process opens the slide itself."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.slide: openslide.OpenSlide | None = None

    def __len__(self) -> int:
        return len(self.task.xy_px0)

    def __getitem__(self, i: int) -> torch.Tensor:
        self.slide = self.slide or openslide.OpenSlide(self.task.path)
        return torch.from_numpy(one_patch(self.slide, self.task.xy_px0[i].tolist(), self.task.side_px0).copy())


def data_loader(task: Task) -> Run:
    return lambda: sum(len(batch) for batch in torch.utils.data.DataLoader(Patches(task), batch_size=32, num_workers=2))


def supertiles(task: Task) -> Run:
    """Optimised OpenSlide: 4 x 4 patches at once, its raw buffer, cv2's area filter, two threads."""
    import cv2  # type: ignore[import-not-found,unused-ignore]

    side = task.side_px0
    into = ctypes.POINTER(ctypes.c_uint32)
    groups: dict[tuple[int, int], list[list[int]]] = {}
    for x, y in task.xy_px0.tolist():
        groups.setdefault(((x - ORIGIN[0]) // (4 * side), (y - ORIGIN[1]) // (4 * side)), []).append([x, y])

    def run() -> int:
        with openslide.OpenSlide(task.path) as slide, ThreadPoolExecutor(2) as pool:

            def read(patches: list[list[int]]) -> int:
                xy = np.array(patches)
                low, size = xy.min(axis=0), xy.max(axis=0) - xy.min(axis=0) + side
                bgra = np.empty((*size[::-1], 4), np.uint8)
                where = (*low.tolist(), 0, *size.tolist())
                openslide.lowlevel._read_region(slide._osr, bgra.ctypes.data_as(into), *where)
                block = cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGB)
                for x, y in (xy - low).tolist():
                    patch = block[y : y + side, x : x + side]
                    np.ascontiguousarray(
                        patch if side == SIDE_PX else cv2.resize(patch, (SIDE_PX,) * 2, interpolation=cv2.INTER_AREA)
                    )
                return len(patches)

            return sum(pool.map(read, groups.values()))

    return run


def tiffslide_pil(task: Task) -> Run:
    import tiffslide  # type: ignore[import-not-found,unused-ignore]

    def run() -> int:
        with tiffslide.TiffSlide(task.path) as slide:
            return sum(one_patch(slide, xy, task.side_px0).shape[0] == SIDE_PX for xy in task.xy_px0.tolist())

    return run


def fastslide_pil(task: Task) -> Run:
    """With a cache of 256 MB for decoded tiles."""
    import fastslide  # type: ignore[import-not-found,unused-ignore]

    def run() -> int:
        slide = fastslide.FastSlide.from_file_path(str(task.path))
        slide.set_cache(256 * 2**20)
        side, done = task.side_px0, 0
        for x, y in task.xy_px0.tolist():
            patch = Image.fromarray(slide.read_region(location=(x, y), level=0, size=(side, side)).numpy()[..., :3])
            done += np.asarray(patch if side == SIDE_PX else patch.resize((SIDE_PX, SIDE_PX))).shape[0] == SIDE_PX
        return done

    return run


def ceiling(task: Task, threads: int, scaling: str) -> Run:
    """Only decode every tile that a patch touches once: the upper limit with libjpeg-turbo."""

    def run() -> int:
        with open_slide(task.path, ReadConfig(reader="jpeg_tiff")) as slide:
            level: TileLevel = tile_levels(slide)[0]
            if scaling == "dct" and task.side_px0 > SIDE_PX:
                level = level.scaled(task.side_px0 // SIDE_PX)
            touched = sorted(set(tiles(level, task)))
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda part: decode_all(level, part), [touched[i::threads] for i in range(threads)]))
        return len(task.xy_px0)

    return run


def decode_all(level: TileLevel, numbers: list[int]) -> None:
    """Decode tiles into one buffer."""
    out = tile_memory((level.tile[1], level.tile[0], 3))
    for number in numbers:
        level.decode(number, out)


def tiles(level: TileLevel, task: Task) -> Iterator[int]:
    """Numbers of the tiles that the patches touch."""
    down = int(level.downsample)
    start = task.xy_px0 // down
    for left, top, right, bottom in level.spans(start, np.full_like(start, task.side_px0 // down)).tolist():
        yield from (row * level.columns + column for row in range(top, bottom) for column in range(left, right))


def contenders(task: Task, reduced: bool) -> dict[str, Run]:
    """Name -> run; the first is the baseline of the ratios."""
    runs = {
        "OpenSlide + PIL, 1 thread": openslide_pil(task),
        "the same in a DataLoader, 2 processes": data_loader(task),
        "wsi_pipeline, 1 thread": ours(task, 1, "exact"),
        "wsi_pipeline, 2 threads": ours(task, 2, "exact"),
        "ceiling, 1 thread": ceiling(task, 1, "exact"),
        "ceiling, 2 threads": ceiling(task, 2, "exact"),
    }
    if reduced:
        runs |= {
            "wsi_pipeline DCT, 1 thread": ours(task, 1, "dct"),
            "wsi_pipeline DCT, 2 threads": ours(task, 2, "dct"),
            "ceiling DCT, 1 thread": ceiling(task, 1, "dct"),
        }
    for name, module, peer in (
        ("OpenSlide raw + cv2, 4 x 4 at once, 2 threads", "cv2", supertiles),
        ("tiffslide, 1 thread", "tiffslide", tiffslide_pil),
        ("fastslide + 256 MB cache, 1 thread", "fastslide", fastslide_pil),
    ):
        if importlib.util.find_spec(module):
            runs[name] = peer(task)
    return runs


def measure(runs: dict[str, Run], repeats: int) -> dict[str, tuple[float, float]]:
    """Name -> (patches/s, ratio to the baseline of the same round), medians over rounds."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            count = run()
            rates[name].append(count / (time.perf_counter() - begin))
    base = next(iter(rates.values()))
    return {
        name: (statistics.median(found), statistics.median(f / b for f, b in zip(found, base, strict=True)))
        for name, found in rates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=30_720, help="side of the slides in pixels")
    parser.add_argument(
        "--patches", type=int, default=1200, help="at 20x from 40x; five times as many at the stored level"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slides", default="".join(KINDS))
    parser.add_argument("--folder", type=Path, help="keep the slides in this folder, and use existing ones")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in options.slides:
            path = make_slide(options.folder or Path(temporary), kind, options.side)
            for what, side_px0, most in (("20x from 40x", 512, 1), ("stored level", 256, 5)):
                task = raster(path, side_px0, most * options.patches)
                runs = contenders(task, reduced=side_px0 > SIDE_PX)
                result = found[f"{kind}, {what}"] = measure(runs, options.repeats)
                print(f"\n{kind}, {what}: {KINDS[kind].text}, {len(task.xy_px0)} patches\n", flush=True)
                print("| reader | patches/s | ratio |\n|---|---|---|")
                for name, (rate, ratio) in result.items():
                    print(f"| {name} | {rate:,.0f} | {ratio:.2f} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
