"""Choose the training recipe for the classic data sets: each candidate is trained on both, and compared on validation.

    python workflows/classic_mil/choose.py ../shared/data/mil --out studies/classic_mil_choice

In every fold the validation part is taken from the training bags; test bags are not used. Prints the mean accuracy over
the data sets, on the validation parts of ten folds of one seed that the study does not use, for plain and gated AB-MIL
together.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pipeline.config import build_config
from wsi_pipeline.pipeline import run_stages
from wsi_pipeline.project import open_project
from wsi_pipeline.studies.classic_mil import accuracies, write_study

SEED = 100  # not one of the study's seeds
GRID: dict[str, list[Any]] = {"hidden": [128, 256], "dropout": [0.25, 0.5], "epochs": [20], "keep": ["last"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the CSV files")
    parser.add_argument("--sets", nargs="+", default=["musk1", "elephant"])
    parser.add_argument("--out", type=Path, default=Path("studies/classic_mil_choice"))
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    lines = []
    for values in itertools.product(*GRID.values()):
        candidate = dict(zip(GRID, values, strict=True))
        found = [
            validation_accuracy(given.data / f"{name}.csv", given.out, candidate, given.workers) for name in given.sets
        ]
        lines.append((float(np.mean(found)), candidate, found))
        print(f"{np.mean(found):.4f}  {candidate}  {[f'{a:.4f}' for a in found]}", flush=True)
    best = max(lines, key=lambda line: line[0])
    print(f"chosen: {best[1]}")


def validation_accuracy(source: Path, out: Path, candidate: dict[str, Any], workers: int) -> float:
    """Accuracy on all folds' validation parts, mean over plain and gated AB-MIL."""
    name = "-".join(str(value) for value in candidate.values())
    folder = out / f"{source.stem}-{name}"
    write_study(source, folder)
    options = {"hidden": candidate["hidden"], "attention_dim": 64, "dropout": candidate["dropout"]}
    models = [
        {"name": "abmil", "id": f"abmil{gated:d}", "options": {**options, "gated": gated}} for gated in (False, True)
    ]
    train = {"folds": 10, "seeds": [SEED], "val_fraction": 0.1, "lr": 1e-3, "weight_decay": 1e-2}
    train |= {"epochs": candidate["epochs"], "keep": candidate["keep"]}
    data = {
        "slides": str(folder / "slides.csv"),
        "out": str(folder),
        "train": train,
        "aggregate": {"models": models},
        "engine": {"kind": "local", "workers": workers},
    }
    project = open_project(build_config(data, [], base=Path.cwd(), source="choose.py"))
    run_stages(project, ["train"])
    return float(
        np.mean(
            [
                repeat
                for repeats in accuracies(project.folder.train / "predictions.csv", "val").values()
                for repeat in repeats
            ]
        )
    )


if __name__ == "__main__":
    main()
