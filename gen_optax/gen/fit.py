"""Losses on a line -> slope, curvature, optimum, quality. Pure functions.

Signs: the update u points the way the parameters will move, so u is minus the
paper's `g_optim`. With phi(s) = L(w + s u) the paper's two coefficients are

    slope      b = <G, g_optim>            = -phi'(0)    positive: downhill
    curvature  A = <g_optim, H g_optim>    =  phi''(0)
    optimum    eta* = b / A                              (eq. 3.1)
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_optax.helpers.rounding import FITTED


class LineFit(NamedTuple):
  """What is known of the line through the parameters, as scalars.

  Attributes:
    slope: b = -phi'(0), in loss per unit of step; positive is downhill.
    curvature: A = phi''(0), in loss per squared unit of step.
    optimum: eta* = b / A, the minimiser of the parabola where A > 0; zero
      where A is.
    quality: the share of the deviation from the tangent, phi(s) - phi(0) + b s,
      that the fit explains and that stands above rounding, in [0, 1]; 1 for
      exact estimators.
    finite: whether every number that went in was finite.
  """

  slope: jax.Array
  curvature: jax.Array
  optimum: jax.Array
  quality: jax.Array
  finite: jax.Array


def check_probes(
  probes: Sequence[float], degree: int, known_slope: bool
) -> tuple[float, ...]:
  """The probes that say something, or an error that names what is missing.

  Args:
    probes: multiples of the current rate at which the loss is evaluated. Zero
      is implied and may be listed.
    degree: degree of the fitted polynomial, 2 to 4.
    known_slope: whether the slope at zero is given.

  Returns:
    The non-zero probes.

  Raises:
    ValueError: probes that are empty, repeated, only zero or not finite, or
      too few for the degree.
  """
  values = tuple(float(c) for c in probes)
  if not values or not all(np.isfinite(values)):
    raise ValueError(
      f"probes must be finite multiples of the learning rate, got {probes!r}; "
      "pass for example probes=(-1.0, 1.0)."
    )
  if len(set(values)) < len(values):
    raise ValueError(
      f"probes must be distinct, got {probes!r}; drop the repeated ones."
    )
  nonzero = tuple(c for c in values if c != 0.0)
  if not nonzero:
    raise ValueError(
      f"probes must hold a non-zero multiple, got {probes!r}; zero is implied."
    )
  if isinstance(degree, jax.core.Tracer):
    raise ValueError(
      "degree shapes the computation and cannot be traced; under "
      'optax.inject_hyperparams pass static_args=("degree",).'
    )
  if degree not in (2, 3, 4):
    raise ValueError(f"degree must be 2, 3 or 4, got {degree!r}.")
  unknowns = degree - 1 if known_slope else degree
  if len(nonzero) < unknowns:
    raise ValueError(
      f"degree={degree} has {unknowns} unknown coefficients, but "
      f"probes={probes!r} give {len(nonzero)} loss differences: add probes or "
      "lower degree."
    )
  return nonzero


@functools.lru_cache
def _least_squares(
  probes: tuple[float, ...], powers: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """The design matrix of `powers` at `probes`, and its pseudo-inverse."""
  design = np.array(probes)[:, None] ** np.array(powers)[None, :]
  return design, np.linalg.pinv(design)


def _ratio(slope, curvature):
  flat = curvature == 0
  return jnp.where(flat, 0.0, slope / jnp.where(flat, 1.0, curvature))


def fit_losses(
  probes: tuple[float, ...],
  losses: jax.Array,
  value: jax.Array,
  rate: jax.Array,
  *,
  degree: int = 2,
  slope: jax.Array | None = None,
  rounding: float = FITTED,
) -> LineFit:
  """Fits a polynomial through phi(0) to losses along the line (eq. 3.4).

  With x = s / rate the fit is

      phi(x rate) - phi(0) = -q x + p x^2 / 2 + ...  in least squares,
      b = q / rate,  A = p / rate^2,

  in the multiples x, never in s: rate^4 underflows float32 at rate = 1e-10.
  On x = -1, 1 it equals LQA's finite difference (eq. 3.5); degree 4 on
  x = -2, -1, 1, 2 equals the five-point formula (A.2), which least squares of
  degree 2 on five points does not.

  Args:
    probes: k static multiples x of the rate, none zero.
    losses: phi at `probes`, shape (k,).
    value: phi(0).
    rate: the learning rate that the probes multiply.
    degree: degree of the polynomial, 2 to 4.
    slope: b where it is known; then only the higher coefficients are fitted.
    rounding: fitted terms below `rounding` eps |phi(0)| count as zero.

  Returns:
    The fit, in the dtype of `rate`. No forward passes.
  """
  dtype = rate.dtype
  change = (losses - value).astype(dtype)
  powers = tuple(range(1 if slope is None else 2, degree + 1))
  design, inverse = _least_squares(probes, powers)
  # Coefficients are sums of a few products: full precision on every backend.
  dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
  eps = (jnp.finfo(losses.dtype).eps * jnp.abs(value)).astype(dtype)
  noise = rounding * eps

  if slope is None:
    coefficients = dot(jnp.asarray(inverse, dtype), change)
    fall = -coefficients[0]
    fall = jnp.where(jnp.abs(fall) <= noise, 0.0, fall)
    slope = fall / rate
    deviation = change + fall * jnp.asarray(probes, dtype)
    higher = coefficients[1:]
    powers, design = powers[1:], design[:, 1:]
  else:
    fall = slope * rate
    deviation = change + fall * jnp.asarray(probes, dtype)
    higher = dot(jnp.asarray(inverse, dtype), deviation)

  twice = 2.0 * higher[0]
  finite = jnp.all(jnp.isfinite(change)) & jnp.isfinite(fall + twice)
  twice = jnp.where(jnp.abs(twice) <= noise, 0.0, twice)
  # Two divisions: rate^2 would underflow.
  curvature = twice / rate / rate

  residual = deviation - dot(jnp.asarray(design, dtype), higher)
  unexplained = jnp.sum(residual**2) + eps**2
  total = jnp.sum(deviation**2)
  quality = jnp.where(
    finite & (total > unexplained), 1.0 - unexplained / total, 0.0
  ).astype(dtype)
  return LineFit(slope, curvature, _ratio(slope, curvature), quality, finite)


def exact_fit(first: jax.Array, second: jax.Array, dtype) -> LineFit:
  """The fit from exact derivatives phi'(0) and phi''(0)."""
  slope, curvature = -first.astype(dtype), second.astype(dtype)
  finite = jnp.isfinite(slope) & jnp.isfinite(curvature)
  quality = finite.astype(dtype)
  return LineFit(slope, curvature, _ratio(slope, curvature), quality, finite)


def steeper(exact: LineFit, chord: LineFit) -> LineFit:
  """The exact fit with the larger curvature of the two, the shorter optimum."""
  curvature = jnp.maximum(exact.curvature, chord.curvature)
  return exact._replace(
    curvature=curvature,
    optimum=_ratio(exact.slope, curvature),
    finite=exact.finite & chord.finite,
  )


def unknown_fit(dtype) -> LineFit:
  """A fit that says nothing: the state before the first one."""
  # A buffer each: donated state must not name one twice.
  scalars = (jnp.zeros((), dtype) for _ in range(4))
  return LineFit(*scalars, finite=jnp.zeros((), bool))
