"""Whole-slide pathology images in, slide-level predictions with explanations out.

>>> import wsi_pipeline as wsi
>>> with wsi.open_slide("case.svs") as slide:  # doctest: +SKIP
...     grid = wsi.make_grid(slide, wsi.find_tissue(slide))
...     bag = wsi.embed_patches(slide, grid)
>>> model = wsi.load_model("run/train/abmil")  # doctest: +SKIP
>>> wsi.predict_bag(model, bag), wsi.explain_bag(model, bag)  # doctest: +SKIP

``Run("run")`` reads what ``wsi run`` or ``run_pipeline`` left. Every path is a ``str`` or path-like. Importing this
package does nothing: each name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api.maps import read_heatmap
    from .api.slide_steps import embed_patches, find_tissue, make_grid, open_slide
    from .api.trained_model import explain_bag, load_model, predict_bag
    from .config import load_config
    from .run_folder import Run, run_pipeline
    from .store import read_bag

__version__ = "0.1.0"

__all__ = [
    "Run",
    "__version__",
    "embed_patches",
    "explain_bag",
    "find_tissue",
    "load_config",
    "load_model",
    "make_grid",
    "open_slide",
    "predict_bag",
    "read_bag",
    "read_heatmap",
    "run_pipeline",
]

_HOMES = {
    "Run": ".run_folder",
    "embed_patches": ".api.slide_steps",
    "explain_bag": ".api.trained_model",
    "find_tissue": ".api.slide_steps",
    "load_config": ".config",
    "load_model": ".api.trained_model",
    "make_grid": ".api.slide_steps",
    "open_slide": ".api.slide_steps",
    "predict_bag": ".api.trained_model",
    "read_bag": ".store",
    "read_heatmap": ".api.maps",
    "run_pipeline": ".run_folder",
}

if not TYPE_CHECKING:  # type checkers see the imports above, and that there is nothing else

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found: object = getattr(import_module(_HOMES[name], __name__), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted(__all__)
