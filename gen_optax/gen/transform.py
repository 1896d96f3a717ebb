"""GeN as optax stages: `scale_by_gen` and, to the letter, the paper's rule."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.gen import estimators, rule
from gen_optax.gen.fit import LineFit, unknown_fit
from gen_optax.oracle import trees
from gen_optax.oracle.closures import require
from gen_optax.oracle.line import Evaluate

Horizon = int | Callable[[jax.Array], jax.Array]

# Trials of the search for a first rate: 25 decades at most.
MAX_TRIALS = 25


class GenInfo(NamedTuple):
  """What the last fit saw, for logs; lazy steps leave it standing.

  Attributes:
    slope: b = -phi'(0) along the update, positive downhill.
    curvature: A = phi''(0) along the update.
    optimum: eta* = b / A of this fit alone, zero where A is.
    quality: share of the bend of the line that the fit explains and that
      stands above rounding, in [0, 1].
    accepted: whether the learning rate followed the last fit.
    skipped: whether this step was withheld (updates of zero).
  """

  slope: jax.Array
  curvature: jax.Array
  optimum: jax.Array
  quality: jax.Array
  accepted: jax.Array
  skipped: jax.Array


class ScaleByGenState(NamedTuple):
  """State of `scale_by_gen`.

  Attributes:
    count: number of calls, int32.
    learning_rate: the rate, in at least float32.
    calibrated: whether the first rate has been found.
    averages: running averages of slope and curvature.
    previous_update: the last update that was taken; None without
      `fresh_slope`.
    previous_bend: the last emitted rate times the curvature it met.
    follows: whether the two above describe a step that was taken.
    info: diagnostics.
  """

  count: jax.Array
  learning_rate: jax.Array
  calibrated: jax.Array
  averages: rule.Averages
  previous_update: Any
  previous_bend: jax.Array
  follows: jax.Array
  info: GenInfo


class ScaleByGenPaperState(NamedTuple):
  """State of `scale_by_gen_paper`: count, learning_rate and info."""

  count: jax.Array
  learning_rate: jax.Array
  info: GenInfo


class _Trial(NamedTuple):
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
    \eta &\leftarrow \mathrm{clip}(F, B/10, B) / A_{avg}
      \quad \text{within a factor of 10 of the last}

  F is the average slope that fresh data see: the new gradient against the last
  update. It costs no forward pass and removes the batch's own noise from b.

  This departs from the paper's Algorithm 1 (`scale_by_gen_paper`), which
  averages the quotients b / A and diverges with momentum and Adam. The first
  finite update searches a rate by decades, up to 25 forward passes; the next
  `dense_start` steps fit every time, since momentum grows the update by an
  order of magnitude there. A fit a thousand times the usual weight, or a
  longer update, is searched anew for this step alone and enters the averages
  as a thousand usual ones at most. A step whose numbers are not finite, or
  on whose line no rate lowers the loss, is withheld.

  Momentum-free optimizers (SGD, RMSProp) are the weak spot: the greedy rate is
  3 to 10 times below their best constant one. Prefer momentum, Adam or Lion.

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
    fresh_slope: whether to bound b by the slope on fresh data. Costs one
      buffer of the parameters' size.
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

  Cost: with `value`, one forward pass on a fitting step ("known_slope"), two
  dot products, and none on the others, under `jax.vmap` too. State: one buffer
  of the parameters' size (none with `fresh_slope=False`).

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
    eq. 3.1 and 3.4, C.2, C.4, C.7.
  """
  _check_common(learning_rate, every, smoothing, horizon)
  if _known(dense_start) and dense_start < 0:
    raise ValueError(
      f"dense_start must be a number of steps, at least 0, got {dense_start!r}."
    )
  estimate = estimators.make_estimate(estimator, probes, degree, evaluate)
  needs_grad = fresh_slope or estimator == "known_slope"

  def init_fn(params):
    dtype = trees.scalar_dtype(params)
    return ScaleByGenState(
      count=jnp.zeros((), jnp.int32),
      learning_rate=jnp.asarray(learning_rate, dtype),
      calibrated=jnp.zeros((), bool),
      averages=rule.no_averages(dtype),
      previous_update=trees.zeros_like(params) if fresh_slope else None,
      previous_bend=jnp.zeros((), dtype),
      follows=jnp.zeros((), bool),
      info=_info(unknown_fit(dtype), False, False),
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
    if needs_grad and grad is None:
      raise ValueError(
        "scale_by_gen needs the raw gradient: call tx.update(updates, state, "
        "params, value=value, grad=grad, value_fn=value_fn). Where there is "
        'none, build it with estimator="fit", fresh_slope=False.'
      )
    dtype = state.learning_rate.dtype
    rate, averages = state.learning_rate, state.averages

    size = trees.vdot(updates, updates, dtype)
    slope = None
    healthy = jnp.isfinite(size)
    if grad is not None:
      slope = -trees.vdot(grad, updates, dtype)
      healthy = healthy & jnp.isfinite(slope)
    if value is not None:
      healthy = healthy & jnp.isfinite(value)

    # Fresh slope: what this batch says of the step that led here. A step of
    # length e along u met the curvature A, so the slope at its start was
    # e A - <grad, u> in this batch's eyes.
    if fresh_slope:
      seen = trees.vdot(grad, state.previous_update, dtype)
      informed = rule.average_fresh_slope(averages, state.previous_bend - seen)
      informed = trees.select(state.follows, informed, averages)
    else:
      informed = averages

    suspect = size > rule.MAX_INFLUENCE**2 * averages.size
    if slope is not None:
      weight = rule.influence(slope, jnp.zeros((), dtype), averages, rate)
      suspect = suspect | (weight > rule.MAX_INFLUENCE)
    suspect = suspect & (averages.size > 0)
    due = (state.count < dense_start) | (state.count % every == 0)
    due = (due | suspect | ~state.calibrated) & healthy & (size > 0)

    def try_rate(trial):
      fit = estimate(value_fn, params, updates, trial.rate, value, slope)
      weight = rule.influence(fit.slope, fit.curvature, averages, trial.rate)
      wild = (trial.trials == 0) & fit.finite & (weight > rule.MAX_INFLUENCE)
      wild = trial.wild | wild
      searching = trial.searching | (wild & (trial.trials == 0))
      next_rate, low, high, found, hopeless = rule.search_step(
        fit, trial.rate, trial.low, trial.high
      )
      found = found & searching
      stop = ~searching | hopeless | (trial.trials >= MAX_TRIALS)
      return _Trial(
        rate=jnp.where(stop, trial.rate, next_rate),
        low=low,
        high=high,
        fit=fit,
        trials=trial.trials + 1,
        searching=searching & ~found,
        found=trial.found | found,
        wild=wild,
        pending=~stop,
      )

    # One loop holds the fit, the search and the lazy steps, which make no trip.
    # `lax.cond` would evaluate on every step under vmap over replicas.
    trial = jax.lax.while_loop(
      lambda trial: trial.pending,
      try_rate,
      _Trial(
        rate=rate,
        low=jnp.zeros((), dtype),
        high=jnp.full((), jnp.inf, dtype),
        fit=unknown_fit(dtype),
        trials=jnp.zeros((), jnp.int32),
        searching=~state.calibrated | suspect,
        found=jnp.zeros((), bool),
        wild=suspect,
        pending=due,
      ),
    )
    fit, fitted = trial.fit, due & trial.fit.finite & ~trial.searching
    settled = state.calibrated | trial.found

    # A wild fit found a rate for this step alone; the old one moves on.
    lasting_from = jnp.where(trial.wild, rate, trial.rate)
    new_rate, new_averages, accepted = rule.average_and_divide(
      fit, informed, lasting_from, smoothing
    )
    emitted = jnp.where(trial.wild, trial.rate, new_rate)
    curvature = fit.curvature

    # Not due: an ordinary step at the rate that stands.
    idle = ~due & healthy & settled
    taken = fitted | idle
    failed = ~healthy | (due & ~fit.finite)
    held = jnp.where(
      failed, jnp.maximum(rate / rule.MAX_RATIO, rule.MIN_RATE), rate
    )
    emitted = jnp.where(fitted, emitted, rate)
    curvature = jnp.where(fitted, curvature, rule.mean_curvature(informed))
    new_averages = trees.select(
      fitted, new_averages, trees.select(idle, informed, averages)
    )
    new_averages = trees.select(
      taken & ~trial.wild,
      rule.average_size(new_averages, size, smoothing),
      new_averages,
    )
    # What a wild batch says of the last step is as wild.
    new_averages = new_averages._replace(
      fresh_slope=jnp.where(
        trial.wild, averages.fresh_slope, new_averages.fresh_slope
      ),
      fresh_weight=jnp.where(
        trial.wild, averages.fresh_weight, new_averages.fresh_weight
      ),
    )

    emitted = emitted * _horizon_factor(horizon, state.count, dtype)
    emitted = jnp.where(taken, emitted, 0.0)
    info = _info(fit, accepted & fitted, ~taken)
    kept = state.info._replace(skipped=~taken)
    previous_update = state.previous_update
    if fresh_slope:
      cast = jax.tree.map(
        lambda u, p: u.astype(p.dtype), updates, previous_update
      )
      previous_update = trees.select(taken, cast, previous_update)
    return trees.scale(updates, emitted), ScaleByGenState(
      count=optax.safe_increment(state.count),
      learning_rate=jnp.where(fitted, new_rate, held),
      calibrated=settled,
      averages=new_averages,
      previous_update=previous_update,
      previous_bend=jnp.where(taken, emitted * curvature, state.previous_bend),
      follows=jnp.where(taken, ~trial.wild, state.follows),
      info=trees.select(due, info, kept),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_gen_paper(
  learning_rate: float,
  *,
  every: int = 1,
  smoothing: float = 0.9,
  probes: Sequence[float] = (-1.0, 1.0),
  degree: int = 2,
  estimator: estimators.Estimator = "fit",
  evaluate: Evaluate = "vmap",
  horizon: Horizon | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Sets the learning rate as the GeN paper does (Algorithm 1).

  On every `every`-th step, the first being step `every`,

  .. math::

    \eta_t = \gamma \eta_{t-1} + (1 - \gamma) b / A
      \quad \text{if } A > 0 \text{ and } b > 0

  and :math:`\eta_t = \eta_{t-1}` otherwise. To the letter, with one correction:
  Algorithm 1 pairs the rate -eta with the loss L+, which reverses the sign of b
  so that every fit is rejected; here a positive probe is downhill (eq. 3.4).

  There are no safeguards. With momentum and Adam this rule diverges on the
  paper's own test functions and late in training; it is here to reproduce the
  paper and to compare. Use `scale_by_gen` to train.

  Special cases:
    * LQA (eq. 3.5): `scale_by_gen_paper(lr, smoothing=0.0)`.
    * QLABGrad: `scale_by_gen_paper(lr, estimator="known_slope", probes=(1.0,),
      smoothing=0.0)`.
    * GeN-HOD (Algorithm 2), and ADLER behind SGD:
      `scale_by_gen_paper(lr, estimator="hvp", smoothing=0.0)`.

  Args:
    learning_rate: the initial rate eta_0, positive. It matters.
    every: the paper's Phi, at least 1.
    smoothing: the paper's gamma, in [0, 1).
    probes: multiples of the current rate, zero implied. The exact estimators
      ignore them.
    degree: degree of the fitted polynomial, 2 to 4. Degree 4 on
      (-2, -1, 1, 2) is eq. (A.2).
    estimator: as in `scale_by_gen`.
    evaluate: as in `scale_by_gen`.
    horizon: as in `scale_by_gen`: a factor on the emitted step (C.1).

  Returns:
    A transformation whose `update` takes `value_fn`, optionally `value`, and,
    with `estimator="known_slope"`, the raw gradient `grad`.

  Raises:
    ValueError: on a wrong configuration or a missing argument.

  Cost: one forward pass for each probe on a fitting step, none on the others.

  Example:

    >>> import jax, optax, gen_optax
    >>> beale = gen_optax.problems.beale()
    >>> tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen_paper(0.01))
    >>> w = jax.numpy.ones(2)
    >>> state = tx.init(w)
    >>> value, grad = jax.value_and_grad(beale.fn)(w)
    >>> updates, state = tx.update(
    ...   grad, state, w, value=value, value_fn=beale.fn)
    >>> eta = optax.tree.get(state, "ScaleByGenPaperState").learning_rate
    >>> print(f"{eta:.4f}")
    0.0105

  References:
    Bu and Xu, Gradient descent with generalized Newton's method, 2024:
    Algorithms 1 and 2.
  """
  _check_common(learning_rate, every, smoothing, horizon)
  if estimator in ("forward", "hvp"):
    probes = None
  estimate = estimators.make_estimate(
    estimator, probes, degree, evaluate, rounding=0.0
  )

  def init_fn(params):
    dtype = trees.scalar_dtype(params)
    return ScaleByGenPaperState(
      count=jnp.zeros((), jnp.int32),
      learning_rate=jnp.asarray(learning_rate, dtype),
      info=_info(unknown_fit(dtype), False, False),
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
    require("scale_by_gen_paper", params=params, value_fn=value_fn)
    slope = None
    if estimator == "known_slope":
      require("scale_by_gen_paper", grad=grad)
      slope = -trees.vdot(grad, updates, state.learning_rate.dtype)

    def refit(carry):
      _, rate, _ = carry
      fit = estimate(value_fn, params, updates, rate, value, slope)
      rate, accepted = rule.paper_rule(fit, rate, smoothing)
      return jnp.zeros((), bool), rate, _info(fit, accepted, False)

    count = optax.safe_increment(state.count)
    carry = (count % every == 0, state.learning_rate, state.info)
    if _known(every) and every == 1:
      _, rate, info = refit(carry)
    else:
      _, rate, info = jax.lax.while_loop(lambda c: c[0], refit, carry)
    factor = _horizon_factor(horizon, state.count, rate.dtype)
    return trees.scale(updates, rate * factor), ScaleByGenPaperState(
      count, rate, info
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _info(fit: LineFit, accepted, skipped) -> GenInfo:
  return GenInfo(
    fit.slope,
    fit.curvature,
    fit.optimum,
    fit.quality,
    jnp.asarray(accepted, bool),
    jnp.asarray(skipped, bool),
  )


def _horizon_factor(horizon, count, dtype):
  if horizon is None:
    return jnp.ones((), dtype)
  if callable(horizon):
    return jnp.asarray(horizon(count), dtype)
  # Cast before dividing: int32 / int is float32 even under x64.
  return jnp.maximum(0.0, 1.0 - count.astype(dtype) / horizon)


def _check_common(learning_rate, every, smoothing, horizon):
  """Raises on wrong numbers; tracers, from `inject_hyperparams`, pass."""
  if callable(learning_rate):
    raise ValueError(
      "learning_rate must be a number, got a schedule: GeN sets the rate. To "
      "decay it, pass the decay as horizon=."
    )
  if _known(learning_rate) and not 0 < learning_rate < float("inf"):
    raise ValueError(
      f"learning_rate must be positive and finite, got {learning_rate!r}."
    )
  if _known(every) and (every < 1 or every != int(every)):
    raise ValueError(f"every must be a positive integer, got {every!r}.")
  if _known(smoothing) and not 0 <= smoothing < 1:
    raise ValueError(f"smoothing must lie in [0, 1), got {smoothing!r}.")
  if horizon is not None and not callable(horizon):
    if _known(horizon) and horizon <= 0:
      raise ValueError(
        f"horizon must be a positive number of steps, got {horizon!r}."
      )


def _known(number) -> bool:
  return not isinstance(number, jax.core.Tracer)
