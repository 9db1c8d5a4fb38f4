"""Who held_out_members a slide: the models of each ensemble, and which of them have not seen the patient."""

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
    """Model label -> folders of its members: those of ``predict.model`` if given, else this run's own folds.

    All members of all ensembles know the same classes. Raises ``ArtifactError`` where there is no model, or where
    models cannot stand side by side.
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
    found = card(folder)
    return f"{', '.join(found.classes)} ({found.task} of one {found.bag} a bag)"


def _check_plugins(groups: Mapping[str, Sequence[Path]], config: Config) -> None:
    """A model.json from elsewhere must not choose which code runs here: the config has to name it, too."""
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
    """The members that have not seen the patient, and True; where all have seen it, all of them, and False.

    ``slide_ids``: the patient's slides. A member that has seen one of them has seen the patient, by whatever name the
    manifest of its training knew it.
    """

    def saw(folder: Path) -> bool:
        trained = card(folder).trained
        slides = set(trained.get("seen_slides", ()))
        return patient_id in trained.get("seen_patients", ()) or not slides.isdisjoint(slide_ids)

    unseen = tuple(folder for folder in members if not saw(folder))
    return (unseen, True) if unseen else (tuple(members), False)


def card(folder: Path) -> ModelCard:
    """The card of the model in ``folder``, read again only when it has changed."""
    try:
        stamp = (folder / CARD).stat().st_mtime_ns
    except OSError:
        stamp = 0
    return _card(folder, stamp)


@lru_cache(maxsize=64)
def load(folder: Path, digest: str, device: str) -> Loaded:  # noqa: ARG001
    """Module and card of ``folder``; kept for the next slide. ``digest``: of its weights, so that new ones are seen."""
    module, card = load_model(folder, device)
    return module.requires_grad_(False), card


def load_members(folders: Sequence[Path], device: str) -> list[Loaded]:
    """The members of an ensemble on ``device``, in the order of ``folders``, with their cards as they now stand."""
    return [(load(folder, card(folder).weights_sha256, device)[0], card(folder)) for folder in folders]


def member_logits(members: Sequence[Loaded], bags: Sequence[FeatureBag], device: str) -> Float64:
    """Logits (M, C) of the one bag that ``bags`` make together."""
    for bag in bags:
        _check(members, bag)
    return np.stack([logits_of(bag_output(module, bags, device)) for module, _ in members])


def dropout_logits(members: Sequence[Loaded], bags: Sequence[FeatureBag], device: str, passes: int) -> Float64:
    """Logits (M * passes, C) with dropout at work, member by member; the same for every call. No pass: (0, C).

    Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016. A model without dropout repeats itself.
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
    """The class that the ensemble names for ``bag``."""
    cards = [of_model for _, of_model in members]
    logits = member_logits(members, [bag], device)
    return combine_members(cards, member_outputs(cards, logits, logits[:0]), PredictConfig()).predicted


def _check(members: Sequence[Loaded], bag: FeatureBag) -> None:
    for _, of_model in members:
        check_fits(of_model, bag, f"the bag of slide {bag.grid.slide_id!r}")


def _of_folder(path: Path) -> dict[str, list[Path]]:
    """One ensemble a model name; options must agree, since a mean over different designs is no ensemble of folds."""
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
    """The folds that ``train/predictions.csv`` lists, of the configured models and seeds."""
    path = project.folder.train / "predictions.csv"
    if not path.exists():
        raise ArtifactError(f"{path} is not there; run `wsi train` first, or give predict.model a trained model")
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
