"""Every registered model learns the MIL task: a slide is positive if a few of its patches are."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from wsi_pipeline.aggregate import OwnTraining, models

DIM, PLANTED, BAGS, EPOCHS = 12, 4, 40, 4
SMALL: dict[str, Any] = {"hidden": 64, "attention_dim": 16, "classifier_dim": 16, "query_dim": 16, "landmarks": 8}
SMALL |= {"heads": 4, "nodes": 8, "mlp": 32, "attention": "exact", "layers": 1, "dropout": 0.0}


class Bag(NamedTuple):
    features: Tensor  # (N, D)
    xy: Tensor  # (N, 2)
    label: int


def draw(count: int, seed: int) -> list[Bag]:
    """Bags of 16 to 20 patches on a grid of four columns; in every second one, ``PLANTED`` of them are shifted."""
    generator = torch.Generator().manual_seed(seed)
    bags = []
    for i in range(count):
        patches = 16 + int(torch.randint(5, (), generator=generator))
        features = torch.randn(patches, DIM, generator=generator)
        if i % 2:
            features[torch.randperm(patches, generator=generator)[:PLANTED], torch.arange(PLANTED)] += 8
        place = torch.arange(patches)
        bags.append(Bag(features, torch.stack([place % 4, place // 4], dim=1).float(), i % 2))
    return bags


def loss_of(model: nn.Module, bag: Bag) -> Tensor:
    """The model's own loss where it has one, cross entropy where not."""
    target = torch.tensor(bag.label)
    if not isinstance(model, OwnTraining):
        return functional.cross_entropy(model(bag.features, bag.xy).logits, target)
    output = model.training_output(bag.features, bag.xy, bag.label)
    return output.extra + sum(weight * functional.cross_entropy(logits, target) for weight, logits in output.streams)


def trained(name: str) -> nn.Module:
    options = {key: value for key, value in SMALL.items() if key in models.entry(name).options}
    torch.manual_seed(0)
    model = models.build(name, DIM, 2, **options).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    bags = draw(BAGS, seed=1)
    for _ in range(EPOCHS):
        for first in range(0, BAGS, 4):
            optimiser.zero_grad()
            torch.stack([loss_of(model, bag) for bag in bags[first : first + 4]]).mean().backward()
            optimiser.step()
    return model.eval()


@pytest.mark.parametrize("name", models.names())
def test_a_model_learns_to_find_planted_patches(name: str) -> None:
    model, unseen = trained(name), draw(BAGS, seed=2)
    with torch.no_grad():
        logits = [model(bag.features, bag.xy).logits for bag in unseen]
    margins = [float(positive - negative) for negative, positive in logits]
    assert roc_auc_score([bag.label for bag in unseen], margins) >= 0.95
