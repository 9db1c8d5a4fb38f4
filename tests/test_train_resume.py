"""A training run that was killed resumes where it stopped and ends with the weights of an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_data import planted_project
from test_train_stage import files, train

from wsi_pipeline.project import Project
from wsi_pipeline.train.fold_job import STATE
from wsi_pipeline.train.resume import state_of

# Labels follow from the slides' names, so that the process to be killed needs no manifest.
CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import wsi_pipeline.train.resume as resume
from test_train_data import planted_project
from test_train_stage import train

def slowly(self, trainer, module):
    print(trainer.current_epoch, flush=True)
    time.sleep(0.05)  # so that the process is killed inside the epoch that it printed
resume.SaveState.on_train_epoch_start = slowly
from test_train_resume import project
train(project(Path(sys.argv[1]), sys.argv[2]))
"""


def project(out: Path, optimizer: str) -> Project:
    """Two folds of a model with dropout; the state is saved after every epoch."""
    return planted_project(
        out,
        12,
        aggregate={"models": [{"name": "abmil", "options": {"hidden": 16, "attention_dim": 8, "dropout": 0.25}}]},
        train={"epochs": 9, "state_every_s": 0, "optimizer": optimizer, "max_patches": 20, "feature_noise": 0.1},
    )


def killed_in_epoch(out: Path, epoch: int, optimizer: str) -> None:
    """Train in another process, and kill it once it prints that it is in ``epoch`` (from 0) of the first fold."""
    code = CHILD.format(tests=str(Path(__file__).parent))
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(out), optimizer],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            if int(line) == epoch:
                time.sleep(random.Random(epoch).random() * 0.08)
                child.send_signal(signal.SIGKILL)
                break
    assert child.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "epoch"), [("adamw", random.Random(7).randrange(1, 9)), ("lookahead_radam", 4)])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path, optimizer: str, epoch: int) -> None:
    whole, stopped = project(tmp_path / "whole", optimizer), project(tmp_path / "stopped", optimizer)
    assert train(whole)[1] == []
    killed_in_epoch(stopped.config.out, epoch, optimizer)
    first = stopped.folder.fold("abmil", 0, 0)
    state = torch.load(first / STATE, weights_only=True)
    assert len(state["fold"]["log"]) in {epoch, epoch + 1}
    assert not (first / "model.json").exists()
    assert train(stopped)[1] == []
    kept = [{n: data for n, (_, data) in files(p.folder.train).items()} for p in (whole, stopped)]
    assert kept[0] == kept[1]
    assert not list(stopped.folder.train.rglob(STATE))


def test_a_state_of_other_settings_or_a_damaged_one_is_not_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / STATE
    assert state_of(path, "k") is None
    torch.save({"key": "other"}, path)
    assert state_of(path, "k") is None
    assert not path.exists()
    path.write_bytes(b"half a file")
    assert state_of(path, "k") is None
    assert "cannot be read" in caplog.text
    torch.save({"key": "k"}, path)
    assert state_of(path, "k") == path


def test_the_state_is_read_without_pickle(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.system, ("true",))

    torch.save({"key": "k", "x": Evil()}, tmp_path / STATE)
    assert state_of(tmp_path / STATE, "k") is None
