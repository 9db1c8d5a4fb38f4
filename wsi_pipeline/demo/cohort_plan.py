"""What a cohort holds: which patient has which slides, and what will be drawn on each. Nothing is drawn here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError

TUMOUR, NORMAL = "tumor", "normal"
PENS = ("blue", "green", "red", "black")
REFERENCE_PX = 6000  # the side for which the lesion sizes below are meant; smaller slides get smaller lesions
SMALLEST_PX, LARGEST_PX = 500, 20_000

_SMALLEST_UM = 80.0  # a crowd of fewer nuclei is none
_MICRO_UM, _MESO_UM, _MACRO_UM = (300.0, 400.0), (550.0, 850.0), (1000.0, 1450.0)


@dataclass(frozen=True)
class SlidePlan:
    """One slide to be drawn. Diameters are those of circles with the same area."""

    slide_id: str
    patient_id: str
    label: str
    seed: tuple[int, ...]
    side_px: int
    lesions_um: tuple[float, ...]  # tumour, largest first
    infiltrates_um: tuple[float, ...]  # crowds of lymphocytes: as dark and as dense, and benign
    hole: bool = False  # an island of normal tissue inside the largest lesion
    pen: str | None = None
    least_patches: int = 0  # patches of 112 µm, on the grid from (0, 0), that must lie wholly in tumour

    def generator(self, what: int) -> np.random.Generator:
        """Random numbers for one aspect of this slide, the same in every process."""
        return np.random.default_rng((*self.seed, what))


def plan_cohort(slides: int, patients: int, side_px: int, seed: int) -> tuple[SlidePlan, ...]:
    """``slides`` slides of ``patients`` patients, half with tumour; a patient's slides share the label.

    Raises ``ConfigError`` where the numbers do not halve or no patient would be left without a slide.
    """
    if slides % 2 or patients % 2 or not 2 <= patients <= slides:
        raise ConfigError(
            f"a cohort of {slides} slides of {patients} patients cannot be half tumour, half normal; "
            f"give even numbers with at least as many slides as patients"
        )
    rng = np.random.default_rng((seed, 0))
    each = slides // 2
    order = rng.permutation(slides)  # neither the number nor the place in the manifest tells the label
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
    """One slide. ``burden`` 0: micrometastases only, 1: one larger lesion, 2: a macrometastasis.

    Normal slides get the same sites, filled with lymphocytes: the amount of dark, crowded tissue is drawn from
    one distribution for both labels. Raises ``ConfigError`` for an unknown pen or an unusable side.
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
