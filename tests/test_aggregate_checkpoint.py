"""A model on disk: it comes back as it was, and whatever does not fit is refused in one line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wsi_pipeline import __version__
from wsi_pipeline.aggregate import models
from wsi_pipeline.aggregate.checkpoint import ModelCard, check_fits, load_model, model_folders, save_model
from wsi_pipeline.artifacts import SCHEMA, is_current
from wsi_pipeline.errors import ArtifactError
from wsi_pipeline.types import FeatureBag, PatchGrid

CARD = ModelCard(
    model="abmil",
    options={"hidden": 8, "attention_dim": 4, "gated": False},
    classes=("normal", "tumour"),
    encoder="lite0",
    encoder_options={},
    weights_digest="ab" * 32,
    dim=6,
    target_mpp=0.5,
    side_px=224,
    threshold=0.4,
    trained={"fold": 2, "seed": 7, "held_out": ["patient-µ"]},
)


def build(card: ModelCard = CARD) -> nn.Module:
    torch.manual_seed(0)
    return models.build(card.model, card.dim, len(card.classes), **card.options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "fold-2", build(), CARD, key="k1")
    return tmp_path / "fold-2"


def refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        load_model(folder, "cpu")
    line = str(caught.value)
    assert "\n" not in line
    return line


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}), encoding="utf-8")


# --- there and back --------------------------------------------------------------------------------------------


def test_a_model_comes_back_as_it_was(folder: Path) -> None:
    model, card = load_model(folder, "cpu")
    assert replace(card, weights_sha256="") == CARD
    assert not model.training
    features, xy = torch.randn(9, 6), torch.zeros(9, 2)
    assert torch.equal(model(features, xy).logits, build().eval()(features, xy).logits)


def test_the_folder_holds_two_files_that_say_what_they_are(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors"]
    content = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert content == {
        "schema": SCHEMA,
        "key": "k1",
        "made_by": {"program": "wsi_pipeline", "version": __version__, "stage": "train"},
        **json.loads(json.dumps(asdict(CARD))),
        "classes": ["normal", "tumour"],
        "weights_sha256": sha256,
    }
    assert is_current(folder / "model.json", "k1")
    assert not is_current(folder / "model.json", "k2")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    save_model(tmp_path / "again", build(), CARD, key="k1")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_loading_draws_nothing_from_the_callers_generator(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_model(folder, "cpu")
    assert torch.equal(torch.rand(1), expected)


def test_a_later_model_replaces_an_earlier_one(folder: Path) -> None:
    card = replace(CARD, options={"hidden": 5, "attention_dim": 3}, threshold=None)
    save_model(folder, build(card), card, key="k2")
    assert replace(load_model(folder, "cpu")[1], weights_sha256="") == card


def test_a_save_that_breaks_leaves_no_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise RuntimeError("power cut")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        save_model(folder, build(), CARD, key="k2")
    assert not (folder / "model.json").exists()
    assert not list(folder.rglob(".writing*"))


def test_a_card_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_model(tmp_path / "new", build(), replace(CARD, threshold=float("nan")), key="k")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("attention", ["nystrom", "exact"])
def test_transmil_comes_back_as_it_was(tmp_path: Path, attention: str) -> None:
    card = replace(CARD, model="transmil", options={"hidden": 16, "heads": 2, "landmarks": 4, "attention": attention})
    save_model(tmp_path, build(card), card, key="k")
    features, xy = torch.randn(9, 6), torch.zeros(9, 2)
    expected = build(card).eval()(features, xy)
    found = load_model(tmp_path, "cpu")[0](features, xy)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.attention, expected.attention)


# --- what cannot be loaded -------------------------------------------------------------------------------------


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"{tmp_path}/model.json cannot be read (No such file or directory); give a folder that training finished"
    )


def test_a_card_that_is_not_json(folder: Path) -> None:
    (folder / "model.json").write_text("{")
    assert refusal(folder).startswith(f"{folder}/model.json is not JSON (")


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema": 99}'])
def test_a_card_of_another_schema(folder: Path, content: str) -> None:
    (folder / "model.json").write_text(content)
    found = "99" if "99" in content else "None"
    assert refusal(folder) == (
        f"{folder}/model.json has schema {found}, this version reads {SCHEMA}; "
        f"use the version that made it, or train again"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "absent"}, "encoder: Field required"),
        ({"dim": "6"}, "dim: Input should be a valid integer"),
        ({"dim": 0}, "dim: Input should be greater than or equal to 1"),
        ({"classes": []}, "classes: Tuple should have at least 1 item after validation, not 0"),
        ({"target_mpp": -0.5}, "target_mpp: Input should be greater than 0"),
    ],
)
def test_a_card_with_a_wrong_field(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit(folder, **changes)
    assert refusal(folder) == f"{folder}/model.json: {words}; train again, or copy the model again"


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == (
        f"{folder}/model.safetensors cannot be read (No such file or directory); "
        f"copy the whole model folder, or run `wsi train` again"
    )


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_cut_off_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert refusal(folder) == (
        f"{path} is damaged or belongs to another model.json (sha256 differs); copy the model again, or run `wsi train`"
    )


def test_one_changed_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "sha256 differs" in refusal(folder)


def test_weights_that_are_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a tensor in sight")
    edit(folder, weights_sha256=hashlib.sha256(b"not a tensor in sight").hexdigest())
    assert refusal(folder).startswith(f"{folder}/model.safetensors is not a safetensors file (")


@pytest.mark.parametrize(
    ("changes", "misfit"),
    [
        ({"options": {"hidden": 8, "attention_dim": 4}}, "it lacks gate.0.bias"),
        ({"options": {"hidden": 8}, "model": "mean"}, "the model has no attend.0.bias"),
        ({"dim": 7}, "embed.0.weight is (8, 6), the model's is (8, 7)"),
        ({"classes": ["a", "b", "c"]}, "classify.bias is (2,), the model's is (3,)"),
    ],
)
def test_weights_of_another_model(folder: Path, changes: dict[str, Any], misfit: str) -> None:
    edit(folder, **changes)
    name = changes.get("model", "abmil")
    assert refusal(folder) == (
        f"{folder}/model.safetensors does not fit model '{name}': {misfit}; use the version that made it"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "abmill"}, "there is no model called 'abmill'"),
        ({"model": "my_lab.gone:build"}, "model 'my_lab.gone:build' cannot be imported"),
        ({"options": {"depth": 2}}, "model 'abmil' has no option 'depth'"),
        ({"options": {"hidden": 0}}, "model option hidden is 0"),
    ],
)
def test_a_model_that_cannot_be_built(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit(folder, **changes)
    assert refusal(folder).startswith(f"{folder}/model.json: {words}")


# --- ensembles -------------------------------------------------------------------------------------------------


def test_a_folder_with_a_model_is_that_model(folder: Path) -> None:
    assert model_folders(folder) == [folder]


def test_a_folder_of_folders_is_an_ensemble_in_order(tmp_path: Path) -> None:
    for name in ("b/fold-1", "a/fold-1", "a/fold-0", ".writing-1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.json").touch()
    (tmp_path / "a" / "fold-2").mkdir()  # not finished
    assert model_folders(tmp_path) == [tmp_path / "a" / "fold-0", tmp_path / "a" / "fold-1", tmp_path / "b" / "fold-1"]


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_no_model_below(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(ArtifactError) as caught:
        model_folders(path)
    assert str(caught.value) == f"no model.json in {path} or below; give the folder of a trained model, or train first"


# --- does the bag fit ------------------------------------------------------------------------------------------


def bag(
    encoder: str = "lite0", digest: str = "ab" * 32, dim: int = 6, mpp: float = 0.5, side_px: int = 224
) -> FeatureBag:
    grid = PatchGrid(
        slide_id="s1",
        xy_px0=np.zeros((1, 2), np.int64),
        side_px=side_px,
        side_px0=(side_px, side_px),
        stride_px0=(side_px, side_px),
        target_mpp=mpp,
        mpp=(0.25, 0.25),
        slide_size_px0=(1000, 1000),
        bounds_px0=(0, 0, 1000, 1000),
    )
    return FeatureBag(grid, np.zeros((1, dim), np.float16), encoder, digest)


@pytest.mark.parametrize("mpp", [0.5, 0.5049, 0.4951])
def test_a_bag_like_those_of_training_fits(mpp: float) -> None:
    check_fits(CARD, bag(mpp=mpp), "s1")


@pytest.mark.parametrize(
    ("changes", "found", "remedy"),
    [
        ({"encoder": "uni2-h", "dim": 1536}, "encoder 'uni2-h', not 'lite0'", "embed.encoder=lite0"),
        (
            {"digest": "cd" * 32},
            "encoder weights cdcdcdcdcdcd, not abababababab",
            "the encoder weights of training",
        ),
        ({"digest": ""}, "encoder weights unknown, not abababababab", "the encoder weights of training"),
        ({"dim": 12}, "12 features a patch, not 6", "the encoder options of training"),
        ({"mpp": 0.506}, "0.506 µm/px, not 0.5", "tile.mpp=0.5"),
        ({"mpp": 0.494}, "0.494 µm/px, not 0.5", "tile.mpp=0.5"),
        ({"side_px": 256}, "patches of 256 px, not 224", "tile.side_px=224"),
        (
            {"encoder": "resnet50", "mpp": 1.0, "side_px": 256},
            "encoder 'resnet50', not 'lite0'; 1 µm/px, not 0.5; patches of 256 px, not 224",
            "embed.encoder=lite0; tile.mpp=0.5; tile.side_px=224",
        ),
    ],
)
def test_a_bag_of_another_make_is_refused(changes: dict[str, Any], found: str, remedy: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        check_fits(CARD, bag(**changes), "slide_3")
    assert str(caught.value) == (
        f"slide_3 does not fit the model: it has {found}; make the features again with {remedy}"
    )
