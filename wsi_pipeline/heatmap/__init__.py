"""Scores of patches -> one OME-Zarr pyramid per slide, painted block by block. Starts without torch.

``paint`` holds the arithmetic, ``pyramid`` fills Zarr arrays with it, ``metadata`` says what other programs want to
know of them, ``ngff`` writes the store and reads it back.
"""

from .paint import cell_side_px0, halve, paint_block, raster_shape

__all__ = ["cell_side_px0", "halve", "paint_block", "raster_shape"]
