"""The demo study on several cohorts: each seed draws different slides and trains from a different initialisation.

    python workflows/demo_study.py --seeds 0 1 2 --out studies/demo

Prints one Markdown table, mean ± sd over the seeds, and writes it to OUT/results.md. Existing cohorts are not drawn
again, and finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from pathlib import Path

from rich.console import Console

from wsi_pipeline.artifacts import write_text
from wsi_pipeline.cli.progress import Bars
from wsi_pipeline.demo import draw_cohort
from wsi_pipeline.demo.study import demo_config
from wsi_pipeline.pipeline import STAGES, run_stages
from wsi_pipeline.project import RunFolder, open_project

Values = dict[tuple[str, str], list[float]]


def run_seed(out: Path, seed: int, overrides: list[str], console: Console) -> RunFolder:
    """Draw one cohort and run all stages on it."""
    folder = out / f"seed{seed}"
    draw_cohort(folder, seed=seed)
    config = demo_config(folder, [f"train.seeds=[{seed}]", *overrides])
    bars = Bars(console)
    try:
        failures = run_stages(open_project(config), STAGES, bars)
    finally:
        bars.close()
    if failures:
        raise SystemExit(f"seed {seed}: {len(failures)} slides failed; see {RunFolder(config.out).failures}")
    return RunFolder(config.out)


def collect(folder: RunFolder, values: Values) -> None:
    """Add one run's results: (model, measure) -> one value per seed."""
    for row in _rows(folder.evaluate / "metrics.csv"):
        if row["value"]:
            values[row["model"], row["metric"]].append(float(row["value"]))
    maps: Values = defaultdict(list)
    for row in _rows(folder.evaluate / "maps.csv"):
        maps[row["model"], f"map AUPRC, {row['method']}"].append(float(row["auprc"]))
        maps[row["model"], f"map lift, {row['method']}"].append(float(row["lift"]))
    for key, slides in maps.items():
        values[key].append(statistics.mean(slides))


def table(values: Values, seeds: int) -> str:
    """Mean ± sd over the seeds, as Markdown."""
    lines = [f"| model | measure | mean ± sd of {seeds} cohorts |", "|---|---|---|"]
    for (model, measure), found in values.items():
        sd = statistics.stdev(found) if len(found) > 1 else 0.0
        lines.append(f"| {model} | {measure} | {statistics.mean(found):.3f} ± {sd:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("studies/demo"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    values: Values = defaultdict(list)
    for seed in options.seeds:
        collect(run_seed(options.out.resolve(), seed, options.overrides, Console(stderr=True)), values)
    text = table(values, len(options.seeds))
    write_text(options.out / "results.md", text)
    print(text)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
