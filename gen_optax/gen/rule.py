"""The default rule: a fit and the averages -> the next learning rate. Pure."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.gen import outliers
from gen_optax.gen.fit import LineFit
from gen_optax.gen.greedy import check_ratio, moved, optimum_of
from gen_optax.gen.observe import Observation
from gen_optax.gen.protocol import Lesson, Look, Taken
from gen_optax.gen.search import Trial
from gen_optax.gen.state import Averages, Parabola
from gen_optax.gen.trace import Trace, no_trace, refresh
from gen_optax.helpers import mean, trees
from gen_optax.helpers.checks import check_in, check_positive, is_known


class GenRule(NamedTuple):
  """The constants of GeN's default rule.

  Attributes:
    smoothing: decay of the averages of slope and curvature, in [0, 1). 0.9 is
      the paper's gamma.
    fresh_smoothing: decay of the average slope on fresh data, in [0, 1). Fresh
      slopes are noisier than a batch's own. Chosen against 0.9 on the small
      networks that the rule was made on.
    distance_share: the least rate in units of DoG's, at least 0; see
      `distance_rate`. Chosen on LeNet, whose first plateau has hardly any
      signal (scripts.gen.ablations --study distance). 0 turns the bound off.
    max_ratio: the rate moves by at most this factor in one fit; above 1. With 2
      it does not escape a curvature that explodes (Rosenbrock with momentum);
      without a bound it fails on Beale.
    max_lead: a line's own optimum is at most this many times what the averages
      say; positive. 10 is too bold where the loss changes with the step (an
      actor's). None: the averages always decide.

  Without `fresh_slope` only `smoothing` and `max_ratio` have an effect.
  """

  smoothing: float = mean.SMOOTHING
  fresh_smoothing: float = 0.97
  distance_share: float = 0.15
  max_ratio: float = 10.0
  max_lead: float | None = 2.0

  @property
  def needs_grad(self) -> bool:
    """For what fresh data see."""
    return True

  def check(self):
    """Raises `ValueError` on a constant that is out of its range."""
    check_in("smoothing", self.smoothing, 0, 1)
    check_in("fresh_smoothing", self.fresh_smoothing, 0, 1)
    check_in("distance_share", self.distance_share, 0, jnp.inf)
    check_ratio(self.max_ratio)
    if self.max_lead is not None:
      check_positive(max_lead=self.max_lead)

  def init(self, params, dtype) -> Trace:
    """The memory before the first step."""
    return no_trace(params, dtype)

  def look(self, memory: Trace, observed: Observation) -> Look:
    """The slope that this batch sees along the last step, and the distance."""
    dtype = memory.max_distance.dtype
    # Before the fit, or the buffer of the previous update is copied.
    derivative = trees.vdot(observed.grad, memory.previous_update, dtype)
    leads = self.max_lead is not None
    if leads or not is_known(self.distance_share) or self.distance_share > 0:
      memory = refresh(memory, observed, leads)
    return Look((memory, derivative), jnp.isfinite(derivative))

  def learn(
    self,
    memory,
    averages: Averages,
    observed: Observation,
    trial: Trial,
    rate,
    alone,
  ) -> Lesson:
    """The fresh slope, then `learn`."""
    trace, derivative = memory
    # A step of length e along u met the curvature A: in this batch's eyes the
    # slope at its start was e A - <grad, u>.
    slope = trace.curvature_times_step - derivative
    fresh = mean.include(trace.fresh_slope, slope, self.fresh_smoothing)
    counts = trace.follows & observed.healthy & ~trial.outlier
    fresh = optax.tree.where(counts, fresh, trace.fresh_slope)
    trace = trace._replace(fresh_slope=fresh)
    alone = alone & trace.momentum_free
    rate, averages, accepted = learn(
      self, trial.fit, averages, trace, rate, alone
    )
    return Lesson(rate, averages, trace, accepted)

  def follow(self, memory: Trace, observed, step: Taken) -> Trace:
    """What the next batch needs to tell the slope at the start of this step."""
    # An outlier is no part of the path.
    counts = step.taken & ~step.outlier
    size = jnp.where(counts, observed.size, 0.0)
    return memory._replace(
      sum_sq_norms=memory.sum_sq_norms + size,
      previous_update=optax.tree.cast_like(
        step.updates, memory.previous_update
      ),
      curvature_times_step=jnp.where(
        step.taken, step.rate * step.curvature, 0.0
      ),
      follows=counts & (observed.size > 0),
    )


def learn(
  rule: GenRule,
  fit: LineFit,
  averages: Averages,
  trace: Trace,
  rate: jax.Array,
  per_step,
) -> tuple[jax.Array, Averages, jax.Array]:
  r"""Averages slope and curvature apart, then divides.

  .. math::

    B \leftarrow \gamma B + (1 - \gamma) w b, \quad
    C \leftarrow \gamma C + (1 - \gamma) w A, \quad
    \eta = \mathrm{clip}(F, r C, B) / C

  Algorithm 1 of the paper averages the optima b / A of eq. 3.1. Late in
  training most batches are easy and have A near zero, their quotients dominate
  that mean, and the rate explodes; in the quotient of the averages the rare
  hard batches dominate C. The weight w is 1 but for outliers
  (`outliers.weight`). b is measured on the batch that made the direction and is
  too large by that batch's noise; F, the average slope that the next batch
  sees, is not, so it replaces B where it is smaller. F / C alone would be too
  small, since the rate that is best for the next step is not the best for the
  next thousand, so r, the `distance_rate`, bounds it from below. Where the rate
  serves this step alone and fresh data see no noise (F >= B) there is nothing
  to average: the rate is the line's own optimum, at most `max_lead` times that
  of the averages.

  Args:
    rule: the constants.
    fit: a finite fit at `rate`.
    averages: before it.
    trace: the memory before it; its `fresh_slope` includes this batch.
    rate: the rate that the fit probed.
    per_step: whether the next step has a fit of its own and the optimizer no
      momentum, so that no other step depends on this rate.

  Returns:
    `(rate, averages, accepted)`. The rate moves by at most `max_ratio`, and
    stays if the average slope points uphill.
  """
  first = averages.line.weight == 0
  averages = outliers.include_line(averages, fit, rate, rule.smoothing)
  slope, curvature = averages.line.sum

  fresh = mean.value(trace.fresh_slope) * averages.line.weight
  known = ~first & (trace.fresh_slope.weight > 0) & (slope > 0)
  noiseless = known & (fresh >= slope)
  least = distance_rate(rule, trace) * curvature
  slope = jnp.where(known, jnp.clip(fresh, least, slope), slope)

  optimum = optimum_of(Parabola(slope, curvature), fit)
  if rule.max_lead is not None:
    per_step = per_step & noiseless & (fit.curvature > 0)
    # Beyond the averages' optimum the fit has not probed.
    led = jnp.minimum(fit.optimum, rule.max_lead * optimum)
    optimum = jnp.where(per_step, led, optimum)
  accepted = slope > 0
  new_rate = jnp.where(accepted, moved(rate, optimum, rule.max_ratio), rate)
  return new_rate, averages, accepted


def distance_rate(rule: GenRule, trace: Trace) -> jax.Array:
  """A rate that needs no curvature; zero before the parameters have moved.

      distance_share max_s |w_s - w_0| / sqrt(sum_s |u_s|^2)

  The rate of DoG (distance over gradients), in the update's norm, times a
  constant. A greedy rate pays for a direction's noise at each step, though the
  loss that noise costs stays bounded and the progress adds up; where the signal
  is weak it falls until nothing moves. The distance remembers that earlier
  steps got somewhere.
  """
  moved = trace.sum_sq_norms > 0
  root = jnp.sqrt(jnp.where(moved, trace.sum_sq_norms, 1.0))
  distance = rule.distance_share * trace.max_distance
  return jnp.where(moved, distance / root, 0.0)
