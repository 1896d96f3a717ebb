"""The two estimates of the Hessian's diagonal."""

import jax
import jax.numpy as jnp
import numpy as np

import gen_optax

MATRIX = np.random.default_rng(0).normal(size=(6, 6))
MATRIX = MATRIX + MATRIX.T
PARAMS = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}


def flat(tree):
  return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


def quadratic(params):
  w = flat(params)
  return w @ jnp.asarray(MATRIX) @ w / 2


def hutchinson(key, samples=1, params=PARAMS, value_fn=quadratic):
  found = gen_optax.hutchinson_diagonal(value_fn, params, key, samples)
  return np.asarray(flat(found), float)


def test_hutchinson_has_the_right_mean_and_variance():
  keys = jax.random.split(jax.random.key(0), 4000)
  draws = jax.vmap(
    lambda key: flat(gen_optax.hutchinson_diagonal(quadratic, PARAMS, key))
  )(keys)
  aside = MATRIX - np.diag(np.diag(MATRIX))
  variance = (aside**2).sum(1)
  error = np.abs(draws.mean(0) - np.diag(MATRIX))
  assert np.all(error < 5 * np.sqrt(variance / len(keys)))
  np.testing.assert_allclose(draws.var(0), variance, rtol=0.2)


def test_more_probes_are_averaged():
  """K probes are the mean of K different ones: a K-th of the variance."""
  keys = jax.random.split(jax.random.key(1), 500)
  both = [
    jax.vmap(
      lambda key, samples=samples: flat(
        gen_optax.hutchinson_diagonal(quadratic, PARAMS, key, samples)
      )
    )(keys)
    for samples in (1, 4)
  ]
  ratio = (both[0].var(0) / both[1].var(0)).mean()
  assert 3 < ratio < 5


def test_one_key_is_one_probe_at_any_point():
  """So the difference of a quadratic's diagonals is zero, probes cancelled."""
  key = jax.random.key(3)
  elsewhere = jax.tree.map(lambda x: 7 * x, PARAMS)
  np.testing.assert_allclose(
    hutchinson(key), hutchinson(key, params=elsewhere), rtol=1e-5
  )
  assert np.any(hutchinson(key) != hutchinson(jax.random.key(4)))


def softmax_problem():
  x = jax.random.normal(jax.random.key(0), (30, 2))
  logits_fn = lambda p: x @ p["w"] + p["b"]
  w = jax.random.normal(jax.random.key(1), (2, 3))
  return logits_fn, {"b": jnp.array([0.5, 0.0, -1.0]), "w": w}


def test_bartletts_estimate_has_the_mean_of_gauss_newton():
  logits_fn, params = softmax_problem()
  found = gen_optax.gauss_newton_bartlett_diagonal(
    logits_fn, params, jax.random.key(2), samples=4000
  )

  # The logits are linear: Gauss-Newton is the Hessian, for any labels.
  def loss(vector):
    tree = {"b": vector[:3], "w": vector[3:].reshape(2, 3)}
    return -jax.nn.log_softmax(logits_fn(tree))[:, 0].mean()

  exact = jnp.diag(jax.hessian(loss)(flat(params)))
  np.testing.assert_allclose(flat(found), exact, rtol=0.1)
  assert jnp.all(flat(found) >= 0)


def test_bartletts_draws_are_common_to_two_points():
  logits_fn, params = softmax_problem()
  near = jax.tree.map(lambda x: x * (1 + 1e-6), params)
  ask = lambda p, k: flat(
    gen_optax.gauss_newton_bartlett_diagonal(logits_fn, p, jax.random.key(k))
  )
  np.testing.assert_allclose(ask(params, 5), ask(near, 5), rtol=1e-3)
  assert jnp.abs(ask(params, 5) / ask(near, 6) - 1).max() > 0.05


def test_narrow_parameters_are_widened():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  found = gen_optax.hutchinson_diagonal(quadratic, params, jax.random.key(0))
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))


def test_the_router_reads_logits():
  """Gauss-Newton-Bartlett through `logits_fn`, down to Sophia-G's nu."""
  import optax

  logits_fn, params = softmax_problem()
  pair = [optax.sgd(0.1), gen_optax.amos.sophia(0.1)]
  tx = gen_optax.amos_router(pair, curvature="gauss_newton_bartlett", samples=2)
  _, state = tx.update(params, tx.init(params), params, logits_fn=logits_fn)
  assert jnp.all(flat(state.drift.curvature) >= 0)
  assert jnp.any(flat(state.drift.curvature) > 0)
  jax.tree.map(
    lambda nu, h: np.testing.assert_allclose(nu, 0.01 * h, rtol=1e-5),
    state.optimizers[1][0].nu,
    state.drift.curvature,
  )
