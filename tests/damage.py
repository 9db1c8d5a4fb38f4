"""Slides damaged as by disks, networks and people, for the tests of damaged slides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tifffile import TiffFile

Generator = np.random.Generator


def cut(data: bytearray, path: Path, rng: Generator) -> None:
    """The file ends early: an interrupted copy."""
    del data[int(rng.integers(1, len(data))) :]


def flipped(data: bytearray, path: Path, rng: Generator) -> None:
    """One to fifty bits are wrong, anywhere."""
    for place in rng.integers(0, len(data), int(rng.integers(1, 51))).tolist():
        data[place] ^= 1 << int(rng.integers(8))


def flipped_head(data: bytearray, path: Path, rng: Generator) -> None:
    """One to five bits are wrong in a directory, or in the data it points to."""
    with TiffFile(path) as tiff:
        starts = [page.offset for page in tiff.pages]
    for _ in range(int(rng.integers(1, 6))):
        place = min(int(rng.choice(starts)) + int(rng.integers(0, 600)), len(data) - 1)
        data[place] ^= 1 << int(rng.integers(8))


def zeroed(data: bytearray, path: Path, rng: Generator) -> None:
    """Tiles, or runs of them, are full of zeros: sectors that were never written."""
    with TiffFile(path) as tiff:
        page = tiff.pages[int(rng.integers(len(tiff.pages)))]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    for _ in range(int(rng.integers(1, 6))):
        first = int(rng.integers(len(places)))
        for offset, count in places[first : first + int(rng.integers(1, 12))]:
            data[offset : offset + count] = bytes(count)


def misplaced(data: bytearray, path: Path, rng: Generator) -> None:
    """Offsets or lengths of tiles are wrong."""
    with TiffFile(path) as tiff:
        tags = tiff.pages[int(rng.integers(len(tiff.pages)))].aspage().tags
        tag = tags[str(rng.choice(["TileOffsets", "TileByteCounts"]))]
        place, count, size = tag.valueoffset, tag.count, {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
    for n in rng.integers(0, count, int(rng.integers(1, 9))).tolist():
        wrong = int(rng.integers(0, 2 ** (8 * size) if rng.random() < 0.5 else len(data)))
        data[place + n * size : place + (n + 1) * size] = (wrong % 2 ** (8 * size)).to_bytes(size, "little")


def something_else(data: bytearray, path: Path, rng: Generator) -> None:
    """Not a slide at all, under a slide's name."""
    data[:] = [
        b"",
        b"this slide has been moved to another server\n",
        rng.bytes(5000),
        b"\x1f\x8b\x08\x00" + rng.bytes(3000),
        b"II*\x00" + rng.bytes(2000),
        b"\x89PNG\r\n\x1a\n" + rng.bytes(2000),
    ][int(rng.integers(6))]


HOW: tuple[Callable[[bytearray, Path, Generator], None], ...] = (
    *(cut, flipped, flipped_head, zeroed, misplaced, something_else),
)


def damage_file(source: Path, target: Path, number: int) -> str:
    """Write ``source``, damaged in the ``number``-th way, to ``target``; returns the kind of damage."""
    how = HOW[number % len(HOW)]
    data = bytearray(source.read_bytes())
    how(data, source, np.random.default_rng((4711, number)))
    target.write_bytes(data)
    return how.__name__
