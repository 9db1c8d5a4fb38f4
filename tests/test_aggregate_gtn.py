"""The graph transformer against dense matrices: every pair of patches compared, every matrix N x N."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wsi_pipeline.aggregate import Additive, MILOutput, OwnTraining, models
from wsi_pipeline.aggregate.graph import patch_graph
from wsi_pipeline.aggregate.gtn import GraphTransformer, cut_losses
from wsi_pipeline.errors import ConfigError

DIM, HIDDEN, HEADS, NODES = 7, 12, 3, 5
Positions = list[tuple[float, float]]
PLACES: dict[str, Positions] = {
    "one": [(3.0, 9.0)],
    "square": [(x, y) for y in range(5) for x in range(4)],
    "row": [(x, 0) for x in range(6)],
    "isolated": [(0, 0), (2, 0), (0, 2), (50, 7)],
    "row ends": [(0, 0), (1, 0), (9, 0), (0, 1), (9, 1), (0, 2), (9, 2)],  # the ends of rows are not neighbours
    "one place": [(4, 4)] * 5,
    "duplicates": [(0, 0), (1, 0), (1, 0), (2, 1), (1, 0), (9, 9), (9, 9)],
    "off the grid": [(0.3, 0.1), (1.2, 0.4), (1.9, 1.3), (0.5, 2.5), (40.75, 0.0), (41.6, 1.1), (2.5, 2.5)],
    "far": [(0, 0), (900_000, 900_000), (900_001, 899_999)],
}


def build(classes: int = 2, **options: Any) -> GraphTransformer:
    torch.manual_seed(0)
    small = {"hidden": HIDDEN, "heads": HEADS, "nodes": NODES, "mlp": 8, "layers": 2} | options
    model = models.build("gtn", DIM, classes, **small)
    assert isinstance(model, GraphTransformer)
    with torch.no_grad():  # a class token other than 0, and sharper assignments than the initial weights give
        model.cls_token.normal_()
        model.assign.weight.mul_(5)
    return model.double().eval()


def at(positions: Positions) -> Tensor:
    return torch.tensor(positions, dtype=torch.float64)


def features_of(xy: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(len(xy), DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tissue(patches: int) -> tuple[Tensor, Tensor]:
    """Features, and scattered positions, some shared."""
    generator = torch.Generator().manual_seed(patches)
    xy = torch.randint(0, 1 + math.isqrt(2 * patches), (patches, 2), generator=generator).double() + 0.25
    return features_of(xy), xy


# --- the definition --------------------------------------------------------------------------------------------


def slow_adjacency(xy: Tensor) -> Tensor:
    """(N, N): 1 for patches whose rounded positions differ by at most one in both directions."""
    left, top = min(xy[:, 0].tolist()), min(xy[:, 1].tolist())
    cells = [(math.floor(x - left + 0.5), math.floor(y - top + 0.5)) for x, y in xy.tolist()]
    near = [[max(abs(a - c), abs(b - d)) <= 1 for c, d in cells] for a, b in cells]
    return torch.tensor(near, dtype=torch.float64)


def slow_normalised(xy: Tensor) -> Tensor:
    adjacency = slow_adjacency(xy)
    scale = torch.diag(adjacency.sum(1) ** -0.5)
    return scale @ adjacency @ scale


def slow_cut_losses(xy: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    normalised = slow_normalised(xy)
    degrees = torch.diag(normalised.sum(1))
    cut = -torch.trace(s.T @ normalised @ s) / torch.trace(s.T @ degrees @ s)
    nodes = s.shape[1]
    overlap = s.T @ s
    return cut, torch.linalg.matrix_norm(
        overlap / torch.linalg.matrix_norm(overlap) - torch.eye(nodes, dtype=s.dtype) / math.sqrt(nodes)
    )


@torch.no_grad()
def slow_gtn(model: GraphTransformer, features: Tensor, xy: Tensor) -> MILOutput:
    p = dict(model.named_parameters())

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (HIDDEN,), p[f"{name}.weight"], p[f"{name}.bias"])

    h = norm("norm_gcn", slow_normalised(xy) @ features @ p["gcn.weight"].T + p["gcn.bias"]).clamp(min=0)
    s = (h @ p["assign.weight"].T + p["assign.bias"]).softmax(1)
    tokens = torch.cat([p["cls_token"], s.T @ h * NODES / len(h)])
    d = HIDDEN // HEADS
    for i in range(len(model.blocks)):
        qkv = norm(f"blocks.{i}.norm1", tokens) @ p[f"blocks.{i}.qkv.weight"].T
        outputs, maps = [], []
        for head in range(HEADS):
            q, k, v = (qkv[:, part * HIDDEN + head * d :][:, :d] for part in range(3))
            maps.append((q @ k.T / math.sqrt(d)).softmax(1))
            outputs.append(maps[-1] @ v)
        mixed = torch.cat(outputs, 1) @ p[f"blocks.{i}.proj.0.weight"].T + p[f"blocks.{i}.proj.0.bias"]
        tokens = tokens + mixed
        inner = norm(f"blocks.{i}.norm2", tokens) @ p[f"blocks.{i}.mlp.0.weight"].T + p[f"blocks.{i}.mlp.0.bias"]
        tokens = tokens + F.gelu(inner) @ p[f"blocks.{i}.mlp.3.weight"].T + p[f"blocks.{i}.mlp.3.bias"]
    weights = []
    for patch in s:
        shares = [float(patch[j]) * float(maps[head][0, 1 + j]) for j in range(NODES) for head in range(HEADS)]
        weights.append(sum(shares))
    attention = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return MILOutput(norm("norm", tokens)[0] @ p["head.weight"].T + p["head.bias"], attention)


# --- claims ----------------------------------------------------------------------------------------------------


def test_neighbours_equal_those_of_comparing_every_pair() -> None:
    for place, positions in PLACES.items():
        xy = at(positions)
        one_each = torch.eye(len(xy), dtype=torch.float64)
        assert torch.equal(patch_graph(xy).neighbour_sum(one_each), slow_adjacency(xy)), place


def test_a_square_of_nine_has_the_neighbours_counted_by_hand() -> None:
    xy = at([(x, y) for y in range(3) for x in range(3)])
    degrees = patch_graph(xy).neighbour_sum(torch.ones(9, 1))[:, 0]
    assert degrees.tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]


def test_the_normalised_adjacency_is_the_dense_one() -> None:
    for place, positions in PLACES.items():
        xy = at(positions)
        found = patch_graph(xy).propagate(torch.eye(len(xy), dtype=torch.float64))
        assert torch.allclose(found, slow_normalised(xy), rtol=0, atol=1e-12), place


def test_neighbours_of_scattered_patches_equal_those_of_comparing_every_pair() -> None:
    _, xy = tissue(300)
    xy = xy + torch.rand(xy.shape, generator=torch.Generator().manual_seed(2))
    one_each = torch.eye(300, dtype=torch.float64)
    assert torch.equal(patch_graph(xy).neighbour_sum(one_each), slow_adjacency(xy))


def test_only_cells_are_stored_however_many_patches_share_one() -> None:
    graph = patch_graph(torch.zeros(20_000, 2))
    assert graph.near.tolist() == [[1, 1, 1, 1, 0, 1, 1, 1, 1]]
    assert float(graph.neighbour_sum(torch.ones(20_000, 1)).min()) == 20_000


def test_the_cut_losses_equal_the_dense_formula() -> None:
    for place, positions in PLACES.items():
        xy = at(positions)
        s = torch.randn(len(xy), NODES, generator=torch.Generator().manual_seed(3), dtype=torch.float64).softmax(1)
        found, expected = (torch.stack(losses) for losses in (cut_losses(patch_graph(xy), s), slow_cut_losses(xy, s)))
        assert torch.allclose(found, expected, rtol=0, atol=1e-12), place


def test_separating_two_islands_has_the_smallest_cut_loss() -> None:
    xy = at([(0, 0), (1, 0), (9, 0), (10, 0)])
    apart = at([(1, 0), (1, 0), (0, 1), (0, 1)])
    assert [float(loss) for loss in cut_losses(patch_graph(xy), apart)] == pytest.approx([-1, 0], abs=1e-7)
    across = at([(1, 0), (0, 1), (1, 0), (0, 1)])
    assert [float(loss) for loss in cut_losses(patch_graph(xy), across)] == pytest.approx([-0.5, 0], abs=1e-7)


def test_logits_and_attention_equal_the_written_out_definition() -> None:
    model = build(3)
    for place, positions in PLACES.items():
        xy = at(positions)
        features = features_of(xy)
        found, expected = model(features, xy), slow_gtn(model, features, xy)
        assert torch.allclose(found.logits, expected.logits, rtol=0, atol=1e-9), place
        assert expected.attention is not None
        assert torch.allclose(found.attention, expected.attention, rtol=0, atol=1e-9), place


def test_bags_smaller_and_larger_than_the_nodes_have_one_weight_per_patch() -> None:
    model = build(1).float()
    for patches in (1, 2, 3, 17, 200):
        features, xy = tissue(patches)
        out: MILOutput = model(features.float(), xy.float())
        assert out.logits.shape == (1,)
        assert bool(out.logits.isfinite().all())
        assert out.attention is not None
        assert out.attention.shape == (patches,)
        assert out.attention.min().item() >= 0
        assert out.attention.sum().item() == pytest.approx(1, abs=1e-5)


def test_the_order_of_the_list_changes_nothing() -> None:
    model, (features, xy) = build(), tissue(80)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(4))
    before, shuffled = model.trace(features, xy), model.trace(features[order], xy[order])
    torch.testing.assert_close(shuffled.logits, before.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(shuffled.assignment, before.assignment[order], rtol=0, atol=1e-6)
    attention = model(features, xy).attention
    torch.testing.assert_close(model(features[order], xy[order]).attention, attention[order], rtol=0, atol=1e-6)
    loss, again = (model.training_output(features[i], xy[i], 0).extra for i in (torch.arange(80), order))
    torch.testing.assert_close(again, loss, rtol=0, atol=1e-6)


def test_relative_positions_matter_and_a_shift_of_the_slide_does_not() -> None:
    model, (features, xy) = build(), tissue(40)
    before = model(features, xy).logits
    torch.testing.assert_close(model(features, xy + 1000).logits, before, rtol=0, atol=1e-9)
    assert not torch.allclose(model(features, 3 * xy).logits, before, atol=1e-4)


def test_the_trace_connects_patches_to_logits() -> None:
    model, (features, xy) = build(), tissue(40)
    trace = model.trace(features, xy)
    assert torch.equal(trace.assignment, model.assignment(features, xy))
    assert trace.assignment.shape == (40, NODES)
    torch.testing.assert_close(trace.assignment.sum(1), torch.ones(40, dtype=torch.float64))
    assert [tuple(weights.shape) for weights in trace.maps] == [(HEADS, 1 + NODES, 1 + NODES)] * 2
    for weights, gradient in zip(trace.maps, torch.autograd.grad(trace.logits[1], trace.maps), strict=True):
        torch.testing.assert_close(weights.sum(2), torch.ones(HEADS, 1 + NODES, dtype=torch.float64))
        assert float(gradient[:, 0].abs().sum()) > 0


def test_training_adds_the_cut_losses_to_one_stream() -> None:
    for patches in (1, 3, 40):
        model, (features, xy) = build(), tissue(patches)
        assert isinstance(model, OwnTraining)
        out = model.training_output(features, xy, None)
        assert [weight for weight, _ in out.streams] == [1.0]
        torch.testing.assert_close(out.streams[0][1], model(features, xy).logits)
        cut, orthogonality = slow_cut_losses(xy, model.assignment(features, xy))
        torch.testing.assert_close(out.extra, cut + orthogonality)
        (out.streams[0][1].sum() + out.extra).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_gradients_of_the_logits_and_the_losses_equal_finite_differences() -> None:
    model, (features, xy) = build(hidden=4, heads=2, nodes=3), tissue(6)

    def outputs(features: Tensor) -> tuple[Tensor, Tensor]:
        out = model.training_output(features, xy, 0)
        return out.streams[0][1], out.extra

    assert torch.autograd.gradcheck(outputs, features.requires_grad_())


def test_many_bags_of_one_patch_can_be_batched() -> None:
    model, (features, xy) = build(), tissue(6)
    together = torch.vmap(lambda x, at: model(x, at).logits)(features[:, None], xy[:, None])
    for k in range(6):
        torch.testing.assert_close(together[k], model(features[k : k + 1], xy[k : k + 1]).logits)


def test_bf16_autocast_stays_near_full_precision() -> None:
    model, (features, xy) = build().float(), tissue(40)
    features, xy = features.float(), xy.float()
    full = model(features, xy)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(features, xy)
        extra = model.training_output(features, xy, 0).extra
    torch.testing.assert_close(half.logits.float(), full.logits, rtol=0, atol=0.05)
    assert half.attention.sum().item() == pytest.approx(1, abs=1e-2)
    assert extra.item() == pytest.approx(model.training_output(features, xy, 0).extra.item(), abs=0.02)


def test_dropout_acts_in_training_only() -> None:
    model, (features, xy) = build(dropout=0.5), tissue(30)
    assert torch.equal(model(features, xy).logits, model(features, xy).logits)
    model.train()
    assert not torch.equal(model(features, xy).logits, model(features, xy).logits)


def test_the_default_is_the_published_size() -> None:
    assert models.entry("gtn").options == {
        "nodes": 100,
        "hidden": 64,
        "layers": 3,
        "heads": 8,
        "mlp": 128,
        "dropout": 0.0,
    }
    assert not isinstance(build(), Additive)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 10, "heads": 4}, "model option hidden is 10, which 4 heads cannot share; make it a multiple"),
        ({"nodes": 0}, "model option nodes is 0; it must be a whole number of at least 1"),
        ({"dropout": -0.1}, "model option dropout is -0.1; it must be at least 0 and less than 1"),
    ],
)
def test_an_invalid_option_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        models.build("gtn", DIM, 2, **options)
    assert str(refusal.value) == message
