"""The plan of a cohort: which patient has which slides, and what is drawn on each. Draws nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError

TUMOUR, NORMAL = "tumor", "normal"
PENS = ("blue", "green", "red", "black")
REFERENCE_PX = 6000  # side of a slide with lesions of the sizes below; smaller slides get smaller lesions
SMALLEST_PX, LARGEST_PX = 500, 20_000

_SMALLEST_UM = 80.0  # smaller lesions would have too few nuclei
_MICRO_UM, _MESO_UM, _MACRO_UM = (300.0, 400.0), (550.0, 850.0), (1000.0, 1450.0)


@dataclass(frozen=True)
class SlidePlan:
    """One slide to draw. Diameters are those of circles with the same area."""

    slide_id: str
    patient_id: str
    label: str
    seed: tuple[int, ...]
    side_px: int
    lesions_um: tuple[float, ...]  # tumour, largest first
    infiltrates_um: tuple[float, ...]  # lymphocytic infiltrates: as dark and dense as tumour, but benign
    hole: bool = False  # an island of normal tissue inside the largest lesion
    pen: str | None = None
    least_patches: int = 0  # minimum number of patches of 112 µm, on the grid from (0, 0), entirely in tumour

    def generator(self, what: int) -> np.random.Generator:
        """Generator for one aspect of this slide, the same in every process."""
        return np.random.default_rng((*self.seed, what))


def plan_cohort(slides: int, patients: int, side_px: int, seed: int) -> tuple[SlidePlan, ...]:
    """Plan a cohort, half of it with tumour; all slides of a patient have the same label.

    Parameters
    ----------
    slides, patients : int
        Even numbers, with at least as many slides as patients.
    side_px : int
        Side of every slide in pixels.
    seed : int
        Seed of the cohort.

    Returns
    -------
    tuple of SlidePlan
        The slides, sorted by ``slide_id``.

    Raises
    ------
    ConfigError
        The numbers are not valid.
    """
    if slides % 2 or patients % 2 or not 2 <= patients <= slides:
        raise ConfigError(
            f"a cohort of {slides} slides of {patients} patients cannot be half tumour, half normal; "
            f"give even numbers with at least as many slides as patients"
        )
    rng = np.random.default_rng((seed, 0))
    each = slides // 2
    order = rng.permutation(slides)  # neither the number nor the position in the manifest reveals the label
    patient_ids = rng.permutation(patients)
    pens = _pens(each, rng)
    plans = []
    for i in range(slides):
        tumour, nth = i < each, i % each
        patient = patient_ids[nth % (patients // 2) + (0 if tumour else patients // 2)]
        plans.append(
            plan_slide(
                f"slide_{order[i] + 1:02d}",
                f"patient_{patient + 1:02d}",
                tumour=tumour,
                side_px=side_px,
                seed=(seed, 1, i),
                burden=nth % 3,
                hole=nth % 6 == 2,
                pen=pens[i],
            )
        )
    return tuple(sorted(plans, key=lambda plan: plan.slide_id))


def plan_slide(
    slide_id: str,
    patient_id: str,
    *,
    tumour: bool,
    side_px: int,
    seed: tuple[int, ...],
    burden: int,
    hole: bool = False,
    pen: str | None = None,
) -> SlidePlan:
    """Plan one slide.

    Normal slides get the same sites, filled with lymphocytes, so the amount of dark, dense tissue has the same
    distribution for both labels.

    Parameters
    ----------
    slide_id, patient_id : str
        Names.
    tumour : bool
        Whether there are lesions.
    side_px : int
        Side of the slide in pixels.
    seed : tuple of int
        Seed of the slide.
    burden : {0, 1, 2}
        0: micrometastases only, 1: one larger lesion, 2: a macrometastasis.
    hole : bool
        Whether there is normal tissue inside the largest lesion.
    pen : {"blue", "green", "red", "black"}, optional
        Colour of a pen mark.

    Returns
    -------
    SlidePlan
        The plan.

    Raises
    ------
    ConfigError
        The pen is unknown, or the side cannot be drawn.
    """
    if pen is not None and pen not in PENS:
        raise ConfigError(f"there is no {pen} pen; choose one of {', '.join(PENS)}")
    if not SMALLEST_PX <= side_px <= LARGEST_PX:
        raise ConfigError(f"a slide of {side_px} px cannot be drawn; give a side of {SMALLEST_PX} to {LARGEST_PX} px")
    rng = np.random.default_rng((*seed, 0))
    scale = min(1.0, side_px / REFERENCE_PX)
    micro = tuple(float(d) for d in rng.uniform(*_MICRO_UM, 3))
    if burden == 0:
        sites = tuple(sorted((*micro[:2], _MICRO_UM[1]), reverse=True))
    elif burden == 1:
        sites = (float(rng.uniform(*_MESO_UM)), *micro[: rng.integers(0, 3)])
    else:
        sites = (float(rng.uniform(*_MACRO_UM)), *micro[: rng.integers(0, 4)])
    others = tuple(float(d) for d in rng.uniform(180.0, 520.0, rng.integers(2, 5)))
    sites, others = (tuple(max(d * scale, _SMALLEST_UM) for d in ds) for ds in (sites, others))
    return SlidePlan(
        slide_id,
        patient_id,
        TUMOUR if tumour else NORMAL,
        seed,
        side_px,
        lesions_um=sites if tumour else (),
        infiltrates_um=others if tumour else sites + others,
        hole=hole and tumour,
        pen=pen,
        least_patches=8 if tumour and scale == 1.0 else 0,
    )


def _pens(each: int, rng: np.random.Generator) -> list[str | None]:
    """A pen on a third of the slides, the same colours with both labels."""
    marked = [PENS[(i // 3) % len(PENS)] if i % 3 == 0 else None for i in range(each)]
    return [marked[i] for i in rng.permutation(each)] + [marked[i] for i in rng.permutation(each)]
