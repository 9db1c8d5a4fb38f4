"""YAML -> one frozen config. Two lines (``slides:`` and ``out:``) are a whole config; the rest has defaults.

Lengths are micrometres (``_um``) or micrometres per pixel (``mpp``), so that no result depends on a scanner's
pyramid. A field marked ``runtime`` changes how fast a result comes, never the result, and stays out of the keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from .errors import ConfigError

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


class Section(BaseModel):
    """A part of the config: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    threads: int = _runtime(0, "CPU threads that encode; 0: the cores this worker has", ge=0)
    read_threads: Count = _runtime(2, "threads that read patches ahead")


class ModelChoice(Section):
    """One MIL model to train, and its options."""

    name: str
    options: Options = Field(default_factory=dict)
    id: str = Field("", pattern=r"^[A-Za-z0-9_-]*$", description="folder name, where one model is trained twice")

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

    folds: Annotated[int, Field(ge=2)] = Field(
        5, description="patient-level stratified folds, unless the manifest gives splits"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share of a fold's training patients kept for early stopping and threshold"
    )
    seeds: Annotated[tuple[int, ...], AfterValidator(_distinct)] = Field((0,), min_length=1)
    classes: tuple[str, ...] | None = Field(
        None, description="class order; default: the labels, sorted, the last is positive"
    )
    epochs: Count = 50
    patience: Count = Field(10, description="epochs without a better validation loss before training stops")
    lr: Positive = 2e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_epochs: Annotated[int, Field(ge=0)] = 2
    accumulate: Count = Field(1, description="bags whose gradients are summed before a step")
    max_patches: Count = Field(4096, description="patches sampled from a training bag each time; validation sees all")
    balanced: bool = Field(True, description="draw every class equally often")
    clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0: no clipping")
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    threads: Count = Field(1, description="CPU threads of one fold; changes the last bits of the result")
    tensorboard: bool = _runtime(False, "also write TensorBoard logs")


class PredictConfig(Section):
    """Predictions on slides that no fold has seen."""

    model: Path | None = Field(
        None, description="folder of a trained model or of an ensemble; default: this run's own folds"
    )
    device: str = "auto"


class ExplainConfig(Section):
    """Which explanations are computed."""

    methods: Annotated[tuple[str, ...], AfterValidator(_distinct)] = Field(
        ("attention", "contribution", "instance", "gradient_x_input"), min_length=1
    )
    classes: tuple[str, ...] | None = Field(
        None, description="default: the positive class of two, else the predicted one"
    )
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

    bootstrap: Count = Field(1000, description="resamples of patients for the 95 % intervals")
    seed: Annotated[int, Field(ge=0)] = 0
    tumour_classes: tuple[str, ...] | None = Field(
        None, description="annotation classes that count; default: all but exclusions"
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


class Config(Section):
    """The whole config. Only ``slides`` and ``out`` must be given."""

    slides: Path = Field(description="the manifest: a CSV with a path column")
    out: Path = Field(description="the run folder")
    read: ReadConfig = ReadConfig()
    tile: TileConfig = TileConfig()
    embed: EmbedConfig = EmbedConfig()
    aggregate: AggregateConfig = AggregateConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()
    explain: ExplainConfig = ExplainConfig()
    heatmap: HeatmapConfig = HeatmapConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    view: ViewConfig = ViewConfig()
    engine: EngineConfig = EngineConfig()


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read CONFIG and apply ``section.field=value`` overrides; paths are relative to the config's folder.

    Raises ``ConfigError`` with one line that names the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the config {path} is not text; give the path of a YAML file") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no settings; it needs at least 'slides: manifest.csv' and 'out: run'")
    return build_config(data, overrides or [], base=path.parent, source=str(path))


def build_config(data: dict[str, Any], overrides: list[str], *, base: Path, source: str) -> Config:
    """Validate ``data`` after ``overrides``. Relative paths in it are taken from ``base``."""
    for override in overrides:
        _apply(data, override)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_one_line(error)}") from error
    return _anchored(config, base)


def dump_config(config: Config) -> str:
    """The resolved config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {override}: write it as section.field=value, for example --set tile.mpp=1.0")
    *sections, last = name.strip().split(".")
    node = data
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {section!r} is not a section")
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "config"
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}; `wsi config` lists every key with its default"
    if first["type"] == "missing":
        return f"{where!r} is missing; a config needs 'slides: manifest.csv' and 'out: run'"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = first["msg"].removeprefix("Value error, ").replace("tuple", "list").replace("Tuple", "List")
    return f"{where} = {first['input']!r}: {message}{more}"


def _anchored(config: Config, base: Path) -> Config:
    """Every path of the config made absolute, from ``base``."""

    def anchor(section: Section) -> Section:
        update: dict[str, Any] = {}
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, Section):
                update[name] = anchor(value)
            elif isinstance(value, Path):
                update[name] = (base / value.expanduser()).resolve()
        return section.model_copy(update=update)

    anchored = anchor(config)
    assert isinstance(anchored, Config)
    return anchored
