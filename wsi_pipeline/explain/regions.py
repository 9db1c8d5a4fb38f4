"""Regions: square blocks of the patches' grid that are kept or taken away together, and linear fits over them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..types import Unit
from .baseline import BASELINES, baseline_row
from .explained_model import Attribution, ExplainedModel, Target
from .frozen import frozen
from .method_options import check_choice, check_whole

MOST = 60  # regions, where the side is not given: a linear fit of so many needs some hundred samples


def regions(xy: Tensor, side: int | None) -> Tensor:
    """The region 0 … R - 1 of each patch at ``xy`` (N, 2), units of the stride, as (N,) int64.

    Blocks of ``side`` x ``side`` places, from the leftmost and topmost patch. None: the smallest side that gives at
    most ``MOST`` regions.
    """
    place = (xy - xy.amin(0) + 0.5).floor().long()  # (N, 2) column, row
    tried = side or 1
    while True:
        block = place // tried
        region: Tensor = (block[:, 1] * (block[:, 0].amax() + 1) + block[:, 0]).unique(return_inverse=True)[1]  # (N,)
        if side is not None or region.amax() < MOST:
            return region
        tried += 1


class LeastSquares:
    """Weighted linear regression with an intercept, in the place of captum's own, in double precision.

    captum's keeps single precision, in which the large weights of KernelSHAP cost the coefficients four digits. Not
    shrunk, so coefficients are in the contrast's units; of many solutions the smallest.
    """

    def fit(self, train_data: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """``train_data``: one batch of S samples, kept or not (S, R), values (S,) and weights (S,)."""
        ((kept, values, weights),) = train_data
        root = weights.cpu().double().sqrt()[:, None]  # (S, 1)
        table = torch.cat([kept, torch.ones_like(kept[:, :1])], 1).cpu().double()  # (S, R + 1)
        self.solution: Tensor = torch.linalg.lstsq(root * table, root * values.cpu().double()[:, None], driver="gelsd")[
            0
        ]

    def representation(self) -> Tensor:
        """Coefficients and, last, the intercept, (R + 1,)."""
        return self.solution[:, 0]


@dataclass(frozen=True)
class RegionOptions:
    """What the methods over regions have in common."""

    region: int | None  # side in patches
    samples: int
    baseline: str
    seed: int

    def __post_init__(self) -> None:
        if self.region is not None:
            check_whole("region", self.region)
        check_whole("samples", self.samples, least=2)
        check_whole("seed", self.seed, least=0)
        check_choice("baseline", self.baseline, BASELINES)


@dataclass(frozen=True)
class RegionMethod:
    """A method that scores a patch by its region; with what falls on none the scores add up to t, the contrast."""

    options: RegionOptions
    method: Callable[[Callable[[Tensor], Tensor]], Any]  # captum's, see ``attribution_of_regions``

    unit: ClassVar[Unit] = "attribution"
    signed: ClassVar[bool] = True
    class_specific: ClassVar[bool] = True

    def fits(self, explained: ExplainedModel) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        """Scores (N,), "intercept" and "fit error"."""
        return attribution_of_regions(
            explained.module, features, xy, explained.target(target), self.options, self.method
        )


def attribution_of_regions(
    model: nn.Module,
    features: Tensor,
    xy: Tensor,
    target: Target,
    options: RegionOptions,
    method: Callable[[Callable[[Tensor], Tensor]], Any],
) -> Attribution:
    """A region's coefficient in equal shares on its patches, so that patches add up as regions do.

    ``method``: captum's, fitted by ``LeastSquares``, for a function of a bag as a batch of one, (1, N, D) -> (1,). With
    "intercept" and "fit error" the scores add up to t(x). One region alone needs no fit: it has t(x) - t(x0).
    """
    region = regions(xy, options.region)  # (N,)
    sizes = region.bincount()  # (R,)
    bag, start = features[None], baseline_row(features, options.baseline)[None]  # (1, N, D), (1, 1, D)

    def value(bags: Tensor) -> Tensor:
        return target(model(bags[0], xy).logits)[None]

    with frozen(model), torch.no_grad(), drawn_from(options.seed):
        whole = value(bag)[0]
        if len(sizes) > 1:
            found = method(value).attribute(
                bag,
                baselines=start,
                feature_mask=region[None, :, None],  # (1, N, 1)
                n_samples=options.samples,
                return_input_shape=False,
            )
            coefficients, intercept = found[:-1].to(features), found[-1].item()
        else:
            origin = value(start.expand_as(bag))
            coefficients, intercept = whole - origin, origin.item()
    scores = (coefficients / sizes)[region]  # (N,)
    missed = whole.item() - intercept - coefficients.sum().item()
    return Attribution(scores, {"intercept": intercept, "fit error": missed})


@contextlib.contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Torch's global generator of the CPU, from which captum draws, begins at ``seed`` and is afterwards as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
