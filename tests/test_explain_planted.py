"""Planted evidence: whether every method that fits finds the patches that decide a trained model's prediction.

Run with ``pytest -s`` to see the table.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from explaining import scores_of
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from wsi_pipeline.aggregate import models
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.types import Float32

DIM, PATCHES, BAGS = 8, 60, 12
XY = torch.stack([torch.arange(PATCHES) % 10, torch.arange(PATCHES) // 10], 1).float()


class Found(NamedTuple):
    """How well a method finds planted evidence, mean over the bags."""

    evidence_for: float  # average precision of the scores
    evidence_against: float  # average precision of the negated scores
    flipping: float  # area under the probability while the most relevant patches are removed first; low is good


def planted(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features (60, 8), and kinds (60,): 1 evidence for, -1 against, 0 neither; one or two more of one kind."""
    fewer = int(torch.randint(1, 5, (), generator=generator))
    more = fewer + int(torch.randint(1, 3, (), generator=generator))
    counts = (more, fewer) if torch.rand((), generator=generator) < 0.5 else (fewer, more)
    kind = torch.zeros(PATCHES)
    kind[: counts[0]] = 1
    kind[counts[0] : sum(counts)] = -1
    kind = kind[torch.randperm(PATCHES, generator=generator)]
    features = torch.randn(PATCHES, DIM, generator=generator)
    features[:, 0] += 4 * (kind == 1)
    features[:, 1] += 4 * (kind == -1)
    return features, kind


def trained() -> nn.Module:
    """Gated attention-based MIL that predicts whether a bag has more evidence for than against."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = models.build("abmil", DIM, 2, hidden=32, attention_dim=16, dropout=0.0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(250):
        loss = torch.zeros(())
        for _ in range(8):
            features, kind = planted(generator)
            label = (kind.sum() > 0).long()
            loss = loss + nn.functional.cross_entropy(model(features, XY).logits[None], label[None])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def flipping(model: nn.Module, features: Tensor, scores: Float32) -> float:
    """Mean probability of class 1 over 101 fractions of the patches dropped, highest scores first; one always stays."""
    order = torch.from_numpy(np.argsort(-scores, kind="stable"))
    dropped = [min(round(PATCHES * share / 100), PATCHES - 1) for share in range(101)]
    with torch.no_grad():
        left = {count: model(features[order[count:]], XY[order[count:]]).logits for count in {*dropped}}
    return float(np.mean([left[count].softmax(0)[1].item() for count in dropped]))


@pytest.fixture(scope="module")
def table() -> dict[str, Found]:
    """Every method that fits, and "random", on bags with more evidence for than against that are predicted as such."""
    model, generator, random = trained(), torch.Generator().manual_seed(1), np.random.default_rng(2)
    bags: list[tuple[Tensor, Tensor]] = []
    while len(bags) < BAGS:
        features, kind = planted(generator)
        if kind.sum() > 0 and model(features, XY).logits.argmax() == 1:
            bags.append((features, kind))
    built = {name: explainers.build(name) for name in explainers.names()}
    maps = {
        name: [scores_of(explainer, model, features, XY, 1) for features, _ in bags]
        for name, explainer in built.items()
        if explainer.fits(ExplainedModel(model)) is None
    }
    maps["random"] = [random.standard_normal(PATCHES).astype(np.float32) for _ in bags]
    table = {name: summary(model, bags, scores) for name, scores in maps.items()}
    print(f"\n{'method':24} {'AP for':>8} {'against':>8} {'AUPC':>8}")
    for name, found in sorted(table.items(), key=lambda row: row[1].flipping):
        print(f"{name:24} {found.evidence_for:8.3f} {found.evidence_against:8.3f} {found.flipping:8.3f}")
    return table


def summary(model: nn.Module, bags: list[tuple[Tensor, Tensor]], scores: list[Float32]) -> Found:
    rows = [
        (
            average_precision_score(kind == 1, of_bag),
            average_precision_score(kind == -1, -of_bag),
            flipping(model, features, of_bag),
        )
        for (features, kind), of_bag in zip(bags, scores, strict=True)
    ]
    return Found(*np.mean(rows, axis=0).tolist())


def with_facts(table: dict[str, Found], **facts: object) -> list[str]:
    """Methods of the table that have these facts."""
    built = {name: explainers.build(name) for name in table if name in explainers.names()}
    return [name for name, one in built.items() if all(getattr(one, fact) == value for fact, value in facts.items())]


def test_every_signed_method_finds_evidence_for_and_against(table: dict[str, Found]) -> None:
    signed = with_facts(table, signed=True)
    assert {"contribution", "gradient_x_input", "integrated_gradients", "kernel_shap", "leave_one_out"} <= {*signed}
    assert {name: table[name] for name in signed if min(table[name][:2]) < 0.9} == {}


def test_instance_probability_finds_evidence_for_and_against(table: dict[str, Found]) -> None:
    probable = [*with_facts(table, unit="probability"), *with_facts(table, unit="prediction")]
    assert "instance" in probable
    assert {name: table[name] for name in probable if min(table[name][:2]) < 0.8} == {}


def test_attention_is_as_high_on_evidence_against_as_on_evidence_for(table: dict[str, Found]) -> None:
    assert table["attention"].evidence_for > 0.5  # one patch in fifteen is evidence for
    assert table["attention"].evidence_against <= 0.2


def test_gradcam_finds_evidence_for_the_class_and_omits_evidence_against(table: dict[str, Found]) -> None:
    assert table["gradcam_features"].evidence_for > 0.7
    assert table["gradcam_features"].evidence_against < 0.2


def test_removing_high_contributions_changes_the_prediction_more_than_removing_high_attention(
    table: dict[str, Found],
) -> None:
    assert table["contribution"].flipping < table["attention"].flipping < table["random"].flipping
    assert max(table[name].flipping for name in with_facts(table, signed=True)) < table["attention"].flipping
