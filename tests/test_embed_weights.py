"""Weights: found at their declared location, loaded completely or not at all, and requested in one line."""

from __future__ import annotations

import hashlib
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsi_pipeline import torchvision_guard  # noqa: F401
from wsi_pipeline.artifacts import file_digest
from wsi_pipeline.embed import encoders
from wsi_pipeline.embed.identity import cached_weights, identity, recommended_mpp
from wsi_pipeline.embed.state import seeded
from wsi_pipeline.embed.weights import HubFile, PackageFile, UrlFile, digest, download
from wsi_pipeline.errors import ArtifactError, ConfigError, WsiError

State = dict[str, Tensor]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Empty caches and no network; returns the URLs that were requested."""
    requested: list[str] = []

    def refuse(url: str | urllib.request.Request, timeout: float) -> None:
        requested.append(url if isinstance(url, str) else url.full_url)
        assert timeout <= 10
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return requested


def one_line(build: Callable[[], object]) -> str:
    with pytest.raises(WsiError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def reply(content: bytes) -> Callable[..., io.BytesIO]:
    return lambda url, timeout: io.BytesIO(content)


# --- files of the user ---------------------------------------------------------------------------------------


def weights_of(name: str) -> State:
    """Weights that differ from the random ones of a new encoder, head included."""
    state = encoders.build(name, None, False).module.state_dict()
    generator = torch.Generator().manual_seed(1)
    return {
        k: torch.rand(v.shape, generator=generator) + 0.5 if v.is_floating_point() else v for k, v in state.items()
    } | {"fc.weight": torch.zeros(1000, 384), "fc.bias": torch.zeros(1000)}


def write(state: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_local_weights_of_every_kind_are_loaded_completely(suffix: str, tmp_path: Path) -> None:
    state = weights_of("timm:test_resnet")
    path = write(state, tmp_path / f"weights{suffix}")
    encoder = encoders.build("timm:test_resnet", path, True)
    loaded = encoder.module.state_dict()
    assert set(loaded) == set(state) - {"fc.weight", "fc.bias"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())
    assert encoder.weights_digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"_orig_mod.{k}": v for k, v in s.items()}},
    ],
    ids=["state_dict", "model", "parallel", "compiled"],
)
def test_wrappers_of_training_programs_are_removed(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    state = weights_of("timm:test_resnet")
    path = write(wrap(state), tmp_path / "weights.pth")
    loaded = encoders.build("timm:test_resnet", path, True).module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_both_resnet50_encoders_load_torchvisions_file(tmp_path: Path) -> None:
    from torchvision.models import resnet50

    original = resnet50(weights=None).eval()
    path = write(original.state_dict(), tmp_path / "resnet50.pth")
    full, truncated = encoders.build("resnet50", path, True), encoders.build("resnet50_trunc", path, True)
    assert torch.equal(full.module.state_dict()["layer4.2.conv3.weight"], original.layer4[2].conv3.weight)
    assert torch.equal(truncated.module.state_dict()["6.5.conv3.weight"], original.layer3[5].conv3.weight)
    assert full.weights_digest == truncated.weights_digest == file_digest(path)


def test_weights_without_batch_counters_are_complete(tmp_path: Path) -> None:
    """Files from before torch 0.4.1 have none, and evaluation does not read them."""
    state = {k: v for k, v in weights_of("timm:test_resnet").items() if not k.endswith("num_batches_tracked")}
    path = write(state, tmp_path / "weights.pth")
    encoders.build("timm:test_resnet", path, True)


def edited(change: Callable[[State], Any]) -> Any:
    state = weights_of("timm:test_resnet")
    result = change(state)
    return state if result is None else result


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("conv1.0.weight") is None or None, "'conv1.0.weight' is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "the encoder has no tensor 'extra'"),
        (lambda s: s.update({"bn1.weight": torch.zeros(3)}), "'bn1.weight' is (3,), not (32,)"),
        (lambda s: {"weights": s}, "'weights' is a dict, not a tensor"),
        (lambda s: [1, 2], "contains no weights"),
        (lambda s: {}, "contains no weights"),
    ],
    ids=["missing", "unexpected", "shape", "wrapped", "list", "empty"],
)
def test_weights_that_do_not_fit_are_refused_with_the_tensors_name(
    change: Callable[[State], Any], words: str, tmp_path: Path
) -> None:
    path = write(edited(change), tmp_path / "weights.pth")
    message = one_line(lambda: encoders.build("timm:test_resnet", path, True))
    assert words in message
    assert str(path) in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("weights.pth", b"not a checkpoint", "damaged or contains more than tensors"),
        ("weights.pth", b"", "damaged or contains more than tensors"),
        ("weights.safetensors", b"not safetensors", "is not a safetensors file"),
        ("weights.onnx", b"", "must end in .pth, .pt, .bin or .safetensors"),
    ],
)
def test_a_file_without_weights_is_reported_in_one_line(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in one_line(lambda: encoders.build("resnet50", tmp_path / name, True))


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("pwned"),)  # type: ignore[return-value]


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write({"conv1.weight": Evil()}, tmp_path / "weights.pth")
    assert "contains more than tensors" in one_line(lambda: encoders.build("resnet50", path, True))
    assert not (tmp_path / "pwned").exists()


def test_weights_and_no_pretraining_contradict_each_other(tmp_path: Path) -> None:
    assert "drop one of them" in one_line(lambda: encoders.build("resnet50", tmp_path / "w.pth", False))
    assert "is not a file" in one_line(lambda: encoders.build("resnet50", tmp_path / "w.pth", True))


# --- published weights ---------------------------------------------------------------------------------------


def test_missing_torchvision_weights_are_requested(offline: list[str], tmp_path: Path) -> None:
    message = one_line(lambda: encoders.build("resnet50", None, True))
    assert offline == ["https://download.pytorch.org/models/resnet50-0676ba61.pth"]
    for fact in (*offline, str(tmp_path / "torch" / "hub" / "checkpoints"), "--set embed.weights=PATH"):
        assert fact in message


def test_missing_hub_weights_are_requested(offline: list[str]) -> None:
    message = one_line(lambda: encoders.build("virchow2", None, True))
    assert offline == ["https://huggingface.co"]
    for fact in ("Name or service not known", "accept the licence at", "hf download paige-ai/Virchow2", "HF_HOME"):
        assert fact in message


def test_the_config_of_an_unknown_hub_model_is_requested(offline: list[str]) -> None:
    message = one_line(lambda: encoders.build("timm:hf-hub:lab/net", None, False))
    assert "config.json of lab/net is not on this machine" in message


@pytest.mark.usefixtures("offline")
def test_hub_offline_mode_uses_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in one_line(lambda: encoders.build("uni", None, True))


def test_random_weights_use_no_network(offline: list[str]) -> None:
    encoders.build("resnet50", None, False)
    encoders.build("timm:test_vit", None, False)
    assert offline == []


def in_hub_cache(folder: Path, repo: str, name: str, write_to: Callable[[Path], object]) -> Path:
    """A file as the hub's client stores it."""
    base = folder / "hub" / f"models--{repo.replace('/', '--')}"
    path = base / "snapshots" / "abc" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (base / "refs").mkdir(exist_ok=True)
    (base / "refs" / "main").write_text("abc")
    write_to(path)
    return path


def test_weights_in_the_hubs_cache_need_no_network(offline: list[str], tmp_path: Path) -> None:
    data = {"mean": [0.1, 0.2, 0.3], "a_field_of_later_versions": 1}
    config = json.dumps({"architecture": "test_vit", "model_args": {"num_classes": 0}, "pretrained_cfg": data})
    state = encoders.build("timm:test_vit", None, False).module.state_dict()
    changed = {name: tensor + 1 for name, tensor in state.items()}
    in_hub_cache(tmp_path, "lab/net", "config.json", lambda path: path.write_text(config))
    file = in_hub_cache(tmp_path, "lab/net", "model.safetensors", lambda path: save_file(changed, path))
    encoder = encoders.build("timm:hf-hub:lab/net", None, True)
    assert torch.equal(encoder.module.state_dict()["norm.bias"], changed["norm.bias"])
    assert encoder.mean == (0.1, 0.2, 0.3)
    assert encoder.weights_digest == file_digest(file)
    assert identity("timm:hf-hub:lab/net", None, True, {})["weights"] == file_digest(file)
    assert offline == []


def test_a_preset_adopts_its_files_tensors(offline: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is built on the meta device and adopts the file's tensors; here a small replacement for UNI."""
    import timm

    from wsi_pipeline.embed import presets
    from wsi_pipeline.embed.preset import Preset

    def small(preset: Preset) -> torch.nn.Module:
        network: torch.nn.Module = timm.create_model("test_vit", num_classes=0, img_size=224)
        return network

    monkeypatch.setattr(presets, "build_network", small)
    state = {name: tensor.half() for name, tensor in seeded(lambda: small(presets.PRESETS[0])).state_dict().items()}
    in_hub_cache(tmp_path, "MahmoodLab/UNI", "pytorch_model.bin", lambda path: torch.save(state, path))
    encoder = encoders.build("uni", None, True)
    weights = encoder.module.state_dict()["network.norm.weight"]
    assert weights.dtype == torch.float32
    assert torch.equal(weights, state["norm.weight"].float())
    with torch.inference_mode():
        assert encoder.module(torch.zeros(1, 3, 224, 224)).shape == (1, 64)
    assert cached_weights("uni") is not None
    assert cached_weights("uni2-h") is None
    assert offline == []


def test_a_download_is_checked_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    content = b"weights"
    url = f"https://example.org/net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(urllib.request, "urlopen", reply(content))
    path = UrlFile(url).fetch()
    assert path.read_bytes() == content
    assert path == tmp_path / "hub" / "checkpoints" / Path(url).name
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert UrlFile(url).fetch() == path  # from the cache


def test_a_damaged_download_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", reply(b"an error page"))
    with pytest.raises(OSError, match="file is damaged"):
        download("https://example.org/net-0123abcd.pth", tmp_path / "net-0123abcd.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_installed_is_requested() -> None:
    message = one_line(PackageFile("lab-weights", "lab_weights", "net.pth").fetch)
    assert "pip install lab-weights" in message


def test_a_licence_that_is_not_accepted_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def gated(*_: object, **__: object) -> str:
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "urlopen", reply(b""))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gated)
    assert "its licence must be accepted first" in one_line(HubFile("lab/net", gated=True).fetch)


# --- identity ------------------------------------------------------------------------------------------------


def test_an_identity_changes_with_everything_that_the_features_depend_on(tmp_path: Path) -> None:
    random = identity("timm:test_vit", None, False, {"pool": "mean"})
    assert random == {"name": "timm:test_vit", "options": {"pool": "mean"}, "weights": "random"}
    shipped = identity("lite0", None, True, {})["weights"]
    assert re.fullmatch(r"57934424[0-9a-f]{56}", shipped)  # the hash in the file's name
    path = write(weights_of("timm:test_resnet"), tmp_path / "a.pth")
    assert identity("lite0", path, True, {})["weights"] == file_digest(path)


def test_a_file_that_changes_has_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"one")
    first = digest(path)
    path.write_bytes(b"three")
    assert first != digest(path) == hashlib.sha256(b"three").hexdigest()


def test_the_mpp_is_the_declared_one_unless_the_options_give_another() -> None:
    assert recommended_mpp("virchow2", None, True, {}) == 0.5
    assert recommended_mpp("timm:test_vit", None, False, {"recommended_mpp": 0.25}) == 0.25


def test_random_weights_are_the_same_each_time_and_leave_the_callers_random_state_unchanged() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = encoders.build("timm:test_vit", None, False).module.state_dict()
    assert torch.equal(torch.rand(1), expected)
    second = encoders.build("timm:test_vit", None, False).module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("error", [ArtifactError, ConfigError])
def test_an_error_of_the_weights_stops_the_run(error: type[WsiError]) -> None:
    """No slide can be embedded before the user has fixed it."""
    assert error.exit_code == 2
