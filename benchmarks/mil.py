"""Cost of each model for one slide on this CPU: time and memory of a prediction and of a training step.

    python benchmarks/mil.py                                              # every model, 1,000 to 50,000 patches
    python benchmarks/mil.py --models transmil transmil,position=grid --patches 100000 --modes step --repeats 1
    python benchmarks/mil.py --models transmil plain --patches 50000 --json mil.json

``plain`` is TransMIL as published, on the nystrom-attention package; the other names are the registry's, with options
after commas. ``forward`` is one prediction (eval, no gradient); ``step`` is forward, the model's own loss, backward
and an AdamW step; both on the whole bag. Times are medians over rounds in which all models take turns, in one process.
Memory is the peak of a new process for each measurement, minus that before it (imports, weights and features). At the
end, the logits of ``plain`` and ``transmil`` with the same weights are compared.

Features are random, fp32; patches lie on a full square. Linux only: peaks are read from /proc. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from wsi_pipeline.aggregate import OwnTraining, models
from wsi_pipeline.engine import cores

PLAIN = "plain"
CLASSES = 2
MODES = ("forward", "step")


@dataclass(frozen=True)
class Cost:
    """Cost of one model for one bag."""

    model: str
    patches: int
    mode: str
    seconds: float  # median
    fastest_s: float
    slowest_s: float
    extra_gb: float  # peak above imports, weights and features
    peak_gb: float  # of the whole process


def build(spec: str, dim: int) -> nn.Module:
    """A model from "name" or "name,option=value,…", its weights drawn from seed 0."""
    torch.manual_seed(0)
    if spec == PLAIN:
        from plain_transmil import PlainTransMIL  # needs the nystrom-attention package

        return PlainTransMIL(dim, CLASSES)
    name, *options = spec.split(",")
    return models.build(name, dim, CLASSES, **{k: yaml.safe_load(v) for k, _, v in (o.partition("=") for o in options)})


def bag(patches: int, dim: int) -> tuple[Tensor, Tensor]:
    """Random features (N, dim), and positions row by row on a square."""
    index = torch.arange(patches)
    side = math.isqrt(patches - 1) + 1
    xy = torch.stack([index % side, index // side], dim=1).float()
    return torch.randn(patches, dim, generator=torch.Generator().manual_seed(1)), xy


def logits_of(model: nn.Module, features: Tensor, xy: Tensor) -> Tensor:
    """(C,)."""
    logits: Tensor = model(features) if model.__class__.__name__ == "PlainTransMIL" else model(features, xy).logits
    return logits


def work(model: nn.Module, mode: str, features: Tensor, xy: Tensor) -> Callable[[], object]:
    """The measured computation, as a function without arguments."""
    target = torch.zeros(1, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def forward() -> None:
        model.eval()
        with torch.no_grad():
            logits_of(model, features, xy)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        if isinstance(model, OwnTraining):
            output = model.training_output(features, xy, 0)
            loss = output.extra
            for weight, logits in output.streams:
                loss = loss + weight * F.cross_entropy(logits[None], target)
        else:
            loss = F.cross_entropy(logits_of(model, features, xy)[None], target)
        loss.backward()
        optimizer.step()

    return forward if mode == "forward" else step


def times(specs: Sequence[str], mode: str, patches: int, dim: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each model's calls; all take turns, after one warm-up call each."""
    features, xy = bag(patches, dim)
    works = {spec: work(build(spec, dim), mode, features, xy) for spec in specs}
    seconds: dict[str, list[float]] = {spec: [] for spec in specs}
    for turn in range(repeats + 1):
        for spec, call in works.items():
            begin = time.perf_counter()
            call()
            if turn:
                seconds[spec].append(time.perf_counter() - begin)
    return seconds


def resident_gb(line: str) -> float:
    """Memory of this process: VmRSS is the current, VmHWM the peak resident size."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(text.split()[1]) for text in status if text.startswith(f"{line}:")) * 1024 / 1e9


def memory_here(spec: str, mode: str, patches: int, dim: int) -> tuple[float, float]:
    """(extra, peak) GB of one call in this process, which should be a new one."""
    call = work(build(spec, dim), mode, *bag(patches, dim))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before = resident_gb("VmRSS")
    call()
    peak = resident_gb("VmHWM")
    return peak - before, peak


def memory(spec: str, mode: str, patches: int, dim: int, threads: int) -> tuple[float, float]:
    """The same in a separate process."""
    options = [f"--dim={dim}", f"--threads={threads}", f"--models={spec}", f"--patches={patches}", f"--modes={mode}"]
    command = [sys.executable, __file__, "--memory-here", *options]
    extra, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return extra, peak


@torch.no_grad()
def disagreement(patches: int, dim: int) -> float:
    """Largest difference between the logits of ``plain`` and ``transmil`` with the same weights."""
    features, xy = bag(patches, dim)
    plain, ours = build(PLAIN, dim).eval(), build("transmil", dim).eval()
    ours.load_state_dict(plain.state_dict())
    return float((logits_of(plain, features, xy) - logits_of(ours, features, xy)).abs().max())


def table(costs: Sequence[Cost]) -> str:
    """Markdown; each model is compared with ``plain``, if that was measured."""
    lines = [
        "| model | patches | mode | seconds (fastest – slowest) | plain's time / its time | GB | its GB / plain's GB |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = {(cost.patches, cost.mode): cost for cost in costs if cost.model == PLAIN}
    for cost in costs:
        peer = plain.get((cost.patches, cost.mode))
        faster, fraction = (
            ("–", "–")
            if peer is None
            else (
                f"{peer.seconds / cost.seconds:.2f}",
                f"{cost.extra_gb / peer.extra_gb:.2f}",
            )
        )
        lines.append(
            f"| {cost.model} | {cost.patches:,} | {cost.mode} "
            f"| {cost.seconds:.3f} ({cost.fastest_s:.3f} – {cost.slowest_s:.3f}) "
            f"| {faster} | {cost.extra_gb:.3f} | {fraction} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="default: every registered model and plain")
    parser.add_argument("--patches", nargs="+", type=int, default=[1000, 10_000, 50_000])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--json", type=Path, help="write the measurements here too")
    parser.add_argument("--memory-here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_here:
        print(json.dumps(memory_here(options.models[0], options.modes[0], options.patches[0], options.dim)))
        return
    specs: list[str] = options.models or [PLAIN, *models.names()]
    costs = []
    for patches in options.patches:
        for mode in options.modes:
            gb = {spec: memory(spec, mode, patches, options.dim, options.threads) for spec in specs}
            for spec, seconds in times(specs, mode, patches, options.dim, options.repeats).items():
                costs.append(
                    Cost(spec, patches, mode, statistics.median(seconds), min(seconds), max(seconds), *gb[spec])
                )
    machine = f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    print(f"{machine}; fp32, {options.dim} features a patch, {options.repeats} rounds\n\n{table(costs)}")
    if PLAIN in specs:
        difference = disagreement(min(options.patches), options.dim)
        print(
            f"\nLogits of plain and transmil, same weights, {min(options.patches):,} patches: "
            f"difference {difference:.1e}."
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
