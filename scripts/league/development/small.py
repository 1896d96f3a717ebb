"""Problems of few numbers: what is hard about them is known.

A logistic and a linear regression whose features have spread scales, a matrix
to complete, a differential equation.
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


def logistic(data_dir=None) -> Parts:
  del data_dir
  rng = np.random.default_rng(2)
  x = rng.normal(size=(8000, 50)) * np.logspace(0, -1.5, 50)
  normal_vector = rng.normal(size=50) * 3 / np.logspace(0, -1, 50)
  y = rng.random(8000) < 1 / (1 + np.exp(-0.6 * x @ normal_vector))
  return held_out((x.astype(np.float32), y.astype(np.float32)), 4000)


def logistic_loss(params, rows, key):
  del key
  logits = rows[0] @ params["weights"] + params["offset"]
  return optax.sigmoid_binary_cross_entropy(logits, rows[1]).mean()


def ill_conditioned(data_dir=None) -> Parts:
  del data_dir
  rng = np.random.default_rng(5)
  x = rng.normal(size=(3000, 60)) * np.logspace(0, -2, 60)
  rotation, _ = np.linalg.qr(rng.normal(size=(60, 60)))
  y = x @ (rng.normal(size=60) * np.logspace(0, 1, 60))
  y = y + 0.3 * rng.normal(size=3000)
  return held_out(((x @ rotation).astype(np.float32), np.float32(y)), 2000)


def squared_loss(weights, rows, key):
  del key
  return 0.5 * jnp.mean((rows[0] @ weights - rows[1]) ** 2)


def matrix(data_dir=None, rows: int = 100, columns: int = 80) -> Parts:
  del data_dir
  rng = np.random.default_rng(4)
  low_rank = rng.normal(size=(rows, 5)) @ rng.normal(size=(columns, 5)).T
  entries = low_rank + 0.3 * rng.normal(size=(rows, columns))
  order = rng.permutation(rows * columns)
  at = [index.astype(np.int32) for index in divmod(order, columns)]
  return held_out((*at, entries[tuple(at)].astype(np.float32)), 4500)


def matrix_init(key):
  left, right = jax.random.split(key)
  return {
    "left": normal(left, 100, 5, scale=0.1),
    "right": normal(right, 80, 5, scale=0.1),
  }


def matrix_loss(params, rows, key):
  del key
  row, column, entry = rows
  found = (params["left"][row] * params["right"][column]).sum(1)
  return jnp.mean((found - entry) ** 2)


def interval_grid(data_dir=None) -> Parts:
  del data_dir
  grid = jnp.linspace(0.0, 1.0, 101)
  return Parts(grid, grid, grid)


def equation_loss(layers, points, key):
  """u'' + f = 0 on [0, 1], with u = 0 at both ends."""
  del key
  u = lambda x: mlp(layers, x[None, None])[0, 0]
  second = jax.vmap(jax.grad(jax.grad(u)))(points)
  slow, fast = jnp.sin(jnp.pi * points), jnp.sin(4 * jnp.pi * points)
  force = jnp.pi**2 * (slow + 1.6 * fast)
  ends = u(jnp.float32(0)) ** 2 + u(jnp.float32(1)) ** 2
  return jnp.mean((second + force) ** 2) + 50 * ends


TASKS = (
  task(
    "logreg",
    "logistic regression",
    32,
    800,
    logistic,
    lambda key: {"weights": jnp.zeros(50), "offset": jnp.zeros(())},
    logistic_loss,
  ),
  task(
    "mc",
    "matrix completion of rank 5",
    128,
    800,
    matrix,
    matrix_init,
    matrix_loss,
  ),
  task(
    "pinn",
    "a differential equation",
    48,
    800,
    interval_grid,
    lambda key: dense(key, (1, 32, 32, 1)),
    equation_loss,
    lambda data, key: jax.random.uniform(key, (48,)),
  ),
  task(
    "illreg",
    "ill-conditioned regression",
    32,
    600,
    ill_conditioned,
    lambda key: jnp.zeros(60),
    squared_loss,
  ),
)
