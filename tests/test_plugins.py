"""Every registered plug-in satisfies the protocol of its package: a new file is tested as soon as it exists."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explaining import scores_of
from PIL import Image
from sklearn.metrics import average_precision_score

from wsi_pipeline.aggregate import models
from wsi_pipeline.config import ReadConfig
from wsi_pipeline.embed import encoders
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.read import open_slide, readers
from wsi_pipeline.tile import detectors

SIZES = (1, 2, 17, 1000)
SMALL = [e.name for e in encoders.entries() if not e.name.endswith(":") and not e.info.get("hub")]


def bag(n: int, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    side = int(np.ceil(np.sqrt(n)))
    xy = torch.stack([torch.arange(n) % side, torch.arange(n) // side], dim=1).float()
    return torch.randn(n, dim, generator=generator), xy


def build_model(name: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(name, 12, 2, **options).eval()


@pytest.mark.parametrize("name", SMALL)
def test_an_encoder_maps_patches_to_vectors_and_is_deterministic(name: str) -> None:
    encoder = encoders.build(name, None, False)
    side = min(encoder.side_px, 224)
    patches = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second = encoder.module.eval()(patches), encoder.module(patches)
    assert first.shape == (2, encoder.dim)
    assert torch.equal(first, second)
    assert len(encoder.mean) == len(encoder.std) == 3
    assert encoder.recommended_mpp > 0


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", models.names())
def test_a_model_takes_any_bag(name: str, n: int) -> None:
    with torch.inference_mode():
        output = build_model(name)(*bag(n))
    assert output.logits.shape == (2,)
    assert torch.isfinite(output.logits).all()
    if output.attention is not None:
        assert output.attention.shape in {(n,), (2, n)}
        torch.testing.assert_close(
            output.attention.sum(dim=-1), torch.ones(output.attention.shape[:-1]), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("name", models.names())
def test_a_model_says_where_it_comes_from(name: str) -> None:
    entry = models.entry(name)
    assert entry.info["paper"]
    assert entry.summary
    assert isinstance(entry.info["class_specific_attention"], bool)


@pytest.fixture(scope="module")
def planted() -> tuple[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor, np.ndarray]]]:
    """A gated AB-MIL trained on bags whose class 1 is decided by a few patches; and bags to explain."""
    generator = torch.Generator().manual_seed(0)

    def draw(positive: bool) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        features, xy = torch.randn(40, 12, generator=generator), bag(40)[1]
        evidence = torch.zeros(40, dtype=torch.bool)
        if positive:
            evidence[torch.randperm(40, generator=generator)[:4]] = True
            features[evidence, :3] += 3.0
        return features, xy, evidence.numpy()

    torch.manual_seed(0)
    model = models.build("abmil", 12, 2, dropout=0.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(300):
        features, xy, _ = draw(step % 2 == 1)
        loss = torch.nn.functional.cross_entropy(model(features, xy).logits[None], torch.tensor([step % 2]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval(), [draw(True) for _ in range(10)]


@pytest.mark.parametrize("name", explainers.names())
def test_an_explainer_finds_planted_evidence(
    name: str, planted: tuple[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor, np.ndarray]]]
) -> None:
    model, bags = planted
    explainer = explainers.build(name)
    if explainer.fits(ExplainedModel(model)) is not None:
        pytest.skip("does not fit AB-MIL")
    precision = [average_precision_score(evidence, scores_of(explainer, model, x, xy, 1)) for x, xy, evidence in bags]
    assert np.mean(precision) > 0.5  # chance: 0.1


@pytest.mark.parametrize("name", readers.names())
def test_a_reader_gives_white_outside_and_crosses_processes_as_a_path(name: str, tmp_path: Path) -> None:
    path = slide_for(name, tmp_path)
    config = ReadConfig(reader=name, mpp=0.5)
    with open_slide(pickle.loads(pickle.dumps(path)), config) as slide:
        width, height = slide.sizes[0]
        inside = slide.read((0, 0), 0, (30, 20))
        outside = slide.read((width + 10, -50), 0, (30, 20))
        across = slide.read((width - 10, height - 10), 0, (20, 20))
    assert inside.shape == (20, 30, 3)
    assert inside.dtype == np.uint8
    assert inside.max() < 200
    assert (outside == 255).all()
    assert (across[:, 10:] == 255).all()
    assert across[:10, :10].max() < 200


def slide_for(reader: str, folder: Path) -> Path:
    pixels = np.full((300, 400, 3), (120, 60, 140), np.uint8)
    if reader != "image":
        import tifffile

        path = folder / "slide.tif"
        tifffile.imwrite(path, pixels, tile=(64, 64), compression="jpeg", photometric="rgb")
    else:
        path = folder / "slide.png"
        Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("name", detectors.names())
def test_a_detector_finds_tissue_and_not_glass(name: str) -> None:
    rng = np.random.default_rng(0)
    rgb = np.clip(rng.normal(243, 2, (200, 300, 3)), 0, 255).astype(np.uint8)
    rgb[50:150, 80:220] = np.clip(rng.normal((200, 120, 170), 12, (100, 140, 3)), 0, 255).astype(np.uint8)
    mask = detectors.build(name)(rgb, (8.0, 8.0))
    assert mask.shape == (200, 300)
    assert mask.dtype == bool
    assert mask[70:130, 100:200].mean() > 0.95
    assert mask[:30].mean() < 0.02
    blank = np.clip(rng.normal(243, 2, (200, 300, 3)), 0, 255).astype(np.uint8)
    assert detectors.build(name)(blank, (8.0, 8.0)).mean() < 0.01
