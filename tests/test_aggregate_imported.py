"""Imported models: a file as the authors' code writes it, and the logits and attention of their paper, by loops."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_aggregate_transmil as published
import torch
from test_cli import error_line
from test_cli import wsi as process
from test_train_data import DIM, planted_project
from torch import Tensor
from typer.testing import CliRunner

from wsi_pipeline.aggregate import MILOutput
from wsi_pipeline.aggregate.checkpoint import load_card, load_model
from wsi_pipeline.aggregate.clam import CLAM
from wsi_pipeline.aggregate.import_checkpoint import Features, import_model, read_weights
from wsi_pipeline.cli.main import app
from wsi_pipeline.csvtable import read_csv
from wsi_pipeline.embed.identity import identity
from wsi_pipeline.engine import Engine
from wsi_pipeline.errors import ArtifactError, ConfigError, WsiError
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.store import read_bag

FEATURES = Features("lite0", "d0", 0.5, 224)
State = dict[str, Tensor]
Given = tuple[Any, tuple[str, ...], dict[str, Any]]  # the authors' state dict, classes, options
HIDDEN, ATTENTION = 16, 6
TWO = ("normal", "tumour")


def weights(*layers: tuple[str, int, int], seed: int = 0, bias: bool = True) -> State:
    """name -> (out, in) linear layers, in the layout of torch."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, out, into in layers:
        state[f"{name}.weight"] = torch.randn(out, into, generator=generator) / into**0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(out, generator=generator) / 2
    return state


def bag(patches: int = 40, dim: int = DIM, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.stack([torch.arange(patches) % 7, torch.arange(patches) // 7], dim=1).float()
    return torch.randn(patches, dim, generator=generator), xy


def line(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """W x + b for one vector x, in double precision."""
    bias = state.get(f"{name}.bias")
    y = state[f"{name}.weight"].double() @ x.double()
    return y if bias is None else y + bias.double()


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(s - max(scores)) for s in scores]
    return [p / sum(powers) for p in powers]


def weighted(shares: list[float], vectors: list[Tensor]) -> Tensor:
    return sum((a * v for a, v in zip(shares, vectors, strict=True)), torch.zeros_like(vectors[0]))


def gated(state: State, names: Sequence[str], h: Tensor) -> Tensor:
    v, u, w = names
    return line(state, w, line(state, v, h).tanh() * line(state, u, h).sigmoid())


# --- the authors' models, from the papers --------------------------------------------------------------------------


def abmil_plain() -> tuple[Given, Any]:
    """Ilse et al.: one sigmoid output; file as AttentionDeepMIL writes it, its convolutions replaced by features."""
    state = weights(
        ("feature_extractor_part2.0", HIDDEN, DIM),
        ("attention.0", ATTENTION, HIDDEN),
        ("attention.2", 1, ATTENTION),
        ("classifier.0", 1, HIDDEN),
    )

    def expected(features: Tensor, xy: Tensor) -> tuple[list[float], list[float]]:
        h = [line(state, "feature_extractor_part2.0", x).clamp(min=0) for x in features]
        a = softmax([float(line(state, "attention.2", line(state, "attention.0", x).tanh())) for x in h])
        return line(state, "classifier.0", weighted(a, h)).tolist(), a

    return (state, ("tumour",), {}), expected


def abmil_gated() -> tuple[Given, Any]:
    """Gated, on features directly, behind DataParallel; the one sigmoid told apart as two classes."""
    state = weights(
        ("attention_V.0", ATTENTION, DIM),
        ("attention_U.0", ATTENTION, DIM),
        ("attention_w", 1, ATTENTION),
        ("classifier.0", 1, DIM),
    )

    def expected(features: Tensor, xy: Tensor) -> tuple[list[float], list[float]]:
        h = [x.double() for x in features]
        a = softmax([float(gated(state, ("attention_V.0", "attention_U.0", "attention_w"), x)) for x in h])
        return [0.0, float(line(state, "classifier.0", weighted(a, h)))], a

    return ({f"module.{name}": value for name, value in state.items()}, TWO, {}), expected


def abmil_softmax() -> tuple[Given, Any]:
    """Three classes, other names, no bias of the embedding."""
    state = weights(("feature.0", HIDDEN, DIM), bias=False) | weights(
        ("attention.attention_V.0", ATTENTION, HIDDEN),
        ("attention.attention_U.0", ATTENTION, HIDDEN),
        ("attention.attention_weights", 1, ATTENTION),
        ("classifier.fc", 3, HIDDEN),
    )
    names = ("attention.attention_V.0", "attention.attention_U.0", "attention.attention_weights")

    def expected(features: Tensor, xy: Tensor) -> tuple[list[float], list[float]]:
        h = [line(state, "feature.0", x).clamp(min=0) for x in features]
        a = softmax([float(gated(state, names, x)) for x in h])
        return line(state, "classifier.fc", weighted(a, h)).tolist(), a

    return (state, ("a", "b", "c"), {}), expected


def transmil() -> tuple[Given, Any]:
    """A Lightning file's state dict: 8 heads, landmarks half of the width, and the module called model."""
    hidden = 16
    state = weights(("_fc1.0", hidden, DIM), ("_fc2", 2, hidden), ("norm", hidden, 1), seed=3)
    generator = torch.Generator().manual_seed(4)
    for name, side in (("proj", 7), ("proj1", 5), ("proj2", 3)):
        state[f"pos_layer.{name}.weight"] = torch.randn(hidden, 1, side, side, generator=generator) / side
        state[f"pos_layer.{name}.bias"] = torch.randn(hidden, generator=generator)
    for layer in ("layer1", "layer2"):
        linear = weights((f"{layer}.attn.to_out.0", hidden, hidden), (f"{layer}.norm", hidden, 1), seed=len(state))
        state |= linear | weights((f"{layer}.attn.to_qkv", 3 * hidden, hidden), bias=False)
        state[f"{layer}.attn.res_conv.weight"] = torch.randn(8, 1, 33, 1, generator=generator) / 6
    for name in ("norm.weight", "layer1.norm.weight", "layer2.norm.weight"):
        state[name] = state[name][:, 0]
    state["cls_token"] = torch.randn(1, 1, hidden, generator=generator)

    class Authors:
        def named_parameters(self) -> list[tuple[str, Tensor]]:
            return [(name, value.double()) for name, value in state.items()]

    def expected(features: Tensor, xy: Tensor) -> tuple[list[float], list[float]]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("HIDDEN", hidden), ("HEADS", 8), ("LANDMARKS", hidden // 2)):
                patch.setattr(published, name, value)
            model: Any = Authors()
            slow = published.slow_transmil(model, features.double(), xy.double(), "nystrom", "sequence")
        count = len(features)
        row = slow.row[slow.padding + 1 :].tolist()
        shares = row[:count]
        for source, copy in enumerate(row[count:]):
            shares[source] += copy
        return slow.logits.tolist(), [share / sum(shares) for share in shares]

    return ({f"model.{name}": value for name, value in state.items()}, TWO, {}), expected


def clam(kind: str, *, gate: bool = True, at: tuple[int, int] = (3, 3), classes: int = 2) -> tuple[Given, Any]:
    """Lu et al.: ``kind`` sb or mb; ``at``: where dropout, or none, puts the attention and its second layer."""
    place = f"attention_net.{at[0]}"
    heads = classes if kind == "mb" else 1
    v, u, w = f"{place}.attention_a.0", f"{place}.attention_b.0", f"{place}.attention_c"
    if not gate:
        v, w = f"{place}.module.0", f"{place}.module.{at[1]}"
    state = weights(("attention_net.0", HIDDEN, DIM), (v, ATTENTION, HIDDEN), (w, heads, ATTENTION), seed=5)
    if gate:
        state |= weights((u, ATTENTION, HIDDEN), seed=6)
    state |= weights(*((f"instance_classifiers.{c}", 2, HIDDEN) for c in range(classes)), seed=7)
    says = [f"classifiers.{c}" for c in range(classes)] if kind == "mb" else ["classifiers"]
    state |= weights(*((name, 1 if kind == "mb" else classes, HIDDEN) for name in says), seed=8)
    file = {name.replace("attention_net.", "attention_net.module."): value for name, value in state.items()}
    file["instance_loss_fn.labels"] = torch.arange(2)  # a buffer of the smooth top-1 SVM loss

    def expected(features: Tensor, xy: Tensor) -> tuple[list[float], list[Any]]:
        h = [line(state, "attention_net.0", x).clamp(min=0) for x in features]
        scores = [gated(state, (v, u, w), x) if gate else line(state, w, line(state, v, x).tanh()) for x in h]
        shares = [softmax([float(score[k]) for score in scores]) for k in range(heads)]
        if kind == "sb":
            return line(state, "classifiers", weighted(shares[0], h)).tolist(), shares[0]
        return [float(line(state, says[c], weighted(shares[c], h))) for c in range(classes)], shares

    return (file, tuple("abcdef"[:classes]), {}), expected


def dsmil(form: str, *, classes: int = 2) -> tuple[Given, Any]:
    """Li et al., in the forms that their repository has had: layers of q, and what stands for v.

    "mlp": q of two layers, no v. "mlp-v": v linear with ReLU. "linear": q linear, v linear, the first form.
    "linear-v": q linear, v linear with ReLU, which has the same names. "plain": q linear, no v.
    """
    options: dict[str, Any] = {"linear": {"values": "linear"}, "linear-v": {"values": "relu"}}.get(form, {})
    instance = "i_classifier.fc" if form == "plain" else "i_classifier.fc.0"
    query = ("b_classifier.q.0", "b_classifier.q.2") if form.startswith("mlp") else ("b_classifier.q", "")
    state = weights((instance, classes, DIM), (query[0], ATTENTION, DIM), seed=9)
    if query[1]:
        state |= weights((query[1], ATTENTION, ATTENTION), seed=10)
    if form not in ("mlp", "plain"):
        state |= weights(("b_classifier.v.1", DIM, DIM), seed=12)
    generator = torch.Generator().manual_seed(13)
    state["b_classifier.fcc.weight"] = torch.randn(classes, classes, DIM, generator=generator) / DIM**0.5
    state["b_classifier.fcc.bias"] = torch.randn(classes, generator=generator)

    def ask(x: Tensor) -> Tensor:
        y = line(state, query[0], x)
        return line(state, query[1], y.clamp(min=0)).tanh() if query[1] else y

    def value(x: Tensor) -> Tensor:
        if form in ("mlp", "plain"):
            return x.double()
        y = line(state, "b_classifier.v.1", x)
        return y.clamp(min=0) if form.endswith("-v") else y

    def expected(features: Tensor, xy: Tensor) -> tuple[list[float], list[list[float]]]:
        scores = [line(state, instance, x).tolist() for x in features]
        queries, shares, pooled = [ask(x) for x in features], [], []
        for c in range(classes):
            critical = max(range(len(scores)), key=lambda i: float(scores[i][c]))
            shares.append(softmax([float(q @ queries[critical]) / ATTENTION**0.5 for q in queries]))
            pooled.append(weighted(shares[c], [value(x) for x in features]))
        weight, bias = state["b_classifier.fcc.weight"].double(), state["b_classifier.fcc.bias"].double()
        logits = [sum(float(weight[c, k] @ pooled[k]) for k in range(classes)) + float(bias[c]) for c in range(classes)]
        return logits, shares

    return (state, tuple("abcdef"[:classes]), options), expected


def dtfd(distill: str) -> tuple[Given, Any]:
    """Zhang et al.: four state dicts; the split of the dtfd model here, by row and column, dealt in turn to 3 bags."""
    heads = (
        ("attention_V.0", ATTENTION, HIDDEN),
        ("attention_U.0", ATTENTION, HIDDEN),
        ("attention_weights", 1, ATTENTION),
    )
    reduction = weights(("module.fc1", HIDDEN, DIM), seed=1, bias=False)
    first, first_says = weights(*heads, seed=2), weights(("fc", 2, HIDDEN), seed=3)
    second = weights(*((f"attention.{n}", o, i) for n, o, i in heads), ("classifier.fc", 2, HIDDEN), seed=4)
    names = ("attention_V.0", "attention_U.0", "attention_weights")

    def expected(features: Tensor, xy: Tensor) -> tuple[list[float], list[float]]:
        h = [line(reduction, "module.fc1", x).clamp(min=0) for x in features]
        order = sorted(range(len(h)), key=lambda i: (float(xy[i, 1]), float(xy[i, 0])))
        distilled, made_of = [], []  # vectors, and {patch: share} of each
        for m in range(3):
            members = order[m::3]
            a = softmax([float(gated(first, names, h[i])) for i in members])
            if distill == "afs":
                distilled.append(weighted(a, [h[i] for i in members]))
                made_of.append(dict(zip(members, a, strict=True)))
                continue
            cam = [first_says["fc.weight"].double() @ (share * h[i]) for share, i in zip(a, members, strict=True)]
            sure = {i: softmax(c.tolist())[-1] for i, c in zip(members, cam, strict=True)}
            chosen = [max(sure, key=lambda i: sure[i]), min(sure, key=lambda i: sure[i])]
            for i in chosen[: 1 if distill == "maxs" else 2]:
                distilled.append(h[i])
                made_of.append({i: 1.0})
        b = softmax([float(gated(second, [f"attention.{n}" for n in names], x)) for x in distilled])
        shares = [0.0] * len(h)
        for share, patches in zip(b, made_of, strict=True):
            for i, part in patches.items():
                shares[i] += share * part
        return line(second, "classifier.fc", weighted(b, distilled)).tolist(), shares

    file: Any = {"classifier": first_says, "dim_reduction": reduction, "attention": first, "att_classifier": second}
    return (file, TWO, {"distill": distill, "pseudo_bags": 3}), expected


CASES: dict[str, Callable[[], tuple[Given, Any]]] = {
    "abmil-plain": abmil_plain,
    "abmil-gated": abmil_gated,
    "abmil-softmax": abmil_softmax,
    "transmil": transmil,
    "clam-sb": lambda: clam("sb"),
    "clam-mb": lambda: clam("mb", classes=3),
    "clam-sb-without-dropout": lambda: clam("sb", at=(2, 2)),
    "clam-mb-without-gate": lambda: clam("mb", gate=False),
    "clam-sb-without-gate": lambda: clam("sb", gate=False, at=(3, 2), classes=3),
    "clam-mb-without-either": lambda: clam("mb", gate=False, at=(2, 2)),
    "dsmil-one-output": lambda: dsmil("mlp", classes=1),
    "dsmil-two": lambda: dsmil("mlp-v"),
    "dsmil-first-code": lambda: dsmil("linear"),
    "dsmil-linear-relu": lambda: dsmil("linear-v"),
    "dsmil-plain": lambda: dsmil("plain", classes=3),
    "dtfd-afs": lambda: dtfd("afs"),
    "dtfd-maxs": lambda: dtfd("maxs"),
    "dtfd-maxmins": lambda: dtfd("maxmins"),
}


def family(case: str) -> str:
    return case.partition("-")[0]


def imported(tmp_path: Path, case: str) -> Path:
    """The folder that the case's file was imported into."""
    state, classes, options = CASES[case]()[0]
    torch.save(state, tmp_path / "authors.pth")
    import_model(tmp_path / "authors.pth", family(case), FEATURES, classes, tmp_path / "model", options=options)
    return tmp_path / "model"


# --- claims ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("patches", [3, 40])
def test_logits_and_attention_are_those_of_the_authors(tmp_path: Path, case: str, patches: int) -> None:
    expected = CASES[case]()[1]
    module, _ = load_model(imported(tmp_path, case), "cpu")
    features, xy = bag(patches)
    with torch.no_grad():
        out: MILOutput = module(features, xy)
    logits, attention = expected(features, xy)
    assert out.logits.tolist() == pytest.approx(logits, abs=1e-5)
    assert out.attention is not None
    torch.testing.assert_close(out.attention.double(), torch.tensor(attention).double(), rtol=0, atol=1e-5)


def test_the_card_says_what_the_file_and_the_user_said(tmp_path: Path) -> None:
    card = load_card(imported(tmp_path, "transmil"))
    assert card.model == "transmil"
    assert card.options == {"hidden": 16, "heads": 8, "landmarks": 8, "pinv_iterations": 6}
    assert (card.classes, card.task, card.threshold) == (TWO, "classification", 0.5)
    assert (card.encoder, card.weights_digest, card.dim, card.target_mpp, card.side_px) == (
        "lite0",
        "d0",
        DIM,
        0.5,
        224,
    )
    assert card.trained["imported"]["from"] == "transmil"


def test_one_sigmoid_is_one_label_or_two_classes(tmp_path: Path) -> None:
    state = abmil_plain()[0][0]
    torch.save(state, tmp_path / "f.pt")
    one, _ = import_model(tmp_path / "f.pt", "abmil", FEATURES, ("tumour",), tmp_path / "one")
    two, _ = import_model(tmp_path / "f.pt", "abmil", FEATURES, TWO, tmp_path / "two")
    assert (one.task, one.threshold) == ("multilabel", None)
    assert (two.task, two.threshold) == ("classification", 0.5)
    features, xy = bag()
    sigmoid = load_model(tmp_path / "one", "cpu")[0](features, xy).logits.sigmoid()
    softmax_ = load_model(tmp_path / "two", "cpu")[0](features, xy).logits.softmax(0)
    torch.testing.assert_close(softmax_[1:], sigmoid, rtol=0, atol=1e-6)


def test_the_same_import_gives_the_same_bytes_and_another_needs_another_folder(tmp_path: Path) -> None:
    folder = imported(tmp_path, "abmil-plain")
    before = [(folder / name).read_bytes() for name in ("model.json", "model.safetensors")]
    imported(tmp_path, "abmil-plain")
    assert [(folder / name).read_bytes() for name in ("model.json", "model.safetensors")] == before
    with pytest.raises(ArtifactError, match="holds another model; give another --out, or delete that folder first"):
        imported(tmp_path, "abmil-softmax")


def test_numbers_of_numpy_beside_the_weights_are_let_in(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(2, 3, dtype=torch.float64)}
    torch.save({"state_dict": state, "best": np.float64(0.9), "epoch": np.int64(3)}, tmp_path / "f.ckpt")
    (read,) = read_weights(tmp_path / "f.ckpt").items()
    assert read[0] == "a.weight"
    assert read[1].dtype == torch.float32


class Evil:
    """What a pickle can do where one lets it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("content", [Evil(), {"state_dict": {}, "callbacks": Evil()}, {"scores": np.zeros(3)}])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_file_names_beside_weights_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, zipped: bool
) -> None:
    torch.save(content, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"f\.pt names \S+, which is code and not weights.* save the weights alone"):
        read_weights(Path("f.pt"))
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor and no state_dict"),
        ({}, "holds no weights"),
        ({"a": 3}, "a is a int; save the weights alone"),
        ({"a": torch.tensor([math.nan])}, "a holds values that are no numbers"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "holds a twice"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "f.pt")
    with pytest.raises(ArtifactError, match=message):
        read_weights(tmp_path / "f.pt")


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04 torn"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f.pt").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"f\.pt is damaged or no file of torch\.save"):
        read_weights(tmp_path / "f.pt")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_weights(tmp_path / "absent.pt")


@pytest.mark.parametrize("case", CASES)
def test_a_tensor_more_or_less_is_refused_by_name(tmp_path: Path, case: str) -> None:
    state, classes, options = CASES[case]()[0]
    more = {**state, "norm9.weight": torch.ones(2)}
    torch.save(more, tmp_path / "f.pt")
    with pytest.raises(ArtifactError, match=r"f\.pt holds norm9\.weight, which that model does not have"):
        import_model(tmp_path / "f.pt", family(case), FEATURES, classes, tmp_path / "m", options=options)
    last = [name for name in state if not name.endswith((".bias", ".labels"))][-1]
    torch.save({name: value for name, value in state.items() if name != last}, tmp_path / "f.pt")
    with pytest.raises(ArtifactError, match=r"f\.pt (lacks|has) \S+.* so it is not the"):
        import_model(tmp_path / "f.pt", family(case), FEATURES, classes, tmp_path / "m", options=options)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("case", "change", "error", "message"),
    [
        ("transmil", {"classes": ("a", "b", "c")}, ArtifactError, r"has 2 outputs, but --classes names 3 \(a, b, c\)"),
        ("transmil", {"classes": ("a", "a")}, ConfigError, "--classes a,a: give each class one name"),
        ("transmil", {"options": {"heads": 4}}, ConfigError, "--option heads: .* open: landmarks, pinv_iterations"),
        ("transmil", {"family": "abmil"}, ArtifactError, r"lacks attention\.0\.weight, so it is not the abmil model"),
        ("transmil", {"family": "resnet"}, ConfigError, "--from resnet: known are abmil, clam, dsmil, dtfd, transmil"),
        ("abmil-plain", {"task": "classification"}, ConfigError, "--classes tumour: classification needs two classes"),
    ],
)
def test_choices_that_do_not_fit_the_file_are_refused(
    tmp_path: Path, case: str, change: dict[str, Any], error: type[WsiError], message: str
) -> None:
    state, classes, options = CASES[case]()[0]
    torch.save(state, tmp_path / "f.pt")
    given: dict[str, Any] = {"family": family(case), "classes": classes, "options": options} | change
    with pytest.raises(error, match=message) as refusal:
        import_model(tmp_path / "f.pt", features=FEATURES, out=tmp_path / "m", **given)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "m").exists()


def test_tensors_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    state = transmil()[0][0]
    state["model.pos_layer.proj1.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "f.pt")
    with pytest.raises(ArtifactError, match=r"its pos_layer\.proj1\.bias would be \(3,\), but .* ask for \(16,\)"):
        import_model(tmp_path / "f.pt", "transmil", FEATURES, TWO, tmp_path / "m")
    state = abmil_gated()[0][0]
    state["module.attention_U.0.weight"] = torch.zeros(5, DIM)
    torch.save(state, tmp_path / "f.pt")
    with pytest.raises(ArtifactError, match=r"has attention_U\.0\.weight \(5, 32\), where \(6, 32\) belongs"):
        import_model(tmp_path / "f.pt", "abmil", FEATURES, TWO, tmp_path / "m")


def test_forms_of_dtfd_that_are_other_models_are_refused(tmp_path: Path) -> None:
    state, _, _ = dtfd("afs")[0]
    nested: Any = {name: dict(part) for name, part in state.items()}
    nested["dim_reduction"]["resBlocks.0.block.0.weight"] = torch.zeros(HIDDEN, HIDDEN)
    torch.save(nested, tmp_path / "f.pt")
    with pytest.raises(ArtifactError, match="has residual blocks behind dim_reduction"):
        import_model(tmp_path / "f.pt", "dtfd", FEATURES, TWO, tmp_path / "m")
    torch.save(state, tmp_path / "f.pt")
    with pytest.raises(ConfigError, match="only distill=afs can be imported"):
        import_model(tmp_path / "f.pt", "dtfd", FEATURES, ("a", "b", "c"), tmp_path / "m", options={"distill": "maxs"})


def test_the_instance_classifiers_of_clam_come_along(tmp_path: Path) -> None:
    state = clam("mb", classes=3)[0][0]
    module, card = load_model(imported(tmp_path, "clam-mb"), "cpu")
    assert card.model == "clam_mb"
    features, xy = bag()
    h = [line(state, "attention_net.module.0", x).clamp(min=0) for x in features]
    slow = torch.stack([torch.stack([line(state, f"instance_classifiers.{c}", x) for c in range(3)]) for x in h])
    assert isinstance(module, CLAM)
    torch.testing.assert_close(module.instance_logits(features, xy).double(), slow, rtol=0, atol=1e-5)


def test_dsmil_says_one_sigmoid_a_class_unless_told_otherwise(tmp_path: Path) -> None:
    assert load_card(imported(tmp_path, "dsmil-one-output")).task == "multilabel"
    torch.save(dsmil("mlp")[0][0], tmp_path / "f.pt")
    card, _ = import_model(tmp_path / "f.pt", "dsmil", FEATURES, TWO, tmp_path / "m", task="classification")
    assert (card.task, card.threshold) == ("classification", 0.5)


def test_what_dsmil_leaves_open_has_to_be_said(tmp_path: Path) -> None:
    torch.save(dsmil("linear")[0][0], tmp_path / "f.pt")
    with pytest.raises(ConfigError, match=r"not whether ReLU stands .* give --option values=linear or --option"):
        import_model(tmp_path / "f.pt", "dsmil", FEATURES, TWO, tmp_path / "m")
    torch.save(dsmil("mlp-v")[0][0], tmp_path / "f.pt")
    _, found = import_model(tmp_path / "f.pt", "dsmil", FEATURES, TWO, tmp_path / "m")
    assert found.assumed == {"values": "relu"}
    torch.save({**dsmil("linear")[0][0], **weights(("b_classifier.lin.0", DIM, DIM))}, tmp_path / "f.pt")
    with pytest.raises(ArtifactError, match=r"has a layer before both streams \(b_classifier\.lin\.0\)"):
        import_model(tmp_path / "f.pt", "dsmil", FEATURES, TWO, tmp_path / "m")


# --- the command -----------------------------------------------------------------------------------------------


def wsi(*arguments: object) -> str:
    """What the command prints; its refusal as an exception."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None:
        raise done.exception
    return done.output


@pytest.mark.parametrize(("case", "task"), [("transmil", "classification"), ("dsmil-two", "multilabel")])
def test_the_command_takes_a_model_to_predictions_on_matching_bags(tmp_path: Path, case: str, task: str) -> None:
    """Bags of a run, a file of the authors', one command; then predict as the run does it."""
    (state, _, options), expected = CASES[case]()
    torch.save(state, tmp_path / "authors.ckpt")
    folder = tmp_path / "model"
    project = planted_project(tmp_path / "run", 3, predict={"model": str(folder)})
    rows = tuple(replace(slide, label=None) for slide in project.slides)
    project = replace(project, slides=rows, cohort=rows)
    (tmp_path / "seen.txt").write_text("s02\n")
    said = wsi(
        *("import-model", tmp_path / "authors.ckpt", "--from", family(case), "--classes", "normal,tumour"),
        *("--bag", project.folder.bag("s00"), "--out", folder, "--seen", tmp_path / "seen.txt"),
        *(part for name, value in options.items() for part in ("--option", f"{name}={value}")),
    )
    assert f"{case.partition('-')[0]}, 32 features a patch, {task} of normal, tumour" in said
    if case == "transmil":
        assert "assumed    landmarks=8 pinv_iterations=6" in said
    with Engine(project.config.engine, project.config.out) as engine:
        run_stage("predict", project, engine)
        assert engine.failures == []
    header, lines = read_csv(project.folder.predictions)
    found = {values[0]: dict(zip(header, values, strict=True)) for values in lines}
    assert [(name, row["held_out"]) for name, row in found.items()] == [
        ("s00", "false"),  # of the patient of s02
        ("s01", "true"),
        ("s02", "false"),
    ]
    for slide_id, row in found.items():
        held = read_bag(project.folder.bag(slide_id))
        logits, _ = expected(torch.from_numpy(held.features).float(), torch.from_numpy(held.grid.xy_stride))
        share = softmax(logits)[1] if task == "classification" else 1 / (1 + math.exp(-logits[1]))
        assert float(row["prob_tumour"]) == pytest.approx(share, abs=1e-5)


def test_without_a_bag_the_encoder_says_its_digest_or_the_user_does(tmp_path: Path) -> None:
    torch.save(abmil_plain()[0][0], tmp_path / "f.pt")
    command: tuple[object, ...] = (
        "import-model",
        tmp_path / "f.pt",
        "--from",
        "abmil",
        "--classes",
        "tumour",
        "--mpp",
        "0.5",
    )
    command = (*command, "--side-px", "224", "--encoder")
    wsi(*command, "lite0", "--out", tmp_path / "a")
    assert load_card(tmp_path / "a").weights_digest == identity("lite0", None, True, {})["weights"]
    wsi(*command, "lab", "--weights-digest", "d1", "--out", tmp_path / "b")
    assert (load_card(tmp_path / "b").encoder, load_card(tmp_path / "b").weights_digest) == ("lab", "d1")
    assert json.loads((tmp_path / "b" / "model.json").read_text())["task"] == "multilabel"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--encoder", "lite0"), "give --bag FILE.h5, or all of --encoder NAME --mpp UM_PER_PX --side-px PIXELS"),
        (("--bag", "b.h5", "--mpp", "1"), "--bag says encoder, digest, mpp and side_px; leave the other four out"),
        (("--bag", "b.h5"), "the bag b.h5 does not exist"),
        (("--encoder", "lite0", "--mpp", "0", "--side-px", "224"), "both must be above 0"),
        (("--encoder", "lite9", "--mpp", "1", "--side-px", "224"), "there is no encoder called 'lite9'"),
        (("--encoder", "lite0", "--mpp", "1", "--side-px", "9", "--task", "survival"), "--task survival: an imported"),
        (("--encoder", "lite0", "--mpp", "1", "--side-px", "9", "--option", "a"), "--option a: write it as name=value"),
        (("--encoder", "lite0", "--mpp", "1", "--side-px", "9", "--seen", "x.txt"), "--seen x.txt cannot be read"),
    ],
)
def test_arguments_that_cannot_be_used_get_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(abmil_plain()[0][0], "f.pt")
    with pytest.raises(WsiError) as refusal:
        wsi("import-model", "f.pt", "--from", "abmil", "--classes", "tumour", "--out", "m", *arguments)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_a_refused_file_ends_the_process_with_one_line_and_code_2(tmp_path: Path) -> None:
    torch.save(Evil(), tmp_path / "evil.pt")
    done = process(
        *("import-model", "evil.pt", "--from", "clam", "--classes", "a,b", "--encoder", "x", "--weights-digest", "y"),
        *("--mpp", "0.5", "--side-px", "256", "--out", "m"),
        cwd=tmp_path,
    )
    assert f"evil.pt names {os.name}.mkdir, which is code" in error_line(done)
    assert not (tmp_path / "evil").exists()
