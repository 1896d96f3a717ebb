"""Every notebook runs from a clean kernel, and is kept with its outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, kind):
  return [
    output
    for cell in code_cells(notebook)
    for output in cell.outputs
    if kind in (output.output_type, *output.get("data", ()))
  ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_its_short_mode(path, monkeypatch):
  """Which changes how many steps are taken, and nothing else."""
  monkeypatch.setenv("GEN_OPTAX_SHORT", "1")
  # A relative path would be one of the kernel's folder.
  monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
  notebook = nbformat.read(path, as_version=4)
  for cell in code_cells(notebook):
    cell.outputs = []
  client = NotebookClient(
    notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}
  )
  client.execute()
  assert len(outputs(notebook, "image/png")) >= 2
  assert not outputs(notebook, "stderr")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_with_the_outputs_of_one_run(path):
  notebook = nbformat.read(path, as_version=4)
  counts = [cell.execution_count for cell in code_cells(notebook)]
  assert counts == list(range(1, len(counts) + 1))
  assert len(outputs(notebook, "image/png")) >= 2
  assert not outputs(notebook, "error")
  assert path.stat().st_size < 1.5e6, "pictures, not films"


def test_there_are_six():
  assert [path.stem[:2] for path in NOTEBOOKS] == [f"0{i}" for i in range(1, 7)]
