"""Same seed, same run; compiled as eager; side by side as one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_transform import RANDOM, TRANSFORMS, make_step, start

REPLICAS, STEPS, MIDDLE = 4, 8, 3
# Differences of gradients magnify rounding by the reciprocal of their step.
RTOL = {"psgd_butterfly, differences": 1e-6}


def make_run(name):
  """Of a replica: its seed, a factor of its start, and the number of steps."""

  def run(seed, factor, steps):
    params, state = start(name, seed, jnp.float64)
    carry = jax.tree.map(lambda p: factor * p, params), state
    step = make_step(name, seed)
    return jax.lax.fori_loop(0, steps, lambda t, c: step(c, t), carry)

  return run


def assert_near(found, expected, name, what):
  """To rounding of the largest entry of each leaf; integers exactly."""
  rtol = RTOL.get(name, 1e-8)

  def near(at, x, y):
    place = f"{what}: {jax.tree_util.keystr(at)}"
    assert x.dtype == y.dtype and x.shape == y.shape, place
    if jnp.issubdtype(x.dtype, jnp.inexact):
      scale = np.max(np.abs(y), initial=0.0)
      scale = scale if np.isfinite(scale) else 0.0
      np.testing.assert_allclose(x, y, rtol, rtol * scale, err_msg=place)
    else:
      np.testing.assert_array_equal(x, y, err_msg=place)

  jax.tree_util.tree_map_with_path(near, found, expected)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_fresh_state_holds_no_array_twice(name):
  """Or it could not be donated to a compiled loop."""
  leaves = jax.tree.leaves(start(name))
  assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def bits(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_runs_repeat(x64, name):
  """Parameters and state. One test, so that a run is compiled once.

  (`again` in test_resume is the same run in another process.)
  """
  run = jax.jit(make_run(name))
  seeds, factors = np.arange(REPLICAS), 1 + 0.1 * np.arange(REPLICAS)
  alone = [run(*of, STEPS) for of in zip(seeds, factors, strict=True)]
  assert bits(run(seeds[0], factors[0], STEPS)) == bits(alone[0])
  if name in RANDOM:
    assert bits(run(seeds[1], factors[0], STEPS)) != bits(alone[0])

  together = jax.jit(jax.vmap(make_run(name), (0, 0, None)))
  together = together(seeds, factors, STEPS)
  for k, one in enumerate(alone):
    found = jax.tree.map(lambda x, k=k: x[k], together)
    assert_near(found, one, name, f"replica {k}")

  middle = run(seeds[0], factors[0], MIDDLE)
  eager = make_step(name)(middle, MIDDLE)
  assert_near(eager, run(seeds[0], factors[0], MIDDLE + 1), name, "eager")
