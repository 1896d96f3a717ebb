"""The largest entry of a tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_optax.oracle import trees

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize(
  "numbers, largest",
  [
    ([1, -3, 2], 3),
    ([-0.0], 0),
    ([], 0),
    ([-np.inf, 4], np.inf),
    ([1, np.nan, np.inf], np.nan),
    ([-np.nan, 1], np.nan),
    ([6e-8, -1e-7], 1e-7),
  ],
)
def test_largest(x64, dtype, numbers, largest):
  expected = float(jnp.array(largest, dtype))
  tree = {"a": jnp.array(numbers, dtype), "b": jnp.zeros((2, 0), dtype)}
  np.testing.assert_array_equal(trees.largest(tree, jnp.float64), expected)
  batch = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), tree)
  found = jax.vmap(lambda t: trees.largest(t, jnp.float64))(batch)
  np.testing.assert_array_equal(found[0], expected)


def test_nan_among_many():
  """XLA's own maximum of 1e5 numbers drops it on a CPU."""
  x = jnp.arange(1e5).at[77777].set(jnp.nan)
  find = jax.jit(lambda x: trees.largest(x, jnp.float32))
  assert jnp.isnan(find(x)) and find(jnp.arange(1e5)) == 99999
