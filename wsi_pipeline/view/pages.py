"""Render the templates of the view stage as HTML. Everything from a file is escaped: slide ids, labels, messages."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: object) -> str:
    """Render one of ``templates/`` with ``values``; an undefined name in the template is an error."""
    return _environment().get_template(template).render(**values)


def source_text(name: str) -> str:
    """The text of a file of ``templates/``."""
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")


def inline(text: str) -> tuple[Markup, str]:
    """A style or script for embedding in the page, and its source expression for a Content-Security-Policy."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"


def uid(slide_id: str) -> str:
    """A name for anchors in the page, valid for any characters in the slide_id."""
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
