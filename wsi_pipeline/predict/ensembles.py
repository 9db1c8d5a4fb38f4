"""The ensembles of a run: their trained models, and which of these were not trained on a given patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ..aggregate.checkpoint import CARD, ModelCard, check_fits, load_card, load_model, model_folders
from ..aggregate.inference import bag_output, logits_of
from ..config import Config, ModelChoice, PredictConfig
from ..csvtable import read_csv
from ..errors import ArtifactError
from ..project import Project
from ..rng import seed_from
from ..types import FeatureBag, Float64
from .ensemble_prediction import combine_members, member_outputs

Loaded = tuple[nn.Module, ModelCard]  # the module is in eval mode and its parameters are frozen


def find_ensembles(project: Project) -> dict[str, list[Path]]:
    """Find the trained models of ``predict.model`` if it is set, else those of the run's own folds.

    Returns
    -------
    dict of str to list of Path
        Label of the model -> folders of its members. All members of all ensembles have the same classes.

    Raises
    ------
    ArtifactError
        Where there is no model, models differ in classes, task or kind of bag, members of one ensemble differ in
        their options, or a model names a plug-in that the config does not.
    """
    config = project.config
    groups = _of_folder(config.predict.model) if config.predict.model is not None else _of_run(project, config)
    _check_plugins(groups, config)
    first = next(iter(groups.values()))[0]
    classes = card(first).classes
    for folder in (folder for members in groups.values() for folder in members):
        if (card(folder).classes, card(folder).task, card(folder).bag) != (classes, card(first).task, card(first).bag):
            raise ArtifactError(
                f"{folder} predicts {_what(folder)}, but {first} {_what(first)}; "
                f"give predict.model a folder whose models share their classes"
            )
    return groups


def _what(folder: Path) -> str:
    """What a model predicts, as the end of a message."""
    found = card(folder)
    return f"{', '.join(found.classes)} ({found.task}, one {found.bag} per bag)"


def _check_plugins(groups: Mapping[str, Sequence[Path]], config: Config) -> None:
    """Check plug-ins: a model.json from elsewhere must not select which code runs, so the config must name it too."""
    allowed = {choice.name for choice in config.aggregate.models}
    for folder in (folder for members in groups.values() for folder in members):
        name = card(folder).model
        if ":" in name and name not in allowed:
            raise ArtifactError(
                f"{folder} names the plug-in {name!r}, which is code; to allow it, --set aggregate.models=['{name}']"
            )


def held_out_members(
    members: Sequence[Path], patient_id: str, slide_ids: Sequence[str]
) -> tuple[tuple[Path, ...], bool]:
    """The members that were not trained on a patient.

    Parameters
    ----------
    members : sequence of Path
        Folders of an ensemble's models.
    patient_id : str
    slide_ids : sequence of str
        The patient's slides. A member trained or validated on one of them counts as trained on the patient, under
        whatever patient_id the manifest of its training had.

    Returns
    -------
    folders : tuple of Path
        The held-out members; where there are none, all members.
    held_out : bool
        Whether the members are held out.
    """

    def has_seen(folder: Path) -> bool:
        trained = card(folder).trained
        slides = set(trained.get("seen_slides", ()))
        return patient_id in trained.get("seen_patients", ()) or not slides.isdisjoint(slide_ids)

    held_out = tuple(folder for folder in members if not has_seen(folder))
    return (held_out, True) if held_out else (tuple(members), False)


def card(folder: Path) -> ModelCard:
    """The card of the model in ``folder``, cached until the file changes. Raises ``ArtifactError``."""
    try:
        stamp = (folder / CARD).stat().st_mtime_ns
    except OSError:
        stamp = 0
    return _card(folder, stamp)


@lru_cache(maxsize=64)
def load(folder: Path, digest: str, device: str) -> Loaded:  # noqa: ARG001
    """Module and card of the model in ``folder``, cached for the next slide.

    Parameters
    ----------
    folder : Path
    digest : str
        SHA-256 of the weights; part of the cache's key, so that a retrained model is loaded again.
    device : str

    Raises
    ------
    ArtifactError
        Where the model cannot be loaded.
    """
    module, card = load_model(folder, device)
    return module.requires_grad_(False), card


def load_members(folders: Sequence[Path], device: str) -> list[Loaded]:
    """The members of an ensemble on ``device``, in the order of ``folders``, with their current cards."""
    return [(load(folder, card(folder).weights_sha256, device)[0], card(folder)) for folder in folders]


def member_logits(members: Sequence[Loaded], bags: Sequence[FeatureBag], device: str) -> Float64:
    """Logits (M, C) of all members for one bag, which ``bags`` (the feature bags of its slides) form together.

    Raises ``ArtifactError`` where a bag does not fit a member.
    """
    for bag in bags:
        _check(members, bag)
    return np.stack([logits_of(bag_output(module, bags, device)) for module, _ in members])


def dropout_logits(members: Sequence[Loaded], bags: Sequence[FeatureBag], device: str, passes: int) -> Float64:
    """Logits (M * passes, C) with active dropout, member by member; the same for every call. No pass: (0, C).

    Monte Carlo dropout: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016. All passes of a model
    without dropout are equal.
    """
    rows: list[Float64] = []
    names = [bag.grid.slide_id for bag in bags]
    for (module, of_model), _ in ((member, i) for member in members for i in range(passes)):
        layers = [layer for layer in module.modules() if isinstance(layer, _DropoutNd)]
        with torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []):
            torch.manual_seed(seed_from("dropout", of_model.weights_sha256, len(rows), *names))
            try:
                for layer in layers:
                    layer.train()
                rows.append(logits_of(bag_output(module, bags, device)))
            finally:
                for layer in layers:
                    layer.eval()
    return np.stack(rows) if rows else np.zeros((0, len(members[0][1].classes)))


def predicted_class(members: Sequence[Loaded], bag: FeatureBag, device: str) -> int:
    """Index of the class that the ensemble predicts for ``bag``."""
    cards = [of_model for _, of_model in members]
    logits = member_logits(members, [bag], device)
    return combine_members(cards, member_outputs(cards, logits, logits[:0]), PredictConfig()).predicted


def _check(members: Sequence[Loaded], bag: FeatureBag) -> None:
    for _, of_model in members:
        check_fits(of_model, bag, f"the bag of slide {bag.grid.slide_id!r}")


def _of_folder(path: Path) -> dict[str, list[Path]]:
    """One ensemble per model name; options must agree, since models of different options are not folds of one model."""
    groups: dict[str, list[Path]] = {}
    for folder in model_folders(path):
        found = card(folder)
        members = groups.setdefault(ModelChoice(name=found.model).label, [])
        if members and card(members[0]).options != found.options:
            raise ArtifactError(
                f"{members[0]} and {folder} are both {found.model!r} but differ in their options; "
                f"give predict.model the folder of one of them"
            )
        members.append(folder)
    return groups


def _of_run(project: Project, config: Config) -> dict[str, list[Path]]:
    """The folds in ``train/predictions.csv`` of the configured models and seeds."""
    path = project.folder.train / "predictions.csv"
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; run `wsi train` first, or give predict.model a trained model")
    _, rows = read_csv(path)
    trained = sorted({(label, int(seed), int(fold)) for label, seed, fold, *_ in rows})
    groups: dict[str, list[Path]] = {}
    for label in (choice.label for choice in config.aggregate.models):
        for seed in sorted(set(config.train.seeds)):
            folds = [fold for name, s, fold in trained if (name, s) == (label, seed)]
            if not folds:
                raise ArtifactError(f"{path} has no fold of model {label!r} with seed {seed}; run `wsi train` first")
            groups.setdefault(label, []).extend(project.folder.fold(label, seed, fold) for fold in folds)
    return groups


@lru_cache(maxsize=4096)
def _card(folder: Path, stamp: int) -> ModelCard:  # noqa: ARG001
    return load_card(folder)
