"""Executes notebooks in full and keeps their outputs.

All of them, or those whose names begin with an argument:

python notebooks/execute.py 01 06
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
# Of several copies of the package the one beside the notebooks.
os.environ["PYTHONPATH"] = str(HERE.parent)

for path in sorted(HERE.glob("*.ipynb")):
  if len(sys.argv) > 1 and not path.stem.startswith(tuple(sys.argv[1:])):
    continue
  notebook = nbformat.read(path, as_version=4)
  NotebookClient(
    notebook,
    timeout=1800,
    record_timing=False,
    coalesce_streams=True,
    resources={"metadata": {"path": str(HERE)}},
  ).execute()
  nbformat.write(notebook, path)
  print(path.name)
