"""Code, messages, help and documents use the plain words of the field; the glossary in docs/ defines them."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from wsi_pipeline.cli.main import app

ROOT = Path(__file__).resolve().parents[1]

# Pattern -> a plain word or phrase. Matched without regard to case across line breaks, unless it begins with (?-i:.
BANNED = {
    # terms that the project invented
    r"\bjur(y|ies)\b": "ensemble",
    r"\bvoices?\b": "member logits",
    r"\bverdicts?\b": "prediction",
    r"\bjudg(e|es|ed|ing|ements?)\b": "predict, evaluate, compare",
    r"\bhear(s|d|ing)?\b": "compute, receive",
    r"\brooms?\b|\bhallways?\b": "stage, package, shared modules",
    r"\b(through|at|of) the doors?\b|\bdoors between\b": "interface, exchanged between stages",
    r"\bthe house\b": "architecture, package",
    r"\bthe whole way\b|\btry(ing)? the way\b|\bthe way only\b": "the pipeline, all stages, smoke tests",
    r"\bin hand\b": "claimed, running",
    r"\bat hand\b|\bat_hand\b": "available",
    # programs and files that talk
    r"\btold\b": "given, reported, distinguished",
    r"\bsaid\b": "stated, reported",
    r"\bhas the (last )?word\b|\bword (then )?counts\b": "takes precedence",
    r"\b(is|are) to blame\b": "is caused by",
    r"\bbears? out\b|\bborne out\b": "confirm",
    r"\bgrain of salt\b": "caveat",
    r"\bowns? up\b": "report",
    # syntax
    r"(?<!\bthere )\b(is|are|was|were) no (?!longer\b|(more|less|fewer) than\b)": "is not a, there is no",
    r"\bstands? (twice|once|there|here|beside|at|on|in(?! for))\b": "appears, is",
    r"\blooks? before it leaps\b": "checks first",
    r"\b(for|to) who(m)? (alone )?(may|holds|waits|reads|writes)\b|\bwho (alone )?(may|holds)\b": "the caller that",
    r"\bfalls? on no\b": "residual",
    r"\bcosts? (itself|themselves)\b": "only it fails",
    r"\b(and|or|of) (its|their) kin\b": "and similar",
    r"\bturn about\b": "alternately",
    # names before the first release
    r"(?-i:\b(Verdict|Votes|FoldTask|Followed|Accounting|Wanted|Ahead|Silent)\b)": "see docs/glossary.md",
    r"\bunattributed\b": "residual",
    r"\bpassed_over\b|\bread_behind\b": "rejected_readers, read_after_header",
    r"\blease_s\b|\btile_mb\b": "claim_timeout_s, tile_cache_mb",
    r"\bexplain\.maps\b|\bchoice\.json\b": "explain.summary_maps, selection.json",
    r"\bevaluate\.(flips|removals|perturbations|replace)\b": "flipping_points, infidelity_samples, replacement",
}
# Files in which a word is meant literally: path -> the matched text, in lower case.
ALLOWED: dict[str, set[str]] = {
    "CHANGELOG.md": {  # the table of keys that were renamed
        *("explain.maps", "choice.json", "unattributed", "engine.lease_s", "lease_s", "tile_mb"),
        *("evaluate.flips", "evaluate.removals", "evaluate.perturbations", "evaluate.replace"),
    }
}


class Text(NamedTuple):
    """What a reader sees, and the place of each line."""

    where: str
    lines: list[str]


def files(*patterns: str) -> Iterator[Text]:
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)}):
        yield Text(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8").splitlines())


def notebooks() -> Iterator[Text]:
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            if cell["cell_type"] == "markdown":
                yield Text(f"{path.relative_to(ROOT)}, cell {number}", "".join(cell["source"]).splitlines())


def help_of_commands() -> Iterator[Text]:
    """``wsi --help`` and that of every command, and ``wsi config``, as they are printed."""

    def all_commands(command: object, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, child in getattr(command, "commands", {}).items():
            yield from all_commands(child, (*words, name))

    for words in all_commands(typer.main.get_command(app), ()):
        printed = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        assert printed.exit_code == 0, words
        yield Text(" ".join(("wsi", *words, "--help")), printed.output.splitlines())
    printed = CliRunner().invoke(app, ["config"], env={"COLUMNS": "200"})
    assert printed.exit_code == 0
    yield Text("wsi config", printed.output.splitlines())


def findings(text: Text) -> Iterator[str]:
    """``where:line: matched text -> replacement``, phrases across line breaks included."""
    joined, starts = "", []  # the lines without indentation and comment signs, and the place of each in ``joined``
    for line in text.lines:
        starts.append(len(joined))
        joined += re.sub(r"^[\s#>*-]+", "", line).rstrip() + " "
    for pattern, better in BANNED.items():
        for found in re.finditer(pattern, joined, re.IGNORECASE):
            if found[0].lower() not in ALLOWED.get(text.where, set()):
                number = bisect.bisect_right(starts, found.start())
                yield f"{text.where}:{number}: {found[0]!r}; rather: {better}"


SOURCES = {
    "package": lambda: files("wsi_pipeline/**/*.py", "wsi_pipeline/**/*.yaml", "wsi_pipeline/**/*.html"),
    "scripts": lambda: files("benchmarks/*.py", "workflows/**/*.*", "workflows/**/Snakefile"),
    "tests": lambda: (text for text in files("tests/**/*.py") if text.where != "tests/test_words.py"),
    "documents": lambda: files("*.md", "CITATION.cff", "docs/**/*.md"),
    "build": lambda: files("Makefile", "Dockerfile", "containers/*.def", "pyproject.toml", "mkdocs.yml", "configs/*.*"),
    "notebooks": notebooks,
    "help": help_of_commands,
}


@pytest.mark.parametrize("source", SOURCES)
def test_words_are_those_of_the_field(source: str) -> None:
    found = [finding for text in SOURCES[source]() for finding in findings(text)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("phrase", "banned"),
    [
        ("A value that is no number", True),
        ("A value that is\n    # no number", True),
        ("There is no number, and there\n    is no file", False),
        ("It is no longer current", False),
        ("The jury's verdict", True),
        ("what a program is told", True),
        ("A grid of patches", False),
    ],
)
def test_a_banned_phrase_is_found_and_plain_english_is_not(phrase: str, banned: bool) -> None:
    assert any(findings(Text("here", phrase.splitlines()))) is banned
