"""What the tests share fails where it should, and says what is wrong."""

import jax.numpy as jnp
import numpy as np
import pytest
from running import assert_finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_leaf_that_is_not_finite_is_named(bad, dtype):
  tree = {"a": jnp.ones(2, dtype), "b": [jnp.zeros((), bool), jnp.ones(3, int)]}
  assert_finite(tree)
  tree["b"].append(jnp.ones(3, dtype).at[1].set(bad))
  with pytest.raises(AssertionError, match=r"\['b'\]\[2\]") as error:
    assert_finite(tree)
  assert "['a']" not in str(error.value) and "[0]" not in str(error.value)


def test_a_large_double_is_finite():
  assert_finite(np.array(1e300))
