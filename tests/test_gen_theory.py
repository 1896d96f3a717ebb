"""The paper's propositions, measured: error orders, invariances, rates."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import (
  LOSSES,
  assert_digits,
  assert_finite,
  gen_state,
  logistic,
  run,
  step,
)

import gen_optax
from gen_optax import problems
from gen_optax.gen.fit import fit_losses
from gen_optax.oracle import hessian, line

pytestmark = pytest.mark.usefixtures("x64")

EXACT = {"forward": line.exact_by_forward_mode, "hvp": hessian.exact_by_hvp}


# Precision error


def errors_of_the_fit(probes, degree, rates):
  """|eta* - exact eta*| on logistic regression, at each rate."""
  features, _, loss = logistic(count=2000, width=5, seed=1)
  w = jnp.zeros(5) + 0.3
  u = -jax.grad(loss)(w)
  exact = line.exact_by_forward_mode(loss, w, u)
  optimum = -exact.first / exact.second

  def error(rate):
    losses = line.losses(loss, w, u, rate * jnp.array(probes))
    fit = fit_losses(probes, losses, loss(w), rate, degree=degree)
    return jnp.abs(fit.optimum - optimum)

  return np.array([error(jnp.asarray(r)) for r in rates])


@pytest.mark.parametrize(
  "probes, degree, order, largest",
  [
    ((-1.0, 1.0), 2, 2, 0.5),
    ((-2.0, -1.0, 1.0, 2.0), 4, 4, 0.5),
    ((-2.0, -1.0, 1.0, 2.0), 2, 2, 0.25),
    ((1.0, 2.0), 2, 1, 0.125),
  ],
)
def test_order_of_the_precision_error(probes, degree, order, largest):
  """Prop. 3.6's second term is O(eta^2) on three points, O(eta^4) for A.2."""
  errors = errors_of_the_fit(probes, degree, largest * 0.5 ** np.arange(4))
  orders = np.log2(errors[:-1] / errors[1:])
  slack = {1: 0.15, 2: 0.1, 4: 0.2}[order]
  np.testing.assert_allclose(orders, order, atol=slack)


def test_least_squares_on_five_points_is_biased_three_times_more():
  """65 / 17 in the curvature, 3.4 in the slope: more points, more bias."""
  third = lambda s: 3 - 2 * s + 0.7 * s**2 + 0.9 * s**3
  fourth = lambda s: 3 - 2 * s + 0.7 * s**2 - 0.4 * s**4
  fits = {}
  for name, phi in (("third", third), ("fourth", fourth)):
    for probes in ((-1.0, 1.0), (-2.0, -1.0, 1.0, 2.0)):
      losses = jnp.array([phi(0.1 * x) for x in probes])
      fits[name, len(probes)] = fit_losses(
        probes, losses, jnp.array(3.0), jnp.array(0.1)
      )
  slope = (fits["third", 4].slope - 2) / (fits["third", 2].slope - 2)
  np.testing.assert_allclose(slope, 3.4, rtol=1e-9)
  bend = (fits["fourth", 4].curvature - 1.4) / (
    fits["fourth", 2].curvature - 1.4
  )
  np.testing.assert_allclose(bend, 65 / 17, rtol=1e-9)


# Sub-sampling error


def test_sub_sampling_error_falls_like_the_root_of_the_batch():
  """Prop. 3.6: one batch for all three losses, a direction fixed before."""
  features, labels, loss = logistic(count=20_000, width=5, seed=2)
  features, labels = jnp.asarray(features), jnp.asarray(labels)
  w = jnp.zeros(5) + 0.3
  u = -jax.grad(loss)(w)
  probes, rate = (-1.0, 1.0), jnp.asarray(0.5)

  def optimum(rows):
    batch = lambda p: loss(p, rows, features, labels)
    losses = line.losses(batch, w, u, rate * jnp.array(probes))
    return fit_losses(probes, losses, batch(w), rate).optimum

  everything = optimum(jnp.arange(len(labels)))
  optimum_of_batches = jax.jit(lambda rows: jax.lax.map(optimum, rows))
  rng = np.random.default_rng(0)
  sizes = np.array([64, 256, 1024, 4096])
  rmse = []
  for size in sizes:
    rows = jnp.asarray(rng.integers(len(labels), size=(400, size)))
    rmse.append(np.sqrt(np.mean((optimum_of_batches(rows) - everything) ** 2)))
  slope = np.polyfit(np.log(sizes), np.log(rmse), 1)[0]
  assert -0.6 < slope < -0.4, (slope, rmse)


# Newton and invariances


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("seed", range(3))
def test_the_newton_direction_has_optimum_one(name, seed):
  """Prop. 3.3, where the Hessian is positive definite."""
  _, _, loss = logistic(count=200, width=5, seed=seed)
  w = jnp.asarray(np.random.default_rng(seed).normal(size=5))
  u = -jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w))
  found = EXACT[name](loss, w, u)
  np.testing.assert_allclose(-found.first / found.second, 1.0, rtol=1e-12)
  tx = gen_optax.scale_by_gen_paper(0.3, smoothing=0.0, estimator=name)
  updates, state = tx.update(u, tx.init(w), w, value_fn=loss)
  np.testing.assert_allclose(updates, u, rtol=1e-12)
  np.testing.assert_allclose(state.learning_rate, 1.0, rtol=1e-12)


def test_a_newton_direction_without_slope_gives_no_nan():
  """Beale at (1, 1): the Newton direction is (1, 0) and b = A = 0."""
  beale = problems.beale().fn
  w = jnp.ones(2)
  u = -jnp.linalg.solve(jax.hessian(beale)(w), jax.grad(beale)(w))
  found = line.exact_by_forward_mode(beale, w, u)
  np.testing.assert_allclose([found.first, found.second], 0.0, atol=1e-9)
  for tx in (
    gen_optax.scale_by_gen_paper(0.1, estimator="forward"),
    gen_optax.scale_by_gen_paper(0.1),
    gen_optax.scale_by_gen(0.1),
  ):
    updates, state = tx.update(
      u, tx.init(w), w, value_fn=beale, grad=jax.grad(beale)(w)
    )
    assert_finite((updates, state))


SETTINGS = hypothesis.settings(
  deadline=None,
  max_examples=30,
  derandomize=True,
  suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.mark.parametrize("name", EXACT)
def test_exact_estimators_are_scale_invariant(name):
  """Remark 3.4, the sign included: eta* u stays the same step."""
  fn = problems.rosenbrock().fn
  w = jnp.array([-1.2, 1.0])
  u = -jax.grad(fn)(w)
  exact = jax.jit(functools.partial(EXACT[name], fn))

  def newton_step(c):
    found = exact(w, c * u)
    return -found.first / found.second * c * u

  expected = newton_step(1.0)
  # The step of the notes: -6.6467e-4 (-215.6, -88).
  np.testing.assert_allclose(expected, -6.646686267391e-4 * -u, rtol=1e-11)

  @SETTINGS
  @hypothesis.given(st.floats(-6, 6), st.booleans())
  def check(exponent, negative):
    c = 10.0**exponent * (-1 if negative else 1)
    np.testing.assert_allclose(newton_step(c), expected, rtol=1e-11)

  check()


def test_a_fit_is_scale_invariant_only_with_its_rate():
  """Remark 3.4 for Algorithm 1: eta must shrink as the update grows."""
  fn = problems.rosenbrock().fn
  w = jnp.array([-1.2, 1.0])
  u = -jax.grad(fn)(w)

  def paper_step(c, rate):
    tx = gen_optax.scale_by_gen_paper(rate, smoothing=0.0)
    return tx.update(c * u, tx.init(w), w, value_fn=fn)[0]

  expected = paper_step(1.0, 1e-3)
  np.testing.assert_allclose(paper_step(1e3, 1e-6), expected, rtol=1e-9)
  assert np.max(np.abs(paper_step(1e3, 1e-3) / expected - 1)) > 0.1


@pytest.mark.parametrize("base", [None, 0.9])
def test_scaling_the_update_scales_the_rate(base):
  """The default rule: the path is that of u, the rate that of u / c."""

  @jax.jit
  def go(c):
    tx = optax.chain(
      optax.sgd(1.0, momentum=base),
      optax.scale(c),
      gen_optax.scale_by_gen(0.01 / c),
    )
    found = run(tx, LOSSES["alternating"], jnp.array([1.5, 1.0]), 40)
    return found.rate, found.params

  rate, params = go(1.0)

  @SETTINGS
  @hypothesis.given(st.floats(-5, 5))
  def check(exponent):
    c = 10.0**exponent
    scaled_rate, scaled_params = go(c)
    np.testing.assert_allclose(scaled_rate * c, rate, rtol=1e-8)
    np.testing.assert_allclose(scaled_params, params, rtol=1e-7, atol=1e-10)

  check()


# Convergence


def gen_gd(estimator="hvp"):
  """Equation 3.2 with g = G and exact derivatives."""
  return optax.chain(
    optax.sgd(1.0),
    gen_optax.scale_by_gen_paper(0.1, smoothing=0.0, estimator=estimator),
  )


@pytest.mark.parametrize("estimator", EXACT)
def test_convergence_is_quadratic_in_one_dimension(estimator):
  """Theorem 1 for d = 1: on exp(x) - x it is Newton's method, e' / e^2."""
  loss = lambda w, t: jnp.sum(jnp.exp(w) - w)
  found = run(gen_gd(estimator), loss, jnp.ones(1), 4)
  errors = np.concatenate([[1.0], np.abs(found.params[:, 0])])
  ratios = errors[1:] / errors[:-1] ** 2
  np.testing.assert_allclose(ratios[:3], [0.368, 0.444, 0.490], atol=6e-4)
  assert_digits(ratios[3], ".49971")


def test_convergence_is_linear_in_two_dimensions():
  """Theorem 1 fails for d = 2: the ratio of the losses is (9 / 11)^2."""
  problem = problems.quadratic((1.0, 10.0))
  loss = lambda w, t: problem.fn(w)
  found = run(gen_gd(), loss, jnp.array([10.0, 1.0]), 12)
  ratios = np.asarray(found.loss[1:] / found.loss[:-1])
  assert_digits(ratios[:1], ".669421487603")
  np.testing.assert_allclose(ratios, (9 / 11) ** 2, rtol=1e-10)


def test_convergence_is_quadratic_along_the_newton_direction():
  """The repaired Theorem 1: e' / e^2 stays bounded for d = 2."""
  fn = lambda w: jnp.sum(jnp.exp(w) - w) + 0.1 * jnp.sum(w) ** 2
  w = jnp.array([1.0, -0.5])
  tx = gen_optax.scale_by_gen_paper(0.1, smoothing=0.0, estimator="hvp")
  state, ratios = tx.init(w), []
  # The stationary point, by Newton's method alone.
  goal = w
  for _ in range(20):
    goal -= jnp.linalg.solve(jax.hessian(fn)(goal), jax.grad(fn)(goal))
  for _ in range(4):
    u = -jnp.linalg.solve(jax.hessian(fn)(w), jax.grad(fn)(w))
    updates, state = tx.update(u, state, w, value_fn=fn)
    before = jnp.linalg.norm(w - goal)
    w = optax.apply_updates(w, updates)
    ratios.append(jnp.linalg.norm(w - goal) / before**2)
  assert before < 1e-3 and max(ratios) < 1.0, (before, ratios)


@pytest.mark.parametrize("estimator", ["known_slope", "fit", "forward"])
def test_a_quadratic_in_one_dimension_ends_in_a_step(estimator):
  """With no smoothing the first fit on a parabola is its minimiser."""
  tx = optax.chain(
    optax.sgd(1.0), gen_optax.scale_by_gen(smoothing=0.0, estimator=estimator)
  )
  loss = lambda w: 3.0 * jnp.sum((w - 2.0) ** 2)
  w = jnp.array([7.0])
  w, _, _ = step(tx, loss, w, tx.init(w))
  np.testing.assert_allclose(w, 2.0, rtol=1e-9)


def test_adam_on_rosenbrock_from_any_rate():
  @jax.jit
  @jax.vmap
  def final(rate):
    tx = optax.chain(optax.adam(1.0), gen_optax.scale_by_gen(rate))
    return run(tx, LOSSES["rosenbrock"], jnp.array([-1.2, 1.0]), 1000).loss[-1]

  losses = final(10.0 ** jnp.arange(-6.0, 1.0))
  assert np.all(np.asarray(losses) < 1e-12), losses


TOY_BASES = {
  "sgd": lambda: optax.sgd(1.0),
  "momentum": lambda: optax.sgd(1.0, momentum=0.9),
  "adam": lambda: optax.adam(1.0),
  "adan": lambda: optax.adan(1.0),
  "rmsprop": lambda: optax.rmsprop(1.0),
  "adagrad": lambda: optax.adagrad(1.0),
  "lion": lambda: optax.lion(1.0),
}


@pytest.mark.parametrize("base", TOY_BASES)
def test_no_toy_run_ends_above_its_start(base):
  """Eight starts by three first rates, and the median run descends well."""
  toys = [problems.rosenbrock(), problems.beale()]
  starts = jnp.array([s for toy in toys for s in toy.starts])
  which = jnp.array([i for i, toy in enumerate(toys) for _ in toy.starts])

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, 0, None))
  @functools.partial(jax.vmap, in_axes=(None, None, 0))
  def final(start, index, rate):
    fn = lambda w: jnp.where(index == 0, toys[0].fn(w), toys[1].fn(w))
    tx = gen_optax.generalized_newton(TOY_BASES[base](), rate)
    found = run(tx, lambda w, t: fn(w), start, 400)
    return fn(start), fn(found.params[-1]), jnp.all(jnp.isfinite(found.params))

  first, last, finite = final(starts, which, jnp.array([1e-6, 1e-2, 1.0]))
  assert np.all(finite)
  assert np.all(last <= first), np.asarray(last / first)
  assert np.median(last / first) < 0.05, np.asarray(last / first)


def test_state_is_found_by_class_name():
  tx = gen_optax.gen_adam()
  w = jnp.ones(2)
  _, state, _ = step(tx, lambda p: jnp.sum(p**2), w, tx.init(w))
  assert gen_state(state).count == 1
