"""Saves runs in the middle in one process and goes on with them in another.

`python tests/resume.py save FOLDER`, then `python tests/resume.py restore
FOLDER`. Each writes where its runs end.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from every_transform import STEPS, TRANSFORMS, make_run, start
from flax import serialization

_RNG = np.random.default_rng(3)
SAVED_AT = {name: int(_RNG.integers(1, STEPS)) for name in TRANSFORMS}


def save(folder):
  runs = {name: make_run(name) for name in TRANSFORMS}
  saved = {name: runs[name](start(name), 0, SAVED_AT[name]) for name in runs}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / "orbax", saved)
  for name, run in runs.items():
    (folder / name).write_bytes(serialization.to_bytes(saved[name]))
    write(folder / "saved" / name, saved[name])
    write(folder / "through" / name, run(saved[name], SAVED_AT[name], STEPS))


def restore(folder):
  # A fresh state is the target: it gives the tree, the shapes and the dtypes.
  fresh = {name: start(name) for name in TRANSFORMS}
  with ocp.StandardCheckpointer() as checkpointer:
    from_orbax = checkpointer.restore(folder / "orbax", fresh)
  for name in TRANSFORMS:
    run, step = make_run(name), SAVED_AT[name]
    from_flax = serialization.from_bytes(
      fresh[name], (folder / name).read_bytes()
    )
    write(folder / "from orbax" / name, run(from_orbax[name], step, STEPS))
    write(folder / "from flax" / name, run(from_flax, step, STEPS))
    write(folder / "again" / name, run(fresh[name], 0, STEPS))


def write(path, carry):
  """The leaves, in order, by the name of their place."""
  path.parent.mkdir(exist_ok=True)
  leaves = jax.tree_util.tree_leaves_with_path(carry)
  with path.open("wb") as file:
    np.savez(file, **{jax.tree_util.keystr(at): leaf for at, leaf in leaves})


if __name__ == "__main__":
  {"save": save, "restore": restore}[sys.argv[1]](Path(sys.argv[2]))
