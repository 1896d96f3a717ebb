"""`make_step` in micro-batches: the whole batch, in the memory of a part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gen_optax

X = jax.random.normal(jax.random.key(0), (32, 5))
Y = jnp.sin(X @ jnp.arange(1.0, 6.0)[:, None])


def deep_loss(params, x, y, shift):
  for w in params["hidden"]:
    x = jnp.tanh(x @ w)
  loss = jnp.mean((x @ params["out"] - y) ** 2)
  return loss + shift * jnp.sum(params["out"] ** 2), {"bias": jnp.mean(x)}


def deep_params(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(5), 7)
  square = lambda key: jax.random.normal(key, (5, 5), dtype) / 2
  return {
    "hidden": [square(key) for key in keys[:6]],
    "out": jax.random.normal(keys[6], (5, 1), dtype),
  }


@pytest.mark.parametrize(
  "make", [gen_optax.gen_adamw, lambda: gen_optax.psgd_diagonal(0.1)]
)
def test_micro_batches_are_the_whole_batch(x64, make):
  """Value, gradient, aux, GeN's probes and PSGD's products."""
  x, y = X.astype(jnp.float64), Y.astype(jnp.float64)
  tx = make()

  def train(**options):
    step = gen_optax.make_step(deep_loss, tx, has_aux=True, **options)
    params = deep_params(jnp.float64)
    state, seen = tx.init(params), []
    for _ in range(5):
      params, state, value, aux, metrics = step(params, state, x, y, 0.1)
      seen.append((value, aux["bias"], metrics))
    return params, seen

  whole, parts = train(), train(micro_batch_size=8, batch_argnums=(1, 2))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), whole, parts
  )


def test_micro_batches_hold_the_activations_of_one():
  x = jnp.ones((4096, 5))
  loss_fn = lambda params, x: deep_loss(params, x, 0.0, 0.0)[0]
  tx = gen_optax.psgd_diagonal(0.1)

  def temporary(size):
    step = gen_optax.make_step(loss_fn, tx, micro_batch_size=size)
    params = deep_params()
    compiled = step.lower(params, tx.init(params), x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(256) < temporary(None) / 3
