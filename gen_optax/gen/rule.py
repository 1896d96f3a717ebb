"""A fit and the running averages -> the next learning rate. Pure functions.

A rule is a function from a `LineFit` and what it remembers to a rate. Two stand
here: `average_and_divide`, the default, and `paper_rule`, Algorithm 1 of GeN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.gen.fit import LineFit

# The rate moves by at most this factor in one fit. 2 is too slow to escape a
# curvature that explodes (Rosenbrock with momentum), no bound fails Beale.
MAX_RATIO = 10.0
# Averaging constant of the slope on fresh data.
FRESH_SMOOTHING = 0.97
# The least rate, as a share of the distance from the start over the root of the
# summed squared norms of the updates (`distance_rate`). Chosen on LeNet
# (scripts/gen/ablations.py --study distance).
DISTANCE_SHARE = 0.15
# A trial rate stands if the optimum is at least this share of it: then the loss
# at the rate lies below phi(0) - b rate / 10. A half would say "not above", and
# a slope that the losses contradict passes that at rounding level.
LEAST_RATIO = 5 / 9
# A fit counts for at most this many average ones.
MAX_INFLUENCE = 1e3
# A rate at which the loss climbs by more than this many times what an average
# step moves it is no rate for this line.
MAX_RISE = 30.0
# The share of an update's slope that coordinates may take back which go uphill:
# rounding does, and a weak decay of the weights.
MAX_UPHILL = 1e-3
# A line's own optimum is at most this many times what the averages say. Ten is
# too bold where the loss changes with the step (an actor's).
MAX_LEAD = 2.0
# Bounds that keep ten-fold moves inside float32.
MIN_RATE, MAX_RATE = 1e-30, 1e30


class Averages(NamedTuple):
  """What the default rule remembers, all scalars.

  Attributes:
    slope: running average of b, started at zero.
    curvature: running average of A, started at zero.
    weight: what the same average makes of ones: `slope / weight` is unbiased.
    fresh_slope: running average of b as the next batch sees it.
    fresh_weight: its weight.
    size: running average of the squared norm of the update.
    path: sum of the squared norms of the updates.
    reach: largest distance from where the parameters started, of the points
      that were looked at.
  """

  slope: jax.Array
  curvature: jax.Array
  weight: jax.Array
  fresh_slope: jax.Array
  fresh_weight: jax.Array
  size: jax.Array
  path: jax.Array
  reach: jax.Array


def no_averages(dtype) -> Averages:
  """Averages of nothing."""
  return Averages(*(jnp.zeros((), dtype) for _ in Averages._fields))


def _debiased(average, weight):
  return average / jnp.where(weight > 0, weight, 1.0)


def mean_curvature(averages: Averages) -> jax.Array:
  """The unbiased average of A; zero before the first fit."""
  return _debiased(averages.curvature, averages.weight)


def usual_change(averages: Averages, rate) -> jax.Array:
  """How much a step of `rate` moves the loss by the averages, up or down.

  |b| rate + |A| rate^2 / 2; zero before the first fit.
  """
  slope = jnp.abs(_debiased(averages.slope, averages.weight))
  return rate * (slope + jnp.abs(mean_curvature(averages)) * rate / 2)


def influence(slope, curvature, averages: Averages, rate) -> jax.Array:
  """How many average fits a fit weighs, measured over a step of `rate`.

  1 before the first fit.
  """
  usual = usual_change(averages, rate)
  change = rate * (jnp.abs(slope) + jnp.abs(curvature) * rate / 2)
  return jnp.where(usual > 0, change / jnp.where(usual > 0, usual, 1.0), 1.0)


def is_wild(fit: LineFit, averages: Averages, rate) -> jax.Array:
  """Whether a line must be searched for a rate of its own.

  The fit at `rate` weighs a thousand average ones, or the loss there climbs by
  thirty times what an average step moves it. Faulty batches do; so does a
  direction that remembers one.
  """
  usual = usual_change(averages, rate)
  rise = rate * (-fit.slope + fit.curvature * rate / 2)
  heavy = influence(fit.slope, fit.curvature, averages, rate) > MAX_INFLUENCE
  return fit.finite & (usual > 0) & (heavy | (rise > MAX_RISE * usual))


def is_suspect(size, slope, averages: Averages, rate) -> jax.Array:
  """Whether an update is wild by what is known before any forward pass.

  It is a thousand times longer than usual, or its slope alone weighs a thousand
  average fits. `slope` may be None.
  """
  suspect = size > MAX_INFLUENCE**2 * averages.size
  if slope is not None:
    flat = jnp.zeros_like(slope)
    suspect |= influence(slope, flat, averages, rate) > MAX_INFLUENCE
  return suspect & (averages.size > 0)


def remembers(slope, sizes) -> jax.Array:
  """Whether an update goes uphill in some of its coordinates.

  One of an optimizer without memory goes along -g in each (SGD, RMSProp,
  AdaGrad), so that the products whose sum is the `slope` all have one sign.

  Args:
    slope: -<g, u>.
    sizes: the sum of |g_i| |u_i|.
  """
  return jnp.isfinite(sizes) & (slope < (1 - MAX_UPHILL) * sizes)


def is_first_absurd(fit: LineFit, averages, rate, smoothing) -> jax.Array:
  """Whether a second fit allows a million times the rate of the first one."""
  first = (averages.weight > 0) & (averages.weight <= 1 - smoothing)
  return first & (fit.curvature > 0) & (fit.optimum > MAX_INFLUENCE**2 * rate)


def search_step(fit: LineFit, rate, low, high, halve):
  """One step of the search for a rate that the line itself supports.

  Goes to the parabola's optimum, at most ten times away. Where the line is far
  from a parabola that alone runs in circles (a quartic: 0.05, 0.5, 0.05, ...),
  so a proposal outside the bracket known so far gives way to its middle.

  Args:
    fit: the fit at `rate`.
    rate: the trial rate.
    low: the largest rate known to be too short, zero before the first.
    high: the smallest rate known to be too long, infinite before the first.
    halve: whether to go to the middle of a bracket that has two ends, where
      nothing is found; optima may jump between points near them.

  Returns:
    `(next_rate, low, high, found, hopeless)`: found where the optimum lies
    within about a factor of two of `rate` and the loss at `rate` has fallen by
    a tenth of what the slope promised; hopeless where the line goes uphill, by
    its slope or at every rate that rounding lets one see.
  """
  ratio = jnp.where(fit.curvature > 0, fit.optimum / rate, MAX_RATIO)
  ratio = jnp.where(fit.finite, ratio, 1 / MAX_RATIO)
  # A slope that the losses contradict: they rise at each shorter rate until
  # the bend is rounding.
  unseen = (fit.curvature == 0) & jnp.isfinite(high)
  hopeless = fit.finite & ((fit.slope < 0) | unseen)
  convex = fit.finite & (fit.slope > 0) & (fit.curvature > 0)
  found = convex & (ratio >= LEAST_RATIO) & (ratio <= 2.0)
  low = jnp.where(ratio > 2.0, rate, low)
  high = jnp.where(ratio < LEAST_RATIO, rate, high)
  proposal = rate * jnp.clip(ratio, 1 / MAX_RATIO, MAX_RATIO)
  inside = (low < proposal) & (proposal < high)
  inside = inside & ~(halve & (low > 0) & ~found)
  # sqrt(low) sqrt(high): their product may leave float32.
  middle = jnp.sqrt(low) * jnp.sqrt(high)
  proposal = jnp.where(inside | ~jnp.isfinite(middle), proposal, middle)
  return jnp.clip(proposal, MIN_RATE, MAX_RATE), low, high, found, hopeless


def average_fresh_slope(averages: Averages, fresh) -> Averages:
  """Takes in the slope of the last update as this batch sees it."""
  keep = FRESH_SMOOTHING
  return averages._replace(
    fresh_slope=keep * averages.fresh_slope + (1 - keep) * fresh,
    fresh_weight=keep * averages.fresh_weight + (1 - keep),
  )


def forget_fits(averages: Averages, where) -> Averages:
  """The averages without slope and curvature, where told."""
  keep = lambda x: jnp.where(where, 0.0, x)
  return averages._replace(
    slope=keep(averages.slope),
    curvature=keep(averages.curvature),
    weight=keep(averages.weight),
  )


def average_size(averages: Averages, size, wild, smoothing) -> Averages:
  """Takes in the squared norm of an update that was taken.

  A wild one is no part of the path; of the average it is, ten usual ones at
  most, or updates that have grown for good would stay suspect for good.
  """
  usual = averages.size
  counted = jnp.minimum(size, MAX_RATIO * usual)
  mixed = smoothing * usual + (1 - smoothing) * counted
  return averages._replace(
    size=jnp.where(usual > 0, mixed, size),
    path=averages.path + jnp.where(wild, 0.0, size),
  )


def farther(reach, away) -> jax.Array:
  """The larger of two distances, where the second is finite."""
  return jnp.where((away > reach) & jnp.isfinite(away), away, reach)


def distance_rate(averages: Averages) -> jax.Array:
  """A rate that needs no curvature; zero before the parameters have moved.

      0.15 max_s |w_s - w_0| / sqrt(sum_s |u_s|^2)

  The rate of DoG (distance over gradients), in the update's norm, times a
  constant. A greedy rate pays for a direction's noise at each step, though the
  loss that noise costs stays bounded and the progress adds up; where the signal
  is weak (LeNet's first plateau) it falls until nothing moves. The distance
  remembers that earlier steps got somewhere.
  """
  moved = averages.path > 0
  root = jnp.sqrt(jnp.where(moved, averages.path, 1.0))
  return jnp.where(moved, DISTANCE_SHARE * averages.reach / root, 0.0)


def average_and_divide(
  fit: LineFit, averages: Averages, rate: jax.Array, smoothing, alone
):
  """The default rule: average slope and curvature apart, then divide.

      B <- smoothing B + (1 - smoothing) s b,   C <- the same of A,
        with s = min(1, m / w), w the fit's `influence`, and m
          the weight of the averages (1 at first)   if A < 0,
          10                                        if w is above a million,
          1000                                      else,
      b' = clip(F, r C, B)
        with F the average slope on fresh data and r the `distance_rate`,
      rate <- clip(x, rate / 10, 10 rate)   if b' > 0, and stays if not,
        with x = min(b / A, 2 b' / C)   if it stands alone and C, A > 0,
                 b' / C   if C > 0, else b / A if A > 0, else infinite.

  A fit stands alone that serves one step, of an optimizer without memory, and
  in which fresh data see no noise (F >= B): there is nothing to average.
  Ten times a rate that already overshoots, step after step, leads beyond the
  reach of any average: so this line's optimum where it has one.

  Algorithm 1 averages the ratios b / A. Late in training most batches are easy
  and have A near 0, their ratios dominate the mean, and the rate explodes; here
  the rare hard batches dominate C. b is measured on the batch that made the
  direction and is too large by that batch's noise; F is not. F alone would be
  too small: the rate that is best for the next step is not for the next
  thousand. So it never brings the rate below r, within what B / C allows.

  Args:
    fit: a finite fit at `rate`.
    averages: the averages before it; their `fresh_slope` includes this batch,
      and their `reach` this point where it was looked at.
    rate: the rate that the fit probed.
    smoothing: averaging constant of B and C, in [0, 1).
    alone: whether no other step depends on this rate: the next one has a fit of
      its own, and the optimizer has no memory.

  Returns:
    `(rate, averages, accepted)`.
  """
  before = averages
  weight = influence(fit.slope, fit.curvature, before, rate)
  # A line that bends down promises more the longer it is: it weighs no more
  # than what is known does, or it turns young averages over and the rate grows
  # step by step. One that weighs a thousand times the heaviest is hardly a line
  # of this loss; if it is, the averages nearly double with each.
  most = jnp.where(weight > MAX_INFLUENCE**2, MAX_RATIO, MAX_INFLUENCE)
  known = jnp.where(before.weight > 0, before.weight, 1.0)
  most = jnp.where(fit.curvature < 0, known, most)
  share = most / jnp.maximum(weight, most)
  mix = lambda old, new: smoothing * old + (1 - smoothing) * new
  averages = before._replace(
    slope=mix(before.slope, share * fit.slope),
    curvature=mix(before.curvature, share * fit.curvature),
    weight=mix(before.weight, 1.0),
  )

  slope = averages.slope
  fresh = _debiased(averages.fresh_slope, averages.fresh_weight)
  fresh = fresh * averages.weight
  use_fresh = (before.weight > 0) & (averages.fresh_weight > 0) & (slope > 0)
  noiseless = use_fresh & (fresh >= slope)
  least = distance_rate(averages) * averages.curvature
  slope = jnp.where(use_fresh, jnp.clip(fresh, least, slope), slope)

  curved = averages.curvature > 0
  optimum = slope / jnp.where(curved, averages.curvature, 1.0)
  own = jnp.where(fit.curvature > 0, fit.optimum, jnp.inf)
  # A line's own optimum lies where the fit has not looked, and may be far.
  bounded = jnp.minimum(own, MAX_LEAD * optimum)
  alone = alone & noiseless & (fit.curvature > 0)
  optimum = jnp.where(alone, bounded, optimum)
  optimum = jnp.where(curved, optimum, own)
  proposal = jnp.clip(optimum, rate / MAX_RATIO, rate * MAX_RATIO)
  accepted = slope > 0
  proposal = jnp.clip(proposal, MIN_RATE, MAX_RATE)
  return jnp.where(accepted, proposal, rate), averages, accepted


def paper_rule(fit: LineFit, rate: jax.Array, smoothing):
  """Lines 8 and 9 of Algorithm 1: average the optima, hold on rejection.

      rate <- smoothing rate + (1 - smoothing) b / A   if A > 0 and b > 0.

  Returns:
    `(rate, accepted)`.
  """
  accepted = (fit.curvature > 0) & (fit.slope > 0)
  mixed = smoothing * rate + (1 - smoothing) * fit.optimum
  return jnp.where(accepted, mixed, rate), accepted
