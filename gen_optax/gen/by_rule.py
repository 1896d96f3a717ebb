"""The GeN stage for a rule that is passed as an object."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from gen_optax.gen import outliers
from gen_optax.gen.fit import LineFit, unknown_fit
from gen_optax.gen.observe import Observation, observe
from gen_optax.gen.outcome import conclude
from gen_optax.gen.rule import MIN_RATE
from gen_optax.gen.search import decreases_loss, fit_or_search
from gen_optax.gen.stage import GenInfo, horizon_factor, report
from gen_optax.gen.state import Averages, no_averages
from gen_optax.helpers import trees
from gen_optax.helpers.lazy import run_if


class Rule(Protocol):
  """How the rate follows from gradients and fits."""

  max_ratio: float

  def check(self) -> None:
    """Raises `ValueError` on a constant that is out of its range."""

  def init(self, params, dtype) -> Any:
    """The memory before the first step."""

  def look(
    self, memory, observed: Observation, grad, params, rate
  ) -> tuple[Any, jax.Array]:
    """The memory with this gradient, and the rate to probe."""

  def follow(self, memory, old, probed, learned):
    """The memory after a step, for the rates before it, probed, and after."""

  def learn(
    self, fit: LineFit, averages: Averages, rate, first
  ) -> tuple[jax.Array, Averages, jax.Array]:
    """`(rate, averages, accepted)` from a finite fit at `rate`."""


class ScaleByRuleState(NamedTuple):
  """State of the stage.

  Attributes:
    count: number of calls, int32.
    learning_rate: the rate, in at least float32.
    calibrated: whether the first rate has been found.
    averages: of slope, curvature and length, over earlier lines.
    memory: what the rule remembers besides.
    info: diagnostics.
  """

  count: jax.Array
  learning_rate: jax.Array
  calibrated: jax.Array
  averages: Averages
  memory: Any
  info: GenInfo

  # What `observe` looks for; such a rule has no use for it.
  previous_update = None


def scale_by_rule(
  rule: Rule,
  learning_rate,
  *,
  every,
  estimate,
  exact: bool,
  horizon,
  dense_start,
  check_arguments,
) -> optax.GradientTransformationExtraArgs:
  """The stage; `scale_by_gen` has checked the options."""

  def init_fn(params):
    dtype = trees.scalar_dtype(params)
    return ScaleByRuleState(
      count=jnp.zeros((), jnp.int32),
      # A copy: under injection it is another leaf of the donated state.
      learning_rate=jnp.array(learning_rate, dtype),
      calibrated=jnp.zeros((), bool),
      averages=no_averages(dtype),
      memory=rule.init(params, dtype),
      info=report(unknown_fit(dtype), False, False),
    )

  def update_fn(
    updates,
    state,
    params=None,
    *,
    value_fn=None,
    value=None,
    grad=None,
    **extra_args,
  ):
    del extra_args
    check_arguments(params, value_fn, value, grad)
    observed = observe(state, updates, grad, value)
    old = state.learning_rate
    memory, rate = rule.look(state.memory, observed, grad, params, old)

    due = (state.count < dense_start) | (state.count % every == 0)
    due = due | observed.outlier | ~state.calibrated
    due = due & observed.healthy & (observed.size > 0)
    # Nothing grows unseen, nor on the word of a gradient that is in doubt.
    grows = due & state.calibrated & ~observed.outlier & jnp.isfinite(rate)
    rate = jnp.where(grows, rate, old)
    trial, updates = fit_or_search(
      lambda u, at: estimate(value_fn, params, u, at, value, observed.slope),
      updates,
      rate,
      state.averages,
      pending=due,
      searching=observed.outlier | ~state.calibrated,
      outlier=observed.outlier,
      exact=exact,
    )
    decreases = None
    if exact:
      decreases = decreases_loss(value_fn, params, updates, value, trial)
    outcome = conclude(state, observed, due, trial, decreases)

    # An outlier has found a rate for this step alone.
    probed = jnp.where(trial.outlier, old, trial.rate)
    first = outcome.calibrated & ~state.calibrated
    learned, averages, accepted = rule.learn(
      trial.fit, state.averages, probed, first
    )
    averages = optax.tree.where(outcome.fitted, averages, state.averages)
    averages = optax.tree.where(
      outcome.taken,
      outliers.include_size(averages, observed.size, trial.outlier),
      averages,
    )
    shorter = jnp.maximum(rate / rule.max_ratio, MIN_RATE)
    kept = jnp.where(outcome.failed, shorter, old)
    learned = jnp.where(outcome.fitted, learned, kept)

    emitted = jnp.where(outcome.fitted & trial.outlier, trial.rate, learned)
    emitted = emitted * horizon_factor(horizon, state.count, learned.dtype)
    emitted = jnp.where(outcome.taken, emitted, 0.0)
    updates = run_if(~outcome.taken, optax.tree.zeros_like, updates)
    # What is in doubt leaves no trace.
    believed = outcome.taken & ~trial.outlier
    memory = rule.follow(memory, old, rate, learned)
    memory = optax.tree.where(believed, memory, state.memory)
    found = report(trial.fit, accepted & outcome.fitted, ~outcome.taken)
    skipped = state.info._replace(skipped=~outcome.taken)
    return trees.multiply(updates, emitted), ScaleByRuleState(
      count=trees.increment(state.count),
      learning_rate=learned,
      calibrated=outcome.calibrated,
      averages=averages,
      memory=memory,
      info=optax.tree.where(due, found, skipped),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
