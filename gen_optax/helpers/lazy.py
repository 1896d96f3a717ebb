"""Work that is done on some steps and costs nothing on the others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def run_if(predicate: jax.Array, work: Callable[[Any], Any], state: Any) -> Any:
  """`work(state)` where `predicate` holds, else `state` itself.

  A loop of at most one trip. `lax.cond` copies a donated state, which a loop
  updates in place, and under `jax.vmap` it becomes a select, which does the
  work on every step.

  Args:
    predicate: a boolean scalar.
    work: a function from a state to one of the same structure and dtypes.
    state: any tree of arrays.
  """

  def trip(carry):
    return jnp.zeros_like(carry[0]), work(carry[1])

  return jax.lax.while_loop(lambda c: c[0], trip, (predicate, state))[1]
