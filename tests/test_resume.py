"""A run that is saved, and restored in a new process, goes on bit by bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from every_transform import TRANSFORMS

ROOT = Path(__file__).parents[1]
RUNS = ("from orbax", "from flax", "again")


def fill(folder):
  """By two processes, one after the other; see resume.py."""
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


def read(folder, run, name):
  with np.load(folder / run / name) as leaves:
    return dict(leaves)


def bits(leaves):
  return {place: (x.dtype, x.tobytes()) for place, x in leaves.items()}


def test_a_restored_run_ends_bit_for_bit_where_the_other_does(tmp_path):
  """`again` is the whole run, from the start, in the second process.

  One test for all: workers that run side by side would each fill a folder.
  """
  fill(tmp_path)
  wrong = []
  for name in TRANSFORMS:
    saved, end = read(tmp_path, "saved", name), read(tmp_path, "through", name)
    moved = [place for place in saved if np.any(saved[place] != end[place])]
    for part in ("[0]", "[1]"):  # parameters and state
      if not any(place.startswith(part) for place in moved):
        wrong.append((name, part, "the restored steps did not matter"))
    for run in RUNS:
      if bits(read(tmp_path, run, name)) != bits(end):
        wrong.append((name, run))
  assert not wrong
