"""An extension of griffe: the comment behind an attribute is its documentation, as the code has it for shapes and units."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import griffe


class AttributeComments(griffe.Extension):
    """``mpp: float  # of level 0`` documents ``mpp``, unless a docstring does."""

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        """Called for each attribute that is found in the source."""
        if attr.docstring is None and isinstance(node, ast.stmt) and node.end_lineno and isinstance(attr.filepath, Path):
            line = attr.lines_collection[attr.filepath][node.end_lineno - 1]
            _, mark, comment = line[node.end_col_offset :].partition("# ")
            if mark:
                attr.docstring = griffe.Docstring(comment.strip(), parent=attr)
