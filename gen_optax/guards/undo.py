"""A step back, after a step that the loss then contradicts.

Not a wrapper of any optimizer: only one that takes a step where it has seen the
loss fall, as ELMO's trials do, is contradicted by a rise. For others a rise is
normal.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.guards.scale import exceeds, include
from gen_optax.helpers import trees

# The last step was accepted because the loss fell. If the loss then rises by
# this many times its usual change, it was wrong then, or had a faulty batch.
MAX_RISE = 10.0


class Last(NamedTuple):
  """Where the last call was made, and whether it took a step.

  Attributes:
    params: where the last call was made.
    value: of the loss there, or where it last was a number.
    change: the usual change of the loss from one step to the next.
    taken: whether there was a step, other than a step back.
  """

  params: Any
  value: jax.Array
  change: jax.Array
  taken: jax.Array


def no_step(params, dtype) -> Last:
  """The memory before the first step."""
  return Last(
    params=trees.copy(params),
    value=jnp.zeros((), dtype),
    change=jnp.zeros((), dtype),
    taken=jnp.zeros((), bool),
  )


def is_reverted(last: Last, value) -> jax.Array:
  """Whether the loss has risen by far more than it usually changes."""
  rise = value - last.value
  # After the first step no change is usual yet: the loss may double.
  first = (last.change == 0) & (rise > jnp.abs(last.value))
  return last.taken & (first | exceeds(last.change, rise, MAX_RISE))


def remember(last: Last, params, value, taken) -> Last:
  """Takes in this call; an unusual change counts for `MAX_RISE` usual ones."""
  new = jnp.abs(value - last.value)
  change = include(last.change, new, MAX_RISE)
  return Last(
    params=params,
    value=jnp.where(taken, value, last.value),
    change=jnp.where(last.taken, change, last.change),
    taken=taken,
  )
