"""Execute notebooks and write them back with their outputs: python notebooks/execute.py [NOTEBOOK.ipynb …].

What differs from run to run (execution times, the version of the kernel) is left out, so that a notebook whose outputs
did not change is not changed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 300
# Without ipywidgets tqdm warns, and the warning names a folder of this machine.
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found"}


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook at ``path``, run from top to bottom in its own folder."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": HERE}})
    client.execute(env={**os.environ, **QUIET})
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
    return notebook


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        nbformat.write(execute(path), path)
