"""``python -m wsi_pipeline`` is ``wsi``."""

from .cli import main

main()
