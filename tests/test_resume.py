"""A run that is saved, and restored in a new process, goes on bit by bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from every_transform import TRANSFORMS

ROOT = Path(__file__).parents[1]


# Workers that run side by side would each fill a folder.
pytestmark = pytest.mark.xdist_group("resume")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Filled by two processes, one after the other; see resume.py."""
  folder = tmp_path_factory.mktemp("runs")
  environment = os.environ | {
    "PYTHONPATH": str(ROOT),
    # The second process compiles nothing that the first has compiled.
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }
  for command in ("save", "restore"):
    subprocess.run(
      [sys.executable, ROOT / "tests" / "resume.py", command, folder],
      env=environment,
      check=True,
    )
  return folder


def read(folder, run, name):
  with np.load(folder / run / name) as leaves:
    return dict(leaves)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("run", ["from orbax", "from flax", "again"])
def test_a_restored_run_ends_bit_for_bit_where_the_other_does(
  folder, run, name
):
  """`again` is the whole run, from the start, in the second process."""
  through, other = read(folder, "through", name), read(folder, run, name)
  assert list(through) == list(other)
  for place, leaf in through.items():
    assert leaf.dtype == other[place].dtype, place
    assert leaf.tobytes() == other[place].tobytes(), place


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_restored_steps_mattered(folder, name):
  saved, end = read(folder, "saved", name), read(folder, "through", name)
  moved = [place for place in saved if np.any(saved[place] != end[place])]
  assert any(place.startswith("[0]") for place in moved)
  assert any(place.startswith("[1]") for place in moved)
