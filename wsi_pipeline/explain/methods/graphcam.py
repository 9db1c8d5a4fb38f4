"""GraphCAM: which nodes of the pooled graph the class stands on, and so which patches."""

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

_NEEDS = "pools no graph; this method needs a graph transformer, as gtn is"


class GraphCAM:
    """S r, with r the class token's row of the product of rownorm(I + mean_h relu(∇A_l ⊙ R_A_l)) over the nodes.

    Zheng et al., "A graph-transformer for whole slide image classification", IEEE TMI 2022: the transformer
    attribution of Chefer, Gur and Wolf, CVPR 2021, for the pooled nodes, and each patch has the mean of its nodes' by
    the assignment S (N, nodes), whose rows sum to 1. Of some hundred tokens, so maps are whole matrices here.

    Deviations: what is explained is the contrast; relevance has the rules, and rows sum to 1, as in
    ``transformer_attribution`` (the authors' code leaves the rows as they are). S r is scaled to the nodes' sum, so
    patches and class token share 1; that changes no order.
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
            assignment, tokens = pooled(model, features, xy)
            row = class_row(model, tokens, explained.target(target))  # (1 + nodes,)
            shares = assignment @ row[1:]  # (N,)
            scores = shares * ratio(row[1:].sum(), shares.sum())
        return Attribution(scores, {"class token": row[0].item()})


def pooled(model: GraphTransformer, features: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """S (N, nodes) and what the first block is given, (1 + nodes, hidden), as the model's forward pass has them."""
    given: list[Tensor] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        return model.trace(features, xy).assignment, given[0]
    finally:
        hook.remove()


def class_row(model: GraphTransformer, tokens: Tensor, target: Target) -> Tensor:
    """r (1 + nodes,), class token first; sums to 1."""
    layers, gradients = ran(model, tokens, target)
    read = model.norm(layers[-1].gave[0])  # (hidden,)
    weight = target(model.head.weight.mT)[None]  # (1, hidden) the contrast is one linear unit
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


def ran(model: GraphTransformer, tokens: Tensor, target: Target) -> tuple[list[Layer], tuple[Tensor, ...]]:
    """The blocks as they ran on ``tokens`` (T, hidden), and the gradient of t for each one's map, (heads, T, T)."""
    layers, maps = [], []
    with torch.enable_grad():
        at = tokens.detach().requires_grad_()
        for block in model.blocks:
            assert isinstance(block, Block)
            gave, weights = block(at)
            layers.append(Layer(block, at.detach(), weights.detach(), gave.detach()))
            maps.append(weights)
            at = gave
        gradients = torch.autograd.grad(target(model.head(model.norm(at[0]))), maps)
    return layers, gradients


@dataclass(frozen=True, eq=False)
class Layer:
    """One block as it ran."""

    block: Block
    given: Tensor  # (T, hidden)
    weights: Tensor  # (heads, T, T)
    gave: Tensor  # (T, hidden)

    def below(self, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """Relevance of the map A (heads, T, T) and of what the block was given, from that of what it gave."""
        block, values, mixed, attended = self.block, *self._attention()
        middle = self.given + attended  # (T, hidden)
        relevance = self._below_perceptron(middle, relevance)
        skipping, through = sum_rule(self.given, attended, ratio(relevance, middle))
        into = linear_rule(
            mixed, block.proj.get_parameter("0.weight"), attended * through
        )  # (T, hidden) coefficients of O = A V
        into = into.unflatten(1, (block.heads, -1)).transpose(0, 1)  # (heads, T, d)
        found = self.weights * (into @ values.mT) / 2
        of_values = (values * (self.weights.mT @ into)).transpose(0, 1).flatten(1)  # (T, hidden)
        normed = block.norm1(self.given)
        below = normed * linear_rule(normed, block.qkv.weight.chunk(3)[2], of_values)
        return found, self.given * skipping + below

    def _attention(self) -> tuple[Tensor, Tensor, Tensor]:
        """V (heads, T, d), O = A V side by side (T, hidden), and what the projection makes of it (T, hidden)."""
        values = self.block.qkv(self.block.norm1(self.given)).chunk(3, 1)[2]
        values = values.unflatten(1, (self.block.heads, -1)).transpose(0, 1)
        mixed = (self.weights @ values).transpose(0, 1).flatten(1)
        return values, mixed, self.block.proj(mixed)

    def _below_perceptron(self, middle: Tensor, relevance: Tensor) -> Tensor:
        """Relevance (T, hidden) of what the attention gave, from that of what the block gave."""
        normed, perceptron = self.block.norm2(middle), self.block.mlp
        active = perceptron[:2](normed)  # (T, mlp) behind GELU, which lets relevance pass
        added = perceptron[2:](active)
        skipping, through = sum_rule(middle, added, ratio(relevance, middle + added))
        into = active * linear_rule(active, perceptron.get_parameter("3.weight"), added * through)
        below: Tensor = normed * linear_rule(normed, perceptron.get_parameter("0.weight"), into)
        return middle * skipping + below


@explainers.register("graphcam", paper="Zheng et al., IEEE TMI 2022")
def graphcam() -> Explainer:
    """Transformer attribution of the pooled nodes, given back to their patches; for graph transformers."""
    return GraphCAM()
