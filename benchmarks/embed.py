"""End to end over forward alone: how much of the encoder's speed the way from slide to HDF5 leaves.

    python benchmarks/embed.py                                            # CPU, lite0, on a slide that it draws
    python benchmarks/embed.py --encoder resnet50 --random --precision bf16 --device cuda --batch 256

Both sides run in one process on the same patches, device and threads, turn about; figures are medians. End to end is
the embed stage's own work on one slide: read, batch, normalise, encode, store. Forward alone is the same encoder on
the same batches, already in memory. Prints one line of Markdown.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from wsi_pipeline.config import EmbedConfig, ReadConfig
from wsi_pipeline.demo import draw_slide
from wsi_pipeline.embed import encoders
from wsi_pipeline.embed.ahead import Patches
from wsi_pipeline.embed.device import pick_device
from wsi_pipeline.embed.forward import Forward, one_thread
from wsi_pipeline.embed.stage import write_bag
from wsi_pipeline.engine import cores
from wsi_pipeline.files import Provenance
from wsi_pipeline.geometry import grid_corners_px0, side_px0
from wsi_pipeline.read import open_slide, patch_level, read_patch
from wsi_pipeline.types import PatchGrid, Slide, UInt8


def whole_grid(slide: Slide, side_px: int, mpp: float) -> PatchGrid:
    """Every patch of the slide, glass included: the reader's work does not depend on what is seen."""
    side = side_px0(side_px, mpp, slide.mpp)
    columns, rows = grid_corners_px0(slide.sizes[0], side, side)
    xy = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    return PatchGrid("bench", xy, side_px, side, side, mpp, slide.mpp, slide.sizes[0], slide.bounds_px0)


def in_memory(slide: Slide, grid: PatchGrid, batch: int) -> list[UInt8]:
    """The same batches as the stage makes, read beforehand."""
    level = patch_level(slide, grid)
    patches = np.stack([read_patch(slide, (x, y), grid.side_px0, grid.side_px, level) for x, y in grid.xy_px0.tolist()])
    return [patches[start : start + batch] for start in range(0, len(patches), batch)]


def forward_alone(forward: Forward, batches: list[UInt8], threads: int) -> None:
    """The encoder on batches in memory, on the stage's own number of threads."""
    with ThreadPoolExecutor(threads, initializer=one_thread) as pool:
        for pending in list(pool.map(forward, batches)):
            pending.result()


def end_to_end(path: Path, slide: Slide, grid: PatchGrid, forward: Forward, embed: EmbedConfig) -> None:
    """What the embed stage does with one open slide."""
    patches = Patches.of(slide, grid, forward, embed)
    write_bag(path, patches, forward, embed, Provenance.of("benchmark", "embed"))


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, help="a slide; default: one that is drawn")
    parser.add_argument("--side", type=int, default=3000, help="side of the drawn slide in pixels")
    parser.add_argument("--encoder", default="lite0")
    parser.add_argument("--random", action="store_true", help="random weights: the speed is the same")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--read-threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    embed = EmbedConfig.model_validate(
        {
            "encoder": options.encoder,
            "pretrained": not options.random,
            "device": options.device,
            "precision": options.precision,
            "batch": options.batch,
            "read_threads": options.read_threads,
        }
    )
    device = pick_device(embed.device)
    encoder = encoders.build(embed.encoder, None, embed.pretrained)
    forward = Forward(encoder, device, embed)
    threads = cores() if device.type == "cpu" else 1
    with tempfile.TemporaryDirectory() as folder:
        path = options.slide or Path(folder) / "drawn.tif"
        if options.slide is None:
            draw_slide(path, side_px=options.side, seed=0, tumour=True)
        with open_slide(path, ReadConfig()) as slide:
            grid = whole_grid(slide, encoder.side_px, encoder.recommended_mpp)
            batches = in_memory(slide, grid, embed.batch)
            output = Path(folder) / "bag.h5"
            forward_alone(forward, batches, threads)  # warm
            alone, whole = [], []
            for _ in range(options.repeats):
                alone.append(len(grid) / seconds(lambda: forward_alone(forward, batches, threads)))
                whole.append(len(grid) / seconds(lambda: end_to_end(output, slide, grid, forward, embed)))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    a, w = statistics.median(alone), statistics.median(whole)
    print("| encoder | device | precision | batch | patches | end to end, patches/s | forward alone | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {embed.encoder} | {name}, {cores()} cores | {embed.precision} | {embed.batch} | {len(grid)} "
        f"| {w:,.0f} | {a:,.0f} | {w / a:.2f} |"
    )


if __name__ == "__main__":
    main()
