"""A wrong number is named with what it must be; a traced one passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_optax.helpers.checks import (
  check_in,
  check_integers,
  check_not_negative,
  check_positive,
)

CHECKS = {
  "in": (lambda x: check_in("rate", x, 0, 1), "lie in", [0, 0.5], [1, -0.1]),
  "positive": (
    lambda x: check_positive(rate=x),
    "positive and finite",
    [1e-9, 3],
    [0, -1, np.inf],
  ),
  "integers": (
    lambda x: check_integers(2, rate=x),
    "an integer, at least 2",
    [2, 3.0],
    [1, 2.5, np.inf],
  ),
  "not negative": (
    lambda x: check_not_negative(rate=x),
    "at least 0 or a schedule",
    [0, np.inf, lambda count: 0.1],
    [-1e-9],
  ),
}
NO_NUMBERS = [np.nan, None, "0.5", [0.5], jnp.array([0.1, 0.2])]


@pytest.mark.parametrize("name", CHECKS)
def test_what_passes_and_what_is_named(name):
  check, wanted, right, wrong = CHECKS[name]
  for x in right:
    check(x)
    check(x if callable(x) else np.float64(x))
  for x in wrong + NO_NUMBERS:
    with pytest.raises(ValueError, match=f"rate must .*{wanted}.*got"):
      check(x)
  jax.jit(lambda x: check(x) or x)(-1.0)
