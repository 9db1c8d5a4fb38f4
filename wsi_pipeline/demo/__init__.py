"""Slides drawn by this program, in colour like H&E, with annotated tumour: what the demo and the tests run on."""

from .cohort_plan import NORMAL, PENS, TUMOUR
from .slides import draw_cohort, draw_slide

__all__ = ["NORMAL", "PENS", "TUMOUR", "draw_cohort", "draw_slide"]
