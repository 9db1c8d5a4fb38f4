"""The sections of the config, one a stage: every key with its default, its meaning and its rule.

Lengths are micrometres (``_um``) or micrometres per pixel (``mpp``), so that no result depends on a scanner's
pyramid. A field marked ``runtime`` changes how fast a result comes, never the result, and stays out of the keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from .recipes import RECIPES

MapName = Literal["consensus", "agreement", "spread", "sign_agreement", "entropy", "distance"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, strict=True)]  # YAML's true is no number
Options = dict[str, Any]


def _runtime(default: Any, description: str, **rules: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"runtime": True}, **rules)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} stands twice")
    return values


def _listed(value: Any) -> Any:
    """A single name stands for a list of one."""
    return (value,) if isinstance(value, str) else value


class Section(BaseModel):
    """A part of the config: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def for_key(self) -> dict[str, Any]:
        """What decides the result: every field that is not marked ``runtime``, JSON-ready."""
        fields = type(self).model_fields
        skip = {
            n for n, f in fields.items() if isinstance(f.json_schema_extra, dict) and "runtime" in f.json_schema_extra
        }
        return self.model_dump(mode="json", exclude=skip)


class ReadConfig(Section):
    """How slides are opened."""

    reader: str = Field(
        "auto", description="a reader's name (see `wsi list readers`), or auto: the first that opens the slide"
    )
    mpp: Positive | tuple[Positive, Positive] | None = Field(
        None, description="µm per pixel of level 0 for slides whose manifest line gives none; wins over the file's own"
    )


class TileConfig(Section):
    """Where the tissue is, and the grid of patches on it."""

    mpp: Positive = Field(0.5, description="µm per pixel of the patches; met exactly, from the nearest finer level")
    side_px: Count = Field(224, description="side of a patch in pixels at that mpp")
    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of the side that neighbours share")
    min_tissue: Fraction = Field(0.5, description="least share of a patch that tissue must cover")
    detector: str = Field("otsu", description="a tissue detector's name")
    detector_options: Options = Field(default_factory=dict, description="its options (see `wsi list detectors`)")
    tissue_mpp: Annotated[float, Field(gt=0, le=1000)] = Field(
        8.0, description="µm per pixel at which tissue is looked for"
    )
    roi: Path | None = Field(
        None, description="GeoJSON, or a folder of <slide_id>.geojson: only patches inside these regions are kept"
    )
    roi_class: str | None = Field(None, description="use only the regions of this class")


class EmbedConfig(Section):
    """The patch encoder."""

    encoder: str = Field("lite0", description="an encoder's name (see `wsi list encoders`)")
    encoder_options: Options = Field(default_factory=dict, description="its options")
    pretrained: bool = Field(True, description="false: random weights, for trying the way only")
    weights: Path | None = Field(None, description="local weights (.pth, .pt, .bin or .safetensors)")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast type of the encoder")
    dtype: Literal["float16", "float32"] = Field("float16", description="type of the stored features")
    batch: Count = Field(32, description="patches a forward pass")
    channels_last: bool = Field(True, description="NHWC memory layout in the encoder")
    compile: bool = Field(False, description="torch.compile the encoder")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    import_: Path | None = Field(
        None,
        alias="import",
        description="folder of feature files made by CLAM, TRIDENT, STAMP or AtlasPatch, to use in place of an encoder",
    )
    import_options: Options = Field(
        default_factory=dict, description="what such files do not hold (see `wsi import-features --help`)"
    )
    threads: int = _runtime(0, "CPU threads that encode; 0: the cores this worker has", ge=0)
    read_threads: Count = _runtime(2, "threads that read patches ahead")


class ModelChoice(Section):
    """One MIL model to train, and its options."""

    name: str
    options: Options = Field(default_factory=dict)
    id: str = Field("", pattern=r"^[A-Za-z0-9_-]*$", description="folder name, where one model is trained twice")
    train: Options = Field(
        default_factory=dict, description="keys of the train section that differ for this model, e.g. {recipe: clam}"
    )

    @property
    def label(self) -> str:
        """The name under which its files and numbers stand."""
        return self.id or self.name.replace(":", "-").replace(".", "-")


class AggregateConfig(Section):
    """The MIL models that are trained, each on the same folds."""

    models: tuple[ModelChoice, ...] = Field((ModelChoice(name="abmil"),), min_length=1)

    @field_validator("models", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """``models: [abmil, transmil]`` is short for a list of ``{name: …}``."""
        values = [value] if isinstance(value, (str, dict)) else value
        return [{"name": v} if isinstance(v, str) else v for v in values] if isinstance(values, list) else values

    @field_validator("models")
    @classmethod
    def _distinct(cls, value: tuple[ModelChoice, ...]) -> tuple[ModelChoice, ...]:
        labels = [m.label for m in value]
        if len(set(labels)) < len(labels):
            raise ValueError("two models have the same name; give each its own id")
        return value


class TrainConfig(Section):
    """How the MIL models are trained."""

    task: Literal["classification", "multilabel", "regression", "survival"] = Field(
        "classification",
        description="what label means: a class; classes joined by ';'; a number; or time and event columns (Cox)",
    )
    bag: Literal["slide", "patient"] = Field("slide", description="one bag a slide, or all slides of a patient as one")
    folds: Annotated[int, Field(ge=2)] = Field(
        5, description="patient-level stratified folds, unless the manifest gives splits"
    )
    site_preserving: bool = Field(
        False, description="keep all patients of a site (manifest column site, or of a TCGA barcode) in one fold"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share of a fold's training patients kept for early stopping, threshold and calibration"
    )
    seeds: Annotated[tuple[int, ...], AfterValidator(_distinct)] = Field((0,), min_length=1)
    classes: tuple[str, ...] | None = Field(
        None, description="class order; default: the labels, sorted, the last is positive"
    )
    recipe: str = Field("house", description=f"values of a paper for what is not set here: {', '.join(RECIPES)}")
    epochs: Count = 50
    patience: Count = Field(10, description="epochs without a better validation loss before training stops")
    keep: Literal["best", "last"] = Field(
        "best", description="the weights of the epoch with the best validation loss, or of the last epoch"
    )
    loss: Literal["cross_entropy", "weighted", "symmetric"] = Field(
        "cross_entropy", description="of classes; weighted: by inverse frequency; symmetric: robust to wrong labels"
    )
    optimizer: Literal["adamw", "adam", "radam", "lookahead_radam", "sgd"] = "adamw"
    betas: tuple[Fraction, Fraction] = Field(
        (0.9, 0.999), description="of the Adam family; the first is SGD's momentum"
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate, after warm-up")
    lr: Positive = 2e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_epochs: Annotated[int, Field(ge=0)] = 2
    accumulate: Count = Field(1, description="bags whose gradients are summed before a step")
    risk_set: Annotated[int, Field(ge=2)] = Field(16, description="survival: bags whose risks one step compares")
    max_patches: Count | None = Field(
        4096, description="patches sampled from a training bag each time; null: all; validation sees all"
    )
    balanced: bool = Field(True, description="draw every class equally often")
    feature_noise: Annotated[float, Field(ge=0)] = Field(
        0.0, description="augmentation: Gaussian noise on the features, in standard deviations of the bag"
    )
    feature_drop: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="augmentation: share of feature channels set to zero, the same for all patches of a bag"
    )
    clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0: no clipping")
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    threads: Count = Field(1, description="CPU threads of one fold; changes the last bits of the result")
    state_every_s: Annotated[float, Field(ge=0)] = _runtime(
        60.0, "seconds between the states from which a stopped fold goes on"
    )
    tensorboard: bool = _runtime(False, "also write TensorBoard logs")

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, data: Any) -> Any:
        """A recipe's values stand where the user gives none."""
        name = data.get("recipe", "house") if isinstance(data, dict) else "house"
        if name not in RECIPES:
            raise ValueError(f"there is no recipe {name!r}; known: {', '.join(RECIPES)}")
        return {**RECIPES[name], **data} if isinstance(data, dict) else data


class PredictConfig(Section):
    """Predictions on slides that no fold has seen."""

    model: Path | None = Field(
        None, description="folder of a trained model or of an ensemble; default: this run's own folds"
    )
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="prediction sets miss the true class at most this often (split conformal, from validation)"
    )
    abstain: bool = Field(False, description="name a class only where the prediction set holds just one")
    mc_dropout: Annotated[int, Field(ge=0)] = Field(
        0, description="forward passes with dropout a member, for the uncertainty; 0: none"
    )
    device: str = "auto"


class ExplainConfig(Section):
    """Which explanations are computed."""

    methods: Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_distinct)] = Field(
        ("attention", "contribution", "instance", "gradient_x_input"),
        min_length=1,
        description="auto: what patch flipping on validation slides picks for each model",
    )
    candidates: Annotated[tuple[str, ...], AfterValidator(_distinct)] = Field(
        ("attention", "contribution", "instance", "leave_one_out", "gradient_x_input", "lrp", "integrated_gradients"),
        min_length=1,
        description="what auto picks from, as far as it fits",
    )
    maps: Annotated[tuple[MapName, ...], AfterValidator(_distinct)] = Field(
        (), description="made of the methods' maps and of the ensemble: what they agree on, how sure they are"
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="of methods, by name, e.g. {lime: {samples: 500}}"
    )
    classes: tuple[str, ...] | None = Field(None, description="default: the positive of two, else the predicted one")
    device: str = "auto"


class HeatmapConfig(Section):
    """The map pyramids."""

    cell_px0: Annotated[int, Field(ge=1, le=32)] | None = Field(
        None, description="level-0 pixels per cell side; default: the largest power of two up to 32 and half the stride"
    )
    ngff: Annotated[Literal["0.4", "0.5"], BeforeValidator(str)] = Field("0.4", description="0.4 is what QuPath opens")
    chunk: Annotated[int, Field(ge=1, le=8192, strict=True)] = Field(512, description="cells a chunk side")


class EvaluateConfig(Section):
    """Measures and their intervals."""

    OF_EXPLANATIONS: ClassVar = ("explained_models", "explained_slides", "flips", "replace", "perturbations")

    bootstrap: Count = Field(1000, description="resamples of patients for the 95 % intervals")
    seed: Annotated[int, Field(ge=0)] = 0
    specificity: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.95,), description="sensitivity is reported at these specificities"
    )
    bins: Count = Field(15, description="bins of the calibration error and the reliability diagram")
    froc: str | None = Field(
        None, description="method of explain whose maps are turned into detections for the FROC, e.g. instance"
    )
    froc_radius_um: Positive = Field(250.0, description="around a detection, no weaker one is kept")
    tumour_classes: tuple[str, ...] | None = Field(None, description="of annotations; default: all but exclusions")
    explained_models: tuple[str, ...] | None = Field(None, description="explanations: of these models; default: all")
    explained_slides: Count | None = Field(
        None, description="explanations: of so many slides a model, annotated ones first; default: of all held out"
    )
    flips: Annotated[int, Field(ge=2, strict=True)] = Field(
        101, description="explanations: shares of a bag, from none to all, at which patches are taken away"
    )
    replace: Literal["mean"] | None = Field(
        "mean", description="explanations: patches are also replaced, by the mean of the bag; null: only dropped"
    )
    perturbations: Annotated[int, Field(ge=0, strict=True)] = Field(
        10, description="explanations: small changes of the features for the sensitivity of a map; 0: none"
    )


class ViewConfig(Section):
    """What people look at."""

    top_patches: Annotated[int, Field(ge=0)] = Field(8, description="highest-scoring patches shown per slide")
    thumbnail_px: Count = Field(640, description="longer side of a report picture")
    max_tiles: Count = Field(
        250_000, description="most tiles in one GeoJSON; above, only the highest scores are written"
    )


class EngineConfig(Section):
    """Where the work runs. Never changes a result."""

    kind: Literal["serial", "local", "cluster"] = _runtime(
        "serial", "serial; local: worker processes; cluster: a Dask scheduler"
    )
    workers: int = _runtime(0, "local: worker processes; 0: one for every two cores", ge=0)
    address: str | None = _runtime(None, "cluster: tcp://host:port of the Dask scheduler")
