"""While the last patches of a slide are encoded, the next slide is opened: only once, and no slide stays open."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import cast

import pytest
from test_embed_stage import bags, embed, study

from wsi_pipeline.config import ReadConfig
from wsi_pipeline.embed.prefetch import Patches, SlidePrefetcher, SlideRequest
from wsi_pipeline.errors import SlideError
from wsi_pipeline.read import open_slide
from wsi_pipeline.types import Slide, SlideRow

__all__ = ["study"]  # a fixture


def request(name: str) -> SlideRequest:
    return SlideRequest(SlideRow(name, Path(f"{name}.svs")), Path(f"{name}.h5"), ReadConfig())


class Opener:
    """Opens nothing, but records which slides were opened, by which thread, and which were closed."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, bool]] = []  # slide, whether by the main thread
        self.closed: list[str] = []

    def __call__(self, request: SlideRequest) -> Patches:
        name = request.row.slide_id
        self.opened.append((name, threading.current_thread() is threading.main_thread()))
        if name == "bad":
            raise SlideError("bad.svs is truncated")
        return cast(Patches, Opened(name, self))


class Opened:
    def __init__(self, name: str, opener: Opener) -> None:
        self.name, self.opener = name, opener

    def close(self) -> None:
        self.opener.closed.append(self.name)


def test_a_prefetched_slide_is_opened_once() -> None:
    prefetcher, opener = SlidePrefetcher(), Opener()
    prefetcher.begin(request("a"), opener)
    assert cast(Opened, prefetcher.take(request("a"), opener)).name == "a"
    assert cast(Opened, prefetcher.take(request("b"), opener)).name == "b"
    assert opener.opened == [("a", False), ("b", True)]
    assert opener.closed == []


def test_a_prefetched_slide_that_is_not_taken_is_closed() -> None:
    prefetcher, opener = SlidePrefetcher(), Opener()
    prefetcher.begin(request("a"), opener)
    prefetcher.begin(request("b"), opener)
    assert opener.closed == ["a"]
    prefetcher.take(request("c"), opener)
    assert opener.closed == ["a", "b"]


def test_a_slide_that_cannot_be_opened_fails_when_it_is_taken() -> None:
    prefetcher, opener = SlidePrefetcher(), Opener()
    prefetcher.begin(request("bad"), opener)
    with pytest.raises(SlideError, match="truncated"):
        prefetcher.take(request("bad"), opener)
    prefetcher.begin(request("bad"), opener)
    assert cast(Opened, prefetcher.take(request("a"), opener)).name == "a"


def test_the_stage_opens_each_slide_once_prefetches_the_second_and_closes_both(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, bool]] = []
    slides: list[Slide] = []

    def recorded(path: Path, config: ReadConfig, mpp: float | None = None) -> Slide:
        opened.append((path.stem, threading.current_thread() is threading.main_thread()))
        slides.append(open_slide(path, config, mpp))
        return slides[-1]

    monkeypatch.setattr("wsi_pipeline.embed.prefetch.open_slide", recorded)
    assert embed(study) == []
    assert opened == [("a", True), ("b", False)]
    for slide in slides:
        with pytest.raises(ValueError, match="is closed"):
            slide.read((0, 0), 0, (1, 1))
    assert list(bags(study)) == ["a", "b"]
