"""The tables of ``wsi list``, ``info``, ``config`` and ``doctor``."""

from __future__ import annotations

import importlib
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from .. import __version__
from ..config import Config, ReadConfig, Section
from ..errors import UnknownNameError
from ..project import parse_mpp
from ..registry import Entry, Registry

_KINDS = {
    "readers": "wsi_pipeline.read",
    "detectors": "wsi_pipeline.tile",
    "encoders": "wsi_pipeline.embed",
    "models": "wsi_pipeline.aggregate",
    "explainers": "wsi_pipeline.explain.methods",
}
_LIBRARIES = [
    "numpy",
    "openslide-python",
    "openslide-bin",
    "pillow",
    "simplejpeg",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "h5py",
    "zarr",
    "dask",
    "scikit-image",
]


def registry(kind: str) -> Registry[Any]:
    """The registry of one kind of plug-in."""
    if kind not in _KINDS:
        raise UnknownNameError(f"there is no list of {kind!r}; known: {', '.join(_KINDS)}")
    found: Registry[Any] = getattr(importlib.import_module(_KINDS[kind]), kind)
    return found


def plugin_table(kind: str) -> Table:
    """Name, summary, its options with defaults, and its facts; below, the plug-ins that cannot be used."""
    entries, faults = registry(kind).listing()
    table = Table(title=kind, show_lines=True, caption="\n".join(escape(line) for line in faults) or None)
    for column in ("name", "summary", "options", "facts"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        options = "\n".join(f"{name} = {default!r}" for name, default in entry.options.items())
        facts = "\n".join(escape(f"{name}: {value}") for name, value in plugin_facts(kind, entry).items())
        table.add_row(entry.name + ("<name>" if entry.name.endswith(":") else ""), entry.summary, options, facts)
    return table


def plugin_facts(kind: str, entry: Entry[Any]) -> dict[str, object]:
    """The package that provides a plug-in, what is registered of it, and of an explainer what its scores are."""
    facts: dict[str, object] = {name: value for name, value in entry.info.items() if not callable(value)}
    if entry.package:
        facts = {"package": entry.package, **facts}
    if kind == "explainers":
        built, fault = entry.try_build()
        if fault:
            return {**facts, "cannot be built": fault}
        facts |= {name: getattr(built, name) for name in ("unit", "signed", "class_specific") if hasattr(built, name)}
    return facts


def slide_table(path: Path, mpp: float | None) -> Table:
    """The properties of a slide, read from its header."""
    from ..read import open_slide

    table = Table(title=path.name, show_header=False)
    with open_slide(path, ReadConfig(), None if mpp is None else parse_mpp("--mpp", str(mpp))) as slide:
        table.add_row("reader", slide.reader)
        for reason in slide.rejected_readers:
            table.add_row("", f"not {reason}")
        table.add_row("vendor", slide.vendor)
        table.add_row("mpp (x, y)", f"{slide.mpp[0]:.5g}, {slide.mpp[1]:.5g} µm/px, from {slide.mpp_source}")
        table.add_row("bounds", "x {}, y {}, {} x {} px".format(*slide.bounds_px0))
        for level, ((width, height), downsample) in enumerate(zip(slide.sizes, slide.downsamples, strict=True)):
            um = slide.mpp[0] * downsample
            table.add_row(f"level {level}", f"{width:,} x {height:,} px, {um:.4g} µm/px (1 : {downsample:.4g})")
    return table


def config_table(section: str | None) -> Table:
    """Key, default, meaning."""
    if section is not None and section not in Config.model_fields:
        raise UnknownNameError(f"there is no section {section!r}; known: {', '.join(Config.model_fields)}")
    table = Table(title="config", caption="keys marked * change speed, never a result")
    for column in ("key", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for name, field in Config.model_fields.items():
        if section not in (None, name):
            continue
        if isinstance(field.default, Section):
            for key, inner in type(field.default).model_fields.items():
                runtime = isinstance(inner.json_schema_extra, dict) and "runtime" in inner.json_schema_extra
                default = inner.get_default(call_default_factory=True, validated_data={})
                table.add_row(
                    f"{name}.{inner.alias or key}{'*' if runtime else ''}",
                    escape(_plain(default)),  # a list in brackets would be read as markup
                    escape(inner.description or ""),
                )
        else:
            table.add_row(name, "(must be given)", field.description or "")
    return table


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_plain(v) for v in value) + "]"
    if isinstance(value, Section):
        return ", ".join(str(v) for v in value.model_dump().values() if v)
    return "" if value is None else str(value)


def doctor_table() -> Table:
    """Versions, devices, disk and weights: where a search for a problem begins."""
    import torch

    from ..embed import encoders
    from ..embed.identity import cached_weights

    table = Table(title=f"wsi_pipeline {__version__}", show_header=False)
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for name in _LIBRARIES:
        table.add_row(name, _version(name))
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    table.add_row("accelerators", ", ".join(devices) or "none: encoders run on the CPU")
    table.add_row("CPU threads", str(torch.get_num_threads()))
    usage = shutil.disk_usage(Path.cwd())
    table.add_row("disk here", f"{usage.free / 2**30:,.0f} of {usage.total / 2**30:,.0f} GiB free")
    for entry in encoders.entries():
        if not entry.name.endswith(":"):
            found = cached_weights(entry.name)
            table.add_row(f"weights: {entry.name}", str(found) if found else "not found; see `wsi list encoders`")
    return table


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "[red]not installed[/]"
