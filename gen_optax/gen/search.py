"""The one loop that holds all evaluations of a step: fit, search, or none."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.gen import rule
from gen_optax.gen.fit import LineFit, unknown_fit
from gen_optax.helpers.lazy import run_if
from gen_optax.oracle import line

# Trials of the search for a rate: 25 decades at most.
MAX_TRIALS = 25


class Trial(NamedTuple):
  """Carry of the one loop that holds all evaluations of a step."""

  rate: jax.Array
  low: jax.Array
  high: jax.Array
  fit: LineFit
  trials: jax.Array
  searching: jax.Array
  found: jax.Array
  wild: jax.Array
  pending: jax.Array


def fit_or_search(
  estimate: Callable[[Any, jax.Array], LineFit],
  direction: Any,
  rate: jax.Array,
  averages: rule.Averages,
  *,
  pending: jax.Array,
  searching: jax.Array,
  wild: jax.Array,
  exact: bool,
) -> tuple[Trial, Any]:
  """Fits once at `rate`, or searches a rate that the line itself supports.

  One loop holds both and the lazy steps, which make no trip: `lax.cond` would
  evaluate on every step under vmap over replicas, and a second loop would
  compile the closure twice.

  Args:
    estimate: the fit along a direction at a rate.
    direction: the update.
    rate: the rate that stands.
    averages: what the fit is compared to; a wild one starts a search.
    pending: whether to evaluate at all.
    searching: whether to search from the start.
    wild: whether the line is known to be wild before it is evaluated.
    exact: whether the fit is the same at every rate; no search finds one on a
      line that bends down.

  Returns:
    The last trial, which has failed where `searching` is still set, and the
    direction. It goes through the loop, so that the compiler holds it alone:
    what comes behind would else be fused with what makes the direction, and
    that be held as well.
  """

  def try_rate(carry):
    trial, along = carry
    along = jax.lax.optimization_barrier(along)
    fit = estimate(along, trial.rate)
    surprise = (trial.trials == 0) & rule.is_wild(fit, averages, trial.rate)
    searching = trial.searching | surprise
    late = trial.trials >= MAX_TRIALS // 2
    next_rate, low, high, found, hopeless = rule.search_step(
      fit, trial.rate, trial.low, trial.high, halve=late
    )
    found = found & searching
    stop = ~searching | hopeless | (trial.trials + 1 >= MAX_TRIALS)
    if exact:
      stop |= ~fit.finite | (fit.curvature <= 0)
    next_trial = Trial(
      rate=jnp.where(stop, trial.rate, next_rate),
      low=low,
      high=high,
      fit=fit,
      trials=trial.trials + 1,
      searching=searching & ~found,
      found=trial.found | found,
      wild=trial.wild | surprise,
      pending=~stop,
    )
    return next_trial, along

  start = Trial(
    rate=rate,
    low=jnp.zeros_like(rate),
    high=jnp.full_like(rate, jnp.inf),
    fit=unknown_fit(rate.dtype),
    trials=jnp.zeros((), jnp.int32),
    searching=searching,
    found=jnp.zeros((), bool),
    wild=wild,
    pending=pending,
  )
  return jax.lax.while_loop(
    lambda carry: carry[0].pending, try_rate, (start, direction)
  )


def is_sound(value_fn, params, direction, value, trial: Trial) -> jax.Array:
  """Whether the loss at a rate that was found is not above where it starts.

  Exact estimators never look that far, and a line that is nearly straight where
  it starts sends their first step anywhere. Looks only where one was found.
  """

  def look(carry):
    # Of the loop's carry, or the compiler moves it out, to run on every step.
    _, at, along, rate = jax.lax.optimization_barrier(
      (carry, params, direction, trial.rate)
    )
    loss = lambda step: line.scalar_loss(value_fn, line.point(at, along, step))
    return loss(rate) <= (value if line.stands_at_zero(value, at) else loss(0))

  return run_if(trial.found, look, jnp.ones((), bool))
