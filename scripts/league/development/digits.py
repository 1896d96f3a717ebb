"""Digits: small batches, dropout on all, a CNN, an autoencoder."""

import jax
import jax.numpy as jnp
import numpy as np

from scripts.common import data_sets
from scripts.league.development.task import (
  cross_entropy,
  dense,
  held_out,
  mlp,
  normal,
  task,
)
from scripts.league.workload import Parts


def digits(data_dir=None) -> tuple[np.ndarray, np.ndarray]:
  del data_dir
  data = data_sets.digits()
  return tuple(np.concatenate(pair) for pair in zip(*data, strict=True))


def standard_digits(data_dir=None) -> Parts:
  x, y = digits()
  return held_out(((x.reshape(-1, 64) - 0.3) / 0.38, y), 1400)


def few_digits(data_dir=None) -> Parts:
  """400 to train on; as many held back as before."""
  data = standard_digits()
  return data._replace(train=jax.tree.map(lambda x: x[:400], data.train))


def digits_task(name, batch_size, steps):
  return task(
    name,
    f"digits 64-32-10, batches of {batch_size}",
    batch_size,
    steps,
    standard_digits,
    lambda key: dense(key, (64, 32, 10)),
    lambda layers, rows, key: cross_entropy(mlp(layers, rows[0]), rows[1]),
  )


def dropout_loss(layers, rows, key):
  x, y = rows
  (inner, offset), last = layers
  hidden = jax.nn.relu(x @ inner + offset)
  if key is not None:
    hidden = 2 * hidden * jax.random.bernoulli(key, 0.5, hidden.shape)
  return cross_entropy(mlp([last], hidden), y)


def cnn_init(key):
  first, second, last = jax.random.split(key, 3)
  return {
    "first": 1.4 * normal(first, 3, 3, 1, 8),
    "second": 1.4 * normal(second, 3, 3, 8, 16),
    "offsets": [jnp.zeros(8), jnp.zeros(16)],
    "last": dense(last, (64, 10)),
  }


def cnn_loss(params, rows, key):
  del key
  x, y = rows
  form = ("NHWC", "HWIO", "NHWC")
  for name, offset in zip(("first", "second"), params["offsets"], strict=True):
    x = jax.lax.conv_general_dilated(
      x, params[name], (2, 2), "SAME", dimension_numbers=form
    )
    x = jax.nn.relu(x + offset)
  return cross_entropy(mlp(params["last"], x.reshape(len(x), -1)), y)


def coding_loss(layers, rows, key):
  del key
  x = rows[0].reshape(-1, 64)
  return jnp.sum((mlp(layers, x) - x) ** 2, 1).mean()


TASKS = (
  digits_task("dig32", 32, 1000),
  digits_task("dig2", 2, 1500),
  task(
    "cnn",
    "digits by two convolutions",
    32,
    300,
    lambda data_dir: held_out(digits(), 1400),
    cnn_init,
    cnn_loss,
  ),
  task(
    "ae",
    "autoencoder of digits",
    64,
    600,
    lambda data_dir: held_out(digits(), 1400),
    lambda key: dense(key, (64, 48, 8, 48, 64)),
    coding_loss,
  ),
  task(
    "dropout",
    "400 digits at once, dropout",
    400,
    400,
    few_digits,
    lambda key: dense(key, (64, 64, 10)),
    dropout_loss,
    lambda data, key: data.train,
  ),
)
