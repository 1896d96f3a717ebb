"""ELMO on bad numbers."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import assert_finite

import gen_optax
from gen_optax.elmo import trials
from gen_optax.guards import undo

FORMS = {
  "dense": {},
  "lanczos": dict(subspace=(2, 1), order=6),
  "adam outside": dict(subspace=(1, 1), order=6, complement=optax.adam(0.1)),
  "drift, every third": dict(lipschitz="drift", every=3),
  "unsafe": dict(lipschitz=2.0, safeguarded=False),
}
forms = pytest.mark.parametrize("name", FORMS)
START = {"a": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(2)}


def quadratic(params, scale=1.0):
  weights = {"a": jnp.arange(1.0, 7.0).reshape(2, 3), "b": jnp.ones(2)}
  return scale * sum(jnp.sum(weights[k] * params[k] ** 2) / 2 for k in params)


@functools.cache
def stage(name):
  """A stage and its compiled update; `scale` multiplies the loss."""
  tx = gen_optax.scale_by_elmo(**FORMS[name])

  @jax.jit
  def update(gradient, state, scale):
    value_fn = lambda p: quadratic(p, scale)
    return tx.update(gradient, state, START, value_fn=value_fn)

  return tx, update


def run(name, factors, scale=1.0, state=None):
  """Updates and states after each multiple of the true gradient."""
  tx, update = stage(name)
  state = tx.init(START) if state is None else state
  history = []
  for factor in factors:
    true = jax.grad(quadratic)(START)
    gradient = jax.tree.map(lambda g, k=factor: k * g, true)
    updates, state = update(gradient, state, scale)
    history.append((updates, state))
  return history


@forms
def test_bad_gradients_are_withheld_and_forgotten(name):
  for bad in (jnp.nan, jnp.inf, -jnp.inf):
    for first in ([], [1.0, 1.0]):
      history = run(name, [*first, bad, 1.0, 1.0])
      assert_finite(history, bad)
      updates, state = history[len(first)]
      assert optax.tree.norm(updates) == 0 and not state.info.accepted
      updates, state = history[-1]
      assert state.info.accepted and optax.tree.norm(updates) > 0.1


@forms
def test_absurd_gradients_poison_nothing(name):
  for bad in (1e20, -1e30, 1e-20, 0.0):
    history = run(name, [1.0, bad] + [1.0] * 20)
    assert_finite(history, bad)
    if name != "unsafe":
      before = optax.tree.norm(history[0][0])
      assert optax.tree.norm(history[1][0]) <= 2 * before
    updates, state = history[-1]
    assert state.info.accepted and optax.tree.norm(updates) > 0.1
  # The safeguard never moves to where the loss is higher.
  for updates, _ in run(name, [1e20, -1.0]):
    if name != "unsafe":
      there = jax.tree.map(jnp.subtract, START, updates)
      assert quadratic(there) <= quadratic(START) * (1 + 1e-6)


@forms
def test_a_bad_loss_is_withheld_and_forgotten(name):
  """The closure turns bad, its Hessian with it, while the gradient is sound."""
  for bad in (jnp.nan, jnp.inf):
    for first in ([], [1.0]):
      state = run(name, first)[-1][1] if first else None
      ((updates, state),) = run(name, [1.0], bad, state)
      if name == "drift, every third" and first:
        assert not state.info.accepted  # the old pairs are sound, the loss not
      assert optax.tree.norm(updates) == 0 and not state.info.accepted
      assert_finite(state)
      updates, state = run(name, [1.0, 1.0], 1.0, state)[-1]
      assert state.info.accepted and optax.tree.norm(updates) > 0.1


@forms
def test_a_flat_loss_moves_nothing(name):
  history = run(name, [0.0, 0.0], 0.0)
  assert_finite(history)
  assert all(optax.tree.norm(updates) == 0 for updates, _ in history)


@pytest.mark.parametrize("name", ["dense", "lanczos"])
def test_the_scale_of_the_loss_is_learned(name):
  """Sigma starts at 1 and is right at any scale after a few dozen steps."""
  for scale in (1e-15, 1e15):
    updates, state = run(name, [scale] * 60, scale)[-1]
    assert_finite((updates, state))
    assert state.info.accepted
    there = jax.tree.map(jnp.subtract, START, updates)
    assert quadratic(there) < 0.5 * quadratic(START), scale


def test_a_linear_loss_is_descended():
  """No curvature, no third derivative: sigma has the last word."""
  loss = lambda w: jnp.sum(w)
  for options in ({}, dict(subspace=(1, 1))):
    tx = gen_optax.scale_by_elmo(**options)
    w = jnp.zeros(5)

    @jax.jit
    def step(w, state, tx=tx):
      updates, state = tx.update(jnp.ones(5), state, w, value_fn=loss)
      return w - updates, state

    state = tx.init(w)
    for _ in range(20):
      w, state = step(w, state)
    assert_finite((w, state))
    assert loss(w) < -20


def test_walls_are_not_crossed():
  """Beyond the trust of the model the loss is not a number."""
  loss = lambda w: -jnp.sum(jnp.log(w)) + 1e-2 * jnp.sum(w)
  tx = gen_optax.elmo_dense(initial_sigma=1e-6)
  w = jnp.array([30.0, 50.0])

  @jax.jit
  def step(w, state):
    updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
    return optax.apply_updates(w, updates), state

  state = tx.init(w)
  for _ in range(20):
    w, state = step(w, state)
  np.testing.assert_allclose(w, 100.0, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, dict(subspace=(1, 1))])
def test_a_fall_without_bound_is_no_invitation(options):
  """Five times the usual length at most, and the refused trials are counted."""
  tx = gen_optax.scale_by_elmo(**options)
  sound = lambda w: jnp.sum(jnp.sqrt(1 + (w - 30.0) ** 2))

  @jax.jit
  def step(w, state, concave):
    def value_fn(p):
      away = p - w
      fall = jnp.sum(away) - 50 * jnp.sum(away**2)
      return sound(p) * (1 - concave) + (sound(w) + fall) * concave

    gradient = jax.grad(value_fn)(w)
    updates, state = tx.update(gradient, state, w, value_fn=value_fn)
    return w - updates, state, jnp.linalg.norm(updates)

  w = jnp.arange(3.0)
  state, lengths = tx.init(w), []
  for k in range(7):
    w, state, length = step(w, state, float(k == 6))
    lengths.append(length)
    if k < 6:  # steps that grow are the usual ones at once
      np.testing.assert_allclose(state.length, length, rtol=1e-6)
  assert state.info.accepted and state.info.rejections > 0
  assert max(lengths[:-1]) < lengths[-1] <= 5 * max(lengths[:-1])
  assert state.length == 0  # the next is free
  w, state, length = step(w, state, 0.0)
  np.testing.assert_allclose(state.length, length, rtol=1e-6)


@pytest.mark.parametrize(
  "tx",
  [
    gen_optax.elmo_dense(),
    gen_optax.elmo_dense(lipschitz="drift", every=3),
    gen_optax.elmo_lanczos(top=1, bottom=1),
  ],
)
@pytest.mark.parametrize("when", [0, 3])
def test_a_step_that_the_loss_contradicts_is_taken_back(tx, when):
  """Once, to where it came from; then the run goes on as it did."""

  # A long valley.
  sound = lambda w: jnp.sqrt(1 + (w[0] - 30.0) ** 2) + 500 * jnp.sum(w[1:] ** 2)

  @jax.jit
  def step(w, state, lie):
    def value_fn(p):
      fall = jnp.sum(p - w) - 50 * jnp.sum((p - w) ** 2)
      return sound(p) * (1 - lie) + (sound(w) + fall) * lie

    value, gradient = jax.value_and_grad(value_fn)(w)
    updates, state = tx.update(
      gradient, state, w, value=value, value_fn=value_fn
    )
    return optax.apply_updates(w, updates), state

  w = jnp.zeros(3)
  path, state = [w], tx.init(w)
  for k in range(9):
    w, state = step(w, state, float(k == when))
    path.append(w)
    info = state[0].info
    assert bool(info.reverted) == (k == when + 1), k
    assert bool(info.accepted) == (k != when + 1), k
  values = [float(sound(w)) for w in path]
  assert values[when + 1] > 100 > values[when]
  np.testing.assert_allclose(path[when + 2], path[when], rtol=1e-6, atol=1e-5)
  assert values[9] < values[when + 3] < values[when]


def test_what_is_no_reason_to_go_back():
  params, number = {"w": jnp.ones(2)}, jnp.float32
  last = undo.no_step(params, jnp.float32)
  at = lambda last, value, taken=True: undo.remember(
    last, params, number(value), jnp.asarray(taken)
  )
  reverted = lambda last, value: bool(undo.is_reverted(last, number(value)))
  assert not reverted(last, 1e9)  # no step
  last = at(last, 2.0)
  assert reverted(last, 4.1) and not reverted(last, 3.9)  # twice the first loss
  last = at(last, 1.9)
  np.testing.assert_allclose(last.change, 0.1, rtol=1e-5)
  assert (
    reverted(last, 3.0) and not reverted(last, 2.8) and not reverted(last, -9)
  )
  assert not reverted(at(last, 1.8, taken=False), 9.0)
  # One jump hardly changes what is usual, and no number nothing.
  assert 0.18 < at(last, 1e20).change < 0.2
  # A loss that does not change says nothing of what is usual.
  assert at(last, last.value).change == last.change
  lost = at(last, np.nan, taken=False)
  assert lost.change == last.change and lost.value == last.value


def test_which_length_is_usual():
  """Up at once, down as an average; unknown after a trial that was too long."""
  model = SimpleNamespace(norm=lambda moves, scale: moves * scale)
  usual, found = jnp.float32(0.0), []
  for length, accepted, too_long in (
    (1.0, True, False),
    (4.0, True, False),
    (1.0, True, False),
    (9.0, False, False),
    (0.0, True, False),
    (3.0, True, True),
    (0.0, False, False),
    (1e3, True, False),
  ):
    trial = SimpleNamespace(
      moves=jnp.float32(length),
      scale=jnp.float32(1.0),
      accepted=jnp.asarray(accepted),
      too_long=jnp.asarray(too_long),
    )
    usual = trials.learn_length(usual, model, trial)
    found.append(usual)
  expected = [1, 4, 3.7, 3.7, 3.7, 0, 0, 1e3]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_noise_takes_no_step_back():
  """Only the oddest batches in thousands do."""
  tx = gen_optax.elmo_dense()

  def step(carry, key):
    w, state = carry
    at = 0.3 * jax.random.normal(key, w.shape)
    loss = lambda w: jnp.sum(jnp.arange(1.0, 4.0) * (w - at) ** 2)
    value, gradient = jax.value_and_grad(loss)(w)
    updates, state = tx.update(gradient, state, w, value=value, value_fn=loss)
    return (optax.apply_updates(w, updates), state), state[0].info

  def run(key):
    w = jnp.full(3, 5.0)
    return jax.lax.scan(step, (w, tx.init(w)), jax.random.split(key, 300))[1]

  info = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 10))
  assert np.all(info.accepted | info.reverted)
  assert np.sum(info.reverted) <= 3


def test_too_many_parameters_for_the_dense_form():
  tx = gen_optax.scale_by_elmo()
  with pytest.raises(ValueError, match="at most 2000.*2001.*subspace"):
    tx.init({"a": jnp.zeros(2000), "b": jnp.zeros(1)})
  jax.eval_shape(tx.init, jnp.zeros(2000))
  gen_optax.scale_by_elmo(subspace=(1, 1)).init(jnp.zeros(3000))
