"""Cost of an explanation map by each method on this CPU: seconds and memory, for AB-MIL and TransMIL.

    python benchmarks/explain.py                                     # every method, 1,000 to 50,000 patches
    python benchmarks/explain.py --methods rollout integrated_gradients,steps=4 --models transmil --patches 50000

Each measurement is in a new process: the median time of ``--repeats`` calls, and the peak memory above that before them
(imports, weights, features). ``materialised`` is the same method with whole attention maps, at 1,000 and 5,000 patches,
where they still fit in memory; its scores are compared with the streamed ones. Features are random, fp32; patches lie
on a full square. Linux only. Integrated gradients, LIME and KernelSHAP on TransMIL need an hour at 50,000 patches;
``--limit`` is the time after which a measurement is abandoned.
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
import yaml
from mil import bag, build, resident_gb
from torch import Tensor, nn

from wsi_pipeline.engine import cores
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.methods import Explainer, explainers

MODELS = ("abmil", "transmil")
PEER_PATCHES = (1000, 5000)
MATERIALISED = "materialised "


@dataclass(frozen=True)
class Cost:
    """Cost of one map."""

    model: str
    method: str
    patches: int
    seconds: float
    extra_gb: float  # peak above imports, weights and features
    peak_gb: float  # of the whole process


def call_of(method: str, model: nn.Module, features: Tensor, xy: Tensor) -> Callable[[], object]:
    """The measured computation, as a function without arguments."""
    if method.startswith(MATERIALISED):
        from materialised import MATERIALISED as WHOLE

        explain = WHOLE[method.removeprefix(MATERIALISED)]
        return lambda: explain(model, features, xy, 1)  # type: ignore[arg-type]
    explainer = explainer_of(method)
    explained = ExplainedModel(model)
    return lambda: explainer(explained, features, xy, 1)


def explainer_of(spec: str) -> Explainer:
    """A method from "name" or "name,option=value,…"."""
    name, *options = spec.split(",")
    return explainers.build(name, **{k: yaml.safe_load(v) for k, _, v in (o.partition("=") for o in options)})


def measure_here(model_name: str, method: str, patches: int, dim: int, repeats: int) -> Cost:
    """Measure in this process, which should be a new one."""
    model, (features, xy) = build(model_name, dim).eval(), bag(patches, dim)
    call = call_of(method, model, features, xy)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before = resident_gb("VmRSS")
    warm_up(model, dim)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    peak = resident_gb("VmHWM")
    return Cost(model_name, method, patches, statistics.median(seconds), peak - before, peak)


def warm_up(model: nn.Module, dim: int) -> None:
    """One-time initialisation of a process: threads, kernels, the backward pass."""
    features, xy = bag(300, dim)
    logits: Tensor = model(features.requires_grad_(), xy).logits
    logits.sum().backward()
    model.zero_grad()


def measure(model_name: str, method: str, patches: int, options: argparse.Namespace) -> Cost:
    """Measure in a separate process; infinite if it takes longer than ``--limit``."""
    numbers = [f"--dim={options.dim}", f"--threads={options.threads}", f"--repeats={options.repeats}"]
    what = ["--models", model_name, "--methods", method, "--patches", str(patches)]
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--here", *numbers, *what],
            check=True,
            capture_output=True,
            text=True,
            timeout=options.limit,
        )
    except subprocess.TimeoutExpired:
        return Cost(model_name, method, patches, math.inf, math.nan, math.nan)
    return Cost(**json.loads(done.stdout))


def plans(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(model, method, patches): the methods that fit the model, and their materialised forms."""
    planned = []
    for model_name in options.models:
        model = build(model_name, options.dim)
        methods = [
            m for m in options.methods or explainers.names() if explainer_of(m).fits(ExplainedModel(model)) is None
        ]
        planned += [(model_name, method, patches) for patches in options.patches for method in methods]
        if model_name == "transmil" and options.peers:
            from materialised import MATERIALISED as WHOLE

            peers = [method for method in methods if method in WHOLE]
            more = [n for n in PEER_PATCHES if n not in options.patches]
            planned += [(model_name, method, n) for n in more for method in peers]
            planned += [(model_name, MATERIALISED + method, n) for n in PEER_PATCHES for method in peers]
    return planned


def table(costs: Sequence[Cost]) -> str:
    """Markdown, a line per measurement; materialised forms are compared with the streamed form of the same size."""
    streamed = {(c.model, c.method, c.patches): c for c in costs}
    lines = ["| model | method | patches | seconds | GB | times the streamed form's seconds, GB |"]
    lines.append("|---|---|---|---|---|---|")
    for cost in costs:
        peer = streamed.get((cost.model, cost.method.removeprefix(MATERIALISED), cost.patches))
        ratio = "–"
        if math.isinf(cost.seconds):
            lines.append(f"| {cost.model} | {cost.method} | {cost.patches:,} | over the limit | – | – |")
            continue
        if peer is not None and peer is not cost and math.isfinite(peer.seconds):
            ratio = f"{cost.seconds / peer.seconds:.1f}, {cost.extra_gb / max(peer.extra_gb, 1e-3):.1f}"
        lines.append(
            f"| {cost.model} | {cost.method} | {cost.patches:,} | {cost.seconds:.2f} | {cost.extra_gb:.2f} | {ratio} |"
        )
    return "\n".join(lines)


def disagreement(patches: int, dim: int) -> dict[str, float]:
    """Largest difference between streamed and materialised scores of the patches, relative to the largest score."""
    from materialised import MATERIALISED as WHOLE

    model, (features, xy) = build("transmil", dim).eval(), bag(patches, dim)
    found = {}
    for name, explain in WHOLE.items():
        whole = explain(model, features, xy, 1).detach()  # type: ignore[arg-type]
        padding = model.layer1.attn.padding(1 + patches + model.copies(patches))  # type: ignore[union-attr,operator]
        folded = whole[padding + 1 :][:patches].clone()
        copies = whole[padding + 1 + patches :]
        folded[: len(copies)] += copies
        scores = explainers.build(name)(ExplainedModel(model), features, xy, 1).scores
        found[name] = float((scores - folded).abs().max() / folded.abs().max().clamp_min(1e-12))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--methods", nargs="+", help="default: every registered method that fits")
    parser.add_argument("--patches", nargs="+", type=int, default=[1000, 10_000, 50_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--limit", type=float, default=600, help="time limit of a measurement in seconds")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave the materialised forms out")
    parser.add_argument("--json", type=Path, help="write the measurements here too")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.here:
        found = measure_here(options.models[0], options.methods[0], options.patches[0], options.dim, options.repeats)
        print(json.dumps(asdict(found)))
        return
    costs = [measure(*plan, options) for plan in plans(options)]
    machine = f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    print(f"{machine}; fp32, {options.dim} features a patch; limit {options.limit:g} s\n\n{table(costs)}")
    if "transmil" in options.models and options.peers:
        differences = ", ".join(f"{name} {error:.1e}" for name, error in disagreement(1000, options.dim).items())
        print(f"\nStreamed and materialised scores of 1,000 patches, relative difference: {differences}.")
    if options.json:
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
