"""The largest entry of a tree, and of bounds, which are compared by bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_optax.oracle import trees
from gen_optax.psgd.preconditioner import largest_bound

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
  # But for the sign of NaN, which a difference of infinities has.
  bounds = jax.tree.map(lambda x: jnp.where(x < 0, -x, x), tree)
  for fn, entries in ((trees.largest, tree), (largest_bound, bounds)):
    np.testing.assert_array_equal(fn(entries, jnp.float64), expected)
    batch = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), entries)
    found = jax.vmap(lambda t, fn=fn: fn(t, jnp.float64))(batch)
    np.testing.assert_array_equal(found[0], expected)
