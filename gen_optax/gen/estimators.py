"""The four ways to learn slope and curvature along an update.

| name            | slope            | curvature        | extra cost       |
| --------------- | ---------------- | ---------------- | ---------------- |
| `"known_slope"` | -<grad, update>  | fitted to losses | 1 forward pass   |
| `"fit"`         | fitted to losses | fitted to losses | 2 forward passes |
| `"forward"`     | exact            | exact            | 3 to 4 F, no B   |
| `"hvp"`         | exact            | exact            | about 2 (F + B)  |

The passes of the two fits are those of their default probes; a loss at zero
that the caller did not hand over is one more. An exact estimator that is given
probes evaluates them too, and takes the larger curvature of the two.
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
  steeper,
)
from gen_optax.helpers.checks import require_leaves
from gen_optax.helpers.rounding import FITTED
from gen_optax.oracle import hessian, line

Estimator = Literal["known_slope", "fit", "forward", "hvp"]
Estimate = Callable[..., LineFit]

# Without probes their fit is the same at every rate.
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
    chords = None
    if probes is not None:
      probes = check_probes(probes, degree, True)
      chords = _fitted(probes, degree, evaluate, True, rounding)
    exact = (
      line.exact_by_forward_mode
      if estimator == "forward"
      else hessian.exact_by_hvp
    )
    return _exact(exact, chords)
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


def _exact(derivatives, chords: Estimate | None) -> Estimate:
  def estimate(value_fn, params, direction, rate, value, slope):
    del slope
    require_leaves("an exact estimator", params, jnp.inexact)
    # They do not depend on the rate, so the compiler would move them out of the
    # loop and evaluate them on every step.
    params, direction, rate = jax.lax.optimization_barrier(
      (params, direction, rate)
    )
    found = derivatives(value_fn, params, direction)
    fit = exact_fit(found.first, found.second, rate.dtype)
    if chords is None:
      return fit
    # Where the line is far from a parabola, the rate that its derivatives
    # promise may raise the loss; the chord knows the way there.
    chord = chords(value_fn, params, direction, rate, value, fit.slope)
    return steeper(fit, chord)

  return estimate
