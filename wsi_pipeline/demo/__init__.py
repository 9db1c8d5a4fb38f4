"""Slides drawn by this program."""
