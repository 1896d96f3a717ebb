"""The minmax step and its relatives against digits and against their claims."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import assert_digits

from gen_optax import elmo, problems
from gen_optax.oracle import hessian, line

# (slope, eigenvalue, L) -> step, upper model, lower model; notes, 60 digits.
GOLDENS = [
  ((1, 2, 3), ".3874258867228", "-.2082509852475", "-.2664031527922"),
  ((1, 0, 2), "1.000000000000", "-.6666666666667", "-1.333333333333"),
  ((1, -1, 2), "1.618033988750", "-1.515028323958", "-4.339073642291"),
  ((0, -1, 2), "1.000000000000", "-.1666666666667", "-.8333333333333"),
  ((0, 1, 2), ".0000000000000", ".0000000000000", ".0000000000000"),
  ((0.7, 1.3, 5), ".3295761189193", "-.1302677648939", "-.1899322579826"),
  ((3, -0.5, 0.1), "14.21954445729", "-45.28870929566", "-141.1262797346"),
]


@pytest.mark.parametrize("space, step, upper, lower", GOLDENS)
def test_goldens(x64, space, step, upper, lower):
  found = elmo.minmax_step(*space)
  assert_digits(found, step)
  # The printed digits round up or down: models may be one unit off.
  assert_digits(elmo.upper_model(-found, *space), upper)
  assert_digits(elmo.lower_model(-found, *space), lower)


def test_golden_of_a_small_slope(x64):
  assert_digits(elmo.minmax_step(1e-6, 1.0, 1e-3), "9.999999995e-7")


def test_golden_on_rosenbrock(x64):
  loss = problems.rosenbrock().fn
  x = jnp.array([-1.2, 1.0])
  gradient, hess = jax.grad(loss)(x), jax.hessian(loss)(x)
  values, vectors = jnp.linalg.eigh(hess)
  assert_digits(values, "23.633019348717 1506.366980651283")
  slopes = vectors.T @ gradient
  steps = elmo.minmax_step(slopes, values, 100.0)
  assert_digits(steps, ".233470030671 .153707859516")
  after = x - vectors @ (jnp.sign(slopes) * steps)
  assert_digits(after, "-1.136243831322 1.272157146248")
  assert_digits(loss(after), "4.599231866226")
  third = [line.third_derivative(loss, x, v) for v in vectors.T]
  assert_digits(jnp.abs(jnp.array(third)), "15.831624691196 2746.382481168390")
  change = [hessian.eigenvalue_gradient(loss, x, v) for v in vectors.T]
  norms = jnp.linalg.norm(jnp.array(change), axis=1)
  assert_digits(norms, "96.179476825489 2818.532908632358")


def test_gradient_of_an_eigenvalue_is_its_derivative(x64):
  loss = lambda w: jnp.sum(jnp.sin(w)) ** 2 + jnp.prod(w) + jnp.sum(w**4)
  w = jnp.array([0.3, -0.7, 0.4])
  largest = lambda w: jnp.linalg.eigvalsh(jax.hessian(loss)(w))[-1]
  v = jnp.linalg.eigh(jax.hessian(loss)(w))[1][:, -1]
  found = hessian.eigenvalue_gradient(loss, w, v)
  np.testing.assert_allclose(found, jax.grad(largest)(w), rtol=1e-10)


# --- float32 ------------------------------------------------------------------


def exact_step(slope, value, lipschitz):
  """Eq. 7 in 60 digits."""
  with decimal.localcontext(prec=60):
    a, h, lip = (decimal.Decimal(float(x)) for x in (slope, value, lipschitz))
    return float(((h * h + 2 * lip * abs(a)).sqrt() - h) / lip)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("exponent", range(-9, 4))
def test_float32_keeps_its_digits(sign, exponent):
  """2 L |c| / lambda^2 = 10^exponent, at which eq. 7 itself loses them all."""
  rng = np.random.default_rng(exponent + 20)
  value = sign * 10 ** rng.uniform(-3, 3, 50)
  lipschitz = 10 ** rng.uniform(-3, 3, 50)
  slope = 10.0**exponent * value**2 / (2 * lipschitz)
  numbers = [np.float32(x) for x in (slope, value, lipschitz)]
  found = elmo.minmax_step(*numbers)
  assert found.dtype == jnp.float32
  exact = [exact_step(*space) for space in zip(*numbers, strict=True)]
  np.testing.assert_allclose(np.float64(found), exact, rtol=5e-7)


@pytest.mark.parametrize(
  "space",
  [
    (1e20, 1e20, 1.0),
    (1e20, -1e20, 1.0),
    (1e20, 0.0, 1e20),
    (1e-30, -1e-25, 1e-20),
    (1e-25, 1e-25, 1e-25),
    (1e-25, 0.0, 1e-25),
    (1e-25, -1e-25, 1e-25),
    (1e20, 1e-25, 1e-25),
  ],
)
def test_float32_at_extreme_scales(space):
  space = [np.float32(x) for x in space]
  found = float(elmo.minmax_step(*space))
  assert found == pytest.approx(exact_step(*space), rel=5e-7)


def test_dtypes():
  assert elmo.minmax_step(jnp.bfloat16(1), 0.0, 2.0).dtype == jnp.float32
  assert elmo.minmax_step(1, 0, 2) == pytest.approx(1.0)
  assert elmo.minmax_step(jnp.ones(3), 0.0, jnp.ones((2, 1))).shape == (2, 3)


# --- limits -------------------------------------------------------------------


def test_limits(x64):
  step = elmo.minmax_step
  np.testing.assert_allclose(step(1.0, 2.0, 1e-12), 0.5, rtol=1e-11)
  assert step(1.0, 2.0, 0.0) == 0.5  # Newton
  assert step(-1.0, 2.0, 0.0) == 0.5
  for nowhere_to_stop in ((1.0, 0.0, 0.0), (1.0, -2.0, 0.0), (0.0, -2.0, 0.0)):
    assert jnp.isposinf(step(*nowhere_to_stop))
  assert step(0.0, 0.0, 0.0) == 0.0
  np.testing.assert_allclose(step(3.0, 2.0, 1e12), (6e-12) ** 0.5, rtol=1e-5)
  assert step(1.0, 1.0, jnp.inf) == 0.0


def test_derivatives_are_finite():
  for value in (1.0, 0.0, -1.0):
    for slope in (0.0, 1.0):
      found = jax.grad(elmo.minmax_step, argnums=(0, 1, 2))(slope, value, 2.0)
      assert all(jnp.isfinite(x) for x in found), (slope, value, found)


numbers = st.floats(-3, 3).map(lambda x: 10.0**x)
signs = st.sampled_from([-1.0, 1.0])


@settings(max_examples=200, deadline=None)
@given(numbers, numbers, numbers, signs, signs)
def test_the_step_is_the_minimum_of_the_upper_model(
  slope, value, lipschitz, slope_sign, value_sign
):
  with jax.enable_x64(True):
    slope, value = slope * slope_sign, value * value_sign
    space = (slope, value, lipschitz)
    step = elmo.minmax_step(*space)
    move = -np.sign(slope) * step
    model = jax.jit(elmo.upper_model)
    around = move * np.linspace(-2.0, 3.0, 501)
    best = model(move, *space)
    assert best <= model(around, *space).min() + 1e-12 * abs(best)
    # Lemma C.2, and its bounds are the tightest.
    ratio = elmo.lower_model(move, *space) / best
    low, high = (1, 2) if value > 0 else (2, 5)
    assert low - 1e-9 <= ratio <= high + 1e-9
    # What a relative regret of r costs, exactly (eq. for r >= -1).
    root = np.sqrt(value**2 + 2 * lipschitz * abs(slope))
    for r in (-1.0, -0.5, 0.25, 2.0):
      cost = root * step**2 * r**2 / 2 + lipschitz * step**3 * r**3 / 6
      there = model((1 + r) * move, *space)
      np.testing.assert_allclose(there - best, cost, rtol=1e-6, atol=1e-9)
      found = elmo.step_regret((1 + r) * move, *space)
      np.testing.assert_allclose(found, r, atol=1e-12)


def test_ratios_reach_their_bounds(x64):
  def ratio(*space):
    move = -elmo.minmax_step(*space)
    return elmo.lower_model(move, *space) / elmo.upper_model(move, *space)

  np.testing.assert_allclose(ratio(1.0, 1.0, 1e-9), 1, rtol=1e-6)
  np.testing.assert_allclose(ratio(1.0, 0.0, 2.0), 2, rtol=1e-12)
  np.testing.assert_allclose(ratio(1e-9, -1.0, 2.0), 5, rtol=1e-3)


@settings(max_examples=100, deadline=None)
@given(numbers, numbers, st.floats(0.05, 1.95))
def test_newton_threshold(slope, value, rate):
  with jax.enable_x64(True):
    bar = elmo.newton_threshold(-slope, value, rate)
    move = rate * slope / value
    model = lambda lip: float(elmo.upper_model(move, -slope, value, lip))
    scale = abs(model(0.0))
    assert model(0.99 * bar) < 0 < model(1.01 * bar)
    assert abs(model(bar)) < 1e-12 * scale
    if rate == 1.0:
      regret = elmo.step_regret(move, -slope, value, bar)
      np.testing.assert_allclose(regret, (7**0.5 - 1) / 2)


def test_newton_threshold_at_its_ends(x64):
  assert elmo.newton_threshold(0.5, 2.0) == 24.0
  regret = elmo.step_regret(-0.25, 0.5, 2.0, 24.0)
  np.testing.assert_allclose(regret, (7**0.5 - 1) / 2, rtol=1e-12)
  assert jnp.isposinf(elmo.newton_threshold(0.0, 2.0))
  assert elmo.newton_threshold(1.0, -2.0) == 0
  assert elmo.newton_threshold(1.0, 0.0) == 0


def test_regret_without_slope(x64):
  assert elmo.step_regret(1.0, 0.0, -1.0, 2.0) == 0  # either side is ELMO's
  assert elmo.step_regret(-1.0, 0.0, -1.0, 2.0) == 0
  assert elmo.step_regret(0.0, 0.0, 1.0, 2.0) == 0
  assert jnp.isposinf(elmo.step_regret(0.1, 0.0, 1.0, 2.0))
  assert elmo.step_regret(0.5, 1.0, 0.0, 2.0) == -1.5  # uphill


# --- matrices -----------------------------------------------------------------


def draw_problem(seed, n=6):
  """A Hessian with both signs, a gradient, and Lipschitz parameters."""
  rng = np.random.default_rng(seed)
  basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
  values = np.sort(rng.normal(size=n))
  hess = (basis * values) @ basis.T
  return values, basis, hess, rng.normal(size=n), rng.uniform(0.1, 5, n)


@pytest.mark.parametrize("seed", range(5))
def test_lemma_32(x64, seed):
  """The formula of the paper, with a matrix root, gives the same step."""
  values, basis, hess, gradient, lipschitz = draw_problem(seed)
  slopes = basis.T @ gradient
  inside = hess @ hess + (basis * 2 * lipschitz * abs(slopes)) @ basis.T
  roots, vectors = np.linalg.eigh(inside)
  root = (vectors * np.sqrt(roots)) @ vectors.T
  expected = np.linalg.inv((hess + root) / 2)
  found = elmo.minmax_preconditioner(hess, gradient, lipschitz)
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
  steps = elmo.minmax_step(slopes, values, lipschitz)
  move = basis @ (np.sign(slopes) * steps)
  np.testing.assert_allclose(found @ gradient, move, rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_quality_measures(x64, seed):
  values, basis, hess, gradient, lipschitz = draw_problem(seed)
  slopes = basis.T @ gradient
  root = np.random.default_rng(seed + 9).normal(size=hess.shape)
  phi = root @ root.T + np.eye(len(hess))
  # Appendix B, literally.
  left = (np.eye(len(hess)) - hess @ phi) @ gradient
  eta = np.linalg.norm(left) / np.linalg.norm(gradient)
  np.testing.assert_allclose(
    elmo.newton_residual(hess, phi, gradient), eta, rtol=1e-12
  )
  sizes = abs(np.linalg.eigvals(phi @ hess))
  np.testing.assert_allclose(
    elmo.effective_condition(hess, phi), sizes.max() / sizes.min(), rtol=1e-8
  )
  # Eq. 12, literally, where the eigenvalue is positive.
  regret = elmo.preconditioner_regret(hess, phi, gradient, lipschitz)
  residual = elmo.eigenspace_residuals(hess, phi, gradient)
  for i in np.flatnonzero(values > 0):
    seen = gradient @ phi @ hess @ basis[:, i] / slopes[i]
    bend = 1 + 2 * lipschitz[i] * abs(slopes[i]) / values[i] ** 2
    eq12 = abs(1 - seen * (np.sqrt(bend) + 1) / 2)
    np.testing.assert_allclose(abs(regret[i]), eq12, rtol=1e-9)
    np.testing.assert_allclose(residual[i], 1 - seen, rtol=1e-9)
  # Without curvature shift the two are one.
  still = elmo.preconditioner_regret(hess, phi, gradient, 0.0)
  np.testing.assert_allclose(
    still[values > 0], -residual[values > 0], rtol=1e-9
  )
  # ELMO has none; Newton's preconditioner is perfect by the other measures.
  best = elmo.minmax_preconditioner(hess, gradient, lipschitz)
  np.testing.assert_allclose(
    elmo.preconditioner_regret(hess, best, gradient, lipschitz), 0, atol=1e-9
  )
  positive = (basis * abs(values)) @ basis.T
  newton = np.linalg.inv(positive)
  assert elmo.newton_residual(positive, newton, gradient) < 1e-12
  np.testing.assert_allclose(elmo.effective_condition(hess, newton), 1)


def test_relative_regret_of_an_update_on_a_tree(x64):
  values, basis, _, gradient, lipschitz = draw_problem(4)
  split = lambda x: {
    "a": x[..., :2],
    "b": x[..., 2:].reshape(x.shape[:-1] + (2, 2)),
  }
  update = -0.1 * gradient
  found = elmo.relative_regret(
    split(update), split(gradient), values, split(basis.T), lipschitz
  )
  slopes = basis.T @ gradient
  best = elmo.minmax_step(slopes, values, lipschitz)
  np.testing.assert_allclose(found, 0.1 * abs(slopes) / best - 1, rtol=1e-10)
