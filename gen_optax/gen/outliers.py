"""Finds fits and updates that are far from the averages, and limits them.

A faulty batch, or a direction that remembers one, gives a line that is far from
those before it. Such a line is searched for a rate of its own, which serves
this step alone, and its weight in the averages is clipped.
"""

import jax
import jax.numpy as jnp

from gen_optax.gen.fit import LineFit
from gen_optax.gen.state import Averages, Parabola, usual_change
from gen_optax.guards import scale
from gen_optax.helpers import mean

# A fit that changes the loss by more than this many times the usual is an
# outlier, and so is an update this many times longer than usual. One batch in
# a thousand weighs no more than all the others together.
MAX_CHANGE = 1e3
# So is a line on which the loss climbs by more than this many times the usual
# change: the rate is no rate for this line.
MAX_CLIMB = 30.0
# An extreme outlier, or an update that stays long, counts for at most so many.
FEW = 10.0


def relative_change(slope, curvature, averages: Averages, rate) -> jax.Array:
  """By how many usual changes a line moves the loss over a step of `rate`.

  1 before the first fit.
  """
  usual = usual_change(averages, rate)
  change = rate * (jnp.abs(slope) + jnp.abs(curvature) * rate / 2)
  return jnp.where(usual > 0, change / jnp.where(usual > 0, usual, 1.0), 1.0)


def is_outlier_fit(fit: LineFit, averages: Averages, rate) -> jax.Array:
  """Whether a line must be searched for a rate of its own."""
  usual = usual_change(averages, rate)
  climb = rate * (-fit.slope + fit.curvature * rate / 2)
  change = relative_change(fit.slope, fit.curvature, averages, rate)
  outlier = (change > MAX_CHANGE) | (climb > MAX_CLIMB * usual)
  return fit.finite & (usual > 0) & outlier


def is_outlier_update(size, slope, averages: Averages, rate) -> jax.Array:
  """The same from what is known before any forward pass.

  Args:
    size: squared norm of the update.
    slope: b, or None.
    averages: the memory.
    rate: the current rate.
  """
  outlier = scale.exceeds(averages.size, size, MAX_CHANGE**2)
  if slope is not None:
    flat = jnp.zeros_like(slope)
    change = relative_change(slope, flat, averages, rate)
    outlier |= (averages.size > 0) & (change > MAX_CHANGE)
  return outlier


def include_size(averages: Averages, size) -> Averages:
  """Takes in the squared norm of an update that was taken.

  An outlier counts too, or updates that have grown for good would stay outliers
  for good.
  """
  return averages._replace(size=scale.include(averages.size, size, FEW))


def include_line(averages: Averages, fit: LineFit, rate, smoothing) -> Averages:
  """Takes in a line that was fitted at `rate`, an outlier with less weight."""
  share = weight(fit, averages, rate)
  new = Parabola(share * fit.slope, share * fit.curvature)
  return averages._replace(line=mean.include(averages.line, new, smoothing))


def weight(fit: LineFit, averages: Averages, rate) -> jax.Array:
  """The weight of a fit in the averages, in (0, 1].

  Of a line that changes the loss by c usual changes, min(1, m / c), where m is

    MAX_CHANGE   as a rule;
    FEW          if c is above MAX_CHANGE^2: that is hardly a line of this loss,
                 and if it is, the averages nearly double with each;
    the weight of the averages themselves   if A < 0: a line that bends down
                 promises more the longer it is, and would turn young averages
                 over, so that the rate grows step by step.
  """
  change = relative_change(fit.slope, fit.curvature, averages, rate)
  most = jnp.where(change > MAX_CHANGE**2, FEW, MAX_CHANGE)
  known = averages.line.weight
  most = jnp.where(fit.curvature < 0, jnp.where(known > 0, known, 1.0), most)
  return most / jnp.maximum(change, most)


def contradicts_first(fit: LineFit, averages, rate, smoothing) -> jax.Array:
  """Whether a second fit allows a million times the rate of the first one.

  Then the first curvature was the outlier.
  """
  known = averages.line.weight
  second = (known > 0) & (known <= 1 - smoothing)
  return second & (fit.curvature > 0) & (fit.optimum > MAX_CHANGE**2 * rate)
