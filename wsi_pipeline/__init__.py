"""Slides in, diagnoses that can be looked at and trusted out. Importing this package does nothing."""

__version__ = "0.1.0"
