"""``python -m wsi_pipeline`` is ``wsi``."""

from .cli.main import main

main()
