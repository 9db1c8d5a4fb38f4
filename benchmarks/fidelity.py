"""Effect of shrinking tiles while they are decoded (``read.scaling: dct``) on pixels and on an encoder's features.

    python benchmarks/fidelity.py

Each patch is 448 px of level 0 reduced to 224, once by full decoding and the exact area mean, once by the decoder.
Prints the PSNR of the pixels and the cosine similarity of the features (lite0, ImageNet): medians, and the worst patch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from slides import KINDS, REAL, make_slide

from wsi_pipeline.config import EmbedConfig, ReadConfig
from wsi_pipeline.device import pick_device
from wsi_pipeline.embed import encoders
from wsi_pipeline.embed.encoder_runner import EncoderRunner
from wsi_pipeline.geometry import grid_corners_px0
from wsi_pipeline.read import open_slide, read_batches
from wsi_pipeline.types import Float64, PatchGrid, Slide

SIDE_PX0, SIDE_PX = 448.0, 224


def grid_of(slide: Slide, most: int) -> PatchGrid:
    """Patches entirely inside the slide, in raster order."""
    side = (SIDE_PX0, SIDE_PX0)
    columns, rows = grid_corners_px0(slide.sizes[0], side, side)
    xy = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    xy = xy[(xy + SIDE_PX0 <= slide.sizes[0]).all(axis=1)][:most]
    return PatchGrid("s", xy, SIDE_PX, side, side, 2 * slide.mpp[0], slide.mpp, slide.sizes[0], slide.bounds_px0)


def compare(path: Path, runner: EncoderRunner, most: int) -> tuple[int, Float64, Float64]:
    """Number of patches; PSNR in dB and cosine similarity of each."""
    decibel, cosine = [], []
    with open_slide(path, ReadConfig(reader="jpeg_tiff")) as slide:
        grid = grid_of(slide, most)
        both = (read_batches(slide, grid, batch=32, threads=2, scaling=scaling) for scaling in ("exact", "dct"))
        for exact, shrunk in zip(*both, strict=True):
            error = np.mean((exact.pixels.astype(float) - shrunk.pixels) ** 2, axis=(1, 2, 3))
            decibel.append(10 * np.log10(255**2 / np.maximum(error, 1e-12)))
            a, b = (runner(part.pixels).result().astype(float) for part in (exact, shrunk))
            cosine.append((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    return len(grid), np.concatenate(decibel), np.concatenate(cosine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="lite0")
    parser.add_argument("--side", type=int, default=7_680, help="side of the generated slides in pixels")
    parser.add_argument("--patches", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="keep the slides in this folder, and use existing ones")
    options = parser.parse_args()
    embed = EmbedConfig(encoder=options.encoder)
    runner = EncoderRunner(encoders.build(embed.encoder, None, True), pick_device("cpu"), embed)
    print("| slide | patches | PSNR, dB: median, worst | cosine: median, worst |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        slides = {f"{kind}: {how.text}": make_slide(folder, kind, options.side) for kind, how in KINDS.items()}
        if REAL.exists():
            slides = {"CMU-1, SVS as scanned (RGB 4:4:4, Q30, 240-px tiles)": REAL, **slides}
        for name, path in slides.items():
            count, decibel, cosine = compare(path, runner, options.patches)
            print(
                f"| {name} | {count} | {np.median(decibel):.1f}, {decibel.min():.1f} "
                f"| {np.median(cosine):.5f}, {cosine.min():.5f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
