"""End to end over forward alone: how much of the encoder's speed the way from slide to HDF5 leaves.

    python benchmarks/embed.py                      # CPU, lite0, on a slide it draws
    python benchmarks/embed.py --encoder resnet50 --precision bf16 --random --device cuda

Both are measured in one run on the same patches and device, turn about, medians of ``--repeats``; the ratio is
patches/s of the embed stage's own streaming (read, batch, normalise, encode, store) over patches/s of the
encoder's forward pass on batches that are already in memory, on the same number of compute threads.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
