"""The polynomial average of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gen_optax


def averages(path):
  """avg += 9 / (t + 9) (w - avg), in numpy."""
  average, seen = np.zeros_like(path[0]), []
  for t, w in enumerate(path):
    average = average + 9 / (t + 9) * (w - average)
    seen.append(average)
  return np.array(seen)


def drive(tx, params, updates):
  """Every average, and the parameters, after each of `updates`."""

  def body(carry, update):
    params, state = carry
    update, state = tx.update(update, state, params)
    params = optax.apply_updates(params, update)
    return (params, state), (params, gen_optax.averaged_parameters(state))

  return jax.lax.scan(body, (params, tx.init(params)), updates)[1]


@pytest.mark.usefixtures("x64")
def test_the_average_is_that_of_numpy():
  updates = jnp.asarray(np.random.default_rng(0).normal(size=(200, 3)))
  path, average = drive(
    gen_optax.average_parameters(), jnp.array([5.0, -2.0, 0.1]), updates
  )
  np.testing.assert_allclose(
    path,
    np.array([5.0, -2.0, 0.1]) + np.cumsum(np.asarray(updates), 0),
    rtol=1e-10,
  )
  np.testing.assert_allclose(average, averages(np.asarray(path)), rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_the_first_average_is_the_first_point():
  path, average = drive(
    gen_optax.average_parameters(), jnp.array([5.0]), jnp.array([[1.5]])
  )
  np.testing.assert_array_equal(path, [[6.5]])
  np.testing.assert_array_equal(average, [[6.5]])


@pytest.mark.usefixtures("x64")
def test_a_point_weighs_like_the_eighth_power_of_its_age():
  """So the window is about a ninth of the run, wherever it stops."""
  steps = 400
  path, average = drive(
    gen_optax.average_parameters(),
    jnp.zeros(1),
    jnp.ones((steps, 1)),
  )
  t = np.arange(1, steps + 1)
  weights = np.cumprod(np.concatenate([[1.0], (t[:-1] + 8) / t[:-1]]))
  np.testing.assert_allclose(
    average[-1, 0], np.sum(weights * t) / np.sum(weights), rtol=1e-10
  )
  assert abs(average[-1, 0] / steps - 0.9) < 0.01


def test_training_is_unchanged():
  loss = lambda w: jnp.sum((w - 3.0) ** 2)
  w = jnp.zeros(4)
  plain = optax.adam(0.1)
  averaged = optax.chain(optax.adam(0.1), gen_optax.average_parameters())
  a = b = w
  s, r = plain.init(w), averaged.init(w)
  for _ in range(10):
    u, s = plain.update(jax.grad(loss)(a), s, a)
    a = optax.apply_updates(a, u)
    u, r = averaged.update(jax.grad(loss)(b), r, b)
    b = optax.apply_updates(b, u)
  np.testing.assert_array_equal(a, b)


def test_the_average_is_kept_in_float32():
  """A hundred steps of 1e-3 vanish in bfloat16 around 1, not in the mean."""
  tx = gen_optax.average_parameters()
  params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones((), jnp.float32)}
  state = tx.init(params)
  updates = jax.tree.map(lambda p: jnp.full_like(p, 0.25), params)
  for _ in range(5):
    out, after = tx.update(updates, state, params)
    for old, new in zip(
      jax.tree.leaves(state), jax.tree.leaves(after), strict=True
    ):
      assert (old.dtype, old.shape) == (new.dtype, new.shape)
    state, params = after, optax.apply_updates(params, out)
  average = gen_optax.averaged_parameters(state)
  assert average["a"].dtype == jnp.float32
  expected = averages(1 + 0.25 * np.arange(1, 6))[-1]
  np.testing.assert_allclose(average["a"], expected, rtol=1e-6)
  np.testing.assert_allclose(average["b"], expected, rtol=1e-6)


def test_long_runs_do_not_lose_their_weight_to_integers():
  """9 / (t + 9) at t = 100,000 in float32."""
  tx = gen_optax.average_parameters()
  _, average = jax.jit(lambda u: drive(tx, jnp.zeros(()), u))(
    jnp.full((100_000,), 1e-5)
  )
  assert abs(average[-1] - 0.9) < 0.01


def test_behind_gen_under_jit():
  loss = lambda w: jnp.sum((w - 3.0) ** 2)
  tx = optax.chain(gen_optax.gen_sgd(), gen_optax.average_parameters())
  w = jnp.zeros(2)
  state = tx.init(w)
  path = []

  @jax.jit
  def train(w, state):
    value, grad = jax.value_and_grad(loss)(w)
    updates, state = tx.update(grad, state, w, value=value, value_fn=loss)
    return optax.apply_updates(w, updates), state

  for _ in range(6):
    w, state = train(w, state)
    path.append(np.asarray(w))
  np.testing.assert_allclose(
    gen_optax.averaged_parameters(state),
    averages(np.array(path))[-1],
    rtol=1e-5,
  )


def test_empty_tree_and_donation():
  tx = gen_optax.average_parameters()
  updates, state = tx.update({}, tx.init({}), {})
  assert updates == {} and gen_optax.averaged_parameters(state) == {}
  w = jnp.ones(3)
  update = jax.jit(tx.update, donate_argnums=(1, 2))
  _, state = update(jnp.ones(3), tx.init(w), w)
  np.testing.assert_allclose(gen_optax.averaged_parameters(state), 2.0)
