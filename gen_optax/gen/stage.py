"""What the two GeN stages share: their report, the horizon, the checks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.gen.fit import LineFit
from gen_optax.helpers.checks import check_integers, check_positive

Horizon = int | Callable[[jax.Array], jax.Array]


class GenInfo(NamedTuple):
  """What the last fit found, for logs; lazy steps keep it.

  Attributes:
    slope: b = -phi'(0) along the update, positive downhill.
    curvature: A = phi''(0) along the update.
    optimum: eta* = b / A of this fit alone, zero where A is.
    quality: share of the line's deviation from its tangent that the fit
      explains and that stands above rounding, in [0, 1].
    accepted: whether the learning rate followed the last fit.
    skipped: whether this step was withheld (updates of zero).
  """

  slope: jax.Array
  curvature: jax.Array
  optimum: jax.Array
  quality: jax.Array
  accepted: jax.Array
  skipped: jax.Array


def report(fit: LineFit, accepted, skipped) -> GenInfo:
  """The diagnostics of one step."""
  return GenInfo(
    fit.slope,
    fit.curvature,
    fit.optimum,
    fit.quality,
    jnp.asarray(accepted, bool),
    jnp.asarray(skipped, bool),
  )


def horizon_factor(horizon: Horizon | None, count, dtype) -> jax.Array:
  """The factor on the emitted step at `count` (C.1)."""
  if horizon is None:
    return jnp.ones((), dtype)
  if callable(horizon):
    return jnp.asarray(horizon(count), dtype)
  # Cast before dividing: int32 / int is float32 even under x64.
  return jnp.maximum(0.0, 1.0 - count.astype(dtype) / horizon)


def check_options(learning_rate, every, horizon):
  """Raises on wrong numbers; tracers, from `inject_hyperparams`, pass."""
  if callable(learning_rate):
    raise ValueError(
      "learning_rate must be a number, got a schedule: GeN sets the rate. To "
      "decay it, pass the decay as horizon=."
    )
  check_positive(learning_rate=learning_rate)
  check_integers(1, every=every)
  if horizon is not None and not callable(horizon):
    check_positive(horizon=horizon)
