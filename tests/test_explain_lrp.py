"""Layer-wise relevance propagation: rules against loops written from the papers, conservation, refusals."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsi_pipeline.aggregate import Additive, MILOutput, models, ppeg
from wsi_pipeline.aggregate.abmil import AttentionMIL
from wsi_pipeline.aggregate.nystrom import TokenAttention, iterated_pinv, landmark_means
from wsi_pipeline.aggregate.transmil import TransLayer, TransMIL
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain.explained_model import Attribution, ExplainedModel
from wsi_pipeline.explain.logit_contrast import contrast
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.propagation.lrp_rules import RULES, RelevanceRules
from wsi_pipeline.explain.propagation.traced_tensor import NoRuleError, traced_logits

DIM = 6
SMALL = {"hidden": 16, "attention_dim": 4, "heads": 2, "landmarks": 4, "nodes": 8, "query_dim": 5}
TRANSMILS: list[tuple[str, dict[str, Any]]] = [
    ("transmil", {"attention": attention, "position": position})
    for attention in ("nystrom", "exact")
    for position in ("sequence", "grid")
]
EVERY: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in models.names() if name != "transmil"],
    *TRANSMILS,
    ("abmil", {"gated": False}),
    ("abmil", {"hidden": None}),
    ("additive", {"centred": False}),
    ("clam_mb", {"gated": False}),
    ("smile", {"normalise": "entmax15"}),
    ("dsmil", {"values": "relu"}),
    ("dsmil", {"values": "linear", "nonlinear": False}),
    ("dtfd", {"distill": "maxs"}),
    ("dtfd", {"distill": "maxmins"}),
]


def build(name: str, classes: int = 2, **options: Any) -> nn.Module:
    """A small model in double precision, no parameter 0, its attention sharper than that of initial weights."""
    torch.manual_seed(0)
    takes = models.entry(name).options
    known = {option: value for option, value in SMALL.items() if option in takes}
    model = models.build(name, DIM, classes, **(known | options)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1.5 * parameter + 0.1 * torch.randn_like(parameter))
    return model


def bag(patches: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(patches)
    features = torch.randn(patches, DIM, generator=generator, dtype=torch.float64)
    return features, torch.stack([index % 5, index // 5], 1).double()


def attribute(
    model: nn.Module, features: Tensor, xy: Tensor, target: int = 1, epsilon: float = 0.0, gamma: float = 0.0
) -> Attribution:
    explainer = explainers.build("lrp", epsilon=epsilon, gamma=gamma)
    return explainer(ExplainedModel(model), features, xy, target)


# --- rules against their definitions ---------------------------------------------------------------------------


class TwoLayers(nn.Module):
    """A layer, ReLU, mean over patches, a layer."""

    def __init__(self, inner: nn.Module, hidden: int, classes: int = 2) -> None:
        super().__init__()
        self.inner = inner
        self.outer = nn.Linear(hidden, classes)

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        return MILOutput(self.outer(self.inner(features).relu().mean(0)), None)


def two_layers(inner: nn.Module, hidden: int) -> TwoLayers:
    torch.manual_seed(1)
    model = TwoLayers(inner, hidden).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.eval()


def shares(
    inputs: list[float], weights: list[float], bias: float, relevance: float, epsilon: float, gamma: float
) -> tuple[list[float], float, float]:
    """One output's relevance, distributed to the inputs, the bias and epsilon. Bach 2015 and Montavon 2019."""
    parts = [x * w for x, w in zip(inputs, weights, strict=True)] + [bias]
    output = sum(parts)
    counted = [part * (1 + gamma) if part * output > 0 else part for part in parts]
    stable = sum(counted) + (epsilon if output >= 0 else -epsilon)
    received = [part / stable * relevance for part in counted]
    return received[:-1], received[-1], relevance - sum(received)


def slow(
    model: TwoLayers, features: Tensor, target: int, epsilon: float, gamma: float
) -> tuple[list[float], float, float]:
    """Relevance of the patches (N,), of the biases and of epsilon, unit by unit, from the logits of the contrast."""
    inner, outer = model.inner, model.outer
    assert isinstance(inner, nn.Linear)
    patches = len(features)
    units = [
        [sum(x * w for x, w in zip(row, weights, strict=True)) + b for weights, b in zip(*listed(inner), strict=True)]
        for row in features.tolist()
    ]
    pooled = [sum(max(row[j], 0.0) for row in units) / patches for j in range(len(units[0]))]
    scores, of_bias, of_epsilon = [0.0] * patches, 0.0, 0.0
    of_pooled = [0.0] * len(pooled)
    for c, (weights, b) in enumerate(zip(*listed(outer), strict=True)):
        logit = sum(p * w for p, w in zip(pooled, weights, strict=True)) + b
        received, bias, absorbed = shares(pooled, weights, b, logit if c == target else -logit, epsilon, gamma)
        of_pooled = [sum(pair) for pair in zip(of_pooled, received, strict=True)]
        of_bias, of_epsilon = of_bias + bias, of_epsilon + absorbed
    for j, relevance in enumerate(of_pooled):
        for k in range(patches):
            if units[k][j] <= 0:
                continue  # the ReLU's output is 0
            own = relevance * units[k][j] / patches / pooled[j]
            weights, b = inner.weight[j].tolist(), inner.bias[j].item()
            received, bias, absorbed = shares(features[k].tolist(), weights, b, own, epsilon, gamma)
            scores[k] += sum(received)
            of_bias, of_epsilon = of_bias + bias, of_epsilon + absorbed
    return scores, of_bias, of_epsilon


def listed(layer: nn.Linear) -> tuple[list[list[float]], list[float]]:
    return layer.weight.tolist(), layer.bias.tolist()


@pytest.mark.parametrize(("epsilon", "gamma"), [(0, 0), (0.3, 0), (0, 0.5), (0.2, 0.25)])
def test_epsilon_and_gamma_are_those_of_the_papers(epsilon: float, gamma: float) -> None:
    model, (features, xy) = two_layers(nn.Linear(DIM, 5), 5), bag(4)
    for target in (0, 1):
        scores, of_bias, of_epsilon = slow(model, features, target, epsilon, gamma)
        found = attribute(model, features, xy, target, epsilon=epsilon, gamma=gamma)
        np.testing.assert_allclose(found.scores, scores, atol=1e-12)
        assert found.residual["bias"] == pytest.approx(of_bias, abs=1e-12)
        assert found.residual.get("epsilon", 0) == pytest.approx(of_epsilon, abs=1e-12)
        assert max(map(abs, scores)) > 0.1


class Convolved(nn.Module):
    """A convolution over a patch's features as an image of 2 x 3; or the same as one matrix."""

    def __init__(self, one_matrix: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, (2, 3), padding=(1, 1))
        self.one_matrix = one_matrix

    def forward(self, features: Tensor) -> Tensor:
        if not self.one_matrix:
            output: Tensor = self.conv(features.view(-1, 1, 2, 3)).flatten(1)
            return output
        bias = self.conv(torch.zeros(1, 1, 2, 3, dtype=features.dtype)).flatten()
        matrix = self.conv(torch.eye(6, dtype=features.dtype).view(6, 1, 2, 3)).flatten(1) - bias
        return F.linear(features, matrix.T, bias)


@pytest.mark.parametrize(("epsilon", "gamma"), [(0, 0), (0.2, 0.25)])
def test_a_convolution_is_treated_as_its_linear_layer(epsilon: float, gamma: float) -> None:
    features, xy = bag(4)
    found, expected = (
        attribute(two_layers(Convolved(one_matrix), 18), features, xy, epsilon=epsilon, gamma=gamma)
        for one_matrix in (False, True)
    )
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-12)
    assert found.residual == pytest.approx(dict(expected.residual), abs=1e-12)


class Smooth(nn.Module):
    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        return MILOutput(F.gelu(features).sum(0)[:2] + features.tanh().sum(0)[2:4], None)


def test_an_activation_passes_relevance_on_unchanged() -> None:
    features, xy = bag(5)
    active = F.gelu(features[:, :2]) + features[:, 2:4].tanh()
    expected = active[:, 1] - active[:, 0]
    torch.testing.assert_close(attribute(Smooth(), features, xy).scores, expected, rtol=0, atol=1e-12)


def test_the_winner_of_a_maximum_receives_all_relevance() -> None:
    model, (features, xy) = build("max"), bag(30)
    winners = model(features, xy).attention.argmax(1).tolist()
    scores = attribute(model, features, xy).scores
    assert set(scores.nonzero()[:, 0].tolist()) == set(winners)


# --- TransMIL against its map written out ----------------------------------------------------------------------


def slow_transmil(model: TransMIL, features: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Logits whose gradient is LRP's: whole attention maps and standard deviations as constants, all tokens."""
    cls = model.cls_token.detach()[0].clone().requires_grad_()
    patches = model._fc1(features)
    tokens = torch.cat([cls, patches, patches[: side**2 - len(patches)]])
    tokens = tokens + slow_layer(model.layer1, tokens)
    image = tokens[1:].T.reshape(1, -1, side, side)
    for conv in (model.pos_layer.proj, model.pos_layer.proj1, model.pos_layer.proj2):
        tokens = tokens + torch.cat([torch.zeros_like(cls), conv(image)[0].flatten(1).T])
    tokens = tokens + slow_layer(model.layer2, tokens)
    logits: Tensor = model._fc2(slow_norm(model.norm, tokens[0]))
    return logits, cls


def slow_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    std = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt().detach()
    return (x - x.mean(-1, keepdim=True)) / std * norm.weight + norm.bias


def slow_layer(layer: TransLayer, tokens: Tensor) -> Tensor:
    attention: TokenAttention = layer.attn
    x = slow_norm(layer.norm, tokens)
    x = torch.cat([x.new_zeros(attention.padding(len(x)), x.shape[1]), x])
    heads = []
    for h, projected in enumerate(attention.to_qkv(x).unflatten(1, (3, attention.heads, -1)).unbind(2)):
        q, k, v = projected.unbind(1)
        q = q / q.shape[1] ** 0.5
        if attention.exact:
            weights = (q @ k.T).softmax(1)
        else:
            q_land, k_land = landmark_means(q, attention.landmarks), landmark_means(k, attention.landmarks)
            first, last = (q @ k_land.T).softmax(1), (q_land @ k.T).softmax(1)
            weights = first @ inverses(attention, x)[h] @ last
        taps = attention.res_conv.weight[h : h + 1]  # (1, 1, taps, 1)
        near = F.conv2d(v[None, None], taps, padding=(taps.shape[2] // 2, 0))[0, 0]
        heads.append(weights.detach() @ v + near)
    output: Tensor = attention.to_out(torch.cat(heads, 1))[-len(tokens) :]
    return output


def inverses(attention: TokenAttention, x: Tensor) -> Tensor:
    """(H, m, m); their iteration starts from all heads."""
    q, k, _ = landmark_means(attention.to_qkv(x).unflatten(1, (3, attention.heads, -1)).permute(1, 2, 0, 3), 4)
    return iterated_pinv((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), attention.pinv_iterations)


@pytest.mark.parametrize("attention", ["nystrom", "exact"])
def test_transmils_relevance_equals_that_of_whole_attention_maps(attention: str) -> None:
    model, (features, xy) = build("transmil", attention=attention), bag(14)  # two copies, and padding for Nystrom
    assert isinstance(model, TransMIL)
    leaf = features.clone().requires_grad_()
    logits, cls = slow_transmil(model, leaf, side=4)
    torch.testing.assert_close(logits, model(features, xy).logits)
    slope, of_class = torch.autograd.grad(contrast(logits, 1), [leaf, cls])
    found = attribute(model, features, xy)
    torch.testing.assert_close(found.scores, (features * slope).sum(1), rtol=0, atol=1e-12)
    assert found.residual["class token"] == pytest.approx((cls * of_class).sum().item(), abs=1e-12)
    assert found.scores.abs().max() > 0.01


@pytest.mark.parametrize(("epsilon", "gamma"), [(0, 0), (0.1, 0.2)])
def test_groups_of_channels_change_nothing(epsilon: float, gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large raster is processed in groups of channels, and again for the gradient."""
    model, (features, xy) = build("transmil", position="grid"), bag(20)
    whole = attribute(model, features, xy, epsilon=epsilon, gamma=gamma)
    monkeypatch.setattr(ppeg, "RASTER_VALUES", 60)
    grouped = attribute(model, features, xy, epsilon=epsilon, gamma=gamma)
    torch.testing.assert_close(grouped.scores, whole.scores, rtol=0, atol=1e-12)
    assert grouped.residual == pytest.approx(dict(whole.residual), abs=1e-12)


# --- conservation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_relevance_is_conserved(name: str, options: dict[str, Any]) -> None:
    model = build(name, classes=3, **options)
    for (epsilon, gamma), patches in product([(0, 0), (0.1, 0.2)], [1, 2, 17, 90]):
        features, xy = bag(patches)
        found = attribute(model, features, xy, 2, epsilon=epsilon, gamma=gamma)
        whole = found.scores.sum().item() + sum(found.residual.values())
        expected = contrast(model(features, xy).logits, 2).item()
        assert whole == pytest.approx(expected, abs=1e-10), (epsilon, gamma, patches)
        assert set(found.residual) <= {"bias", "class token", "epsilon"}
        assert abs(found.residual["bias"]) > 1e-6


@pytest.mark.parametrize("name", ["abmil", "clam_sb", "clam_mb", "smile", "dsmil", "dtfd", "mean", "max"])
def test_without_biases_in_the_embedding_it_is_the_contribution(name: str) -> None:
    """With constant attention and no epsilon, h_k passes all its relevance on to x_k."""
    model, (features, xy) = build(name, classes=3), bag(40)
    assert isinstance(model, Additive)
    with torch.no_grad():
        for part in ("embed", "dim_reduction", "attention_net.0"):
            for layer in dict(model.named_modules()).get(part, nn.Identity()).modules():
                if isinstance(layer, nn.Linear) and layer.bias is not None:
                    layer.bias.zero_()
    found = attribute(model, features, xy)
    expected = contrast(model.evidence(features, xy), 1)
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-12)
    assert found.residual["bias"] == pytest.approx(contrast(model.bias(), 1).item(), abs=1e-12)
    assert expected.abs().max() > 0.01


def test_a_bias_in_the_embedding_receives_its_part_of_the_contribution() -> None:
    model, (features, xy) = build("abmil"), bag(40)
    assert isinstance(model, AttentionMIL)
    first = model.embed[0]
    assert isinstance(first, nn.Linear)
    weights, active = model(features, xy).attention, model.embed(features) > 0
    of_bias = contrast((weights[:, None] * active * first.bias) @ model.classify.weight.T, 1)  # (N,)
    expected = contrast(model.evidence(features, xy), 1) - of_bias
    torch.testing.assert_close(attribute(model, features, xy).scores, expected, rtol=0, atol=1e-12)
    assert of_bias.abs().max() > 1e-3


# --- the model unchanged ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_the_traced_forward_pass_is_the_models_own_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    model = build(name, **options).float().requires_grad_(False)
    features, xy = (part.float() for part in bag(50))
    for rules in (RelevanceRules(RULES), RelevanceRules(RULES, epsilon=0.1, gamma=0.1)):
        found = traced_logits(model, rules, features.clone().requires_grad_(), xy)
        assert torch.equal(found.value, model(features, xy).logits)


class Plain(nn.Module):
    """A user's model: its logits are ``function`` of two features, summed over patches."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        return MILOutput(self.function(nn.functional.linear(features, torch.eye(2, DIM).double())).sum(0), None)


CONSERVING = {
    "a number": lambda x: 1 - (x + 2) / 3,
    "a constant": lambda x: torch.stack([x, torch.ones_like(x)]).sum(0) - torch.full((2,), 0.5),
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "amax": lambda x: x.amax(1, keepdim=True) * torch.tensor([1.0, -2.0]),
    "mm": lambda x: torch.mm(torch.ones(3, 4).double(), x),
    "padding": lambda x: torch.cat([x.new_zeros(2, 2), x]),
}


@pytest.mark.parametrize("named", CONSERVING)
def test_every_added_constant_is_reported(named: str) -> None:
    model, (features, xy) = Plain(CONSERVING[named]), bag(4)
    found = attribute(model, features, xy)
    whole = found.scores.sum().item() + sum(found.residual.values())
    assert whole == pytest.approx(contrast(model(features, xy).logits, 1).item(), abs=1e-12)
    assert set(found.residual) == {"a number": {"bias"}, "a constant": {"class token", "bias"}}.get(named, set())


REFUSED = {
    "sigmoid": torch.sigmoid,
    "mul": lambda x: x * x,
    "matmul": lambda x: x @ x.T @ x,
    "rdiv": lambda x: 1 / (2 + x.relu()),
    "cumsum": lambda x: x.cumsum(0),
    "relu in place": nn.ReLU(inplace=True),
    "dropout in training": lambda x: nn.functional.dropout(x, 0.5, training=True),
    "tolist": lambda x: x * x.tolist()[0][0],
    "constant weights": lambda x: x.softmax(0),
}


@pytest.mark.parametrize("named", REFUSED)
def test_an_operator_without_a_rule_is_refused_in_one_line(named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        attribute(Plain(REFUSED[named]), *bag(4))
    assert isinstance(refused.value, NoRuleError)
    assert named in str(refused.value)
    assert "needs" in refused.value.reason
    assert "\n" not in str(refused.value)


class Gate(nn.Module):
    """Gated logits of each patch, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, 2)

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        values = self.layer(features)
        return MILOutput((values * values.sigmoid()).sum(0), None)


def test_a_model_with_an_operator_without_a_rule_does_not_fit() -> None:
    reason = explainers.build("lrp").fits(ExplainedModel(Gate().double()))
    assert reason == "has the operator 'mul' on the way to its logits; this method needs a rule for each"


def test_an_option_that_is_not_a_number_of_at_least_zero_is_refused() -> None:
    values: tuple[Any, ...] = (-1, float("nan"), float("inf"), True, "a")
    for option, value in product(("epsilon", "gamma"), values):
        with pytest.raises(ConfigError, match=f"method option {option} is {value!r}"):
            explainers.build("lrp", **{option: value})
