"""Explanations of the slide model's output: one score per patch, for one class."""
