"""The graph transformer: patches that touch share what they see, are pooled to a few nodes, and these attend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from . import MILOutput, TrainingOutput, models
from .graph import PatchGraph, patch_graph
from .model_options import check_counts, check_dropout


class GraphTrace(NamedTuple):
    """One bag's way through the model, all of it in the autograd graph."""

    logits: Tensor  # (C,)
    maps: tuple[Tensor, ...]  # a layer each, (heads, 1 + nodes, 1 + nodes), class token first; rows sum to 1
    assignment: Tensor  # S (N, nodes), rows sum to 1
    graph: PatchGraph


class Block(nn.Module):
    """Pre-norm attention and a two-layer perceptron, each with a skip connection."""

    def __init__(self, hidden: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.proj = nn.Sequential(nn.Linear(hidden, hidden), nn.Dropout(dropout))
        self.norm2 = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, mlp), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp, hidden), nn.Dropout(dropout)
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(T, hidden) -> (T, hidden) and the attention, (heads, T, T)."""
        count, hidden = tokens.shape
        split = self.qkv(self.norm1(tokens)).view(count, 3, self.heads, hidden // self.heads)
        queries, keys, values = split.permute(1, 2, 0, 3)  # 3 x (heads, T, d)
        weights = (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(-1)  # (heads, T, T)
        tokens = tokens + self.proj((weights @ values).transpose(0, 1).reshape(count, hidden))
        return tokens + self.mlp(self.norm2(tokens)), weights


class GraphTransformer(nn.Module):
    """Zheng et al., "A graph-transformer for whole slide image classification", IEEE TMI 2022.

    On the graph of patches that touch: H = relu(norm(Ã X W + b)); S = softmax of a linear layer on H, (N, nodes);
    pooled nodes Sᵀ H (min-cut pooling of Bianchi, Grattarola and Alippi, ICML 2020); class token; pre-norm
    transformer; LayerNorm; class token; linear. Only S is dense: no matrix is N x N. The order of the list changes
    nothing. The loss gains ``cut_losses``, each with weight 1.

    Deviations: the published code adds up neighbours as they are, then scales each row to length 1 and normalises it
    over the batch; here the symmetric normalisation of the paper's formula, and LayerNorm, as there is one bag at a
    time. Nodes are scaled by nodes / N, so that bags of all sizes are on one scale. The losses are those of Bianchi et
    al. on the normalised adjacency Ã, self-loops included, so that a patch without neighbours has a cut.
    """

    def __init__(
        self, dim: int, classes: int, *, nodes: int, hidden: int, layers: int, heads: int, mlp: int, dropout: float
    ) -> None:
        super().__init__()
        self.gcn = nn.Linear(dim, hidden)
        self.norm_gcn = nn.LayerNorm(hidden)
        self.assign = nn.Linear(hidden, nodes)
        self.cls_token = nn.Parameter(torch.zeros(1, hidden))
        self.blocks = nn.ModuleList(Block(hidden, heads, mlp, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        """Logits (C,) and attention (N,): S r over its sum.

        r: how the class token of the last layer looks at each node, mean over heads. A node is a weighted sum of
        patches, so S r is the weight of each patch in what the class token looks at; its look at itself is left out.
        """
        trace = self.trace(features, xy)
        looks = trace.maps[-1][:, 0, 1:].mean(0)  # (nodes,)
        attention = trace.assignment @ looks  # (N,)
        return MILOutput(trace.logits, attention / attention.sum())

    def training_output(self, features: Tensor, xy: Tensor, label: int | None) -> TrainingOutput:  # noqa: ARG002
        """One stream of weight 1; ``extra`` is the cut's loss plus that of orthogonality."""
        trace = self.trace(features, xy)
        cut, orthogonality = cut_losses(trace.graph, trace.assignment)
        return TrainingOutput(((1.0, trace.logits),), cut + orthogonality)

    def assignment(self, features: Tensor, xy: Tensor) -> Tensor:
        """S, (N, nodes): how much of each patch goes to each node. Rows sum to 1."""
        return self._pooled(features, patch_graph(xy))[0]

    def trace(self, features: Tensor, xy: Tensor) -> GraphTrace:
        """Logits, with what led to them: relevance of nodes (from ``maps``) goes back to patches by S (GraphCAM)."""
        graph = patch_graph(xy)
        assignment, pooled = self._pooled(features, graph)
        tokens = torch.cat([self.cls_token, pooled])  # (1 + nodes, hidden)
        maps = []
        for block in self.blocks:
            tokens, weights = block(tokens)
            maps.append(weights)
        return GraphTrace(self.head(self.norm(tokens[0])), tuple(maps), assignment, graph)

    def _pooled(self, features: Tensor, graph: PatchGraph) -> tuple[Tensor, Tensor]:
        """S (N, nodes) and the nodes (nodes, hidden)."""
        shared = graph.propagate(features @ self.gcn.weight.T) + self.gcn.bias  # Ã (X W), the cheaper order
        hidden = self.norm_gcn(shared).relu()  # (N, hidden)
        assignment: Tensor = self.assign(hidden).softmax(1)  # (N, nodes)
        return assignment, assignment.T @ hidden * (assignment.shape[1] / len(hidden))


def cut_losses(graph: PatchGraph, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """Bianchi et al., ICML 2020: -tr(Sᵀ Ã S) / tr(Sᵀ D̃ S), and |SᵀS / |SᵀS| - I / sqrt(K)| in the Frobenius norm.

    ``assignment``: S (N, K). D̃ holds the row sums of Ã. The first is at least -1, the second at most sqrt(2); both ().
    """
    degrees = graph.propagate(assignment.new_ones(len(assignment), 1))  # (N, 1)
    kept = (assignment * graph.propagate(assignment)).sum()
    cut = -kept / (degrees * assignment.square()).sum()
    overlap = assignment.T @ assignment  # (K, K)
    even = torch.eye(len(overlap), dtype=overlap.dtype, device=overlap.device) / len(overlap) ** 0.5
    return cut, (overlap / overlap.norm() - even).norm()


@models.register("gtn", paper="Zheng et al., IEEE TMI 2022", class_specific_attention=False)
def gtn(
    dim: int,
    classes: int,
    *,
    nodes: int = 100,
    hidden: int = 64,
    layers: int = 3,
    heads: int = 8,
    mlp: int = 128,
    dropout: float = 0.0,
) -> nn.Module:
    """Graph transformer: touching patches exchange features, are pooled to ``nodes``, and a small ViT attends."""
    check_counts(nodes=nodes, hidden=hidden, layers=layers, heads=heads, mlp=mlp)
    check_dropout(dropout)
    if hidden % heads:
        raise ConfigError(f"model option hidden is {hidden}, which {heads} heads cannot share; make it a multiple")
    return GraphTransformer(
        dim, classes, nodes=nodes, hidden=hidden, layers=layers, heads=heads, mlp=mlp, dropout=dropout
    )
