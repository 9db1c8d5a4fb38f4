"""Devices: the configured one, or one line that states why it is not available."""

from __future__ import annotations

import pytest
import torch

from wsi_pipeline.device import autocast_type, pick_device
from wsi_pipeline.errors import ConfigError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with neither CUDA nor MPS, to which a test may add."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return monkeypatch


def test_auto_takes_the_fastest_available_device(machine: pytest.MonkeyPatch) -> None:
    assert pick_device("auto") == torch.device("cpu")
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")
    machine.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda", "finds no CUDA GPU; use auto or cpu"),
        ("mps", "needs an Apple GPU"),
        ("gpu", "'gpu' is unknown; use auto, cpu, cuda, cuda:1 or mps"),
        ("xpu", "'xpu' is not supported"),
        ("", "is unknown"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_a_missing_device_is_reported_in_one_line(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pick_device(name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gpu_index_beyond_the_last_is_refused(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="the last of 2 is cuda:1"):
        pick_device("cuda:2")


def test_a_precision_that_the_device_lacks_is_refused(machine: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert autocast_type("fp32", cpu) is None
    assert autocast_type("bf16", cpu) is torch.bfloat16
    assert autocast_type("fp16", cpu) is torch.float16
    machine.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert autocast_type("fp16", cuda) is torch.float16
    with pytest.raises(ConfigError, match="device cuda cannot compute in bf16"):
        autocast_type("bf16", cuda)


def test_bfloat16_on_an_old_macos_is_refused(machine: pytest.MonkeyPatch) -> None:
    """Autocast alone would warn and compute in float32."""

    def ones(*_: object, **__: object) -> None:
        raise TypeError("BFloat16 is not supported on MPS")

    machine.setattr(torch, "ones", ones)
    with pytest.raises(ConfigError, match="device mps cannot compute in bf16"):
        autocast_type("bf16", torch.device("mps"))
