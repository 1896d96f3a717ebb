"""What a step's fit or search came to, and what is learned from it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.gen import outliers
from gen_optax.gen.observe import Observation
from gen_optax.gen.protocol import Lesson, Look, Rule
from gen_optax.gen.search import MIN_RATE, Trial
from gen_optax.gen.state import ScaleByGenState, forget_fits


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
  rule: Rule, state: ScaleByGenState, trial: Trial, outcome: Outcome
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


def learn(
  rule: Rule,
  state: ScaleByGenState,
  seen: Look,
  observed: Observation,
  trial: Trial,
  outcome: Outcome,
  alone: jax.Array,
) -> Lesson:
  """What the rule learns from the trial, as far as it can be believed."""
  old = state.learning_rate
  # An outlier has found a rate for this step alone; the lasting one moves on
  # from where it was.
  probed = jnp.where(trial.outlier, old, trial.rate)
  lesson = rule.learn(
    seen.memory,
    state.averages,
    observed,
    trial,
    probed,
    alone,
  )
  averages = optax.tree.where(outcome.fitted, lesson.averages, state.averages)
  averages = optax.tree.where(
    outcome.taken, outliers.include_size(averages, observed.size), averages
  )
  shorter = jnp.maximum(old / rule.max_ratio, MIN_RATE)
  kept = jnp.where(outcome.failed, shorter, old)
  return Lesson(
    rate=jnp.where(outcome.fitted, lesson.rate, kept),
    averages=averages,
    memory=lesson.memory,
    accepted=lesson.accepted & outcome.fitted,
  )
