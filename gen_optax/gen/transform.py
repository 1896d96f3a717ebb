"""`scale_by_gen`: the default rule as an optax stage."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.gen import estimators, looks, rule
from gen_optax.gen.fit import unknown_fit
from gen_optax.gen.search import fit_or_search, is_sound
from gen_optax.gen.stage import (
  GenInfo,
  Horizon,
  check_options,
  horizon_factor,
  report,
)
from gen_optax.helpers import trees
from gen_optax.helpers.checks import is_known
from gen_optax.helpers.lazy import run_if
from gen_optax.oracle.closures import require, require_scalar
from gen_optax.oracle.line import Evaluate


class ScaleByGenState(NamedTuple):
  """State of `scale_by_gen`.

  Attributes:
    count: number of calls, int32.
    learning_rate: the rate, in at least float32.
    calibrated: whether the first rate has been found.
    averages: running averages of slope and curvature.
    previous_update: the last update, zero where it was withheld; None without
      `fresh_slope`.
    previous_bend: the last emitted rate times the curvature it met.
    follows: whether the two above describe a step that was taken, neither zero
      nor wild.
    start: the parameters at the start; None without `fresh_slope`.
    memoryless: whether no update that was looked at went uphill in a
      coordinate, as those of an optimizer with memory do; looked at where
      `every` is 1.
    info: diagnostics.
  """

  count: jax.Array
  learning_rate: jax.Array
  calibrated: jax.Array
  averages: rule.Averages
  previous_update: Any
  previous_bend: jax.Array
  follows: jax.Array
  start: Any
  memoryless: jax.Array
  info: GenInfo


def scale_by_gen(
  learning_rate: float = 1e-3,
  *,
  every: int = 1,
  estimator: estimators.Estimator = "known_slope",
  probes: Sequence[float] | None = None,
  degree: int = 2,
  evaluate: Evaluate = "vmap",
  horizon: Horizon | None = None,
  fresh_slope: bool = True,
  smoothing: float = 0.9,
  dense_start: int = 20,
) -> optax.GradientTransformationExtraArgs:
  r"""Sets the learning rate from the loss along the update (GeN).

  Stands behind a complete optimizer built with learning rate 1 and multiplies
  its update u by a rate :math:`\eta > 0`. With
  :math:`\phi(s) = L(w + s u)` it measures the slope
  :math:`b = -\phi'(0)` and the curvature :math:`A = \phi''(0)`, averages each,
  and steps by their quotient:

  .. math::

    B &\leftarrow \gamma B + (1 - \gamma) b, \quad
    A_{avg} \leftarrow \gamma A_{avg} + (1 - \gamma) A \\
    \eta &\leftarrow \mathrm{clip}(F, r A_{avg}, B) / A_{avg}
      \quad \text{within a factor of 10 of the last}

  F is the average slope that fresh data see: the new gradient against the last
  update. It costs no forward pass and removes the batch's own noise from b.
  :math:`r = 0.15 \max_s |w_s - w_0| / (\sum_s |u_s|^2)^{1/2}` keeps the rate
  from falling to what is best for the next step alone (`rule.distance_rate`);
  the distance is looked at on the first 20 steps and on every eighth.
  Nothing is averaged where every step fits, the optimizer has no memory (its
  updates have gone along -g in each coordinate so far) and fresh data see no
  noise (F >= B): then :math:`\eta = \min(b / A, 2 B / A_{avg})`.

  This departs from the paper's Algorithm 1 (`scale_by_gen_paper`), which
  averages the quotients b / A and diverges with momentum and Adam. The first
  finite update searches a rate by decades, up to 25 forward passes; the next
  `dense_start` steps fit every time, since momentum grows the update by an
  order of magnitude there. A line far from the averages (`rule.is_wild`) is
  searched for a rate of its own, for this step alone, and counts for at most a
  thousand average ones, or ten where it claims a million. An exact estimator
  takes steps of `learning_rate` until it meets a line that bends up, to a rate
  at which the loss is no higher: that look costs a forward pass. A step whose
  numbers are not finite, or on whose wild line no rate lowers the loss, is
  withheld.

  Momentum-free optimizers (SGD, RMSProp) are the weak spot: the greedy rate is
  far below their best constant one. Prefer momentum or Adam.

  Args:
    learning_rate: where the search for the first rate starts, positive.
      Irrelevant over 1e-6 to 1.
    every: fit on every `every`-th step after the dense start (the paper's Phi).
    estimator: "known_slope" takes b = -<grad, update> and fits A; "fit" fits
      both to losses; "forward" and "hvp" differentiate exactly. See
      `gen_optax.gen.estimators`.
    probes: multiples of the current rate at which the loss is evaluated, zero
      implied. None: (1,) for "known_slope", (-1, 1) for "fit".
    degree: degree of the fitted polynomial, 2 to 4.
    evaluate: "vmap" evaluates the probes at once, "map" one after the other,
      with one perturbed copy of the parameters alive.
    horizon: None, the total number of steps T for a factor 1 - t / T on the
      emitted step (C.1), or a function from the step count to a factor. It
      never enters the averages.
    fresh_slope: whether to bound b by the slope on fresh data, and that from
      below by r. Costs two buffers of the parameters' size.
    smoothing: the averaging constant gamma, in [0, 1).
    dense_start: number of first steps that all fit, at least 0.

  Under `optax.inject_hyperparams` name `degree` in `static_args`, and `probes`
  or a callable `horizon` where given.

  Returns:
    A transformation whose `update` takes

    * `value_fn`: the loss as a function of the parameters alone, over the same
      batch and random key as the gradient. Required.
    * `grad`: the raw gradient. Required by "known_slope" and `fresh_slope`.
    * `value`: the loss at `params`; saves one forward pass.

  Raises:
    ValueError: on a wrong configuration, and on a missing argument, with the
      line that mends the call.

  Cost: with `value`, one forward pass on a fitting step ("known_slope") and
  none on the others, under `jax.vmap` too; up to 25 on the first step. Three
  sums over the parameters on every step; on the first twenty and every eighth
  one more, two with `every=1`. State: two buffers of the parameters' size (none
  with `fresh_slope=False`); one more while the loss is evaluated.

  On a mesh it sends what its evaluations of the closure send, and nothing else
  where parameters are replicated: one all-reduce of the loss. Where they are
  sharded, besides, up to five scalars for each leaf (seven with "hvp"), three
  of them on every step; one more with `every=1`, where it looks at the
  distance. A closure that gathers parameters gathers them once more for each
  pass of a fit; `every` divides that.

  Example:

    >>> import jax, jax.numpy as jnp, optax, gen_optax
    >>> loss = lambda w: jnp.sum((w - 3.0) ** 2)
    >>> tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen())
    >>> w = jnp.zeros(2)
    >>> state = tx.init(w)
    >>> value, grad = jax.value_and_grad(loss)(w)
    >>> updates, state = tx.update(
    ...   grad, state, w, value=value, grad=grad, value_fn=loss)
    >>> w = optax.apply_updates(w, updates)
    >>> print(f"{loss(w):.3f}")
    0.000

  References:
    Bu and Xu, Gradient descent with generalized Newton's method, 2024:
    eq. 3.1 and 3.4, C.2, C.4, C.7. Ivgi, Hinder and Carmon, DoG is SGD's best
    friend, 2023: the distance over gradients.
  """
  check_options(learning_rate, every, smoothing, horizon)
  if is_known(dense_start) and dense_start < 0:
    raise ValueError(
      f"dense_start must be a number of steps, at least 0, got {dense_start!r}."
    )
  estimate = estimators.make_estimate(estimator, probes, degree, evaluate)
  needs_grad = fresh_slope or estimator == "known_slope"
  exact = estimator in estimators.EXACT
  may_stand_alone = fresh_slope and not (is_known(every) and every > 1)

  def init_fn(params):
    dtype = trees.scalar_dtype(params)
    return ScaleByGenState(
      count=jnp.zeros((), jnp.int32),
      # A copy: under injection it is another leaf of the donated state.
      learning_rate=jnp.array(learning_rate, dtype),
      calibrated=jnp.zeros((), bool),
      averages=rule.no_averages(dtype),
      previous_update=optax.tree.zeros_like(params) if fresh_slope else None,
      previous_bend=jnp.zeros((), dtype),
      follows=jnp.zeros((), bool),
      start=trees.copy(params) if fresh_slope else None,
      memoryless=jnp.ones((), bool),
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
    require("scale_by_gen", params=params, value_fn=value_fn)
    require_scalar("scale_by_gen", value)
    if needs_grad and grad is None:
      raise ValueError(
        "scale_by_gen needs the raw gradient: call tx.update(updates, state, "
        "params, value=value, grad=grad, value_fn=value_fn). Where there is "
        'none, build it with estimator="fit", fresh_slope=False.'
      )
    dtype = state.learning_rate.dtype
    rate, averages = state.learning_rate, state.averages

    # What the update and the gradient say before any forward pass.
    size = trees.vdot(updates, updates, dtype)
    slope = None if grad is None else -trees.vdot(grad, updates, dtype)
    # How this batch sees the step that led here; read before the fit, or the
    # buffer that holds that step is copied.
    seen = None
    if fresh_slope:
      seen = trees.vdot(grad, state.previous_update, dtype)
    healthy = jnp.isfinite(size)
    for scalar in (slope, seen, value):
      if scalar is not None:
        healthy = healthy & jnp.isfinite(scalar)
    suspect = rule.is_suspect(size, slope, averages, rate)
    memoryless = state.memoryless
    if fresh_slope:

      def observe(known):
        reach, memoryless = known
        away = trees.distance(params, state.start, dtype)
        if may_stand_alone:
          sizes = trees.vdot_of_sizes(grad, updates, dtype)
          memoryless = memoryless & ~rule.remembers(slope, sizes)
        return rule.farther(reach, away), memoryless

      reach, memoryless = looks.look(
        state.count, observe, (averages.reach, memoryless)
      )
      averages = averages._replace(reach=reach)

    due = (state.count < dense_start) | (state.count % every == 0)
    due = (due | suspect | ~state.calibrated) & healthy & (size > 0)
    trial, updates = fit_or_search(
      lambda u, at: estimate(value_fn, params, u, at, value, slope),
      updates,
      rate,
      averages,
      pending=due,
      searching=suspect | ~state.calibrated,
      wild=suspect,
      exact=exact,
    )
    fit, wild = trial.fit, trial.wild
    sound = jnp.ones((), bool)
    if exact:
      sound = is_sound(value_fn, params, updates, value, trial)
    calibrated = state.calibrated | (trial.found & sound)
    fitted = due & fit.finite & ~trial.searching & sound
    idle = ~due & healthy & calibrated
    taken = fitted | idle
    if exact:
      # No loss tells how far a first line can be followed that bends down.
      downhill = fit.finite & (fit.slope > 0) & ((fit.curvature <= 0) | ~sound)
      taken |= due & downhill & ~calibrated & ~wild
      # And none that its curvature was no absurd one.
      absurd = fitted & rule.is_first_absurd(fit, averages, rate, smoothing)
      averages = rule.forget_fits(averages, absurd)
      trial = trial._replace(rate=jnp.where(absurd, fit.optimum, trial.rate))

    # A step of length e along u met the curvature A: in this batch's eyes the
    # slope at its start was e A - <grad, u>.
    if fresh_slope:
      averages = trees.select(
        state.follows & healthy & ~wild,
        rule.average_fresh_slope(averages, state.previous_bend - seen),
        averages,
      )

    # Momentum shows in the dense start, but not in its first step.
    alone = memoryless & (state.count >= dense_start) & (every == 1)
    # A wild line has found a rate for this step alone; the lasting one moves on
    # from where it was.
    new_rate, new_averages, accepted = rule.average_and_divide(
      fit, averages, jnp.where(wild, rate, trial.rate), smoothing, alone
    )
    new_averages = trees.select(fitted, new_averages, averages)
    new_averages = trees.select(
      taken,
      rule.average_size(new_averages, size, wild, smoothing),
      new_averages,
    )
    failed = ~healthy | (due & ~fit.finite)
    shorter = jnp.maximum(rate / rule.MAX_RATIO, rule.MIN_RATE)
    new_rate = jnp.where(fitted, new_rate, jnp.where(failed, shorter, rate))

    emitted = jnp.where(fitted & wild, trial.rate, new_rate)
    emitted = emitted * horizon_factor(horizon, state.count, dtype)
    emitted = jnp.where(taken, emitted, 0.0)

    # Zero whatever it was made of, for this step and for the fresh slope.
    updates = run_if(~taken, optax.tree.zeros_like, updates)
    previous_update, previous_bend = state.previous_update, state.previous_bend
    if fresh_slope:
      met = jnp.where(due, fit.curvature, rule.mean_curvature(averages))
      previous_bend = jnp.where(taken, emitted * met, 0.0)
      previous_update = optax.tree.cast_like(updates, previous_update)
    return trees.multiply(updates, emitted), ScaleByGenState(
      count=trees.increment(state.count),
      learning_rate=new_rate,
      calibrated=calibrated,
      averages=new_averages,
      previous_update=previous_update,
      previous_bend=previous_bend,
      follows=taken & ~wild & (size > 0),
      start=state.start,
      memoryless=memoryless,
      info=trees.select(
        due,
        report(fit, accepted & fitted, ~taken),
        state.info._replace(skipped=~taken),
      ),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
