"""Draw small slides in colour like H&E, with outlined tumour: the notebooks need no download.

Use: ``%run draw_slides.py FOLDER SLIDES SIDE``, SIDE in pixels of 0.5 µm. It writes FOLDER/slides.csv, a manifest.
"""

from __future__ import annotations

import sys

from wsi_pipeline.demo import draw_cohort

if __name__ == "__main__":
    slides = int(sys.argv[2])
    draw_cohort(sys.argv[1], slides=slides, patients=slides, side_px=int(sys.argv[3]), workers=1)
