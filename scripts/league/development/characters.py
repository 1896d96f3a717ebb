"""Characters by a GRU."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scripts.league.development.task import (
  cross_entropy,
  dense,
  mlp,
  normal,
  task,
)
from scripts.league.workload import Parts
from scripts.league.workloads import text

LENGTH, HIDDEN = 24, 64


def characters(data_dir: Path | None) -> Parts:
  return parts_of(text.codes_of(data_dir))


def parts_of(codes) -> Parts:
  border = int(0.95 * len(codes))
  last = len(codes) - LENGTH - 1
  starts = np.random.default_rng(3).integers(border, last, 128)
  held = jnp.asarray(codes[starts[:, None] + np.arange(LENGTH + 1)])
  return Parts(jnp.asarray(codes[:border]), held, held)


def gru_init(key, symbols: int = 128):
  table, inner, across, last = jax.random.split(key, 4)
  return {
    "table": normal(table, symbols, 32, scale=0.3),
    "in": normal(inner, 32, 3 * HIDDEN),
    "across": normal(across, HIDDEN, 3 * HIDDEN),
    "offset": jnp.zeros(3 * HIDDEN),
    "out": dense(last, (HIDDEN, symbols)),
  }


def gru_loss(params, rows, key):
  del key
  seen = params["table"][rows[:, :-1]] @ params["in"] + params["offset"]

  def cell(h, x):
    reset, keep, new = jnp.split(x, 3, -1)
    h_reset, h_keep, h_new = jnp.split(h @ params["across"], 3, -1)
    keep = jax.nn.sigmoid(keep + h_keep)
    new = jnp.tanh(new + jax.nn.sigmoid(reset + h_reset) * h_new)
    h = keep * h + (1 - keep) * new
    return h, h

  start = jnp.zeros((len(rows), HIDDEN))
  _, states = jax.lax.scan(cell, start, seen.swapaxes(0, 1))
  return cross_entropy(mlp(params["out"], states.swapaxes(0, 1)), rows[:, 1:])


TASKS = (
  task(
    "gru",
    "characters by a GRU",
    16,
    300,
    characters,
    gru_init,
    gru_loss,
    lambda data, key: text.windows(data.train, key, 16, LENGTH),
  ),
)
