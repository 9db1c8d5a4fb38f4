"""TransMIL against its definition, written out: every matrix stored, every token computed, every kernel on its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsi_pipeline.aggregate import Additive, MILOutput, models, ppeg
from wsi_pipeline.aggregate.nystrom import TokenAttention, iterated_pinv, landmark_means, landmark_summary, nystrom_row
from wsi_pipeline.aggregate.transmil import AttentionShares, TransMIL
from wsi_pipeline.errors import ArtifactError

DIM, CLASSES, HIDDEN, HEADS, LANDMARKS, ITERATIONS = 7, 2, 24, 4, 10, 6
FORMS = list(product(["nystrom", "exact"], ["sequence", "grid"]))
Parameters = Mapping[str, Tensor]


class Slow(NamedTuple):
    logits: Tensor  # (C,)
    row: Tensor  # (P,) class token's row of the last layer, mean over heads
    padding: int  # zero tokens in front of the class token


def build(attention: str = "nystrom", position: str = "sequence", **options: Any) -> TransMIL:
    torch.manual_seed(0)
    small = {"hidden": HIDDEN, "heads": HEADS, "landmarks": LANDMARKS} | options
    model = models.build("transmil", DIM, CLASSES, attention=attention, position=position, **small)
    assert isinstance(model, TransMIL)
    with torch.no_grad():  # sharper attention than the initial weights give
        model.layer1.attn.to_qkv.weight.mul_(3)
        model.layer2.attn.to_qkv.weight.mul_(3)
    return model.double().eval()


def bag(patches: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Features, and positions in the lower triangle of a grid, with an offset."""
    generator = torch.Generator().manual_seed(seed)
    cells = [(x, y) for y in range(patches) for x in range(y + 1)][:patches]
    xy = torch.tensor(cells, dtype=torch.float64) + torch.tensor([40.25, 17.5])
    return torch.randn(patches, DIM, generator=generator, dtype=torch.float64), xy


# --- the definition --------------------------------------------------------------------------------------------


def slow_attention(x: Tensor, p: Parameters, layer: str, exact: bool) -> tuple[Tensor, Tensor, int]:
    """One attention layer with its full (H, P, P) map: returns (T, hidden), the map and the padding in front."""
    count = len(x)
    padding = 0 if exact else (LANDMARKS - count % LANDMARKS) % LANDMARKS
    x = torch.cat([x.new_zeros(padding, HIDDEN), x])
    d = HIDDEN // HEADS
    outputs, maps = [], []
    projected = x @ p[f"{layer}.attn.to_qkv.weight"].T
    qkv = [[projected[:, (HEADS * i + h) * d :][:, :d] for h in range(HEADS)] for i in range(3)]
    if not exact:
        run = len(x) // LANDMARKS

        def means(t: Tensor) -> Tensor:
            return torch.stack([t[i * run : (i + 1) * run].mean(0) for i in range(LANDMARKS)])

        landmarks = [(means(qkv[0][h] / d**0.5), means(qkv[1][h])) for h in range(HEADS)]
        kernels = torch.stack([(q @ k.T).softmax(1) for q, k in landmarks])  # F2 (H, m, m)
        scale = kernels.sum(2).max() * kernels.sum(1).max()
        inverses = kernels.transpose(1, 2) / scale
        identity = torch.eye(LANDMARKS, dtype=x.dtype)
        for _ in range(ITERATIONS):
            az = kernels @ inverses
            inverses = inverses @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az))) / 4
    for h in range(HEADS):
        q, k, v = qkv[0][h] / d**0.5, qkv[1][h], qkv[2][h]
        if exact:
            full = (q @ k.T).softmax(1)
        else:
            q_land, k_land = landmarks[h]
            full = (q @ k_land.T).softmax(1) @ inverses[h] @ (q_land @ k.T).softmax(1)
        taps = p[f"{layer}.attn.res_conv.weight"][h, 0, :, 0]
        local = torch.stack(
            [
                sum((taps[j] * v[i + j - 16] for j in range(33) if 0 <= i + j - 16 < len(v)), torch.zeros(d))
                for i in range(len(v))
            ]
        )
        outputs.append(full @ v + local)
        maps.append(full)
    merged = torch.cat(outputs, dim=1) @ p[f"{layer}.attn.to_out.0.weight"].T + p[f"{layer}.attn.to_out.0.bias"]
    return merged[padding:], torch.stack(maps), padding


def slow_square(tokens: Tensor, p: Parameters) -> Tensor:
    side = math.isqrt(len(tokens))
    image = tokens.T.reshape(1, HIDDEN, side, side)
    total = image
    for name, pad in (("proj", 3), ("proj1", 2), ("proj2", 1)):
        weight, bias = p[f"pos_layer.{name}.weight"], p[f"pos_layer.{name}.bias"]
        total = total + F.conv2d(image, weight, bias, padding=pad, groups=HIDDEN)
    return total[0].flatten(1).T


def slow_grid(tokens: Tensor, xy: Tensor, p: Parameters) -> Tensor:
    """Every token looks at every other: a kernel's tap where it stands within reach, nothing where it does not."""
    rows = []
    for i, here in enumerate(xy):
        total = tokens[i].clone()
        for name, radius in (("proj", 3), ("proj1", 2), ("proj2", 1)):
            total += p[f"pos_layer.{name}.bias"]
            for j, there in enumerate(xy):
                dx, dy = (round(float(v)) for v in there - here)
                if max(abs(dx), abs(dy)) <= radius:
                    total += p[f"pos_layer.{name}.weight"][:, 0, dy + radius, dx + radius] * tokens[j]
        rows.append(total)
    return torch.stack(rows)


@torch.no_grad()
def slow_transmil(model: nn.Module, features: Tensor, xy: Tensor, attention: str, position: str) -> Slow:
    p = dict(model.named_parameters())

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (HIDDEN,), p[f"{name}.weight"], p[f"{name}.bias"])

    h = (features @ p["_fc1.0.weight"].T + p["_fc1.0.bias"]).clamp(min=0)
    if position == "sequence":
        h = torch.cat([h, h[: math.ceil(len(h) ** 0.5) ** 2 - len(h)]])
    h = torch.cat([p["cls_token"][0], h])
    h = h + slow_attention(norm("layer1.norm", h), p, "layer1", attention == "exact")[0]
    around = slow_square(h[1:], p) if position == "sequence" else slow_grid(h[1:], xy, p)
    h = torch.cat([h[:1], around])
    attended, maps, padding = slow_attention(norm("layer2.norm", h), p, "layer2", attention == "exact")
    h = norm("norm", h + attended)
    return Slow(h[0] @ p["_fc2.weight"].T + p["_fc2.bias"], maps.mean(0)[padding], padding)


# --- claims ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attention", "position"), FORMS)
@pytest.mark.parametrize("patches", [1, 2, 9, 23, 40])
def test_logits_equal_the_written_out_definition(attention: str, position: str, patches: int) -> None:
    model, (features, xy) = build(attention, position), bag(patches)
    slow = slow_transmil(model, features, xy, attention, position)
    torch.testing.assert_close(model(features, xy).logits, slow.logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("attention", "position"), FORMS)
@pytest.mark.parametrize("patches", [1, 2, 9, 23, 40])
def test_every_share_of_the_class_tokens_row_is_given_to_its_owner(attention: str, position: str, patches: int) -> None:
    model, (features, xy) = build(attention, position), bag(patches)
    row, padding = slow_transmil(model, features, xy, attention, position)[1:]
    owned = row[padding + 1 :][:patches].tolist()
    for source, copy in enumerate(row[padding + 1 + patches :].tolist()):
        owned[source] += copy
    shares: AttentionShares = model.attention_shares(features, xy)
    assert shares.patches.tolist() == pytest.approx(owned, abs=1e-6)
    assert float(shares.class_token) == pytest.approx(float(row[padding]), abs=1e-6)
    assert float(shares.padding) == pytest.approx(float(row[:padding].sum()), abs=1e-6)
    total = float(shares.patches.sum() + shares.class_token + shares.padding)
    assert total == pytest.approx(float(row.sum()), abs=1e-9)
    if attention == "exact":
        assert total == pytest.approx(1, abs=1e-12)
        assert float(shares.padding) == 0


@pytest.mark.parametrize(("attention", "position"), FORMS)
@pytest.mark.parametrize("patches", [1, 2, 17, 1000])
def test_one_number_a_patch_that_sum_to_one(attention: str, position: str, patches: int) -> None:
    model, (features, xy) = build(attention, position).float(), bag(patches)
    out: MILOutput = model(features.float(), xy.float())
    assert out.attention is not None
    assert out.attention.shape == (patches,)
    assert not out.attention.requires_grad
    assert float(out.attention.sum()) == pytest.approx(1, abs=1e-4)
    assert bool(out.logits.isfinite().all())
    if attention == "exact":
        assert float(out.attention.min()) >= 0


@pytest.mark.parametrize(("attention", "position"), FORMS)
def test_the_class_token_alone_equals_the_class_token_of_the_full_layer(attention: str, position: str) -> None:
    layer = build(attention, position).layer2
    tokens = torch.randn(45, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(layer.first_token(tokens)[0], layer(tokens)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "sharper"), [(torch.float32, 1), (torch.float64, 5)])
@torch.no_grad()
def test_the_factored_form_equals_the_plain_product(dtype: torch.dtype, sharper: float) -> None:
    generator = torch.Generator().manual_seed(7)
    queries, keys, values = (torch.randn(1, 8, 1536, 64, generator=generator).to(dtype) for _ in range(3))
    queries *= sharper / 5
    landmarks = landmark_means(queries, 256), landmark_means(keys, 256)
    f1, f2, f3 = (
        (q / 8 @ k.mT).softmax(-1) for q, k in ((queries, landmarks[1]), landmarks, (landmarks[0], keys))
    )  # the heads' dimension is 64
    whole = f1 @ iterated_pinv(f2, 6) @ f3  # (1, 8, 1536, 1536)
    factored = F.scaled_dot_product_attention(queries, landmarks[1], landmark_summary(*landmarks, keys, values, 6))
    torch.testing.assert_close(factored, whole @ values, rtol=0, atol=1e-6)
    torch.testing.assert_close(nystrom_row(queries[:, :, :1], *landmarks, keys, 6), whole[0, :, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("exact", [False, True])
@torch.no_grad()
def test_the_class_token_alone_is_the_same_at_the_published_size_in_single_precision(exact: bool) -> None:
    torch.manual_seed(0)
    layer = TokenAttention(512, 8, exact=exact, landmarks=256, pinv_iterations=6, dropout=0.1).eval()
    tokens = F.layer_norm(torch.randn(1500, 512), (512,))
    torch.testing.assert_close(layer.first_token(tokens)[0], layer(tokens)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("position", ["sequence", "grid"])
def test_training_keeps_a_few_numbers_a_token_and_none_for_each_pair_of_token_and_landmark(position: str) -> None:
    patches, hidden, landmarks = 2000, 32, 256
    model = build("nystrom", position, hidden=hidden, landmarks=landmarks).float().train()
    features, xy = (x.float() for x in bag(patches))
    kept: dict[int, int] = {}  # storage -> bytes

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(features, xy).logits[0].backward()
    sequence = (patches + 300) * hidden * 4  # bytes of one number a token and channel; 300: copies, zeros
    square = HEADS * landmarks**2 * 4
    assert max(kept.values()) <= max(sequence, square)
    # Of F2's iteration all products are kept, in both layers: they do not grow with the bag.
    assert sum(size for size in kept.values() if size != square) < 18 * sequence


@pytest.mark.parametrize(("attention", "position"), FORMS)
def test_gradients_of_the_logits_equal_finite_differences(attention: str, position: str) -> None:
    model, (features, xy) = build(attention, position, hidden=4, heads=2, landmarks=3), bag(5)
    parameters = [model.cls_token, model.layer2.attn.to_qkv.weight, model.pos_layer.proj1.weight]
    names = ["cls_token", "layer2.attn.to_qkv.weight", "pos_layer.proj1.weight"]

    def logits(given: Tensor, *values: Tensor) -> Tensor:
        out: MILOutput = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (given, xy))
        return out.logits

    assert torch.autograd.gradcheck(logits, (features.requires_grad_(), *parameters))


def test_on_the_grid_only_the_value_convolution_knows_the_order_of_the_list() -> None:
    model, (features, xy) = build("exact", "grid"), bag(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    before, shuffled = model(features, xy), model(features[order], xy[order])
    assert not torch.allclose(shuffled.logits, before.logits, atol=1e-6)
    with torch.no_grad():
        for layer in (model.layer1, model.layer2):
            layer.attn.res_conv.weight.zero_()
    before, shuffled = model(features, xy), model(features[order], xy[order])
    torch.testing.assert_close(shuffled.logits, before.logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(shuffled.attention, before.attention[order], rtol=0, atol=1e-9)


def test_positions_are_read_on_the_grid_and_not_in_the_sequence() -> None:
    features, xy = bag(30)
    for position, equal in (("sequence", True), ("grid", False)):
        model = build("exact", position)
        assert torch.equal(model(features, xy).logits, model(features, 5 * xy).logits) == equal


def test_wide_gaps_between_pieces_of_tissue_cost_nothing_and_change_nothing() -> None:
    _, xy = bag(12)
    p = dict(build().named_parameters())
    tokens = torch.randn(12, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for gap in (1, 2, 3, 4, 5, 900_000):
        far = xy + torch.tensor([gap, 2 * gap]) * (torch.arange(12) >= 6)[:, None]
        _, (rows, columns) = ppeg.raster_cells(far)
        assert rows * columns < 200
        with torch.no_grad():
            torch.testing.assert_close(build().pos_layer.on_grid(tokens, far), slow_grid(tokens, far, p))


def test_a_raster_made_in_groups_of_channels_is_the_same_with_the_same_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, xy = bag(23)
    results = []
    for limit in (2**26, 250):
        monkeypatch.setattr(ppeg, "RASTER_VALUES", limit)
        model = build("exact", "grid")
        model(features, xy).logits[0].backward()
        assert model.pos_layer.proj.weight.grad is not None
        results.append((model(features, xy).logits.detach(), model.pos_layer.proj.weight.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-9)


def test_patches_on_too_many_cells_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppeg, "RASTER_VALUES", 19)
    with pytest.raises(ArtifactError) as refusal:
        build("exact", "grid")(*bag(12))
    assert str(refusal.value) == (
        "the patches are strewn over 5 x 4 cells, too many for position='grid'; "
        "train with position='sequence', or check that the bag's stride is right"
    )


def test_patches_in_one_cell_show_their_mean_and_keep_themselves() -> None:
    layer = build().pos_layer
    tokens = torch.randn(3, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        merged = torch.stack([tokens[:2].mean(0), tokens[2]])
        apart = layer.on_grid(merged, torch.tensor([[0.0, 0.0], [1.0, 0.0]])) - merged
        shared = layer.on_grid(tokens, torch.tensor([[0.0, 0.0], [0.2, 0.3], [1.0, 0.0]])) - tokens
    torch.testing.assert_close(shared, apart[[0, 0, 1]])


def test_positions_half_a_stride_off_stay_one_cell_apart() -> None:
    cells, size = ppeg.raster_cells(torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.5, 0.0], [2.5, 1.0]]))
    assert size == (2, 4)
    assert cells.tolist() == [0, 1, 2, 7]


def test_the_iteration_finds_the_inverse_of_a_well_conditioned_matrix() -> None:
    matrix = torch.eye(6, dtype=torch.float64) * 4 + torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(iterated_pinv(matrix, 12) @ matrix, torch.eye(6).double().expand(2, 6, 6))


def test_the_default_is_the_published_model() -> None:
    expected = {
        "cls_token": (1, 1, 512),
        "_fc1.0.weight": (512, 1024),
        "_fc1.0.bias": (512,),
        "norm.weight": (512,),
        "norm.bias": (512,),
        "_fc2.weight": (2, 512),
        "_fc2.bias": (2,),
    }
    for name, side in (("proj", 7), ("proj1", 5), ("proj2", 3)):
        expected |= {f"pos_layer.{name}.weight": (512, 1, side, side), f"pos_layer.{name}.bias": (512,)}
    for layer in ("layer1", "layer2"):
        expected |= {
            f"{layer}.norm.weight": (512,),
            f"{layer}.norm.bias": (512,),
            f"{layer}.attn.to_qkv.weight": (1536, 512),
            f"{layer}.attn.to_out.0.weight": (512, 512),
            f"{layer}.attn.to_out.0.bias": (512,),
            f"{layer}.attn.res_conv.weight": (8, 1, 33, 1),
        }
    model = models.build("transmil", 1024, 2)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected
    assert models.entry("transmil").options == {
        "attention": "nystrom",
        "position": "sequence",
        "hidden": 512,
        "heads": 8,
        "landmarks": 256,
        "pinv_iterations": 6,
        "dropout": 0.1,
    }


@pytest.mark.parametrize(("attention", "position"), FORMS)
def test_bf16_autocast_stays_near_full_precision(attention: str, position: str) -> None:
    model, (features, xy) = build(attention, position).float(), bag(40)
    features = features.float()
    full: MILOutput = model(features, xy)
    with torch.autocast("cpu", torch.bfloat16):
        half: MILOutput = model(features, xy)
    assert half.attention is not None
    assert float(half.attention.sum()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(half.logits.float(), full.logits, rtol=0, atol=0.05)


def test_dropout_acts_in_training_only() -> None:
    model, (features, xy) = build(dropout=0.5), bag(30)
    assert torch.equal(model(features, xy).logits, model(features, xy).logits)
    model.train()
    assert not torch.equal(model(features, xy).logits, model(features, xy).logits)


def test_a_transformer_is_not_a_sum_over_patches() -> None:
    assert not isinstance(build(), Additive)
