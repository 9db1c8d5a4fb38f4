"""Diagnosis of files that no reader opens: the reason and the remedy."""

from __future__ import annotations

import struct
from pathlib import Path

from ..errors import SlideError

_HEAD = 4096
_DIRECTORIES = 100  # more than any slide has

# Version in the header -> offset of the first pointer, types of a pointer and of an entry count, bytes per entry.
_TIFF = {42: (4, "I", "H", 12), 43: (8, "Q", "Q", 20)}


def check_file(path: Path) -> None:
    """Raise ``SlideError`` if ``path`` is not a readable file, or is an empty one."""
    if path.is_dir():
        raise SlideError(f"{path} is a folder; give the path of one slide file")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
    except FileNotFoundError as error:
        raise SlideError(f"{path} does not exist; check the manifest's path column") from error
    except OSError as error:
        raise SlideError(f"{path} cannot be read: {error.strerror}; check its disk and permissions") from error
    if size == 0:
        raise SlideError(f"{path} is empty (0 bytes); copy the slide again")


def diagnose(path: Path) -> str:
    """Describe what is wrong with a file that no reader opens, and what to do about it."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if _is_text(head):
        first = head.decode("utf-8", "replace").lstrip("\ufeff").split("\n", 1)[0].strip()
        return f"it is a text file (it begins {first[:40]!r}), not a slide; copy the slide itself"
    truncation = _tiff_truncation(path)
    if truncation:
        return f"it is truncated: {truncation}; copy the slide again"
    return "no reader supports this format, or the file is damaged; open it in a viewer, copy or convert it again"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not a character cut in two by the end of the sample
            return False
        text = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c in "\r\n\t\f\ufeff" for c in text)


def _tiff_truncation(path: Path) -> str | None:
    """Where a TIFF or BigTIFF ends too early: it is a chain of directories, each at an offset stored in the last."""
    size = path.stat().st_size
    with path.open("rb") as file:

        def number(at: int, code: str) -> int:
            file.seek(at)
            return int(struct.unpack(order + code, file.read(struct.calcsize(code)))[0])

        order = {b"II": "<", b"MM": ">"}.get(file.read(2), "")
        if not order or size < 16 or number(2, "H") not in _TIFF:
            return None
        first, pointer, count, entry = _TIFF[number(2, "H")]
        offset = number(first, pointer)
        for _ in range(_DIRECTORIES):
            if offset == 0:
                return None
            if offset + struct.calcsize(count) > size:
                return f"a directory should be at byte {offset:,}, but the file has only {size:,}"
            after = offset + struct.calcsize(count) + number(offset, count) * entry
            if after + struct.calcsize(pointer) > size:
                return f"the directory at byte {offset:,} is incomplete"
            offset = number(after, pointer)
    return None
