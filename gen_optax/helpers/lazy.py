"""Work that is done on some steps and costs nothing on the others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def run_if(predicate: jax.Array, work: Callable[[Any], Any], state: Any) -> Any:
  """`work(state)` where `predicate` holds, else `state` itself.

  A loop of at most one trip: `lax.cond` becomes a select under `jax.vmap` and
  does the work on every step, and it copies a donated state where a loop
  updates it in place.

  Args:
    predicate: a boolean scalar.
    work: a function from a state to one of the same structure and dtypes.
    state: any tree of arrays.

  Returns:
    The new state, or the old.
  """

  def trip(carry):
    return jnp.zeros_like(carry[0]), work(carry[1])

  return jax.lax.while_loop(lambda c: c[0], trip, (predicate, state))[1]
