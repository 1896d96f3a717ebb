"""What the default rule remembers: fresh slopes, the distance, momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.gen.observe import Observation
from gen_optax.helpers import mean, trees
from gen_optax.helpers.lazy import run_if
from gen_optax.helpers.mean import Mean

# What changes slowly is refreshed on the first steps, in which the parameters
# leave their start and momentum builds up, and then between the fits of
# `every=8`.
FIRST_STEPS = 20
REFRESH_EVERY = 8
# The share of an update's slope that coordinates may take back which go uphill:
# rounding does, and a weak decay of the weights.
MAX_UPHILL = 1e-3


class Trace(NamedTuple):
  """The memory of the default rule besides the averages.

  Attributes:
    fresh_slope: running mean of b as the next batch sees it.
    sum_sq_norms: sum of the squared norms of the updates.
    max_distance: largest distance from where the parameters started, of the
      points at which it was computed.
    previous_update: the last update, zero where it was withheld.
    curvature_times_step: the last emitted rate times the curvature along it.
    follows: whether the two above describe a step that was taken, neither zero
      nor an outlier.
    start: the parameters at the start.
    momentum_free: whether no update so far went uphill in a coordinate, as
      those of an optimizer with momentum do.
  """

  fresh_slope: Mean
  sum_sq_norms: jax.Array
  max_distance: jax.Array
  previous_update: Any
  curvature_times_step: jax.Array
  follows: jax.Array
  start: Any
  momentum_free: jax.Array


def no_trace(params, dtype) -> Trace:
  """The memory before the first step."""
  # A buffer each: donated state must not name one twice.
  zero = lambda: jnp.zeros((), dtype)
  return Trace(
    fresh_slope=mean.no_mean(zero(), dtype),
    sum_sq_norms=zero(),
    max_distance=zero(),
    previous_update=optax.tree.zeros_like(params),
    curvature_times_step=zero(),
    follows=jnp.zeros((), bool),
    start=trees.copy(params),
    momentum_free=jnp.ones((), bool),
  )


def refresh(trace: Trace, observed: Observation, watch_momentum: bool) -> Trace:
  """Looks at the distance from the start, and for momentum, on some steps.

  Both change slowly, and each costs a sum over the parameters.
  """
  dtype = trace.max_distance.dtype

  def compute(known):
    max_distance, momentum_free = known
    distance = trees.distance(observed.params, trace.start, dtype)
    if watch_momentum:
      sizes = trees.vdot_of_sizes(observed.grad, observed.updates, dtype)
      momentum_free = momentum_free & ~has_momentum(observed.slope, sizes)
    return farther(max_distance, distance), momentum_free

  late = (observed.count - FIRST_STEPS) % REFRESH_EVERY == 0
  distance, momentum_free = run_if(
    (observed.count < FIRST_STEPS) | late,
    compute,
    (trace.max_distance, trace.momentum_free),
  )
  return trace._replace(max_distance=distance, momentum_free=momentum_free)


def farther(max_distance, distance) -> jax.Array:
  """The larger of two distances, where the second is finite."""
  larger = (distance > max_distance) & jnp.isfinite(distance)
  return jnp.where(larger, distance, max_distance)


def has_momentum(slope, sizes) -> jax.Array:
  """Whether an update goes uphill in some of its coordinates.

  One of an optimizer without momentum goes along -g in each (SGD, RMSProp,
  AdaGrad), so that the products whose sum is the `slope` all have one sign.

  Args:
    slope: -<g, u>.
    sizes: the sum of |g_i| |u_i|.
  """
  return jnp.isfinite(sizes) & (slope < (1 - MAX_UPHILL) * sizes)
