"""The tree operations that optax lacks."""

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
  tree = {"a": jnp.array(numbers, dtype), "b": jnp.zeros((2, 0), dtype)}
  found = trees.largest(tree, jnp.float64)
  np.testing.assert_array_equal(found, float(jnp.array(largest, dtype)))
  batch = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), tree)
  found = jax.vmap(lambda t: trees.largest(t, jnp.float64))(batch)
  np.testing.assert_array_equal(found[0], float(jnp.array(largest, dtype)))
