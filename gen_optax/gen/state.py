"""The state of `scale_by_gen`, and what it says of the lines so far."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.gen.stage import GenInfo
from gen_optax.helpers import mean
from gen_optax.helpers.mean import Mean


class Parabola(NamedTuple):
  """b and A of a line: the loss changes by -b s + A s^2 / 2 over a step s."""

  slope: jax.Array
  curvature: jax.Array


class Averages(NamedTuple):
  """The memory of the default rule, all scalars.

  Attributes:
    line: running mean of the `Parabola`s.
    fresh_slope: running mean of b as the next batch sees it.
    size: the usual squared norm of the update.
    sum_sq_norms: sum of the squared norms of the updates.
    max_distance: largest distance from where the parameters started, of the
      points at which it was computed.
  """

  line: Mean
  fresh_slope: Mean
  size: jax.Array
  sum_sq_norms: jax.Array
  max_distance: jax.Array


class ScaleByGenState(NamedTuple):
  """State of `scale_by_gen`.

  Attributes:
    count: number of calls, int32.
    learning_rate: the rate, in at least float32.
    calibrated: whether the first rate has been found.
    averages: what the rule remembers of earlier lines.
    previous_update: the last update, zero where it was withheld; None without
      `fresh_slope`.
    curvature_times_step: the last emitted rate times the curvature along it.
    follows: whether the two above describe a step that was taken, neither zero
      nor an outlier.
    start: the parameters at the start; None without `fresh_slope`.
    momentum_free: whether no update so far went uphill in a coordinate, as
      those of an optimizer with momentum do; watched where `every` is 1.
    info: diagnostics.
  """

  count: jax.Array
  learning_rate: jax.Array
  calibrated: jax.Array
  averages: Averages
  previous_update: Any
  curvature_times_step: jax.Array
  follows: jax.Array
  start: Any
  momentum_free: jax.Array
  info: GenInfo


def no_averages(dtype) -> Averages:
  """The memory before the first step."""
  # A buffer each: donated state must not name one twice.
  zero = lambda: jnp.zeros((), dtype)
  return Averages(
    line=mean.no_mean(Parabola(zero(), zero()), dtype),
    fresh_slope=mean.no_mean(zero(), dtype),
    size=zero(),
    sum_sq_norms=zero(),
    max_distance=zero(),
  )


def usual_change(averages: Averages, rate) -> jax.Array:
  """How much a step of `rate` changes the loss by the averages, up or down.

  |b| rate + |A| rate^2 / 2; zero before the first fit.
  """
  usual = mean.value(averages.line)
  return rate * (jnp.abs(usual.slope) + jnp.abs(usual.curvature) * rate / 2)


def forget_fits(averages: Averages, where) -> Averages:
  """Resets the running mean of the lines where `where` holds."""
  keep = lambda x: jnp.where(where, 0.0, x)
  return averages._replace(line=jax.tree.map(keep, averages.line))
