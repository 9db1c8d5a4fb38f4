"""Tables and help texts of the documentation, taken from the installed package when the site is built.

In a page, ``<!-- wsi config -->`` becomes the keys of the config, ``<!-- wsi plugins encoders -->`` the plug-ins of one
kind, ``<!-- wsi fits -->`` which explainer fits which model, and ``<!-- wsi help explain -->`` what the command
``wsi explain --help`` prints. Nothing of it is kept by hand, so nothing drifts.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mkdocs.exceptions import PluginError
from pydantic import BaseModel

_MARK = re.compile(r"^<!-- wsi (config|plugins|fits|help) ?(.*?) -->$", re.MULTILINE)
_LOADED = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
    r"|<link\b(?=[^>]*stylesheet)[^>]*\bhref=[\"']?(?:https?:)?//"
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page."""
    makers: dict[str, Callable[..., str]] = {
        "config": config_sections,
        "plugins": plugin_table,
        "fits": fits_table,
        "help": help_text,
    }
    return _MARK.sub(lambda found: makers[found[1]](*filter(None, [found[2]])), markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """No page may load anything from a network. Raises ``PluginError``."""
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} would load something from the network: {found[0]}")
    return output


def config_sections() -> str:
    """A table for the keys without a section, and one for each section."""
    from wsi_pipeline.config import Config

    single, parts = [], []
    for name, field in Config.model_fields.items():
        if isinstance(field.default, BaseModel):
            about = " ".join((type(field.default).__doc__ or "").split())
            parts.append(f"## {name}\n\n{about}\n\n{_section(name, type(field.default))}")
        else:
            single.append((f"`{name}`", "required", field.description or ""))
    return "\n\n".join([_table(("key", "default", "meaning"), single), *parts])


def plugin_table(kind: str) -> str:
    """Name, summary, options and facts of every plug-in of one kind."""
    from wsi_pipeline.cli.tables import registry

    rows = []
    for entry in registry(kind).entries():
        name = f"{entry.name}<name>" if entry.name.endswith(":") else entry.name
        options = "<br>".join(f"`{key} = {value!r}`" for key, value in entry.options.items())
        known = {key: value for key, value in entry.info.items() if not callable(value)}
        if kind == "explainers":
            built = entry.factory()
            known |= {fact: getattr(built, fact) for fact in ("unit", "signed", "class_specific")}
        facts = "<br>".join(f"{key}: {_plain(value)}" for key, value in known.items())
        rows.append((f"`{name}`", entry.summary.replace("``", "`"), options, facts))
    return _table(("name", "what", "options", "facts"), rows)


def fits_table() -> str:
    """A row a method, a column a model."""
    from wsi_pipeline.aggregate import models
    from wsi_pipeline.explain.explained_model import ExplainedModel
    from wsi_pipeline.explain.methods import explainers

    built = {name: ExplainedModel(models.build(name, 8, 2).eval(), classes=("a", "b")) for name in models.names()}
    rows = []
    for name in explainers.names():
        method = explainers.build(name)
        rows.append((f"`{name}`", *("–" if method.fits(explained) else "yes" for explained in built.values())))
    return _table(("method", *(f"`{name}`" for name in built)), rows)


def help_text(verb: str = "") -> str:
    """What ``wsi VERB --help`` prints, as a code block."""
    command = [sys.executable, "-m", "wsi_pipeline", *verb.split(), "--help"]
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise PluginError(f"`wsi {verb} --help` fails: {done.stderr.strip()}")
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    return "\n".join(["```text", *lines, "```"])


def _section(name: str, section: type[BaseModel]) -> str:
    rows = []
    for key, field in section.model_fields.items():
        extra = field.json_schema_extra
        speed = "; speed only" if isinstance(extra, dict) and "runtime" in extra else ""
        default = _plain(field.get_default(call_default_factory=True, validated_data={}))
        rows.append(
            (f"`{name}.{field.alias or key}`", f"`{default}`" if default else "–", f"{field.description or ''}{speed}")
        )
    return _table(("key", "default", "meaning"), rows)


def _plain(value: object) -> str:
    """As a user would write it in YAML."""
    if isinstance(value, BaseModel):
        return ", ".join(str(part) for part in value.model_dump().values() if part)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(part)}" for key, part in value.items()) + "}" if value else ""
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    return str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """``text`` in a table of Markdown: what looks like HTML outside a code span is text."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("&lt;br>", "<br>") for part in parts[::2]]
    return "`".join(parts)
