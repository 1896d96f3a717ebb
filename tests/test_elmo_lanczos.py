"""ELMO in a subspace: pairs by Lanczos, the rest, and lazy steps."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gen_optax
from gen_optax import elmo, problems

ROSENBROCK = problems.rosenbrock(6).fn
START = np.array([-1.2, 1.0, 0.5, -0.3, 0.8, 0.2])
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
CURVES = np.array([20.0, 10.0, 3.0, 2.0, 1.0, 0.5, -1.0, -4.0])
SLOPE = np.linspace(1, 2, 8)


def quadratic(w, curves=CURVES):
  x = BASIS.T @ w
  return jnp.sum(curves * x**2) / 2 + SLOPE @ x


def bowl(w):
  return quadratic(w, np.array([20.0, 10.0, 3.0, 2.0, 1.0, 4.0, 0.5, 0.7]))


# Of the bowl, 20 and 10 at the top, 0.5 and 0.7 at the bottom aside.
REST = np.array([2, 3, 4, 5])


def update_at(loss, w, state=None, **options):
  """The move from `w` and the state after it."""
  w, tx = jnp.asarray(w), gen_optax.scale_by_elmo(**options)

  @jax.jit
  def update(w, state):
    value, gradient = jax.value_and_grad(loss)(w)
    return tx.update(gradient, state, w, value=value, value_fn=loss)

  updates, state = update(w, tx.init(w) if state is None else state)
  return -updates, state


def test_all_pairs_are_the_dense_form(x64):
  dense, _ = update_at(ROSENBROCK, START)
  for subspace in ((6, 0), (2, 4)):
    move, state = update_at(ROSENBROCK, START, subspace=subspace)
    np.testing.assert_allclose(move, dense, rtol=1e-7)
    assert state.spectrum.used.all()


def test_the_rest_steps_by_the_largest_curvature_left(x64):
  """In eigencoordinates of a quadratic, everything by hand."""
  lipschitz = 0.5
  move, state = update_at(
    quadratic,
    jnp.zeros(8),
    subspace=(2, 1),
    order=8,
    lipschitz=lipschitz,
    safeguarded=False,
  )
  np.testing.assert_allclose(state.info.eigenvalues, [20, 10, -4], rtol=1e-9)
  np.testing.assert_allclose(state.spectrum.complement_bound, 3.0, rtol=1e-9)
  x, pairs = BASIS.T @ move, [0, 1, 7]
  expected = -elmo.minmax_step(SLOPE[pairs], CURVES[pairs], lipschitz)
  np.testing.assert_allclose(x[np.array(pairs)], expected, rtol=1e-8)
  rest = np.setdiff1d(np.arange(8), pairs)
  slope = np.linalg.norm(SLOPE[rest])
  step = elmo.minmax_step(slope, 3.0, lipschitz)
  np.testing.assert_allclose(x[rest], -step * SLOPE[rest] / slope, rtol=1e-8)


def test_without_curvature_shift_the_rest_steps_by_its_inverse(x64):
  move, _ = update_at(
    bowl, jnp.zeros(8), subspace=(2, 2), order=8, initial_sigma=1e-9
  )
  x = BASIS.T @ move
  np.testing.assert_allclose(x[REST], -SLOPE[REST] / 4, rtol=1e-6)


def test_pairs_that_have_not_converged_are_left_to_the_rest(x64):
  """A short run knows the largest eigenvalue, and not the smallest one."""
  values = np.r_[100.0, np.linspace(-1, 1, 199)]
  loss = lambda w: jnp.sum(values * w**2) / 2 + jnp.sum(w)
  move, state = update_at(loss, jnp.ones(200), subspace=(1, 1), order=8)
  used = state.spectrum.used
  assert used[0] and not used[1]
  assert state.info.eigenvalues[1] == 0 != state.spectrum.values[1]
  assert state.spectrum.complement_bound >= abs(state.spectrum.values[1]) > 0.5
  assert state.info.accepted and jnp.all(jnp.isfinite(move))


def test_another_optimizer_looks_after_the_rest(x64):
  w = jnp.zeros(8)
  move, state = update_at(
    *(bowl, w),
    subspace=(2, 2),
    order=8,
    initial_sigma=1e-9,
    complement=optax.sgd(0.125),
  )
  x = BASIS.T @ move
  np.testing.assert_allclose(x[REST], -0.125 * SLOPE[REST], rtol=1e-9)
  np.testing.assert_allclose(x[:2], -SLOPE[:2] / CURVES[:2], rtol=1e-5)


def test_its_step_keeps_out_of_the_eigenspaces(x64):
  """Adam's step is no multiple of the gradient that it is given."""
  w = jnp.zeros(8)
  options = dict(subspace=(2, 2), order=8, lipschitz=50.0, safeguarded=False)
  move, _ = update_at(quadratic, w, complement=optax.adam(0.1), **options)
  plain, _ = update_at(quadratic, w, **options)
  x, expected = BASIS.T @ move, BASIS.T @ plain
  pairs = np.array([0, 1, 6, 7])
  np.testing.assert_allclose(x[pairs], expected[pairs], rtol=1e-8)
  assert not np.allclose(x[2:6], expected[2:6], rtol=0.1)


def test_a_step_of_the_rest_that_is_too_long_is_shortened(x64):
  wild = optax.sgd(100.0, momentum=0.9)
  move, state = update_at(
    quadratic, jnp.zeros(8), subspace=(2, 2), order=8, complement=wild
  )
  assert state.info.accepted and state.info.rejections > 3
  assert quadratic(move) < 0
  # What was not taken is not remembered.
  _, state = update_at(
    *(quadratic, jnp.zeros(8)),
    subspace=(2, 2),
    order=8,
    complement=wild,
    max_rejections=0,
  )
  assert not state.info.accepted
  np.testing.assert_array_equal(state.complement[0].trace, 0)


def test_the_complement_may_read_the_closure(x64):
  tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen())
  move, state = update_at(
    quadratic, jnp.zeros(8), subspace=(2, 2), order=8, complement=tx
  )
  assert state.info.accepted
  assert quadratic(move) < 0


# --- lazy steps ---------------------------------------------------------------


def hidden_products(loss, tx, steps, replicas=None, w=START):
  """Evaluations of the closure in one compiled scan, trials not counted."""
  counted = []

  def counting(w):
    value = loss(w)
    jax.debug.callback(lambda x: counted.append(1), value)
    return value

  def body(carry, _):
    w, state = carry
    value, gradient = jax.value_and_grad(loss)(w)
    updates, state = tx.update(
      gradient, state, w, value=value, value_fn=counting
    )
    return (w - updates, state), state.info.evaluations

  run = lambda w: jax.lax.scan(body, (w, tx.init(w)), length=steps)[1]
  w = jnp.asarray(w)
  if replicas:
    run, w = jax.vmap(run), jnp.stack([w] * replicas)
  evaluations = jax.block_until_ready(jax.jit(run)(w))
  jax.effects_barrier()
  return len(counted), evaluations


def test_eigenpairs_are_computed_on_every_third_step():
  tx = gen_optax.scale_by_elmo(subspace=(1, 1), order=5, every=3)
  calls, evaluations = hidden_products(ROSENBROCK, tx, 6)
  assert calls - int(evaluations.sum()) == 2 * 5
  tx = gen_optax.scale_by_elmo(every=3)
  calls, evaluations = hidden_products(ROSENBROCK, tx, 6)
  # Six columns call the closure batched, which counts as one call or six.
  assert calls - int(evaluations.sum()) in (2 * 1, 2 * 6)


def test_lazy_replicas_spare_their_products_too():
  tx = gen_optax.scale_by_elmo(
    subspace=(1, 1), order=5, every=3, safeguarded=False, saddle_sign="zero"
  )
  calls, _ = hidden_products(ROSENBROCK, tx, 6, replicas=3)
  assert calls == 3 * 2 * 5


def test_nothing_of_a_refresh_leaves_its_loop():
  """XLA moves what does not depend on a loop's carry in front of the loop."""
  features = jax.random.normal(jax.random.key(0), (64, 16))
  loss = lambda w: jnp.mean(jnp.tanh(features @ w) ** 2)
  tx = gen_optax.scale_by_elmo(
    subspace=(1, 1), every=10, safeguarded=False, saddle_sign="zero"
  )
  w = jnp.ones((16, 4))

  def step(w, state, gradient):
    return tx.update(gradient, state, w, value_fn=loss)

  compiled = jax.jit(step).lower(w, tx.init(w), w).compile().as_text()
  entry = re.search(r"^ENTRY .*?^}", compiled, re.M | re.S)[0]
  moved = [
    line
    for line in entry.splitlines()
    if re.search(r" (dot|convolution)\(", line) and "64,4" in line
  ]
  assert "while" in entry and moved == []


def test_old_pairs_serve_between(x64):
  tx = gen_optax.elmo_lanczos(top=2, bottom=2, every=5)

  @jax.jit
  def step(w, state):
    value, gradient = jax.value_and_grad(ROSENBROCK)(w)
    updates, state = tx.update(
      gradient, state, w, value=value, value_fn=ROSENBROCK
    )
    return optax.apply_updates(w, updates), state

  w, seen = jnp.asarray(START), []
  state = tx.init(w)
  for _ in range(10):
    w, state = step(w, state)
    seen.append(np.asarray(state[0].spectrum.values))
  for k in range(1, 10):
    assert np.array_equal(seen[k], seen[k - 1]) == (k != 5)
  for _ in range(150):
    w, state = step(w, state)
  # The local minimum, near (-1, 1, 1, 1, 1, 1).
  assert ROSENBROCK(w) < 3.98
