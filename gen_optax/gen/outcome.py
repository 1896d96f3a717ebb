"""What a step's fit or search came to, and what is learned from it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.gen import outliers
from gen_optax.gen.observe import Observation
from gen_optax.gen.rule import MIN_RATE, GenRule, include_fresh_slope, learn
from gen_optax.gen.search import Trial
from gen_optax.gen.state import Averages, ScaleByGenState, forget_fits
from gen_optax.helpers import mean


class Outcome(NamedTuple):
  """What may follow from a trial.

  Attributes:
    fitted: whether the rule can learn from it.
    taken: whether a step is emitted.
    failed: whether numbers were not finite.
    calibrated: whether the first rate has been found, now or before.
  """

  fitted: jax.Array
  taken: jax.Array
  failed: jax.Array
  calibrated: jax.Array


def conclude(
  state: ScaleByGenState,
  observed: Observation,
  due: jax.Array,
  trial: Trial,
  decreases: jax.Array | None,
) -> Outcome:
  """What may follow from a trial.

  Args:
    state: before the step.
    observed: what was known before the trial.
    due: whether there was to be a trial.
    trial: the last trial.
    decreases: for an exact estimator, whether the loss at a rate that was found
      is not above where it starts; None for a fit to losses, which has seen it.
  """
  fit, found = trial.fit, trial.found
  fitted = due & fit.finite & ~trial.searching
  if decreases is not None:
    fitted, found = fitted & decreases, found & decreases
  calibrated = state.calibrated | found
  taken = fitted | (~due & observed.healthy & calibrated)
  if decreases is not None:
    # No loss tells how far a first line can be followed that bends down.
    downhill = fit.finite & (fit.slope > 0)
    downhill = downhill & ((fit.curvature <= 0) | ~decreases)
    taken |= due & downhill & ~calibrated & ~trial.outlier
  failed = ~observed.healthy | (due & ~fit.finite)
  return Outcome(fitted, taken, failed, calibrated)


def forget_first_fit(
  rule: GenRule, state: ScaleByGenState, trial: Trial, outcome: Outcome
) -> tuple[ScaleByGenState, Trial]:
  """Starts the averages anew from a second fit that contradicts the first.

  No loss has told an exact estimator that its first curvature was absurd.
  """
  absurd = outcome.fitted & outliers.contradicts_first(
    trial.fit, state.averages, state.learning_rate, rule.smoothing
  )
  rate = jnp.where(absurd, trial.fit.optimum, trial.rate)
  averages = forget_fits(state.averages, absurd)
  return state._replace(averages=averages), trial._replace(rate=rate)


def next_rate(
  rule: GenRule,
  state: ScaleByGenState,
  observed: Observation,
  trial: Trial,
  outcome: Outcome,
  per_step: jax.Array,
) -> tuple[jax.Array, Averages, jax.Array]:
  """The rate after the step, the averages, and whether the rate was learned."""
  rate, averages = state.learning_rate, state.averages
  if observed.directional_derivative is not None:
    # A step of length e along u met the curvature A: in this batch's eyes the
    # slope at its start was e A - <grad, u>.
    slope = state.curvature_times_step - observed.directional_derivative
    averages = optax.tree.where(
      state.follows & observed.healthy & ~trial.outlier,
      include_fresh_slope(rule, averages, slope),
      averages,
    )
  # An outlier has found a rate for this step alone; the lasting one moves on
  # from where it was.
  probed = jnp.where(trial.outlier, rate, trial.rate)
  learned, after, accepted = learn(rule, trial.fit, averages, probed, per_step)
  averages = optax.tree.where(outcome.fitted, after, averages)
  averages = optax.tree.where(
    outcome.taken,
    outliers.include_size(averages, observed.size, trial.outlier),
    averages,
  )
  shorter = jnp.maximum(rate / rule.max_ratio, MIN_RATE)
  kept = jnp.where(outcome.failed, shorter, rate)
  learned = jnp.where(outcome.fitted, learned, kept)
  return learned, averages, accepted & outcome.fitted


def remember_step(
  state: ScaleByGenState,
  updates: optax.Updates,
  emitted: jax.Array,
  trial: Trial,
  due: jax.Array,
  outcome: Outcome,
) -> ScaleByGenState:
  """What the next batch needs to tell the slope at the start of this step."""
  usual = mean.value(state.averages.line).curvature
  curvature = jnp.where(due, trial.fit.curvature, usual)
  return state._replace(
    previous_update=optax.tree.cast_like(updates, state.previous_update),
    curvature_times_step=jnp.where(outcome.taken, emitted * curvature, 0.0),
  )
