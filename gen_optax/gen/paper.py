"""The GeN paper's own rule as an optax stage: Algorithms 1 and 2."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.gen import estimators
from gen_optax.gen.fit import LineFit, unknown_fit
from gen_optax.gen.stage import (
  GenInfo,
  Horizon,
  check_options,
  horizon_factor,
  report,
)
from gen_optax.helpers import trees
from gen_optax.helpers.checks import check_in, is_known
from gen_optax.helpers.lazy import run_if
from gen_optax.oracle.closures import require, require_scalar
from gen_optax.oracle.line import Evaluate


def paper_rule(fit: LineFit, rate: jax.Array, smoothing):
  """Lines 8 and 9 of Algorithm 1: average the optima, hold on rejection.

      rate <- smoothing rate + (1 - smoothing) b / A   if A > 0 and b > 0.

  Returns:
    `(rate, accepted)`.
  """
  accepted = (fit.curvature > 0) & (fit.slope > 0)
  mixed = smoothing * rate + (1 - smoothing) * fit.optimum
  return jnp.where(accepted, mixed, rate), accepted


class ScaleByGenPaperState(NamedTuple):
  """State of `scale_by_gen_paper`: count, learning_rate and info."""

  count: jax.Array
  learning_rate: jax.Array
  info: GenInfo


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
    * GeN-HOD (Algorithm 2), and ADLER after SGD:
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
  On a mesh: the collectives of these passes.

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
  check_options(learning_rate, every, horizon)
  check_in("smoothing", smoothing, 0, 1)
  exact = estimator in estimators.EXACT
  estimate = estimators.make_estimate(
    *(estimator, None if exact else probes, degree, evaluate), rounding=0.0
  )

  def init_fn(params):
    dtype = trees.scalar_dtype(params)
    return ScaleByGenPaperState(
      count=jnp.zeros((), jnp.int32),
      learning_rate=jnp.array(learning_rate, dtype),
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
    require("scale_by_gen_paper", params=params, value_fn=value_fn)
    require_scalar("scale_by_gen_paper", value)
    slope = None
    if estimator == "known_slope":
      require("scale_by_gen_paper", grad=grad)
      slope = -trees.vdot(grad, updates, state.learning_rate.dtype)

    def refit(standing):
      rate, _ = standing
      fit = estimate(value_fn, params, updates, rate, value, slope)
      rate, accepted = paper_rule(fit, rate, smoothing)
      return rate, report(fit, accepted, False)

    count = trees.increment(state.count)
    standing = (state.learning_rate, state.info)
    if is_known(every) and every == 1:
      rate, info = refit(standing)
    else:
      rate, info = run_if(count % every == 0, refit, standing)
    factor = horizon_factor(horizon, state.count, rate.dtype)
    return trees.scale(updates, rate * factor), ScaleByGenPaperState(
      count, rate, info
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
