"""Trained models on bags: load one or an ensemble of folds, predict, explain."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..aggregate.checkpoint import ModelCard, check_fits, load_card, model_folders
from ..aggregate.inference import bag_tensors, cpu_threads, fault
from ..config import ModelChoice, PredictConfig
from ..device import pick_device
from ..errors import ArtifactError, ConfigError, UnknownNameError
from ..explain.explained_model import explained_model
from ..explain.methods import explainers, unit_for
from ..explain.stage import mean_attribution, misfit, target_classes
from ..predict.ensemble_prediction import combine_members, member_outputs
from ..predict.ensembles import Loaded, dropout_logits, held_out_members, load_members, member_logits, predicted_class
from ..types import FeatureBag
from .arguments import require_opened
from .maps import ExplanationMap
from .prediction import Prediction


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """One trained model, or an ensemble of models of one design (the folds of a run). ``len`` gives the members.

    Attributes
    ----------
    name : str
        Label of the model in maps and tables.
    folders : tuple of Path
        Where each member lies.
    members : tuple of torch.nn.Module
        The networks, in eval mode on ``device``, with frozen parameters.
    cards : tuple of ModelCard
        What each member is: classes, task, encoder, resolution, patients of its training.
    device : str
        Where they compute.
    """

    name: str
    folders: tuple[Path, ...]
    members: tuple[nn.Module, ...]
    cards: tuple[ModelCard, ...]
    device: str

    @property
    def card(self) -> ModelCard:
        """The first member's card; classes, task, encoder and patches are the same for all members."""
        return self.cards[0]

    @property
    def task(self) -> str:
        """``classification``, ``multilabel``, ``regression`` or ``survival``."""
        return self.card.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the logits; the last is the positive one of two."""
        return self.card.classes

    def __len__(self) -> int:
        return len(self.folders)

    def held_out(self, patient_id: str, slide_ids: Iterable[str] = ()) -> TrainedModel:
        """Keep only the members that were not trained on a patient.

        Parameters
        ----------
        patient_id : str
            The patient, as the manifest of the training names them.
        slide_ids : iterable of str
            The patient's slides; a member that was trained on one of them was trained on the patient.

        Raises
        ------
        ArtifactError
            Every member was trained on the patient.
        """
        kept, held_out = held_out_members(self.folders, patient_id, tuple(slide_ids))
        if not held_out:
            raise ArtifactError(f"every member of {self.name} was trained on patient {patient_id}; load another model")
        return named_model(self.name, kept, self.device)

    @property
    def loaded(self) -> list[Loaded]:
        """(module, card) of each member."""
        return list(zip(self.members, self.cards, strict=True))

    def __repr__(self) -> str:
        members = "1 member" if len(self) == 1 else f"{len(self)} members"
        return f"<{self.name}: {self.task} of {', '.join(self.classes)}; {members} on {self.device}>"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"


def load_model(
    path: str | os.PathLike[str], *, device: str = "auto", allow_plugins: Collection[str] = ()
) -> TrainedModel:
    """Load a trained model, or the folds of one as an ensemble.

    Parameters
    ----------
    path : str or os.PathLike
        Folder with ``model.json``, or a folder of such folders, e.g. ``run/train/abmil``.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
    allow_plugins : collection of str
        Plug-ins (``"package.module:function"``) that the model may import. A ``model.json`` from elsewhere must not
        choose which code runs here.

    Returns
    -------
    TrainedModel
        All members are loaded; their cards say what they were trained on.

    Raises
    ------
    ArtifactError
        There is no model, its files are damaged, or the folder holds models that are not folds of one.
    ConfigError
        The device does not exist.
    """
    folders = model_folders(path)
    cards = [load_card(folder) for folder in folders]
    names = list(dict.fromkeys(ModelChoice(name=card.model).label for card in cards))
    if len(names) > 1:
        raise ArtifactError(f"{path} holds {len(names)} models ({', '.join(names)}); give the folder of one of them")
    designs = [(card.options, card.classes, card.task, card.bag) for card in cards]
    for folder, design in zip(folders, designs, strict=True):
        if design != designs[0]:
            raise ArtifactError(
                f"{folders[0]} and {folder} are both {names[0]!r} but differ in their options, classes or task; "
                f"give the folder of one of them"
            )
    for name in {card.model for card in cards if ":" in card.model} - set(allow_plugins):
        raise ArtifactError(
            f"{folders[0]} names the plug-in {name!r}, which is code; to allow it, load_model(…, "
            f"allow_plugins=[{name!r}])"
        )
    return named_model(names[0], folders, device)


def named_model(name: str, folders: Sequence[Path], device: str) -> TrainedModel:
    """Load the models in ``folders`` as one ensemble called ``name``."""
    device = str(pick_device(device))
    loaded = load_members(folders, device)
    return TrainedModel(name, tuple(folders), tuple(m for m, _ in loaded), tuple(c for _, c in loaded), device)


def predict_bag(model: TrainedModel, bag: FeatureBag, *, config: PredictConfig | None = None) -> Prediction:
    """Predict one bag: the mean over the members, with uncertainty and prediction set.

    Parameters
    ----------
    model : TrainedModel
        From ``load_model``.
    bag : FeatureBag
        From ``embed_patches`` or ``read_bag``.
    config : PredictConfig, optional
        The section ``predict`` of a config: ``alpha``, ``abstain`` and ``mc_dropout`` are used.

    Raises
    ------
    ArtifactError
        The bag is empty or damaged, or was made with another encoder, resolution or patch size than the model's.
    """
    _require(model, bag, "predict_bag")
    section = config or PredictConfig()
    _check(model, bag)
    with cpu_threads(1):
        logits = member_logits(model.loaded, [bag], model.device)
        dropout = dropout_logits(model.loaded, [bag], model.device, section.mc_dropout)
    found = combine_members(model.cards, member_outputs(model.cards, logits, dropout), section)
    inside = None if found.in_set is None else np.flatnonzero(found.in_set)
    return Prediction(
        slide_id=bag.grid.slide_id,
        model=model.name,
        task=found.task,
        outcome=dict(zip(found.classes, found.outcome.tolist(), strict=True)),
        predicted=found.decision(section.abstain),
        threshold=found.threshold,
        calibrated=dict(zip(found.classes, found.calibrated.tolist(), strict=True)),
        prediction_set=None if inside is None else tuple(found.classes[i] for i in inside),
        entropy=found.entropy,
        aleatoric=found.aleatoric,
        epistemic=found.epistemic,
        logits=logits,
    )


def explain_bag(
    model: TrainedModel, bag: FeatureBag, method: str = "contribution", target: str | None = None, **options: Any
) -> ExplanationMap:
    """Score every patch of a bag: what the model's output for one class rests on.

    Parameters
    ----------
    model : TrainedModel
        From ``load_model``; of an ensemble the map is the mean over the members.
    bag : FeatureBag
        N patches.
    method : str
        Name of an explainer (``wsi list explainers``).
    target : str, optional
        The class to explain; default: the positive one of two classes, of more the predicted one. Of two labels that
        may both be present it must be given.
    **options
        Options of the method, e.g. ``samples=500`` for ``lime``.

    Returns
    -------
    ExplanationMap
        ``scores`` (N,) float32, row i belongs to ``bag.grid.xy_px0[i]``; ``.plot(over=slide)`` draws them.

    Raises
    ------
    UnknownNameError
        There is no such method or class.
    ConfigError
        The method does not fit the model, or has no such option.
    ArtifactError
        The bag does not fit the model, or the scores are not finite.
    """
    _require(model, bag, "explain_bag")
    explainer = explainers.build(method, **options)
    explained = [explained_model(module, card) for module, card in model.loaded]
    if reason := misfit(explainer, explained[:1]):
        fit = [entry.name for entry in explainers.entries() if not misfit(entry.factory(), explained[:1])]
        raise ConfigError(f"{method} does not fit: {model.name} {reason}; methods that fit: {', '.join(fit)}")
    if target is not None and target not in model.classes:
        raise UnknownNameError(f"{model.name} has no class {target!r}; it has: {', '.join(model.classes)}")
    _check(model, bag)
    with cpu_threads(1):
        wanted = None if target is None else [target]
        indices = target_classes(wanted, explained[0], lambda: predicted_class(model.loaded, bag, model.device))
        if len(indices) > 1:
            raise UnknownNameError(f"{model.name} has several labels; give target, one of: {', '.join(model.classes)}")
        features, xy = bag_tensors(bag, model.device)
        scores, residual = mean_attribution(explainer, explained, features.float(), xy, indices[0])
    if not np.isfinite(scores).all():
        raise ArtifactError(f"{method} of {model.name} gives scores that are not finite for {bag.grid.slide_id!r}")
    unit, name = unit_for(explainer, explained[0]), model.classes[indices[0]]
    return ExplanationMap(bag.grid, scores, method, model.name, name, unit, explainer.signed, residual)


def _require(model: TrainedModel, bag: FeatureBag, function: str) -> None:
    """Raise ``TypeError`` where a path was given."""
    require_opened(model, function, "a trained model", "load_model(path)")
    require_opened(bag, function, "a bag", "read_bag(path)")


def _check(model: TrainedModel, bag: FeatureBag) -> None:
    """Raise ``ArtifactError`` unless the bag can be given to every member."""
    where = f"the bag of slide {bag.grid.slide_id!r}"
    if reason := fault(bag):
        raise ArtifactError(f"{where} {reason}")
    for card in model.cards:
        check_fits(card, bag, where)
