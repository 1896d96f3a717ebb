"""A small network on 64 examples, for tests of composition."""

import jax
import jax.numpy as jnp

FEATURES = jax.random.normal(jax.random.key(0), (64, 8))
TARGETS = jnp.tanh(FEATURES @ jnp.arange(1.0, 9.0)[:, None] / 8)


def initial_params(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(1), 2)
  return {
    "b": jnp.zeros(12, dtype),
    "v": jax.random.normal(keys[0], (12, 1), dtype) / 3,
    "w": jax.random.normal(keys[1], (8, 12), dtype) / 3,
  }


def loss_fn(params, x=FEATURES, y=TARGETS):
  hidden = jnp.tanh(x @ params["w"] + params["b"])
  return jnp.mean((hidden @ params["v"] - y) ** 2)
