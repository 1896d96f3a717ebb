"""ELMO's step: Algorithm 1, what no basis may change, saddles and trials."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gen_optax
from gen_optax import elmo, problems

ROSENBROCK = problems.rosenbrock().fn
START = (-1.2, 1.0)


def saddle(w):
  return w[0] ** 2 - w[1] ** 2 + w[1] ** 4


def updater(loss, **options):
  """A compiled update; the incoming updates are the loss's gradient."""
  tx = gen_optax.scale_by_elmo(**options)

  @jax.jit
  def update(w, state):
    value, gradient = jax.value_and_grad(loss)(w)
    updates, state = tx.update(gradient, state, w, value=value, value_fn=loss)
    return jax.tree.map(jnp.negative, updates), state

  return tx, update


def first_move(loss, w, **options):
  """The move from `w`, which is what is subtracted, and the state after it."""
  w = jnp.asarray(w)
  tx, update = updater(loss, **options)
  return update(w, tx.init(w))


def path(loss, w, steps, **options):
  """Points and infos of `steps` updates."""
  w = jnp.asarray(w)
  tx, update = updater(loss, **options)
  state, points, infos = tx.init(w), [w], []
  for _ in range(steps):
    move, state = update(w, state)
    w = w + move
    points.append(w)
    infos.append(state.info)
  return np.array(points), infos, state


def algorithm_1(loss, w, lipschitz):
  """One iteration to the letter, with the signs of eq. 1: c <= 0."""
  gradient, hess = jax.grad(loss)(w), jax.hessian(loss)(w)
  values, vectors = np.linalg.eigh(hess)
  for value, v, lip in zip(values, vectors.T, lipschitz, strict=True):
    v = -v if v @ gradient > 0 else v
    root = np.sqrt(value**2 + 2 * lip * abs(gradient @ v))
    w = w + (root - value) / lip * v
  return w


@pytest.mark.parametrize("lipschitz", [(30.0, 30.0), (5.0, 400.0)])
def test_without_safeguard_it_is_algorithm_1(x64, lipschitz):
  given = lipschitz[0] if lipschitz[0] == lipschitz[1] else jnp.array(lipschitz)
  points, infos, state = path(
    ROSENBROCK, START, 6, lipschitz=given, safeguarded=False
  )
  expected = jnp.array(START)
  for point in points[1:]:
    expected = algorithm_1(ROSENBROCK, expected, lipschitz)
    np.testing.assert_allclose(point, expected, rtol=1e-9)
  assert all(info.accepted and info.evaluations == 0 for info in infos)
  assert state.sigma == 0


def test_it_is_the_preconditioned_gradient_of_lemma_32(x64):
  w = jnp.array([0.3, -0.4, 1.2, 0.2])
  loss = problems.rosenbrock(4).fn
  lipschitz = jnp.array([3.0, 20.0, 100.0, 50.0])
  move, _ = first_move(loss, w, lipschitz=lipschitz, safeguarded=False)
  gradient, hess = jax.grad(loss)(w), jax.hessian(loss)(w)
  assert jnp.linalg.eigvalsh(hess)[0] < 0
  phi = elmo.minmax_preconditioner(hess, gradient, lipschitz)
  np.testing.assert_allclose(-move, phi @ gradient, rtol=1e-8)


def test_newton_is_the_limit(x64):
  move, _ = first_move(ROSENBROCK, START, lipschitz=1e-9, safeguarded=False)
  w = jnp.array(START)
  newton = jnp.linalg.solve(jax.hessian(ROSENBROCK)(w), jax.grad(ROSENBROCK)(w))
  np.testing.assert_allclose(move, -newton, rtol=1e-8)


# --- what no basis may change ------------------------------------------------


def rotation(n, seed=3):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def isotropic_plus(w):
  """Eigenvalues 2, 2, 2 and two negative ones, -1 twice, at every |w| = 0."""
  return jnp.sum(w[:3] ** 2) - jnp.sum(w[3:] ** 2) / 2 + jnp.sum(w**2) ** 2 / 50


@pytest.mark.parametrize(
  "lipschitz, repeated",
  [(2.0, False), ("gradient", False), ("adaptive", True), ("third", True)],
)
def test_rotations_of_the_parameters_rotate_the_path(x64, lipschitz, repeated):
  loss = isotropic_plus if repeated else problems.rosenbrock(5).fn
  # On a sphere around zero eigenvalues would be simple; the pure quadratic is
  # where they repeat.
  if repeated:
    loss = lambda w: isotropic_plus(w) - jnp.sum(w**2) ** 2 / 50 + jnp.sum(w)
  start, turn = jnp.array([0.3, -0.5, 0.2, 0.4, -0.1]), rotation(5)
  plain, _, _ = path(loss, start, 4, lipschitz=lipschitz)
  turned, _, _ = path(
    lambda w: loss(turn.T @ w), turn @ start, 4, lipschitz=lipschitz
  )
  np.testing.assert_allclose(turned @ turn, plain, rtol=1e-6, atol=1e-9)


def test_a_repeated_eigenvalue_is_one_eigenspace(x64):
  """Straight down, by the minmax step of the gradient's whole norm."""
  slope = jnp.array([1.0, -2.0, 2.0])
  for value in (4.0, 0.0, -4.0):
    loss = lambda w, value=value: value * jnp.sum(w**2) / 2 + slope @ w
    move, _ = first_move(loss, jnp.zeros(3), lipschitz=5.0, safeguarded=False)
    step = elmo.minmax_step(3.0, value, 5.0)
    np.testing.assert_allclose(move, -step * slope / 3, rtol=1e-9)


def test_signs_of_eigenvectors_do_not_matter(x64, monkeypatch):
  def flipped(signs, decompose):
    def eigh(matrix):
      values, vectors = decompose(matrix)
      return values, vectors * jnp.asarray(signs, vectors.dtype)

    return eigh

  turn = rotation(2)
  loss = lambda w: saddle(turn @ w)
  start = turn.T @ np.array([1.0, 0.0])
  decompose, paths = jnp.linalg.eigh, []
  for signs in ((1, 1), (-1, 1), (1, -1)):
    monkeypatch.setattr(jnp.linalg, "eigh", flipped(signs, decompose))
    paths.append(path(loss, start, 5, saddle_sign="positive")[0])
  np.testing.assert_allclose(paths[1], paths[0], atol=1e-12)
  np.testing.assert_allclose(paths[2], paths[0], atol=1e-12)


# --- saddles -----------------------------------------------------------------


def test_a_ridge_that_falls_to_one_side_only_is_left_there(x64):
  """Trials take turns: the side that is a wall never keeps its promise."""
  for tilt in (1.0, -1.0):
    wall = lambda y, tilt=tilt: jnp.maximum(tilt * y, 0.0) * 1e3
    loss = lambda w, wall=wall: saddle(w) + wall(w[1]) * w[1] ** 2
    move, state = first_move(loss, [1.0, 0.0])
    assert state.info.accepted and float(move[1]) * tilt < -0.01
    # Without trials both sides are looked at.
    move, _ = first_move(loss, [1.0, 0.0], lipschitz=8.0, safeguarded=False)
    assert float(move[1]) * tilt < 0


def test_the_escape_has_the_minmax_length(x64):
  loss = lambda w: w[0] ** 2 - w[1] ** 2
  move, state = first_move(loss, [1.0, 0.0], lipschitz=8.0, safeguarded=False)
  np.testing.assert_allclose(abs(move[1]), 2 * 2 / 8)
  assert state.info.evaluations == 2  # both sides
  # Of a repeated one the whole move has that length.
  loss = lambda w: w[0] ** 2 - w[1] ** 2 - w[2] ** 2
  move, _ = first_move(loss, [1.0, 0.0, 0.0], lipschitz=8.0, safeguarded=False)
  np.testing.assert_allclose(jnp.linalg.norm(move[1:]), 0.5)


def test_an_exact_saddle_point_is_left(x64):
  points, infos, _ = path(saddle, [0.0, 0.0], 8)
  np.testing.assert_allclose(saddle(points[-1]), -0.25, rtol=1e-9)
  assert infos[0].evaluations == 1 + infos[0].rejections


def test_saddle_signs(x64):
  loss = lambda w: saddle(w) + 0.3 * w[1] ** 3
  stays, state = first_move(loss, [1.0, 0.0], saddle_sign="zero")
  assert stays[1] == 0 and stays[0] < -0.5
  assert state.info.evaluations == 1 + state.info.rejections
  fixed, state = first_move(loss, [1.0, 0.0], saddle_sign="positive")
  assert fixed[1] != 0
  assert state.info.evaluations == 1 + state.info.rejections


def test_a_slope_is_followed_where_there_is_one(x64):
  for side in (1e-3, -1e-3):
    move, state = first_move(saddle, [1.0, side])
    assert float(move[1]) * side > 0
    assert state.info.evaluations == 1 + state.info.rejections


# --- trials -------------------------------------------------------------------


def test_good_steps_halve_sigma_down_to_a_floor(x64):
  loss = lambda w: jnp.sum(jnp.array([1.0, 50.0]) * w**2)
  tx, update = updater(loss)
  state = tx.init(jnp.ones(2))
  for k in range(40):
    _, state = update(jnp.ones(2), state)
    if k < 10:
      assert state.sigma == 0.5 ** (k + 1)
  assert state.sigma == pytest.approx(1e-8 * 100)
  assert float(state.info.ratio) == pytest.approx(1.0, abs=1e-6)


def test_a_rejection_raises_sigma_to_what_would_have_foreseen_it(x64):
  """f = -x + s |x|^3 / 6 is its own model once sigma is s."""
  for true, rejections, sigma in (
    (2.2, 0, 1.0),  # not far enough from 1 to fail
    (6.0, 1, 3.0),  # then exact, and halved
    (100.0, 2, 64.0),  # eightfold at most
    (1e3, 3, 512.0),
  ):
    loss = lambda w, true=true: -w[0] + true / 6 * jnp.abs(w[0]) ** 3
    _, state = first_move(loss, [0.0])
    assert state.info.accepted and state.info.rejections == rejections
    np.testing.assert_allclose(state.sigma, sigma, rtol=1e-9)
  # The smallest raise is a doubling, all of them inside one update.
  loss = lambda w: jnp.where(w[0] > 0.1, 1.0, -w[0])
  move, state = first_move(loss, [0.0])
  rejected = int(state.info.rejections)
  assert state.info.accepted and 0 < move[0] <= 0.1 and rejected > 2
  assert 2.0**rejected <= state.sigma * 2 and state.sigma <= 8.0**rejected
  assert state.info.evaluations == rejected + 1


def lying(options, w=(1.0, 2.0)):
  """The incoming updates are the gradient of another loss."""
  w = jnp.array(w)
  tx = gen_optax.scale_by_elmo(**options)
  loss = lambda w: jnp.sum(w**2)
  update = jax.jit(lambda g, state: tx.update(g, state, w, value_fn=loss))
  return update(-2 * w, tx.init(w))


@pytest.mark.parametrize("rejections", [0, 3, 11])
def test_all_trials_rejected_give_no_update(x64, rejections):
  updates, state = lying(dict(max_rejections=rejections))
  np.testing.assert_array_equal(updates, 0)
  assert not state.info.accepted
  assert state.info.rejections == rejections + 1
  # One at the parameters, since no value was handed over.
  assert state.info.evaluations == rejections + 2
  # Not eightfold: the fault may be the gradient's.
  assert state.sigma == 2.0 ** (rejections + 1)
  assert state.info.ratio < 0


def test_without_safeguard_nothing_is_rejected():
  updates, state = lying(dict(safeguarded=False))
  assert state.info.accepted and jnp.all(updates < 0)
  assert state.info.evaluations == 0 and state.sigma == 1


def test_steps_are_limited(x64):
  free, _ = first_move(ROSENBROCK, START, lipschitz=1.0, safeguarded=False)
  length = float(jnp.linalg.norm(free))
  for limit in (length / 3, 2 * length):
    for safeguarded in (False, True):
      move, _ = first_move(
        *(ROSENBROCK, START),
        lipschitz=1.0,
        safeguarded=safeguarded,
        initial_sigma=1e-12,
        max_step=limit,
      )
      assert jnp.linalg.norm(move) <= min(limit, length) * (1 + 1e-9)
      if not safeguarded:
        np.testing.assert_allclose(
          move, free * min(1, limit / length), rtol=1e-9
        )


def test_a_step_promises_what_its_model_says(x64):
  """The ratio against eq. 3 by hand, with L = estimate + sigma."""
  w = jnp.array([0.3, -0.4])
  move, state = first_move(
    ROSENBROCK, w, lipschitz=700.0, initial_sigma=50.0, max_rejections=0
  )
  gradient, hess = jax.grad(ROSENBROCK)(w), jax.hessian(ROSENBROCK)(w)
  values, vectors = np.linalg.eigh(hess)
  x, c = vectors.T @ move, vectors.T @ gradient
  np.testing.assert_allclose(abs(x), elmo.minmax_step(c, values, 750.0))
  model = np.sum(c * x + values * x**2 / 2 + 750.0 * abs(x) ** 3 / 6)
  actual = ROSENBROCK(w) - ROSENBROCK(w + move)
  np.testing.assert_allclose(state.info.ratio, actual / -model, rtol=1e-9)
  np.testing.assert_array_equal(state.info.lipschitz, 700.0)
  np.testing.assert_allclose(state.info.eigenvalues, values)


def test_evaluations_are_those_that_happen():
  counted = []

  def loss(w):
    value = saddle(w)
    jax.debug.callback(lambda x: counted.append(float(x)), value)
    return value

  tx = gen_optax.scale_by_elmo()
  update = jax.jit(
    lambda w, s: tx.update(jax.grad(saddle)(w), s, w, value_fn=loss)
  )
  for w in ([1.0, 0.0], [1.0, 0.4], [0.0, 0.0]):
    w = jnp.array(w)
    counted.clear()
    _, state = jax.block_until_ready(update(w, tx.init(w)))
    jax.effects_barrier()
    # The two columns of the Hessian call the closure once each, batched.
    assert len(counted) - int(state.info.evaluations) in (1, 2), w


# --- small problems -----------------------------------------------------------

PROBLEMS = {
  "rosenbrock 2": (ROSENBROCK, START),
  "rosenbrock 10": (problems.rosenbrock(10).fn, START * 5),
  "beale": (problems.beale().fn, (1.0, 1.0)),
  "ridge": (saddle, (1.0, 0.0)),
  "near the ridge": (saddle, (1.0, 1e-3)),
}


@functools.cache
def solved(name, lipschitz):
  """Steps and evaluations to a second-order point, in float64."""
  loss, start = PROBLEMS[name]
  tx = gen_optax.elmo_dense(lipschitz=lipschitz)

  def wanted(carry):
    w, _, steps, _ = carry
    level = jnp.linalg.norm(jax.grad(loss)(w)) < 1e-8
    convex = jnp.linalg.eigvalsh(jax.hessian(loss)(w))[0] > -1e-6
    return ~(level & convex) & (steps < 300)

  def step(carry):
    w, state, steps, evaluations = carry
    value, gradient = jax.value_and_grad(loss)(w)
    updates, state = tx.update(gradient, state, w, value=value, value_fn=loss)
    evaluations += state[0].info.evaluations
    return optax.apply_updates(w, updates), state, steps + 1, evaluations

  w = jnp.array(start)
  carry = (w, tx.init(w), 0, jnp.ones((), jnp.int32))
  w, _, steps, evaluations = jax.jit(
    lambda carry: jax.lax.while_loop(wanted, step, carry)
  )(carry)
  return int(steps), int(evaluations), float(loss(w))


# Each other estimator where it has most to do; the script runs them all.
WAYS = [(name, "adaptive") for name in PROBLEMS]
WAYS += [("beale", "gradient"), ("rosenbrock 2", "third"), ("ridge", "drift")]
WAYS += [("ridge", "third"), ("beale", "eigen_arc"), ("ridge", "eigen_arc")]


@pytest.mark.parametrize("name, lipschitz", WAYS)
def test_a_second_order_point_from_everywhere(x64, name, lipschitz):
  steps, evaluations, loss = solved(name, lipschitz)
  assert steps < 100
  lowest = {"rosenbrock 10": 3.98657911, "beale": 0, "rosenbrock 2": 0}
  assert loss == pytest.approx(lowest.get(name, -0.25), abs=1e-8)
  if lipschitz == "adaptive":
    few = {"rosenbrock 2": 26, "rosenbrock 10": 32, "beale": 11}
    assert evaluations <= few.get(name, 8)
