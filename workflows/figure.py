"""The README's figure: a slide of a finished run, and one map over it.

python workflows/figure.py demo/run slide_03 docs/images/heatmap.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from wsi_pipeline.config import load_config
from wsi_pipeline.heatmap.ngff import read_heatmap
from wsi_pipeline.project import RunFolder, read_manifest
from wsi_pipeline.read import open_slide, read_overview
from wsi_pipeline.read.annotations import read_annotation


def outline(axis: Axes, annotation: Path, colour: str) -> None:
    """The annotated area, in level-0 pixels."""
    for polygon in read_annotation(annotation).area().geoms:
        for ring in (polygon.exterior, *polygon.interiors):
            axis.plot(*np.asarray(ring.coords).T, color=colour, linewidth=1.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("slide_id")
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="abmil")
    parser.add_argument("--method", default="contribution")
    options = parser.parse_args()
    config = load_config(options.run / "config.yaml")
    row = next(r for r in read_manifest(config.slides) if r.slide_id == options.slide_id)
    pyramid = read_heatmap(RunFolder(config.out).heatmap(row.slide_id))
    names = [(c.model, c.method) for c in pyramid.channels]
    number = names.index((options.model, options.method))
    values, channel = pyramid.read(number), pyramid.channels[number]
    with open_slide(row.path, config.read, row.mpp) as slide:
        picture = read_overview(slide, max_px=1400).rgb
    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.6), layout="constrained")
    width, height = pyramid.slide_size_px0
    rows, columns = (n * pyramid.cell_px0 for n in values.shape)
    for axis in axes:
        axis.imshow(picture, extent=(0, width, height, 0))
        axis.set_axis_off()
    colours = axes[1].imshow(
        values, extent=(0, columns, rows, 0), cmap="RdBu_r", vmin=channel.window[0], vmax=channel.window[1], alpha=0.75
    )
    if row.annotation:
        outline(axes[0], row.annotation, "black")
        outline(axes[1], row.annotation, "black")
    axes[1].set_xlim(0, width)
    axes[1].set_ylim(height, 0)
    figure.colorbar(colours, ax=axes[1], shrink=0.8, label=channel.label)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110, pil_kwargs={"quality": 82})


if __name__ == "__main__":
    main()
