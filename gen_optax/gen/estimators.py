"""The four ways to learn slope and curvature along an update.

| name            | slope            | curvature        | extra cost       |
| --------------- | ---------------- | ---------------- | ---------------- |
| `"known_slope"` | -<grad, update>  | fitted to losses | 1 forward pass   |
| `"fit"`         | fitted to losses | fitted to losses | 2 forward passes |
| `"forward"`     | exact            | exact            | 3 to 4 F, no B   |
| `"hvp"`         | exact            | exact            | about 2 (F + B)  |

The passes of the two fits are those of their default probes; a loss at zero
that the caller did not hand over is one more.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from gen_optax.gen.fit import (
  LineFit,
  check_probes,
  exact_fit,
  fit_losses,
)
from gen_optax.helpers.checks import require_leaves
from gen_optax.helpers.rounding import FITTED
from gen_optax.oracle import hessian, line

Estimator = Literal["known_slope", "fit", "forward", "hvp"]
Estimate = Callable[..., LineFit]

# Their fit is the same at every rate.
EXACT = ("forward", "hvp")
DEFAULT_PROBES = {"known_slope": (1.0,), "fit": (-1.0, 1.0)}


def make_estimate(
  estimator: Estimator,
  probes: Sequence[float] | None,
  degree: int,
  evaluate: line.Evaluate,
  rounding: float = FITTED,
) -> Estimate:
  """`estimate(value_fn, params, direction, rate, value, slope) -> LineFit`.

  Raises `ValueError` where the configuration determines no fit.
  """
  if evaluate not in ("vmap", "map"):
    raise ValueError(f'evaluate must be "vmap" or "map", got {evaluate!r}.')
  if estimator in DEFAULT_PROBES:
    known_slope = estimator == "known_slope"
    if probes is None:
      probes = DEFAULT_PROBES[estimator]
    probes = check_probes(probes, degree, known_slope)
    return _fitted(probes, degree, evaluate, known_slope, rounding)
  if estimator in EXACT:
    if probes is not None:
      raise ValueError(
        f"probes={probes!r} mean nothing to estimator={estimator!r}, which "
        "evaluates no losses along the line; leave probes=None."
      )
    exact = (
      line.exact_by_forward_mode
      if estimator == "forward"
      else hessian.exact_by_hvp
    )
    return _exact(exact)
  raise ValueError(
    'estimator must be "known_slope", "fit", "forward" or "hvp", got '
    f"{estimator!r}."
  )


def _fitted(probes, degree, evaluate, known_slope, rounding) -> Estimate:
  def estimate(value_fn, params, direction, rate, value, slope):
    points = probes
    if not line.stands_at_zero(value, params):
      points = (0.0, *probes)
    steps = rate * jnp.asarray(points, rate.dtype)
    losses = line.losses(value_fn, params, direction, steps, evaluate)
    if points is probes:
      value = jnp.asarray(value, losses.dtype)
    else:
      value, losses = losses[0], losses[1:]
    return fit_losses(
      probes,
      losses,
      value,
      rate,
      degree=degree,
      slope=slope if known_slope else None,
      rounding=rounding,
    )

  return estimate


def _exact(derivatives) -> Estimate:
  def estimate(value_fn, params, direction, rate, value, slope):
    del value, slope
    require_leaves("an exact estimator", params, jnp.inexact)
    # They do not depend on the rate, so the compiler would move them out of the
    # loop and evaluate them on every step.
    params, direction, rate = jax.lax.optimization_barrier(
      (params, direction, rate)
    )
    found = derivatives(value_fn, params, direction)
    return exact_fit(found.first, found.second, rate.dtype)

  return estimate
