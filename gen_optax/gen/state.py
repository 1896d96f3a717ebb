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
  """What is usual for a line, all scalars.

  Attributes:
    line: running mean of the `Parabola`s.
    size: the usual squared norm of the update.
  """

  line: Mean
  size: jax.Array


class ScaleByGenState(NamedTuple):
  """State of `scale_by_gen`.

  Attributes:
    count: number of calls, int32.
    learning_rate: the rate, in at least float32.
    calibrated: whether the first rate has been found.
    averages: what is usual for a line.
    memory: what the rule remembers besides.
    info: diagnostics.
  """

  count: jax.Array
  learning_rate: jax.Array
  calibrated: jax.Array
  averages: Averages
  memory: Any
  info: GenInfo


def no_averages(dtype) -> Averages:
  """What is usual before the first step."""
  # A buffer each: donated state must not name one twice.
  zero = lambda: jnp.zeros((), dtype)
  return Averages(mean.no_mean(Parabola(zero(), zero()), dtype), zero())


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
