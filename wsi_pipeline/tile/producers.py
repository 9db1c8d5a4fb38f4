"""Interpretation of feature files by the program that wrote them (the producer). Opens no file and guesses nothing.

CLAM: corners in level-0 pixels; a patch covers patch_size x int(downsample) of them. TRIDENT and AtlasPatch: corners in
level-0 pixels; patch_size_level0 is the footprint. STAMP: corners in µm (1.x: in pixels of 256/224 µm). None of them
states how many µm a level-0 pixel is. For each missing property the error names the option that gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError, EmptySlideError, SlideError
from ..interop.feature_files import FeatureFile, ImportOptions
from ..types import Float64

Pair = tuple[float, float]
Producer = Literal["clam", "trident", "stamp", "atlaspatch"]

_STAMP1_UM, _STAMP1_PX = 256.0, 224  # the only tile size of STAMP 1


@dataclass(frozen=True)
class Layout:
    """Patch geometry as a feature file states it. Lengths are (x, y), in level-0 pixels or µm as ``unit`` says.

    Attributes
    ----------
    producer : str
        The program that wrote the file.
    dataset, encoder : str
        Name of the dataset of features, and of their encoder.
    unit : {"px0", "um"}
        Unit of ``side`` and ``stride``.
    scale : float
        ``coords`` times this are in ``unit``.
    side : (float, float)
        Footprint of a patch.
    side_px : int
        Side of the encoder's input patch in pixels.
    stride : (float, float), optional
        Distance between neighbours; None if the file does not state it.
    slide_size_px0 : (int, int), optional
        (width, height) of level 0; None if the file does not state it.
    """

    producer: Producer
    dataset: str
    encoder: str
    unit: Literal["px0", "um"]
    scale: float
    side: Pair
    side_px: int
    stride: Pair | None
    slide_size_px0: tuple[int, int] | None


def layout(file: FeatureFile, coordinates: FeatureFile | None, xy: Float64, options: ImportOptions) -> Layout:
    """Find out which program wrote a feature file, and interpret it.

    Parameters
    ----------
    file : FeatureFile
        The file with the features.
    coordinates : FeatureFile, optional
        CLAM's separate file with the coordinates.
    xy : ndarray of float64, (N, 2)
        ``coords`` as stored.
    options : ImportOptions
        Properties that the files lack.

    Returns
    -------
    Layout
        The patch geometry.

    Raises
    ------
    ConfigError
        The encoder must be named.
    SlideError
        The size of the patches must be given, or file and options contradict each other.
    EmptySlideError
        The file has no patch.
    """
    dataset, encoder = _encoder(file, options)
    shape = file.features[dataset]
    if 0 in shape or len(xy) == 0:
        raise EmptySlideError(f"{file.path} has no patches: its producer found no tissue; leave the slide out")
    if shape[0] != len(xy):
        raise SlideError(f"{file.path} has {shape[0]} features for {len(xy)} coords; make the file again")
    if dataset == "feats":
        return _stamp(file, encoder, xy, options)
    if "/" in dataset:
        return _magnified("atlaspatch", file, dataset, encoder, options)
    if {"patch_size_level0", "target_magnification"} & set(file.facts):
        return _magnified("trident", file, dataset, encoder, options)
    return _clam(file, coordinates, encoder, options)


def common_step(values: Float64, others: Float64) -> float | None:
    """Most common distance between neighbours along one axis.

    Parameters
    ----------
    values, others : ndarray of float64, (N,)
        Coordinates along the axis and along the other one; neighbours have the same ``others``.

    Returns
    -------
    float or None
        The smallest of equally common distances; None if no distance makes up half of all.
    """
    order = np.lexsort((values, others))
    steps = np.diff(values[order])[np.diff(others[order]) == 0]
    found, counts = np.unique(steps[steps > 0], return_counts=True)
    if len(found) == 0 or 2 * counts.max() < counts.sum():
        return None
    return float(found[counts.argmax()])


def _encoder(file: FeatureFile, options: ImportOptions) -> tuple[str, str]:
    """(dataset, encoder name)."""
    names, chosen = file.encoders, options.encoder
    option = "--encoder NAME (embed.import_options.encoder)"
    if len(names) > 1 and chosen is None:
        raise ConfigError(f"{file.path} has features of {', '.join(names)}; choose one with {option}")
    if chosen is not None and names and chosen not in names:
        raise ConfigError(f"{file.path} states that its features are of {', '.join(names)}, not of {chosen}")
    if chosen is None and not names:
        raise ConfigError(f"{file.path} does not state which encoder made its features; give {option}")
    encoder = chosen or names[0]
    grouped = f"features/{encoder}"
    return grouped if grouped in file.features else next(iter(file.features)), encoder


def _clam(file: FeatureFile, coordinates: FeatureFile | None, encoder: str, options: ImportOptions) -> Layout:
    facts = (coordinates or file).facts
    size = _number(facts, "patch_size")
    down = _pair(facts, "downsample") or ((1.0, 1.0) if facts.get("patch_level") == 0 else None)
    if _number(facts, "custom_downsample") not in (None, 1.0):
        down = None  # shrunk once more, by rules that differ between CLAM's descendants
    footprint = (size * int(down[0]), size * int(down[1])) if size and down else None
    given = options.patch_size_level0
    side = footprint or ((given, given) if given else None)
    if side is None:
        raise SlideError(
            f"{file.path} does not state how large a patch is; give the folder of its coordinates files "
            f"with --coords DIR, or the side in level-0 pixels with --patch-size-level0 P"
        )
    if footprint is not None and given is not None:
        _agreed(file, "patch_size_level0", footprint[0], given)
    whole = _pair(facts, "level_dim")
    return Layout(
        producer="clam",
        dataset="features",
        encoder=encoder,
        unit="px0",
        scale=1.0,
        side=side,
        side_px=_side_px(file, size, options),
        stride=None,
        slide_size_px0=(round(whole[0] * down[0]), round(whole[1] * down[1])) if whole and down else None,
    )


def _magnified(producer: Producer, file: FeatureFile, dataset: str, encoder: str, options: ImportOptions) -> Layout:
    """TRIDENT's and AtlasPatch's attributes; ``overlap`` is in pixels of the patch."""
    facts = file.facts
    side_px = _side_px(file, _number(facts, "patch_size"), options)
    stated = _number(facts, "patch_size_level0")
    level0, target = _number(facts, "level0_magnification"), _number(facts, "target_magnification")
    if stated is None and level0 and target:
        stated = side_px * level0 / target
    side = _agreed(file, "patch_size_level0", stated, options.patch_size_level0)
    if side is None:
        raise SlideError(
            f"{file.path} does not state how many level-0 pixels a patch covers; give --patch-size-level0 P"
        )
    overlap = _number(facts, "overlap")
    step = side * (1 - overlap / side_px) if overlap is not None and 0 <= overlap < side_px else None
    width, height = _number(facts, "level0_width"), _number(facts, "level0_height")
    return Layout(
        producer=producer,
        dataset=dataset,
        encoder=encoder,
        unit="px0",
        scale=1.0,
        side=(side, side),
        side_px=side_px,
        stride=(step, step) if step else None,
        slide_size_px0=(round(width), round(height)) if width and height else None,
    )


def _stamp(file: FeatureFile, encoder: str, xy: Float64, options: ImportOptions) -> Layout:
    facts, scale = file.attributes, 1.0
    side_um = _number(facts, "tile_size_um")
    if side_um is None and facts.get("unit") == "um":
        side_um = _number(facts, "tile_size")
    size = _number(facts, "tile_size_px")
    if side_um is None:
        step = min((float(np.diff(np.unique(c)).min()) for c in xy.T if len(np.unique(c)) > 1), default=0.0)
        if round(step) != _STAMP1_PX:
            raise SlideError(
                f"{file.path} states no unit of its coords, and they are {step:g} apart, not {_STAMP1_PX} as in "
                f"STAMP 1; their position on the slide is unknown; make the features again with STAMP 2"
            )
        side_um, size, scale = _STAMP1_UM, float(_STAMP1_PX), _STAMP1_UM / _STAMP1_PX
    return Layout(
        producer="stamp",
        dataset="feats",
        encoder=encoder,
        unit="um",
        scale=scale,
        side=(side_um, side_um),
        side_px=_side_px(file, size, options),
        stride=(side_um, side_um),
        slide_size_px0=None,
    )


def _side_px(file: FeatureFile, stated: float | None, options: ImportOptions) -> int:
    found = _agreed(file, "patch_size", stated, options.patch_size)
    if found is None:
        raise SlideError(
            f"{file.path} does not state the side of the encoder's input patches; give it with --patch-size PIXELS"
        )
    return int(found)


def _agreed(file: FeatureFile, name: str, stated: float | None, given: float | None) -> float | None:
    """The file's value, else the user's. Raises ``SlideError`` if they differ."""
    if stated is not None and given is not None and abs(stated - given) > 0.5:
        option = "--" + name.replace("_", "-")
        raise SlideError(f"{file.path} has {name} {stated:g}, but {option} {given:g} was given; leave the option out")
    return given if stated is None else stated


def _number(facts: Mapping[str, Any], name: str) -> float | None:
    """A finite number of at least 0; None if there is none."""
    try:
        value = float(facts[name])
    except (KeyError, TypeError, ValueError):
        return None
    return value if np.isfinite(value) and value >= 0 else None


def _pair(facts: Mapping[str, Any], name: str) -> Pair | None:
    try:
        x, y = (float(value) for value in facts[name])
    except (KeyError, TypeError, ValueError):
        return None
    return (x, y) if x > 0 and y > 0 else None
