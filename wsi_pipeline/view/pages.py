"""Templates of this room -> HTML. Whatever comes from a file is escaped: slide ids, labels, messages."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: object) -> str:
    """One of ``templates/`` with ``values``; a name that it does not know is an error."""
    return _environment().get_template(template).render(**values)


def source_text(name: str) -> str:
    """A file of ``templates/`` as it is."""
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")


def inline(text: str) -> tuple[Markup, str]:
    """A style or script to stand in the page, and its source expression for a Content-Security-Policy."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"


def uid(slide_id: str) -> str:
    """A name for anchors in the page, whatever characters the slide_id has."""
    return hashlib.sha256(slide_id.encode()).hexdigest()[:12]


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(source_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
