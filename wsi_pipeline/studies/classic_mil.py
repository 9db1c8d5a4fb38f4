"""The classic MIL data sets (MUSK1, elephant and similar): from a CSV of instances to bags for `wsi train`.

Dietterich, Lathrop and Lozano-Pérez, "Solving the multiple instance problem with axis-parallel rectangles", Artificial
Intelligence 1997 (MUSK); Andrews, Tsochantaridis and Hofmann, NeurIPS 2002 (elephant). The CSV has no header; column 0
is the bag's label (1 or larger: positive), column 1 the bag's number, the others are the instance's features.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..artifacts import Provenance, content_key, file_digest, write_text
from ..csvtable import csv_text, read_csv
from ..errors import ConfigError
from ..project import RunFolder
from ..store import BagWriter
from ..types import Float32, Float64, PatchGrid

CLASSES = ("negative", "positive")


@dataclass(frozen=True, eq=False)
class ClassicBag:
    """One bag of a data set."""

    name: str
    positive: bool
    features: Float64  # (N, D) as in the file


def read_bags(path: Path) -> tuple[ClassicBag, ...]:
    """Read the bags of a CSV, sorted by number. Raises ``ConfigError`` with the line that cannot be used."""
    instances: dict[int, list[list[float]]] = defaultdict(list)
    labels: dict[int, bool] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line, row in enumerate(csv.reader(file), 1):
                label, number, *features = map(float, row)
                if len(features) != len(next(iter(instances.values()), [features])[0]):
                    raise ConfigError(
                        f"{path}, line {line}: {len(features)} features, but other lines have another number"
                    )
                if labels.setdefault(int(number), label > 0) != (label > 0):
                    raise ConfigError(f"{path}, line {line}: bag {int(number)} has two labels; give all its lines one")
                instances[int(number)].append(features)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give a CSV of instances") from error
    except ValueError as error:
        raise ConfigError(
            f"{path}: a cell is not a number, or a line is empty ({error}); it needs label,bag,features"
        ) from error
    if not instances:
        raise ConfigError(f"{path} has no instances")
    return tuple(
        ClassicBag(f"{path.stem}_{number:04d}", labels[number], np.array(instances[number]))
        for number in sorted(instances)
    )


def standardised(bags: Sequence[ClassicBag]) -> list[Float32]:
    """Standardise the features to mean 0 and standard deviation 1 over all instances, as in the published runs.

    Uses no label. A constant feature becomes 0.
    """
    every = np.concatenate([bag.features for bag in bags])
    spread = every.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    return [((bag.features - every.mean(axis=0)) / scale).astype(np.float32) for bag in bags]


def write_study(source: Path, out: Path) -> int:
    """Write ``embed/<bag>.h5`` and the manifest ``slides.csv`` of a run folder; returns the number of bags.

    Instances have no position: they are placed on a square raster in the file's order.
    """
    bags = read_bags(source)
    digest = file_digest(source)
    for bag, features in zip(bags, standardised(bags), strict=True):
        key = content_key(stage="embed", part="classic", source=digest, bag=bag.name)
        with BagWriter(
            RunFolder(out).bag(bag.name), _raster(bag.name, len(features)), features.shape[1], "float32"
        ) as writer:
            writer.append(features)
            writer.finish(np.ones(len(features), bool), source.stem, digest, Provenance.of(key, "embed"))
    rows = [(bag.name, source.resolve(), CLASSES[bag.positive]) for bag in bags]
    write_text(out / "slides.csv", csv_text(("slide_id", "path", "label"), rows))
    return len(bags)


def _raster(name: str, count: int) -> PatchGrid:
    side = int(np.ceil(np.sqrt(count)))
    index = np.arange(count)
    xy = np.stack([index % side, index // side], axis=1).astype(np.int64)
    return PatchGrid(name, xy, 1, (1.0, 1.0), (1.0, 1.0), 1.0, (1.0, 1.0), (side, side), (0, 0, side, side))


def accuracies(predictions: Path, part: str = "test") -> dict[str, list[float]]:
    """Accuracy at threshold 0.5 of each model and repeat.

    Parameters
    ----------
    predictions : Path
        ``train/predictions.csv`` of a run.
    part : {"test", "val"}
        The bags to evaluate, of all folds.

    Returns
    -------
    dict of str to list of float
        Model -> accuracy of each repeat (seed).
    """
    header, rows = read_csv(predictions)
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in (dict(zip(header, cells, strict=True)) for cells in rows):
        if row["part"] == part:
            predicted = CLASSES[float(row[f"prob_{CLASSES[1]}"]) >= 0.5]
            right[row["model"], row["seed"]].append(predicted == row["label"])
    found: dict[str, list[float]] = defaultdict(list)
    for (model, _), hits in right.items():
        found[model].append(float(np.mean(hits)))
    return dict(found)


def accuracy_table(runs: dict[str, Path], published: dict[str, dict[str, float]]) -> str:
    """Format accuracies as Markdown: a row per model, two columns per data set.

    Parameters
    ----------
    runs : dict of str to Path
        Data set -> run folder.
    published : dict of str to dict
        Model -> data set -> published accuracy.

    Returns
    -------
    str
        Mean ± sd over the repeats, and the published accuracy beside it.
    """
    found = {name: accuracies(run / "train" / "predictions.csv") for name, run in runs.items()}
    models = list(dict.fromkeys(model for of_set in found.values() for model in of_set))
    lines = [
        "| model | " + " | ".join(f"{name} | published" for name in runs) + " |",
        "|---" * (1 + 2 * len(runs)) + "|",
    ]
    for model in models:
        cells = []
        for name in runs:
            repeats = found[name].get(model, [])
            sd = np.std(repeats, ddof=1) if len(repeats) > 1 else 0.0
            cells.append(f"{np.mean(repeats):.3f} ± {sd:.3f}" if repeats else "–")
            known = published.get(model, {}).get(name)
            cells.append("–" if known is None else f"{known:.3f}")
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
