"""Click prediction: 16 fields of 500 ids, most of them rare.

A factorisation machine and an MLP, on labels of another such machine.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scripts.league.development.task import (
  dense,
  held_out,
  mlp,
  normal,
  task,
)
from scripts.league.workload import Parts

FIELDS, IDS = 16, 500


def clicks(data_dir=None) -> Parts:
  del data_dir
  rng, rows = np.random.default_rng(1), 64_000
  chance = np.arange(1, IDS + 1) ** -1.05
  ids = rng.choice(IDS, size=(rows, FIELDS), p=chance / chance.sum())
  at = np.arange(FIELDS), ids
  alone = 0.5 * rng.normal(size=(FIELDS, IDS))[at].sum(1)
  together = pairs(0.35 * rng.normal(size=(FIELDS, IDS, 3))[at])
  logits = alone + together - 1
  clicked = rng.random(rows) < 1 / (1 + np.exp(-logits))
  codes = (ids + IDS * np.arange(FIELDS)).astype(np.int32)
  return held_out((codes, clicked.astype(np.float32)), 60_000)


def pairs(vectors):
  """Inner products of all pairs of an example's vectors, summed."""
  return 0.5 * ((vectors.sum(1) ** 2).sum(1) - (vectors**2).sum((1, 2)))


def clicks_init(key):
  table, layers = jax.random.split(key)
  return {
    "table": normal(table, FIELDS * IDS, 4, scale=0.05),
    "alone": jnp.zeros(FIELDS * IDS),
    "mlp": dense(layers, (4 * FIELDS, 16, 1)),
  }


def clicks_loss(params, rows, key):
  del key
  codes, clicked = rows
  vectors = params["table"][codes]
  deep = mlp(params["mlp"], vectors.reshape(len(codes), -1), jax.nn.relu)
  logits = params["alone"][codes].sum(1) + pairs(vectors) + deep[:, 0]
  return optax.sigmoid_binary_cross_entropy(logits, clicked).mean()


TASKS = (
  task(
    "ctr",
    "click prediction, rare rows",
    256,
    400,
    clicks,
    clicks_init,
    clicks_loss,
  ),
)
