"""GraphCAM: against the relevance rules and the product of maps written out, with autograd for every derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from explaining import scores_of
from test_explain import bag, build
from torch import Tensor, nn

from wsi_pipeline.aggregate.gtn import Block, GraphTransformer
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain.explained_model import Attribution, ExplainedModel, Target
from wsi_pipeline.explain.logit_contrast import contrast
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.methods.graphcam import GraphCAM, pool_nodes, run_blocks


def graph_transformer(classes: int = 3, **options: int) -> GraphTransformer:
    """Weights doubled: away from the near-uniform attention of initial weights."""
    model = build("gtn", classes, **options)
    assert isinstance(model, GraphTransformer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
        model.cls_token.normal_(generator=torch.Generator().manual_seed(1))
    return model


def attribute(model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Attribution:
    explainer = explainers.build("graphcam")
    assert isinstance(explainer, GraphCAM)
    return explainer(ExplainedModel(model), features, xy, target)


# --- the oracle ----------------------------------------------------------------------------------------------


def distributed(function: Callable[..., Tensor], inputs: list[Tensor], relevance: Tensor) -> list[Tensor]:
    """x * d/dx, summed over outputs Z with R / Z: each input's part of the relevance R of ``function``'s outputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    ratio = torch.where(outputs == 0, 0, relevance / outputs).detach()
    return [x.detach() * g for x, g in zip(leaves, torch.autograd.grad(outputs, leaves, ratio), strict=True)]


def through_linear(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Only positive products receive relevance."""

    def positive(above: Tensor, below: Tensor) -> Tensor:
        return above @ weight.clamp(min=0).T + below @ weight.clamp(max=0).T

    return sum(distributed(positive, [x.clamp(min=0), x.clamp(max=0)], relevance), torch.zeros_like(x))


def through_sum(a: Tensor, b: Tensor, relevance: Tensor) -> list[Tensor]:
    """Parts of a and b, each scaled so that their sums are in proportion to their magnitudes."""
    parts = distributed(torch.add, [a, b], relevance)
    sizes = [abs(part.sum().item()) for part in parts]
    return [part * (size / sum(sizes)) * relevance.sum() / part.sum() for part, size in zip(parts, sizes, strict=True)]


def through_block(block: Block, x: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the map (heads, T, T) and of x (T, hidden)."""
    fc1, gelu, fc2 = block.mlp[0], block.mlp[1], block.mlp[3]
    tokens, hidden = x.shape
    split = block.qkv(block.norm1(x)).reshape(tokens, 3, block.heads, hidden // block.heads)
    queries, keys, values = split.permute(1, 2, 0, 3)
    weights = torch.softmax(queries @ keys.transpose(1, 2) / (hidden // block.heads) ** 0.5, -1)
    mixed = (weights @ values).permute(1, 0, 2).reshape(tokens, hidden)
    attended = mixed @ block.proj.get_parameter("0.weight").T + block.proj.get_parameter("0.bias")
    middle = x + attended
    active = gelu(fc1(block.norm2(middle)))
    past, of_perceptron = through_sum(middle, fc2(active), relevance)
    of_active = through_linear(active, cast(Tensor, fc2.weight), of_perceptron)
    of_middle = past + through_linear(block.norm2(middle), cast(Tensor, fc1.weight), of_active)
    past, of_attended = through_sum(x, attended, of_middle)
    of_mixed = through_linear(mixed, block.proj.get_parameter("0.weight"), of_attended)
    of_mixed = of_mixed.reshape(tokens, block.heads, -1).permute(1, 0, 2)
    of_weights, of_values = distributed(torch.matmul, [weights, values], of_mixed)
    of_values = of_values.permute(1, 0, 2).reshape(tokens, hidden)  # the map's half continues with the values
    value_weight = block.qkv.weight[2 * hidden :]
    return of_weights / 2, past + through_linear(block.norm1(x), value_weight, of_values)


def slow(model: GraphTransformer, features: Tensor, xy: Tensor, target: int) -> tuple[Tensor, float]:
    """Scores (N,) and the class token's part."""
    trace = model.trace(features, xy)
    gradients = torch.autograd.grad(contrast(trace.logits, target), trace.maps)
    with torch.no_grad():
        _, tokens = pool_nodes(model, features, xy)
        inputs = [tokens]
        for block in model.blocks:
            inputs.append(block(inputs[-1])[0])
        read = model.norm(inputs[-1][0])
        others = [c for c in range(len(model.head.weight)) if c != target]
        weight = model.head.weight[target] - model.head.weight[others].mean(0)
    with torch.enable_grad():
        relevance = torch.zeros_like(tokens)
        relevance[0] = through_linear(read, weight[None].detach(), torch.ones(1).double())
        product = torch.eye(len(tokens)).double()
        for block, x, gradient in [*zip(model.blocks, inputs, gradients, strict=False)][::-1]:
            found, relevance = through_block(cast(Block, block), x, relevance)
            matrix = torch.eye(len(tokens)).double() + (gradient * found).clamp(min=0).mean(0)
            product = product @ (matrix / matrix.sum(1, keepdim=True))
    nodes = product[0, 1:].detach()
    scores = trace.assignment.detach() @ nodes
    return scores / scores.sum() * nodes.sum(), product[0, 0].item()


# --- claims --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0, 2])
@pytest.mark.parametrize("options", [{}, {"layers": 1}, {"nodes": 3, "layers": 2, "heads": 4}])
def test_graphcam_is_the_materialised_product_of_relevance_times_gradient(options: dict[str, int], target: int) -> None:
    model, (features, xy) = graph_transformer(**options), bag(60)
    found = attribute(model, features, xy, target)
    scores, class_token = slow(model, features, xy, target)
    torch.testing.assert_close(found.scores, scores, rtol=1e-6, atol=1e-12)
    assert found.residual == pytest.approx({"class token": class_token}, abs=1e-9)
    assert class_token < 0.999


@pytest.mark.parametrize("patches", [1, 2, 300])
def test_patches_and_class_token_sum_to_one(patches: int) -> None:
    model, (features, xy) = graph_transformer(), bag(patches)
    found = attribute(model, features, xy, 1)
    assert found.scores.sum().item() + found.residual["class token"] == pytest.approx(1, abs=1e-12)
    assert found.scores.min() >= 0


def test_a_patchs_score_is_the_mean_of_its_nodes_whose_assignment_sums_to_one() -> None:
    model, (features, xy) = graph_transformer(), bag(40)
    with torch.no_grad():
        model.assign.weight.mul_(200)  # each patch to one node
        assignment = model.assignment(features, xy)
    torch.testing.assert_close(assignment.sum(1), torch.ones(40).double())
    scores = attribute(model, features, xy, 1).scores
    for node in assignment.argmax(1).unique():
        own = scores[(assignment[:, node] > 1 - 1e-9)]
        np.testing.assert_allclose(own, own[:1].expand(len(own)), rtol=1e-6)
    assert scores.max() > 1.1 * scores.min()


def test_relevance_is_conserved_from_the_target_to_the_nodes() -> None:
    model, (features, xy) = graph_transformer(), bag(50)
    with torch.no_grad():
        _, tokens = pool_nodes(model, features, xy)
        layers, _ = run_blocks(model, tokens, Target(1))
        relevance = torch.zeros_like(tokens)
        relevance[0, 0] = 1
        for layer in reversed(layers):
            found, relevance = layer.below(relevance)
            assert relevance.sum().item() == pytest.approx(1, abs=1e-9)
            assert found.abs().max() > 0


def test_the_class_token_keeps_all_relevance_where_no_attention_matters() -> None:
    model, (features, xy) = graph_transformer(), bag(20)
    with torch.no_grad():
        model.head.weight.zero_()
    found = attribute(model, features, xy, 1)
    assert found.scores.tolist() == [0.0] * 20
    assert found.residual == {"class token": 1.0}


def test_each_class_has_its_own_map() -> None:
    model, (features, xy) = graph_transformer(), bag(100)
    maps = [attribute(model, features, xy, target).scores for target in range(3)]
    assert all((maps[a] - maps[b]).abs().max() > 1e-3 * maps[a].max() for a, b in ((0, 1), (1, 2), (0, 2)))


def test_graphcam_needs_a_graph_transformer() -> None:
    with pytest.raises(ConfigError, match="needs a graph transformer"):
        scores_of(explainers.build("graphcam"), build("transmil"), *bag(3), 1)
