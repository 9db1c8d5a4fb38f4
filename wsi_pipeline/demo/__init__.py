"""Synthetic H&E-like slides with annotated tumour, for the demo and the tests."""

from .cohort_plan import NORMAL, PENS, TUMOUR
from .slides import draw_cohort, draw_slide

__all__ = ["NORMAL", "PENS", "TUMOUR", "draw_cohort", "draw_slide"]
