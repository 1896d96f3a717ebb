"""What is known of a step before any forward pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.gen.outliers import is_outlier_update
from gen_optax.gen.state import ScaleByGenState
from gen_optax.helpers import trees


class Observation(NamedTuple):
  """What the update, the gradient and the loss say by themselves.

  Attributes:
    count: number of steps before this one.
    updates, grad, params: the trees; `grad` is None without one.
    size: squared norm of the update.
    slope: b = -<grad, update>; None without a gradient.
    healthy: whether all of these, and the loss, are finite.
    outlier: whether the update is far from those before it.
  """

  count: jax.Array
  updates: Any
  grad: Any
  params: Any
  size: jax.Array
  slope: Any
  healthy: jax.Array
  outlier: jax.Array


def observe(state: ScaleByGenState, updates, grad, params, value):
  """Sums over the parameters, and what they say; grad, value may be None."""
  rate, dtype = state.learning_rate, state.learning_rate.dtype
  size = trees.vdot(updates, updates, dtype)
  slope = None if grad is None else -trees.vdot(grad, updates, dtype)
  healthy = jnp.isfinite(size)
  for scalar in (slope, value):
    if scalar is not None:
      healthy = healthy & jnp.isfinite(scalar)
  outlier = is_outlier_update(size, slope, state.averages, rate)
  return Observation(
    state.count, updates, grad, params, size, slope, healthy, outlier
  )
