"""What is known of a step before any forward pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.gen.outliers import is_outlier_update
from gen_optax.gen.rule import has_momentum, include_distance
from gen_optax.gen.state import ScaleByGenState
from gen_optax.helpers import trees
from gen_optax.helpers.lazy import run_if

# What changes slowly is refreshed on the first steps, in which the parameters
# leave their start and momentum builds up, and then between the fits of
# `every=8`.
FIRST_STEPS = 20
REFRESH_EVERY = 8


class Observation(NamedTuple):
  """What the update, the gradient and the loss say by themselves.

  Attributes:
    size: squared norm of the update.
    slope: b = -<grad, update>; None without a gradient.
    directional_derivative: <grad, previous update>, which says how this batch
      sees the step that led here; None without `fresh_slope`.
    healthy: whether all of these, and the loss, are finite.
    outlier: whether the update is far from those before it.
  """

  size: jax.Array
  slope: jax.Array | None
  directional_derivative: jax.Array | None
  healthy: jax.Array
  outlier: jax.Array


def observe(state: ScaleByGenState, updates, grad, value) -> Observation:
  """Sums over the parameters, and what they say; grad, value may be None."""
  rate, dtype = state.learning_rate, state.learning_rate.dtype
  size = trees.vdot(updates, updates, dtype)
  slope = None if grad is None else -trees.vdot(grad, updates, dtype)
  # Before the fit, or the buffer of the previous update is copied.
  derivative = None
  if state.previous_update is not None:
    derivative = trees.vdot(grad, state.previous_update, dtype)
  healthy = jnp.isfinite(size)
  for scalar in (slope, derivative, value):
    if scalar is not None:
      healthy = healthy & jnp.isfinite(scalar)
  outlier = is_outlier_update(size, slope, state.averages, rate)
  return Observation(size, slope, derivative, healthy, outlier)


def refresh(
  state: ScaleByGenState,
  observed: Observation,
  updates: Any,
  grad: Any,
  params: Any,
  watch_momentum: bool,
) -> ScaleByGenState:
  """Looks at the distance from the start, and for momentum, on some steps.

  Both change slowly, and each costs a sum over the parameters.
  """

  def compute(known):
    averages, momentum_free = known
    dtype = state.learning_rate.dtype
    distance = trees.distance(params, state.start, dtype)
    if watch_momentum:
      sizes = trees.vdot_of_sizes(grad, updates, dtype)
      momentum_free = momentum_free & ~has_momentum(observed.slope, sizes)
    return include_distance(averages, distance), momentum_free

  late = (state.count - FIRST_STEPS) % REFRESH_EVERY == 0
  averages, momentum_free = run_if(
    (state.count < FIRST_STEPS) | late,
    compute,
    (state.averages, state.momentum_free),
  )
  return state._replace(averages=averages, momentum_free=momentum_free)
