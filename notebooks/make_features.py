"""Write patch features with planted tumour, as TRIDENT stores them: bags whose answer is known, and no slide is needed.

Use: ``%run make_features.py FOLDER SLIDES``. Half of the slides hold one round group of tumour patches, whose features
are shifted in four of sixteen directions; every slide holds a group of look-alikes, shifted in four others. It writes
FOLDER/slides.csv (a manifest), FOLDER/features_planted/<slide>.h5 and FOLDER/annotations/<slide>.geojson.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from shapely import box, to_geojson, union_all

SIDE, COLUMNS, ROWS, DIM = 448, 24, 18, 16  # level-0 pixels a patch; patches a slide; features a patch
SHIFT = 1.5  # in standard deviations of the features


def near(cells: NDArray[np.int64], centre: NDArray[np.floating], radius: float) -> NDArray[np.bool_]:
    """Which cells (N, 2) lie within ``radius`` patches of ``centre``."""
    found: NDArray[np.bool_] = np.hypot(*(cells - centre).T) <= radius
    return found


def write_slide(folder: Path, number: int) -> list[object]:
    """Write one slide's files; its line of the manifest."""
    rng = np.random.default_rng(number)
    name, tumour = f"slide_{number:02}", number % 2 == 0
    cells = np.stack(np.meshgrid(np.arange(COLUMNS), np.arange(ROWS)), axis=-1).reshape(-1, 2)
    cells = cells[np.hypot(*((cells - (COLUMNS / 2 - 0.5, ROWS / 2 - 0.5)) / (COLUMNS / 2, ROWS / 2)).T) < 0.95]
    features = rng.normal(size=(len(cells), DIM))
    inner = cells[np.hypot(*((cells - (COLUMNS / 2, ROWS / 2)) / (COLUMNS / 2, ROWS / 2)).T) < 0.7]
    features[near(cells, rng.choice(inner), 2.0), 4:8] += SHIFT
    annotation = ""
    if tumour:
        planted = near(cells, rng.choice(inner), rng.uniform(1.0, 2.5))
        features[planted, :4] += SHIFT
        area = union_all([box(x, y, x + SIDE, y + SIDE) for x, y in (cells[planted] * SIDE).tolist()])
        feature = {"type": "Feature", "geometry": json.loads(to_geojson(area)), "properties": {}}
        annotation = f"annotations/{name}.geojson"
        (folder / annotation).write_text(json.dumps(feature), encoding="utf-8")
    with h5py.File(folder / "features_planted" / f"{name}.h5", "w") as file:
        file["features"] = features.astype(np.float32)
        coords = file.create_dataset("coords", data=cells * SIDE)
        coords.attrs.update({"patch_size": 224, "patch_size_level0": SIDE, "overlap": 0})
        coords.attrs.update({"level0_width": COLUMNS * SIDE, "level0_height": ROWS * SIDE})
    return [name, f"{name}.svs", "tumour" if tumour else "normal", 0.25, annotation]


def write_cohort(folder: Path, slides: int) -> None:
    """Write all slides and the manifest."""
    for part in ("features_planted", "annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with (folder / "slides.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "path", "label", "mpp", "annotation"])
        writer.writerows(write_slide(folder, number) for number in range(1, slides + 1))


if __name__ == "__main__":
    write_cohort(Path(sys.argv[1]), int(sys.argv[2]))
