"""The config section ``train``: how the MIL models are trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from .base import Count, Fraction, Positive, Section, distinct, runtime
from .train_recipes import RECIPES


class TrainConfig(Section):
    """How the MIL models are trained."""

    task: Literal["classification", "multilabel", "regression", "survival"] = Field(
        default="classification",
        description="label is a class; classes joined by ';'; a number; survival: columns time and event (Cox model)",
    )
    bag: Literal["slide", "patient"] = Field(
        default="slide", description="one bag per slide, or one of all slides of a patient"
    )
    folds: Annotated[int, Field(ge=2)] = Field(
        default=5, description="patient-level stratified folds, unless the manifest gives splits"
    )
    site_preserving: bool = Field(
        default=False, description="keep all patients of a site (manifest column site, or TCGA barcode) in one fold"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="fraction of a fold's training patients for early stopping, threshold and calibration"
    )
    seeds: Annotated[tuple[int, ...], AfterValidator(distinct)] = Field(
        default=(0,), min_length=1, description="each trains all folds again, with its own splits; together an ensemble"
    )
    classes: tuple[str, ...] | None = Field(
        default=None, description="class order; default: the labels, sorted, the last is positive"
    )
    recipe: str = Field(
        default="default", description=f"a paper's values for keys that are not set: {', '.join(RECIPES)}"
    )
    epochs: Count = Field(default=50, description="most passes over the training bags")
    patience: Count = Field(default=10, description="epochs without a better validation loss before training stops")
    keep: Literal["best", "last"] = Field(
        default="best", description="the weights of the epoch with the best validation loss, or of the last epoch"
    )
    loss: Literal["cross_entropy", "weighted", "symmetric"] = Field(
        default="cross_entropy",
        description="classification; weighted: by inverse class frequency; symmetric: robust to wrong labels",
    )
    optimizer: Literal["adamw", "adam", "radam", "lookahead_radam", "sgd"] = Field(
        default="adamw", description="optimiser"
    )
    betas: tuple[Fraction, Fraction] = Field(
        default=(0.9, 0.999), description="betas of the Adam family; the first is SGD's momentum"
    )
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="learning rate after warm-up")
    lr: Positive = Field(default=2e-4, description="learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=1e-4, description="weight decay")
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(
        default=2, description="epochs in which the learning rate rises to lr"
    )
    accumulate: Count = Field(default=1, description="bags whose gradients are summed before an optimiser step")
    risk_set: Annotated[int, Field(ge=2)] = Field(
        default=16, description="survival: bags whose risks are compared in one step"
    )
    max_patches: Count | None = Field(
        default=4096, description="patches sampled from a training bag in each epoch; null: all; validation uses all"
    )
    balanced: bool = Field(default=True, description="sample every class equally often")
    feature_noise: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="augmentation: Gaussian noise on the features, in standard deviations of the bag"
    )
    feature_drop: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="augmentation: fraction of feature channels set to zero, the same for all patches of a bag",
    )
    clip_norm: Annotated[float, Field(ge=0)] = Field(default=1.0, description="largest gradient norm; 0: no clipping")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="autocast type of the model")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: Count = Field(default=1, description="CPU threads of one fold; changes the last bits of the result")
    state_every_s: Annotated[float, Field(ge=0)] = runtime(
        60.0, "seconds between checkpoints from which a stopped fold resumes"
    )
    tensorboard: bool = runtime(False, "also write TensorBoard logs")

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, data: Any) -> Any:
        """A recipe's values for the keys that the user does not set."""
        name = data.get("recipe", "default") if isinstance(data, dict) else "default"
        if name not in RECIPES:
            raise ValueError(f"there is no recipe {name!r}; known: {', '.join(RECIPES)}")
        return {**RECIPES[name], **data} if isinstance(data, dict) else data
