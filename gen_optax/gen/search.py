"""The one loop that holds all evaluations of a step: fit, search, or none."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.gen import outliers
from gen_optax.gen.fit import LineFit, unknown_fit
from gen_optax.gen.state import Averages
from gen_optax.helpers.lazy import run_if
from gen_optax.oracle import line

# Bounds that keep ten-fold moves inside float32.
MIN_RATE, MAX_RATE = 1e-30, 1e30
# Trials of the search for a rate: 25 decades at most.
MAX_TRIALS = 25
DECADE = 10.0
# A trial rate stands if the optimum is at least this share of it: then the loss
# at the rate lies below phi(0) - b rate / 10. A half would say "not above", and
# a slope that the losses contradict passes that at rounding level.
LEAST_RATIO = 5 / 9


class Trial(NamedTuple):
  """Where the loop stands.

  Attributes:
    rate: the rate to try next; after the last trial, the one that stands.
    low: the largest rate known to be too short, zero before the first.
    high: the smallest rate known to be too long, infinite before the first.
    fit: the last fit.
    count: number of trials.
    searching: whether a rate is still searched for.
    found: whether a search has found one.
    outlier: whether the line is far from those before it.
    pending: whether to evaluate once more.
  """

  rate: jax.Array
  low: jax.Array
  high: jax.Array
  fit: LineFit
  count: jax.Array
  searching: jax.Array
  found: jax.Array
  outlier: jax.Array
  pending: jax.Array


def fit_or_search(
  estimate: Callable[[Any, jax.Array], LineFit],
  direction: Any,
  rate: jax.Array,
  averages: Averages,
  *,
  pending: jax.Array,
  searching: jax.Array,
  outlier: jax.Array,
  exact: bool,
) -> tuple[Trial, Any]:
  """Fits once at `rate`, or searches a rate that the line itself supports.

  One loop holds both, and makes no trip on lazy steps: `lax.cond` would
  evaluate on every step under vmap over replicas, and a second loop would
  compile the closure twice.

  Args:
    estimate: the fit along a direction at a rate.
    direction: the update.
    rate: the current rate.
    averages: what the fit is compared with; an outlier starts a search.
    pending: whether to evaluate at all.
    searching: whether to search from the start.
    outlier: whether the line is known to be one before it is evaluated.
    exact: whether the fit is the same at every rate; no search finds one on a
      line that bends down.

  Returns:
    The last trial, which has failed where `searching` is still set, and the
    direction. It goes through the loop, so that the compiler holds it alone:
    otherwise it fuses what comes after with what makes the direction, and holds
    that as well.
  """

  def try_rate(carry):
    trial, along = carry
    along = jax.lax.optimization_barrier(along)
    fit = estimate(along, trial.rate)
    surprise = outliers.is_outlier_fit(fit, averages, trial.rate)
    surprise = surprise & (trial.count == 0)
    searching = trial.searching | surprise
    late = trial.count >= MAX_TRIALS // 2
    next_rate, low, high, found, no_descent = search_step(
      fit, trial.rate, trial.low, trial.high, halve=late
    )
    found = found & searching
    # A rate that was found is fitted once more, at the optimum next to it.
    stop = ~searching | no_descent | (trial.count + 1 >= MAX_TRIALS)
    if exact:
      stop |= ~fit.finite | (fit.curvature <= 0)
    next_trial = Trial(
      rate=jnp.where(stop, trial.rate, next_rate),
      low=low,
      high=high,
      fit=fit,
      count=trial.count + 1,
      searching=searching & ~found,
      found=trial.found | found,
      outlier=trial.outlier | surprise,
      pending=~stop,
    )
    return next_trial, along

  start = Trial(
    rate=rate,
    low=jnp.zeros_like(rate),
    high=jnp.full_like(rate, jnp.inf),
    fit=unknown_fit(rate.dtype),
    count=jnp.zeros((), jnp.int32),
    searching=searching,
    found=jnp.zeros((), bool),
    outlier=outlier,
    pending=pending,
  )
  return jax.lax.while_loop(
    lambda carry: carry[0].pending, try_rate, (start, direction)
  )


def search_step(fit: LineFit, rate, low, high, *, halve):
  """One step of the search for a rate that the line itself supports.

  Goes to the parabola's optimum, at most a decade away. Where the line
  is far from a parabola, that alone runs in circles (a quartic: 0.05, 0.5,
  0.05, ...), so a proposal outside the bracket known so far gives way to its
  middle.

  Args:
    fit: the fit at `rate`.
    rate: the trial rate.
    low: the largest rate known to be too short, zero before the first.
    high: the smallest rate known to be too long, infinite before the first.
    halve: whether to go to the middle of a bracket that has two ends, where
      nothing is found; optima may jump between points near them.

  Returns:
    `(next_rate, low, high, found, no_descent)`. Found: the optimum lies within
    about a factor of two of `rate`, and the loss at `rate` has fallen by a
    tenth of what the slope promised. No descent: the line goes uphill, by its
    slope or at every rate that rounding lets one see.
  """
  ratio = jnp.where(fit.curvature > 0, fit.optimum / rate, DECADE)
  ratio = jnp.where(fit.finite, ratio, 1 / DECADE)
  # A slope that the losses contradict: they rise at each shorter rate, until
  # their curvature is rounding.
  unseen = (fit.curvature == 0) & jnp.isfinite(high)
  no_descent = fit.finite & ((fit.slope < 0) | unseen)
  convex = fit.finite & (fit.slope > 0) & (fit.curvature > 0)
  found = convex & (ratio >= LEAST_RATIO) & (ratio <= 2.0)
  low = jnp.where(ratio > 2.0, rate, low)
  high = jnp.where(ratio < LEAST_RATIO, rate, high)
  proposal = rate * jnp.clip(ratio, 1 / DECADE, DECADE)
  inside = (low < proposal) & (proposal < high)
  inside = inside & ~(halve & (low > 0) & ~found)
  # sqrt(low) sqrt(high): their product may leave float32.
  middle = jnp.sqrt(low) * jnp.sqrt(high)
  proposal = jnp.where(inside | ~jnp.isfinite(middle), proposal, middle)
  return jnp.clip(proposal, MIN_RATE, MAX_RATE), low, high, found, no_descent


def decreases_loss(value_fn, params, direction, value, trial: Trial):
  """Whether the loss at a rate that was found is not above where it starts.

  Exact estimators never probe that far, and a line that is nearly straight
  where it starts sends their first step anywhere. Evaluates only where a rate
  was found.
  """

  def evaluate(carry):
    # Of the loop's carry, or the compiler moves it out, to run on every step.
    _, at, along, rate = jax.lax.optimization_barrier(
      (carry, params, direction, trial.rate)
    )
    loss = lambda step: line.scalar_loss(value_fn, line.point(at, along, step))
    return loss(rate) <= (value if line.stands_at_zero(value, at) else loss(0))

  return run_if(trial.found, evaluate, jnp.ones((), bool))
