"""Two lines are a complete config; everything else is checked, and each mistake gives one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from wsi_pipeline.config import Config, build_config, dump_config, load_config
from wsi_pipeline.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_two_lines_are_a_complete_config(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "slides: slides.csv\nout: run\n"))
    assert config.slides == tmp_path / "slides.csv"
    assert config.out == tmp_path / "run"
    assert config.tile.mpp == 0.5


def test_set_overrides_one_key_and_reads_its_value_as_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, "slides: s.csv\nout: run\n")
    config = load_config(path, ["tile.mpp=1.0", "embed.pretrained=false", "aggregate.models=[mean, abmil]"])
    assert config.tile.mpp == 1.0
    assert config.embed.pretrained is False
    assert [m.name for m in config.aggregate.models] == ["mean", "abmil"]


def test_a_config_written_out_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "slides: s.csv\nout: run\ntile: {mpp: 0.7}\n"))
    assert Config.model_validate(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slides: s.csv\n", "'out' is missing"),
        (
            "slides: s.csv\nout: run\ntile: {mppp: 1}\n",
            "unknown key 'tile.mppp'; did you mean 'tile.mpp'? `wsi config`",
        ),
        ("slides: s.csv\nout: run\nread: {mpp: -1}\n", "read.mpp = -1: Input should be greater than 0"),
        ("slides: s.csv\nout: run\nfoo: 1\n", "unknown key 'foo'"),
        ("slides: s.csv\nout: run\ntile: {mpp: -1}\n", "tile.mpp = -1"),
        ("slides: s.csv\nout: run\ntile: {mpp: fine}\n", "tile.mpp = 'fine'"),
        ("slides: s.csv\nout: run\naggregate: {models: [abmil, abmil]}\n", "two models have the same name"),
        ("slides: s.csv\nout: run\nexplain: {methods: [attention, attention]}\n", "'attention' appears twice"),
        ("slides: s.csv\nout: run\nexplain: {methods: {a: b}}\n", "valid"),
        ("slides: s.csv\nout: run\ntile: {mpp: .inf}\n", "tile.mpp"),
        ("slides: s.csv\nout: run\ntile: {side_px: true}\n", "tile.side_px"),
        ("slides: [\n", "not valid YAML"),
        ("", "contains no settings"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["tile.mpp", "=1", "slides.x=1"])
def test_a_malformed_override_is_one_line(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(write(tmp_path, "slides: s.csv\nout: run\n"), [override])


def test_a_missing_config_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_settings_of_speed_are_not_in_the_key(tmp_path: Path) -> None:
    def embed(threads: int) -> dict[str, object]:
        data = {"slides": "s", "out": "o", "embed": {"threads": threads}}
        return build_config(data, [], base=tmp_path, source="test").embed.for_key()

    assert embed(1) == embed(7)
    assert "batch" in embed(1)


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "slides: s.csv\nout: run\n"))
    with pytest.raises(ValueError, match="frozen"):
        config.tile.mpp = 2.0  # type: ignore[misc]
