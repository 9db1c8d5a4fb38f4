"""Heatmaps: patch scores as one OME-Zarr pyramid per slide, painted block by block. Imports no torch.

``paint`` has the arithmetic, ``pyramid`` fills Zarr arrays with it, ``metadata`` has the descriptions that other
programs read, and ``ngff`` writes the store and reads it.
"""

from .paint import cell_side_px0, halve, paint_block, raster_shape

__all__ = ["cell_side_px0", "halve", "paint_block", "raster_shape"]
