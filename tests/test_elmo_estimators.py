"""Lipschitz estimators, EigenARC, tracking, and the curvature report."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gen_optax
from gen_optax import elmo, problems
from gen_optax.elmo.estimators import make_estimator
from gen_optax.elmo.spectrum import Point, Spectrum, find_spaces
from gen_optax.oracle import line

ROSENBROCK = problems.rosenbrock().fn
BEALE = problems.beale().fn


def spaces_at(loss, w):
  """Everything an estimator may read, from a dense decomposition."""
  w = jnp.asarray(w)
  values, vectors = jnp.linalg.eigh(jax.hessian(loss)(w))
  return spaces_of(
    Point(loss, w, loss(w), jax.grad(loss)(w)), values, vectors.T
  )


def spaces_of(point, values, vectors):
  used = jnp.ones(len(values), bool)
  return find_spaces(point, Spectrum(values, vectors, used, jnp.zeros(())))


def estimate(lipschitz, loss, *points):
  """What an estimator says at the last of `points`, and evaluations there."""
  estimator = make_estimator(lipschitz)
  state = estimator.init(jnp.asarray(points[0]), len(points[0]))
  for w in points:
    found, state, spent = estimator.estimate(spaces_at(loss, w), state)
  return found, state, int(spent)


def test_third_derivatives_and_gradients_by_hand(x64):
  w = jnp.array([-1.2, 1.0])
  spaces = spaces_at(ROSENBROCK, w)
  third = jax.jacfwd(jax.hessian(ROSENBROCK))(w)
  v = spaces.vectors
  along = jnp.einsum("abc,ka,kb,kc->k", third, v, v, v)
  across = jnp.einsum("abc,ka,kb->kc", third, v, v)
  found, _, spent = estimate("third", ROSENBROCK, w)
  np.testing.assert_allclose(found, abs(along), rtol=1e-10)
  assert spent == 0
  found, _, _ = estimate("gradient", ROSENBROCK, w)
  np.testing.assert_allclose(found, jnp.linalg.norm(across, axis=1), rtol=1e-10)


def test_in_a_repeated_space_the_direction_is_the_gradients(x64):
  """D3f[v, v, v] of three equal eigenvalues depends on v; not on its basis."""
  loss = lambda w: (
    jnp.sum(w**2) + jnp.sum(w**3) / 6 + w @ jnp.array([1.0, 2, 2])
  )
  u = jnp.array([1.0, 2.0, 2.0]) / 3
  turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
  spaces = spaces_at(loss, jnp.zeros(3))
  turned = spaces_of(Point(*spaces[:4]), spaces.values, turn @ spaces.vectors)
  exact = line.third_derivative(loss, jnp.zeros(3), u)
  for basis in (spaces, turned):
    found, _, _ = make_estimator("third").estimate(basis, ())
    np.testing.assert_allclose(found, exact, rtol=1e-10)


def test_constant_callable_and_adaptive(x64):
  w = (-1.2, 1.0)
  np.testing.assert_array_equal(estimate("adaptive", ROSENBROCK, w)[0], 0)
  np.testing.assert_array_equal(estimate(3.0, ROSENBROCK, w)[0], 3)
  given = jnp.array([1.0, 2.0])
  np.testing.assert_array_equal(estimate(given, ROSENBROCK, w)[0], given)
  double = lambda spaces: 2 * jnp.abs(spaces.values)
  found, _, _ = estimate(double, ROSENBROCK, w)
  np.testing.assert_allclose(found, [2 * 23.6330193487, 2 * 1506.366980651])
  with pytest.raises(ValueError, match="one entry for each eigenspace"):
    estimate(lambda spaces: jnp.ones(3), ROSENBROCK, w)


def test_drift_is_line_5_from_the_second_hessian_on(x64):
  points = np.array([[-1.2, 1.0], [-1.1, 1.1], [-1.1, 1.1], [-0.9, 0.9]])
  values = [np.linalg.eigvalsh(jax.hessian(ROSENBROCK)(w)) for w in points]
  found, _, _ = estimate(elmo.drift(0.7), ROSENBROCK, points[0])
  np.testing.assert_array_equal(found, 0)
  slopes = [
    abs(values[j] - values[i]) / np.linalg.norm(points[j] - points[i])
    for i, j in ((0, 1), (2, 3))
  ]
  found, _, _ = estimate(elmo.drift(0.7), ROSENBROCK, *points[:2])
  np.testing.assert_allclose(found, slopes[0])
  # The step that was not taken is no observation.
  expected = (0.7 * slopes[0] + slopes[1]) * 0.3 / (1 - 0.7**2)
  found, _, _ = estimate(elmo.drift(0.7), ROSENBROCK, *points)
  np.testing.assert_allclose(found, expected)


# --- EigenARC -----------------------------------------------------------------


def eigen_arc_reference(loss, w, lipschitz, caps=30, floor=1e-8):
  """Algorithm 3 as corrected, one eigenspace after the other, in numpy."""
  w = np.asarray(w)
  values, vectors = np.linalg.eigh(jax.hessian(loss)(w))
  slopes = vectors.T @ np.asarray(jax.grad(loss)(w))
  evaluations = 0

  def assess(lip):
    nonlocal evaluations
    evaluations += 1
    move = (np.sqrt(values**2 + 2 * lip * abs(slopes)) - values) / lip
    x = -np.sign(slopes) * move
    model = slopes * x + values * x**2 / 2 + lip * abs(x) ** 3 / 6
    return float(loss(w) - loss(w + vectors @ x)) / -model.sum()

  lip = np.array(lipschitz, float)
  ratio = assess(lip)
  if ratio > 0.9:
    lip = np.maximum(lip / 2, floor)
  elif not ratio >= 0.1:
    for _ in range(caps):
      lip = lip * 2
      if assess(lip) >= 0.1:
        break
    for i in range(len(lip)):
      for _ in range(caps):
        trial = lip.copy()
        trial[i] /= 2
        if trial[i] < floor or not assess(trial) >= 0.1:
          break
        lip = trial
  return lip, evaluations


@pytest.mark.parametrize(
  "loss, w, start",
  [
    (BEALE, (1.0, 1.0), 0.01),  # raised, then lowered one by one
    (BEALE, (1.0, 1.0), 1e4),  # too careful
    (ROSENBROCK, (-1.2, 1.0), 1.0),
    (ROSENBROCK, (0.9, 0.5), 200.0),
  ],
)
def test_eigen_arc_is_algorithm_3_corrected(x64, loss, w, start):
  expected, evaluations = eigen_arc_reference(loss, w, [start, start])
  found, _, spent = estimate(elmo.eigen_arc(start), loss, w)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  assert spent == evaluations


def test_as_printed_it_would_never_raise(x64):
  """The case that tells line 8's `>` from `<`."""
  found, _, spent = estimate(elmo.eigen_arc(0.01), BEALE, (1.0, 1.0))
  assert spent > 10
  assert found.max() > 1


def test_eigen_arc_ends_where_a_parameter_has_no_effect(x64):
  """No slope and positive curvature: every L gives the same step."""
  loss = lambda w: w[0] ** 2 + jnp.cosh(5 * w[1]) - w[1]
  found, _, spent = estimate(elmo.eigen_arc(1e-6), loss, (0.0, 0.4))
  assert spent < 70 and jnp.all(jnp.isfinite(found))
  at_minimum, _, spent = estimate(
    elmo.eigen_arc(1.0), lambda w: jnp.sum(w**2), (0.0, 0.0)
  )
  # Nothing over nothing counts as 1: a good step.
  np.testing.assert_array_equal(at_minimum, 0.5)
  assert spent == 1


def test_eigen_arc_caps():
  wall = lambda w: jnp.where(jnp.sum(jnp.abs(w)) > 2.0, jnp.nan, jnp.sum(w**2))
  tight = elmo.eigen_arc(1e-6, max_raises=3, max_reductions=2)
  loss = lambda w: -wall(w)  # downhill all the way to where it is not defined
  found, _, spent = estimate(tight, loss, (1.0, 0.5))
  np.testing.assert_allclose(found, 8e-6)
  assert spent <= 1 + 3 + 2 * (2 + 1)


# --- along another optimizer's path -------------------------------------------


def test_tracking_changes_nothing_and_learns(x64):
  tracked = optax.chain(
    gen_optax.track_lipschitz("eigen_arc", every=2), optax.sgd(1e-3)
  )
  plain = optax.sgd(1e-3)
  w = jnp.array([-1.2, 1.0])
  state, plain_state = tracked.init(w), plain.init(w)
  update = jax.jit(lambda g, s, w: tracked.update(g, s, w, value_fn=ROSENBROCK))
  lip = np.ones(2)
  for k in range(4):
    gradient = jax.grad(ROSENBROCK)(w)
    if k % 2 == 0:
      # Ascending here, the largest first there.
      lip, _ = eigen_arc_reference(ROSENBROCK, w, lip[::-1])
      lip = lip[::-1]
    updates, state = update(gradient, state, w)
    expected, plain_state = plain.update(gradient, plain_state)
    np.testing.assert_array_equal(updates, expected)
    np.testing.assert_allclose(state[0].lipschitz, lip, rtol=1e-9)
    w = w + updates
  assert state[0].known
  _, bad = update(jnp.full(2, jnp.nan), state, w)
  np.testing.assert_array_equal(bad[0].lipschitz, state[0].lipschitz)


def test_curvature_report(x64):
  w = jnp.array([-1.2, 1.0])
  report = gen_optax.curvature_report(ROSENBROCK, w, top=1, bottom=1)
  gradient = jax.grad(ROSENBROCK)(w)
  values, vectors = np.linalg.eigh(jax.hessian(ROSENBROCK)(w))
  slopes = (vectors.T @ gradient)[::-1]
  np.testing.assert_allclose(report.eigenvalues, values[::-1], rtol=1e-9)
  np.testing.assert_allclose(abs(report.slopes), abs(slopes), rtol=1e-9)
  bars = 3 * values[::-1] ** 2 / abs(slopes)
  np.testing.assert_allclose(report.thresholds, bars, rtol=1e-9)
  np.testing.assert_allclose(
    report.lipschitz, [2818.532908632358, 96.179476825489], rtol=1e-9
  )
  np.testing.assert_allclose(report.share, 1, rtol=1e-9)
  safe = np.asarray(report.lipschitz) < bars
  assert float(report.second_order_share()) == safe.mean()
  verdict = {1.0: "second order", 0.0: "first order"}.get(
    float(safe.mean()), "both"
  )
  assert report.favours() == verdict
  assert report.favours() in report.summary()


def test_the_verdict_is_eq_8():
  quadratic = lambda w: jnp.sum(jnp.array([1.0, 9.0]) * w**2)
  look = lambda loss, w: gen_optax.curvature_report(
    loss, jnp.array(w), top=2, bottom=0
  ).favours()
  assert look(quadratic, [1.0, 1.0]) == "second order"
  # Curvature that doubles within a hundredth of Newton's step.
  steep = lambda w: quadratic(w) + 1e4 * jnp.sum(w**3)
  assert look(lambda w: steep(w) + 50 * jnp.sum(w), [0.0, 0.0]) == "first order"
  assert look(lambda w: -quadratic(w), [1.0, 1.0]) == "neither"
  with pytest.raises(ValueError, match="finite"):
    look(lambda w: jnp.nan * jnp.sum(w), [1.0, 1.0])


def test_pairs_without_the_gradient_give_no_verdict():
  """The rest of the space decides; a pair that is not known has dashes."""
  curvatures = jnp.array([9.0, 1.0, 1.0])

  def verdict(slope):
    loss = lambda w: jnp.sum(curvatures * w**2) / 2 + slope * w[0] + w[1]
    report = gen_optax.curvature_report(loss, jnp.zeros(3), top=1, bottom=0)
    return report, report.summary().splitlines()[-1]

  report, line = verdict(0.11)
  assert report.share > 0.01 and line.endswith("second order.")
  report, line = verdict(0.09)
  assert report.share < 0.01 and report.favours() == "second order"
  assert line == "no verdict: only 0.8 % of the squared gradient is in these."
  vague = report._replace(converged=jnp.zeros(1, bool))
  _, slope, _, threshold, *mark = vague.summary().splitlines()[1].split()
  assert (slope, threshold, mark) == ("-", "-", ["not", "converged"])
