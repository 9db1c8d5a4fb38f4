"""An extension of griffe: the comment behind an attribute documents it, as the code has it for shapes and units."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import griffe


class AttributeComments(griffe.Extension):
    """``mpp: float  # of level 0`` documents ``mpp``, unless a docstring does."""

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        """Called for each attribute that is found in the source."""
        if attr.docstring is not None or not isinstance(node, ast.stmt) or not isinstance(attr.filepath, Path):
            return
        line: str = attr.lines_collection[attr.filepath][(node.end_lineno or node.lineno) - 1]
        comment = line[node.end_col_offset :].partition("# ")[2].strip()
        if comment:
            attr.docstring = griffe.Docstring(comment, parent=attr)
