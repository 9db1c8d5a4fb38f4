"""GraphCAM: relevance of the pooled graph's nodes for the target, mapped back to the patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...aggregate.gtn import Block, GraphTransformer
from ...errors import ConfigError
from ...types import Unit
from ..explained_model import Attribution, ExplainedModel, Target
from ..frozen import frozen
from ..transformer.relevance import linear_rule, ratio, sum_rule
from . import Explainer, explainers

_NEEDS = "does not pool a graph; this method needs a graph transformer, as gtn is"


class GraphCAM:
    """S r, with r the class token's row of the product of rownorm(I + mean_h relu(∇A_l ⊙ R_A_l)) over the nodes.

    Unsigned ("attribution"). Zheng et al., "A graph-transformer for whole slide image classification", IEEE TMI 2022:
    the transformer attribution of Chefer, Gur and Wolf, CVPR 2021, for the pooled nodes; a patch has the mean of its
    nodes' relevance by the assignment S (N, nodes), whose rows sum to 1. There are about a hundred tokens, so maps are
    whole matrices here.

    Deviations: t, the target of the task (see ``explained_model``), is explained instead of the logit; relevance has
    the rules, and rows sum to 1, as in ``transformer_attribution`` (the authors' code leaves rows unscaled). S r is
    scaled to the nodes' sum, so that patches and class token sum to 1; this changes no order.
    """

    unit: Unit = "attribution"
    signed = False
    class_specific = True

    def fits(self, explained: ExplainedModel) -> str | None:
        return None if isinstance(explained.module, GraphTransformer) else _NEEDS

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        """Scores (N,); with the "class token" they add up to 1."""
        model = explained.module
        if not isinstance(model, GraphTransformer):
            raise ConfigError(f"the model {type(model).__name__} {_NEEDS}; leave graphcam out of explain.methods")
        with frozen(model), torch.no_grad():
            assignment, tokens = pool_nodes(model, features, xy)
            row = class_row(model, tokens, explained.target(target))  # (1 + nodes,)
            shares = assignment @ row[1:]  # (N,)
            scores = shares * ratio(row[1:].sum(), shares.sum())
        return Attribution(scores, {"class token": row[0].item()})


def pool_nodes(model: GraphTransformer, features: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """S (N, nodes) and the input of the first block, (1 + nodes, hidden), from the model's own forward pass."""
    inputs: list[Tensor] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        return model.trace(features, xy).assignment, inputs[0]
    finally:
        hook.remove()


def class_row(model: GraphTransformer, tokens: Tensor, target: Target) -> Tensor:
    """r (1 + nodes,), class token first; sums to 1."""
    layers, gradients = run_blocks(model, tokens, target)
    read = model.norm(layers[-1].output[0])  # (hidden,)
    weight = target(model.head.weight.mT)[None]  # (1, hidden) t is one linear unit
    relevance = torch.zeros_like(tokens)
    relevance[0] = read * linear_rule(read, weight, read.new_ones(1))
    row = torch.zeros_like(tokens[:, 0])
    row[0] = 1
    for layer, gradient in zip(reversed(layers), reversed(gradients), strict=True):
        found, relevance = layer.below(relevance)
        matrix = (gradient * found).relu().mean(0)  # (T, T)
        arriving = row / (1 + matrix.sum(1))
        row = arriving + arriving @ matrix
    return row


def run_blocks(model: GraphTransformer, tokens: Tensor, target: Target) -> tuple[list[Layer], tuple[Tensor, ...]]:
    """Run the blocks on ``tokens`` (T, hidden); also the gradient of t for each attention map, (heads, T, T)."""
    layers, maps = [], []
    with torch.enable_grad():
        current = tokens.detach().requires_grad_()
        for block in model.blocks:
            assert isinstance(block, Block)
            output, weights = block(current)
            layers.append(Layer(block, current.detach(), weights.detach(), output.detach()))
            maps.append(weights)
            current = output
        gradients = torch.autograd.grad(target(model.head(model.norm(current[0]))), maps)
    return layers, gradients


@dataclass(frozen=True, eq=False)
class Layer:
    """Values of one block in a forward pass."""

    block: Block
    input: Tensor  # (T, hidden)
    weights: Tensor  # (heads, T, T)
    output: Tensor  # (T, hidden)

    def below(self, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """Relevance of the map A (heads, T, T) and of the block's input, from that of its output."""
        block, values, mixed, attended = self.block, *self._attention()
        middle = self.input + attended  # (T, hidden)
        relevance = self._below_perceptron(middle, relevance)
        skipping, through = sum_rule(self.input, attended, ratio(relevance, middle))
        into = linear_rule(
            mixed, block.proj.get_parameter("0.weight"), attended * through
        )  # (T, hidden) coefficients of O = A V
        into = into.unflatten(1, (block.heads, -1)).transpose(0, 1)  # (heads, T, d)
        found = self.weights * (into @ values.mT) / 2
        of_values = (values * (self.weights.mT @ into)).transpose(0, 1).flatten(1)  # (T, hidden)
        normed = block.norm1(self.input)
        below = normed * linear_rule(normed, block.qkv.weight.chunk(3)[2], of_values)
        return found, self.input * skipping + below

    def _attention(self) -> tuple[Tensor, Tensor, Tensor]:
        """V (heads, T, d), O = A V with heads side by side (T, hidden), and its projection (T, hidden)."""
        values = self.block.qkv(self.block.norm1(self.input)).chunk(3, 1)[2]
        values = values.unflatten(1, (self.block.heads, -1)).transpose(0, 1)
        mixed = (self.weights @ values).transpose(0, 1).flatten(1)
        return values, mixed, self.block.proj(mixed)

    def _below_perceptron(self, middle: Tensor, relevance: Tensor) -> Tensor:
        """Relevance (T, hidden) before the perceptron, from that of the block's output."""
        normed, perceptron = self.block.norm2(middle), self.block.mlp
        active = perceptron[:2](normed)  # (T, mlp) after GELU, which passes relevance on unchanged
        added = perceptron[2:](active)
        skipping, through = sum_rule(middle, added, ratio(relevance, middle + added))
        into = active * linear_rule(active, perceptron.get_parameter("3.weight"), added * through)
        below: Tensor = normed * linear_rule(normed, perceptron.get_parameter("0.weight"), into)
        return middle * skipping + below


@explainers.register("graphcam", paper="Zheng et al., IEEE TMI 2022")
def graphcam() -> Explainer:
    """Transformer attribution of the pooled nodes, mapped back to their patches; for graph transformers."""
    return GraphCAM()
