"""A step back, where the loss belies the step that led to it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.helpers import trees

# A trial is accepted because the loss falls, so a rise that is this many times
# the usual change says that the loss, or its batch, has deceived the last one.
MAX_RISE = 10.0
_SMOOTHING = 0.9


class Last(NamedTuple):
  """Where the last call was made, and whether it took a step.

  Attributes:
    params: where the last call was made.
    value: of the loss there, or where it last was a number.
    change: the running size of the loss's change from one step to the next;
      zero where that is not known.
    taken: whether there was one, other than a step back.
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


def is_belied(last: Last, value) -> jax.Array:
  """Whether the loss has risen by far more than it usually changes."""
  # Behind the first step what is usual is not known: twice the loss.
  usual = jnp.where(
    last.change > 0, MAX_RISE * last.change, jnp.abs(last.value)
  )
  return last.taken & (value - last.value > usual)


def remember(last: Last, params, value, taken) -> Last:
  """Takes in this step; of an unusual change no more than `MAX_RISE`."""
  new = jnp.abs(value - last.value)
  mixed = _SMOOTHING * last.change + (1 - _SMOOTHING) * jnp.minimum(
    new, MAX_RISE * last.change
  )
  mixed = jnp.where(last.change > 0, mixed, new)
  counts = last.taken & jnp.isfinite(new)
  return Last(
    params=params,
    value=jnp.where(taken, value, last.value),
    change=jnp.where(counts, mixed, last.change),
    taken=taken,
  )
