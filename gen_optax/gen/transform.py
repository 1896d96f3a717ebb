"""`scale_by_gen`: the default rule as an optax stage."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax

from gen_optax.gen import estimators
from gen_optax.gen.fit import unknown_fit
from gen_optax.gen.greedy import Greedy
from gen_optax.gen.observe import observe
from gen_optax.gen.outcome import conclude, forget_first_fit, learn
from gen_optax.gen.protocol import Rule, Taken
from gen_optax.gen.rule import GenRule
from gen_optax.gen.search import decreases_loss, fit_or_search
from gen_optax.gen.stage import Horizon, check_options, horizon_factor, report
from gen_optax.gen.state import ScaleByGenState, no_averages
from gen_optax.helpers import mean, trees
from gen_optax.helpers.checks import check_integers, is_known
from gen_optax.helpers.lazy import run_if
from gen_optax.oracle.closures import require, require_scalar
from gen_optax.oracle.line import Evaluate


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
  smoothing: float | None = None,
  dense_start: int = 20,
  rule: Rule = GenRule(),
) -> optax.GradientTransformationExtraArgs:
  r"""Sets the learning rate from the loss along the update (GeN).

  Goes after a complete optimizer built with learning rate 1, and multiplies its
  update u by a rate :math:`\eta > 0`. With :math:`\phi(s) = L(w + s u)` it
  measures the slope :math:`b = -\phi'(0)` and the curvature
  :math:`A = \phi''(0)`, averages each, and steps by their quotient:

  .. math::

    B &\leftarrow \gamma B + (1 - \gamma) b, \quad
    C \leftarrow \gamma C + (1 - \gamma) A \\
    \eta &\leftarrow \mathrm{clip}(F, r C, B) / C
      \quad \text{within a factor of 10 of the last}

  F is the average slope that fresh data see: the new gradient against the last
  update. It costs no forward pass and removes the batch's own noise from b.
  :math:`r = 0.15 \max_s |w_s - w_0| / (\sum_s |u_s|^2)^{1/2}` keeps the rate
  from falling to what is best for the next step alone. The averages are
  bypassed if every step fits, the optimizer has no momentum (its updates have
  gone along -g in each coordinate so far) and fresh data see no noise (F >= B):
  :math:`\eta = \min(b / A, 2 B / C)`. `gen_optax.GenRule` has the constants,
  and where they come from.

  This departs from the paper's Algorithm 1 (`scale_by_gen_paper`), which
  averages the quotients b / A and diverges with momentum and Adam. The first
  finite update searches a rate by decades, up to 25 forward passes. The next
  `dense_start` steps fit every time, since momentum grows the update by an
  order of magnitude there. A line far from the averages is an outlier: it is
  searched for a rate of its own, for this step alone, and its weight in the
  averages is clipped. An exact estimator takes steps of `learning_rate` until
  it meets a line that bends up, and then checks with one forward pass that the
  loss is no higher at the rate found. A step is withheld if its numbers are not
  finite, or if no rate lowers the loss on its outlying line.

  Optimizers without momentum (SGD, RMSProp) are the weak spot: the greedy rate
  is far below their best constant one. Prefer momentum or Adam.

  Args:
    learning_rate: where the search for the first rate starts, positive.
      Irrelevant over 1e-6 to 1.
    every: fit on every `every`-th step after the dense start (the paper's Phi).
    estimator: "known_slope" takes b = -<grad, update> and fits A; "fit" fits
      both to losses; "forward" and "hvp" differentiate exactly. See
      `gen_optax.gen.estimators`.
    probes: multiples of the current rate at which the loss is evaluated, zero
      implied. None: (1,) for "known_slope", (-1, 1) for "fit", none for the
      exact ones; given to those, the larger curvature counts of the derivative
      and of the fit to these losses with the exact slope.
    degree: degree of the fitted polynomial, 2 to 4.
    evaluate: "vmap" evaluates the probes at once, "map" one after the other,
      with one perturbed copy of the parameters alive.
    horizon: None, the total number of steps T for a factor 1 - t / T on the
      emitted step (C.1), or a function from the step count to a factor. It
      never enters the averages.
    fresh_slope: whether to bound b by the slope on fresh data, and that from
      below by r. Costs two buffers of the parameters' size. False: the greedy
      rule with the default's `smoothing`.
    smoothing: the averaging constant gamma, in [0, 1). None: that of `rule`.
      `optax.inject_hyperparams` injects it where given.
    dense_start: number of first steps that all fit, at least 0.
    rule: the constants of the default rule, or another rule:
      `gen_optax.greedy()` for a loss that is the same function at every step.

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
      line that fixes the call.

  Cost: with `value`, one forward pass on a fitting step ("known_slope") and
  none on the others, under `jax.vmap` too; up to 25 on the first step. Three
  sums over the parameters on every step. The distance is one more, with
  `every=1` two, on the first twenty steps and every eighth after them. State:
  two buffers of the parameters' size (none with `fresh_slope=False`); one more
  while the loss is evaluated.

  On a mesh it sends what its evaluations of the closure send, and nothing else
  where parameters are replicated: one all-reduce of the loss. Where they are
  sharded, besides, up to five scalars for each leaf (seven with "hvp"), three
  of them on every step; one more with `every=1`, where the distance is
  computed. A closure that gathers parameters gathers them once more for each
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
  check_options(learning_rate, every, horizon)
  if not hasattr(rule, "look"):
    raise ValueError(
      f"rule must be a gen_optax.GenRule or gen_optax.greedy(), got {rule!r}."
    )
  if smoothing is not None:
    rule = rule._replace(smoothing=smoothing)
  rule.check()
  check_integers(0, dense_start=dense_start)
  estimate = estimators.make_estimate(estimator, probes, degree, evaluate)
  if isinstance(rule, GenRule):
    if not fresh_slope:
      rule = Greedy(rule.smoothing, rule.max_ratio)
    elif is_known(every) and every > 1:
      # No step stands alone: nothing to watch for.
      rule = rule._replace(max_lead=None)
  needs_grad = rule.needs_grad or estimator == "known_slope"
  exact = estimator in estimators.EXACT and probes is None

  def init_fn(params):
    dtype = trees.scalar_dtype(params)
    return ScaleByGenState(
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
    _check_arguments(needs_grad, params, value_fn, value, grad)
    observed = observe(state, updates, grad, params, value)
    due = (state.count < dense_start) | (state.count % every == 0)
    due = due | observed.outlier | ~state.calibrated
    due = due & observed.healthy & (observed.size > 0)
    seen = rule.look(state.memory, observed)
    observed = observed._replace(healthy=observed.healthy & seen.sound)
    due = due & seen.sound

    trial, updates = fit_or_search(
      lambda u, at: estimate(value_fn, params, u, at, value, observed.slope),
      updates,
      state.learning_rate,
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
    if exact:
      state, trial = forget_first_fit(rule, state, trial, outcome)

    # Momentum shows in the dense start, but not in its first step.
    alone = (state.count >= dense_start) & (every == 1)
    lesson = learn(rule, state, seen, observed, trial, outcome, alone)

    emitted = jnp.where(outcome.fitted & trial.outlier, trial.rate, lesson.rate)
    emitted = emitted * horizon_factor(horizon, state.count, emitted.dtype)
    emitted = jnp.where(outcome.taken, emitted, 0.0)
    # Zero whatever it was made of, for this step and for the fresh slope.
    updates = run_if(~outcome.taken, optax.tree.zeros_like, updates)
    usual = mean.value(state.averages.line).curvature
    curvature = jnp.where(due, trial.fit.curvature, usual)
    step = Taken(updates, emitted, curvature, outcome.taken, trial.outlier)
    found = report(trial.fit, lesson.accepted, ~outcome.taken)
    kept = state.info._replace(skipped=~outcome.taken)
    return trees.multiply(updates, emitted), ScaleByGenState(
      count=trees.increment(state.count),
      learning_rate=lesson.rate,
      calibrated=outcome.calibrated,
      averages=lesson.averages,
      memory=rule.follow(lesson.memory, observed, step),
      info=optax.tree.where(due, found, kept),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_arguments(needs_grad, params, value_fn, value, grad):
  require("scale_by_gen", params=params, value_fn=value_fn)
  require_scalar("scale_by_gen", value)
  if needs_grad and grad is None:
    raise ValueError(
      "scale_by_gen needs the raw gradient: call tx.update(updates, state, "
      "params, value=value, grad=grad, value_fn=value_fn). Where there is "
      'none, build it with estimator="fit", fresh_slope=False.'
    )
