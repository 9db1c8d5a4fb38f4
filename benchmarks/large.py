"""Time and memory of tiling and embedding 20,000 patches of a sparse slide of 100,000 x 100,000 pixels.

    python benchmarks/large.py                       # tens of minutes on two cores, mostly for the encoder
    python benchmarks/large.py --patches 2000

The slide is a sparse pyramid of JPEG tiles at 0.5 µm/px; tissue (real if ../shared is available) fills a square of it.
Runs ``wsi tile`` and ``wsi embed`` as separate processes and prints the time and peak memory of each.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from slides import KINDS, encoded, source
from tifffile import TiffWriter

from wsi_pipeline.project import RunFolder
from wsi_pipeline.store import read_bag, read_grid
from wsi_pipeline.types import UInt8

PATCH_PX, TILE_PX, DOWNSAMPLES = 224, 256, (1, 4, 16)


def sparse_slide(path: Path, side_px: int, region_px: int, tissue: UInt8) -> None:
    """Tissue in a square of ``region_px`` in the middle; tiles outside are not stored at all."""
    how, fine = KINDS["B"], some_cells(tissue)
    with TiffWriter(path, bigtiff=True) as tiff:
        for downsample in DOWNSAMPLES:
            side = side_px // downsample
            low = (side_px - region_px) // 2 // downsample // TILE_PX
            high = low + -(-region_px // downsample // TILE_PX)
            cells = [encoded(cell, how) for cell in coarser(fine, downsample)]

            def stored(
                side: int = side, low: int = low, high: int = high, cells: list[bytes] = cells
            ) -> Iterator[bytes]:
                count = -(-side // TILE_PX)
                for row in range(count):
                    for column in range(count):
                        inside = low <= row < high and low <= column < high
                        yield cells[(row * 31 + column * 17) % len(cells)] if inside else b""

            tiff.write(
                stored(),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=0 if downsample == 1 else 1,
                resolution=(20_000 / downsample,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
                software=False,
            )


def some_cells(tissue: UInt8, count: int = 64) -> list[UInt8]:
    """The darkest of many squares of ``tissue``, which is repeated if it is smaller than one: no glass."""
    repeats = [max(1, -(-(TILE_PX + 1) // n)) for n in tissue.shape[:2]]
    wide = np.tile(tissue, (*repeats, 1))
    rng = np.random.default_rng(0)
    corners = rng.integers(0, np.array(wide.shape[:2]) - TILE_PX + 1, (8 * count, 2)).tolist()
    cells = [wide[y : y + TILE_PX, x : x + TILE_PX] for y, x in corners]
    return sorted(cells, key=lambda cell: float(cell.mean()))[:count]


def coarser(cells: list[UInt8], downsample: int) -> list[UInt8]:
    """The same number of squares, each composed of ``downsample`` x ``downsample`` others, shrunk."""
    small = [np.asarray(Image.fromarray(cell).reduce(downsample)) for cell in cells] if downsample > 1 else cells
    rng = np.random.default_rng(1)
    chosen = rng.integers(0, len(cells), (len(cells), downsample, downsample)).tolist()
    return [np.concatenate([np.concatenate([small[i] for i in row], axis=1) for row in rows]) for rows in chosen]


def watched(command: list[str]) -> tuple[float, float]:
    """Seconds, and the peak memory of the process and its children in GB."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    most = 0

    def watch() -> None:
        nonlocal most
        while process.poll() is None:
            try:
                me = psutil.Process(process.pid)
                most = max(most, sum(p.memory_info().rss for p in (me, *me.children(recursive=True))))
            except psutil.Error:
                pass
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    thread.join()
    return time.perf_counter() - begin, most / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=100_000)
    parser.add_argument("--patches", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        region = math.ceil(math.sqrt(options.patches)) * PATCH_PX
        sparse_slide(folder / "large.tif", options.side, region, source(folder))
        (folder / "slides.csv").write_text("path\nlarge.tif\n")
        (folder / "config.yaml").write_text("slides: slides.csv\nout: run\n")
        print("| stage | patches | seconds | peak memory, GB |\n|---|---|---|---|")
        for stage in ("tile", "embed"):
            wsi = [sys.executable, "-m", "wsi_pipeline", stage, str(folder / "config.yaml")]
            seconds, gigabytes = watched(wsi)
            run = RunFolder(folder / "run")
            path = run.bag("large") if stage == "embed" else run.grid("large")
            count = len(read_bag(path).grid if stage == "embed" else read_grid(path)[0])
            print(f"| {stage} | {count:,} | {seconds:,.1f} | {gigabytes:.2f} |", flush=True)


if __name__ == "__main__":
    main()
