"""Fits to losses on a line: closed forms, the paper's formulas, float32."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import (
  ROSENBROCK_START,
  SETTINGS,
  assert_digits,
  gen_state,
  static,
  step,
)

import gen_optax
from gen_optax.gen.fit import check_probes, fit_losses
from gen_optax.oracle import hessian, line

pytestmark = pytest.mark.usefixtures("x64")


def fit_at(fn, w, direction, rate, probes, **options):
  """A fit to the losses of `fn`, as the transform makes it."""
  rate = jnp.asarray(rate, jnp.float64)
  losses = line.losses(fn, w, direction, rate * jnp.array(probes))
  return fit_losses(probes, losses, fn(w), rate, **options)


def quartic(s):
  """The line of note T1: optimum 2 / 1.4 of the second-order model."""
  return 3 - 2 * s + 0.7 * s**2 + 0.9 * s**3 - 0.4 * s**4


def fit_quartic(rate, probes, **options):
  return fit_at(quartic, jnp.zeros(()), jnp.ones(()), rate, probes, **options)


@pytest.mark.parametrize(
  "probes, degree, printed",
  [
    ((-1.0, 1.0), 2, "1.4450301205"),
    ((-2.0, -1.0, 1.0, 2.0), 2, "1.5333786611"),
    ((-2.0, -1.0, 1.0, 2.0), 4, "1.4285714286"),
    ((1.0, 2.0), 2, ".8335"),
  ],
)
def test_fit_of_the_quartic_line(probes, degree, printed):
  assert_digits(fit_quartic(0.3, probes, degree=degree).optimum, printed)


def test_degree_three_is_exact_on_a_cubic():
  cubic = lambda s: 3 - 2 * s + 0.7 * s**2 + 0.9 * s**3
  fit = fit_at(
    cubic, jnp.zeros(()), jnp.ones(()), 0.3, (-1.0, 1.0, 2.0), degree=3
  )
  np.testing.assert_allclose(fit.slope, 2.0, rtol=1e-12)
  np.testing.assert_allclose(fit.curvature, 1.4, rtol=1e-12)


@pytest.mark.parametrize(
  "probes, degree, slope, curvature, optimum",
  [
    (
      (-1.0, 1.0),
      2,
      "59855.9370957",
      "82017697.3514",
      "7.29792947481e-4",
    ),
    (
      (-2.0, -1.0, 1.0, 2.0),
      2,
      "73364.5221253",
      "83237858.9082",
      "8.81384061142e-4",
    ),
    ((1.0, 2.0), 2, "44266.6274628", "50839078.0856", "8.7072049946e-4"),
    (
      (-2.0, -1.0, 1.0, 2.0),
      4,
      "54227.36",
      "81585556.8",
      "6.646686267391e-4",
    ),
  ],
)
def test_fit_at_rosenbrock(probes, degree, slope, curvature, optimum):
  fn, w = static("rosenbrock"), jnp.array(ROSENBROCK_START)
  fn = functools.partial(fn, t=0)
  gradient = jax.grad(fn)(w)
  np.testing.assert_allclose(gradient, [-215.6, -88.0], rtol=1e-12)
  fit = fit_at(fn, w, -gradient, 1e-3, probes, degree=degree)
  assert_digits(fit.slope, slope)
  assert_digits(fit.curvature, curvature)
  assert_digits(fit.optimum, optimum)
  assert fit.finite


@pytest.mark.parametrize(
  "exact", [line.exact_by_forward_mode, hessian.exact_by_hvp]
)
def test_exact_derivatives_at_rosenbrock(exact):
  fn = functools.partial(static("rosenbrock"), t=0)
  w = jnp.array(ROSENBROCK_START)
  found = exact(fn, w, -jax.grad(fn)(w))
  assert_digits(-found.first, "54227.36")
  assert_digits(found.second, "81585556.8")
  assert_digits(-found.first / found.second, "6.646686267391e-4")


coefficients = st.floats(-5, 5).map(lambda x: round(x, 3))


@SETTINGS
@hypothesis.given(
  st.tuples(coefficients, coefficients, coefficients, coefficients),
  st.floats(1e-3, 2.0),
)
def test_three_points_are_lqa(c, rate):
  """Equation 3.5, whatever the line."""
  phi = lambda s: 1 + c[0] * s + c[1] * s**2 + c[2] * s**3 + c[3] * s**4
  down, zero, up = phi(rate), phi(0.0), phi(-rate)
  bend = up - 2 * zero + down
  # Below, the bend is rounding and the two orders of summation differ.
  hypothesis.assume(abs(bend) > 1e-5 * max(abs(down), abs(zero), abs(up)))
  fit = fit_losses(
    (-1.0, 1.0), jnp.array([up, down]), jnp.array(zero), jnp.array(rate)
  )
  lqa = rate / 2 * (up - down) / bend
  np.testing.assert_allclose(fit.optimum, lqa, rtol=1e-9, atol=1e-12)


def five_point_formula(phi, h):
  """Equation A.2; w - eta g is downhill, so L_{+k} lies at s = -k h."""
  up2, up, zero, down, down2 = (phi(-x * h) for x in (2, 1, 0, -1, -2))
  slope = (-up2 / 12 + 2 / 3 * up - 2 / 3 * down + down2 / 12) / h
  bend = -up2 / 12 + 4 / 3 * up - 5 / 2 * zero + 4 / 3 * down - down2 / 12
  return slope, bend / h**2


def test_degree_four_is_the_five_point_formula_and_least_squares_is_not():
  phi = lambda s: jnp.exp(-s) + 0.3 * s**2
  probes = (-2.0, -1.0, 1.0, 2.0)
  for rate in (0.05, 0.3, 1.0):
    slope, curvature = five_point_formula(phi, rate)
    fit = fit_at(phi, jnp.zeros(()), jnp.ones(()), rate, probes, degree=4)
    np.testing.assert_allclose(fit.slope, slope, rtol=1e-10)
    np.testing.assert_allclose(fit.curvature, curvature, rtol=1e-10)
    fit = fit_at(phi, jnp.zeros(()), jnp.ones(()), rate, probes, degree=2)
    assert abs(fit.optimum / (slope / curvature) - 1) > 0.1 * rate**2


def test_least_squares_on_five_points_has_its_closed_form():
  h, phi = 0.3, quartic
  fit = fit_quartic(h, (-2.0, -1.0, 1.0, 2.0))
  # s > 0 is downhill here; the note writes L+ for uphill.
  slope = (phi(-h) - phi(h) + 2 * (phi(-2 * h) - phi(2 * h))) / (10 * h)
  curvature = (
    (phi(h) + phi(-h) - 2 * phi(0.0))
    + 4 * (phi(2 * h) + phi(-2 * h) - 2 * phi(0.0))
  ) / (17 * h**2)
  np.testing.assert_allclose(fit.slope, slope, rtol=1e-12)
  np.testing.assert_allclose(fit.curvature, curvature, rtol=1e-12)


def test_the_loss_at_zero_is_pinned():
  """A free intercept would give 1.5952 on five points."""
  optimum = fit_quartic(0.3, (-2.0, -1.0, 1.0, 2.0)).optimum
  s = 0.3 * np.array([-2, -1, 0, 1, 2])
  free = np.polyfit(s, quartic(s), 2)
  assert_digits(-free[1] / (2 * free[0]), "1.5952")
  assert abs(optimum - 1.5952) > 0.05
  pinned = np.linalg.lstsq(
    np.stack([-s, s**2 / 2], 1), quartic(s) - quartic(0.0), rcond=None
  )[0]
  np.testing.assert_allclose(optimum, pinned[0] / pinned[1], rtol=1e-12)


def test_known_slope_leaves_one_unknown():
  """QLABGrad: eta^2 |g|^2 / 2 / (L(w - eta g) - L(w) + eta |g|^2)."""
  fit = fit_quartic(0.3, (1.0,), slope=jnp.array(2.0))
  bend = quartic(0.3) - quartic(0.0) + 0.3 * 2.0
  np.testing.assert_allclose(fit.slope, 2.0, rtol=1e-15)
  np.testing.assert_allclose(fit.optimum, 0.3**2 * 2.0 / 2 / bend, rtol=1e-12)
  # Two probes and a known slope determine the cubic too.
  fit = fit_at(
    lambda s: 3 - 2 * s + 0.7 * s**2 + 0.9 * s**3,
    jnp.zeros(()),
    jnp.ones(()),
    0.3,
    (1.0, 2.0),
    degree=3,
    slope=jnp.array(2.0),
  )
  np.testing.assert_allclose(fit.curvature, 1.4, rtol=1e-12)


PROBE_SETS = [
  ((-1.0, 1.0), 2),
  ((1.0, 2.0), 2),
  ((-2.0, -1.0, 1.0, 2.0), 2),
  ((-2.0, -1.0, 1.0, 2.0), 4),
  ((-0.5, 0.25, 1.0), 3),
]


@SETTINGS
@hypothesis.given(
  st.sampled_from(PROBE_SETS), st.randoms(use_true_random=False)
)
def test_the_order_of_the_probes_is_irrelevant(probe_set, random):
  probes, degree = probe_set
  shuffled = list(probes)
  random.shuffle(shuffled)
  fit = fit_quartic(0.3, probes, degree=degree)
  other = fit_quartic(0.3, tuple(shuffled), degree=degree)
  np.testing.assert_allclose(other.slope, fit.slope, rtol=1e-12)
  np.testing.assert_allclose(other.curvature, fit.curvature, rtol=1e-12)


@SETTINGS
@hypothesis.given(st.sampled_from(PROBE_SETS), st.integers(0, 4))
def test_a_zero_among_the_probes_is_ignored(probe_set, place):
  probes, degree = probe_set
  listed = list(probes)
  listed.insert(min(place, len(listed)), 0.0)
  kept = check_probes(tuple(listed), degree, False)
  assert tuple(float(x) for x in kept) == probes


def test_the_stage_ignores_a_zero_and_the_order():
  beale = functools.partial(static("beale"), t=0)
  rates = []
  for probes in ((-1.0, 1.0), (-1.0, 0.0, 1.0), (0.0, 1.0, -1.0)):
    tx = optax.chain(
      optax.sgd(1.0), gen_optax.scale_by_gen_paper(0.01, probes=probes)
    )
    w = jnp.ones(2)
    _, state, _ = step(tx, beale, w, tx.init(w))
    rates.append(gen_state(state).learning_rate)
  np.testing.assert_allclose(rates[1:], rates[0], rtol=1e-14)
  assert_digits(rates[0], "0.0105172734373")


def test_a_tiny_rate_does_not_underflow_float32():
  """eta^4 = 1e-40 is zero in float32; the fit works in multiples."""
  rate = jnp.float32(1e-10)
  scaled = lambda x: -2 * x + 0.7 * x**2  # in multiples of the rate
  fit = fit_losses(
    (-1.0, 1.0),
    jnp.array([scaled(-1.0), scaled(1.0)], jnp.float32),
    jnp.float32(0.0),
    rate,
  )
  assert fit.optimum.dtype == jnp.float32
  np.testing.assert_allclose(fit.optimum / rate, 2 / 1.4, rtol=1e-5)
