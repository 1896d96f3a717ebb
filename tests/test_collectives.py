"""The reader of compiled text counts what stands in loops and branches."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from scripts.bench import hlo

ROOT = Path(__file__).parents[1]
SHIFT = [(i, (i + 1) % 8) for i in range(8)]


def program(x):
  """On each of eight devices, x of shape (4,)."""
  x = x + jax.lax.pmean(x, "d")
  size = lambda x: jax.lax.psum(x[0], "d")
  x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x) * size(x), x)
  halve = lambda x: x / 2 + jax.lax.all_gather(x, "d").mean(0)
  x = jax.lax.while_loop(lambda x: x[0] > 1, halve, x)
  move = lambda x: jax.lax.ppermute(x, "d", SHIFT)
  return jax.lax.cond(size(x) > 0, move, lambda x: x, x)


def test_loops_and_branches_are_followed():
  mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
  mapped = jax.shard_map(
    program, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False
  )
  steps = lambda x: jax.lax.fori_loop(0, 5, lambda _, x: mapped(x), x)
  text = jax.jit(steps).lower(jnp.ones(32)).compile().as_text()
  found = hlo.collectives_of(text, steps=5)
  seen = sorted((c.kind, c.numbers, c.bytes, c.times, c.lazy) for c in found)
  assert seen == [
    ("all-gather", 32, 128, 1, True),
    ("all-reduce", 1, 4, 1, False),
    ("all-reduce", 1, 4, 3, False),
    ("all-reduce", 4, 16, 1, False),
    ("collective-permute", 4, 16, 1, True),
  ]
  assert hlo.total(found, lazy=False) == (5, 8, 32)
  assert hlo.total(found, kind="all-gather") == (1, 32, 128)


@pytest.mark.slow
def test_the_table_is_printed(tmp_path):
  command = [sys.executable, "-m", "scripts.bench", "collectives", "--quick"]
  done = subprocess.run(
    [*command, "--out", tmp_path],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  assert "data parallel" in done.stdout and "psgd_kron" in done.stdout
  assert (tmp_path / "bench_collectives.json").exists()
