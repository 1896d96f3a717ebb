"""What the development tasks share: layers of plain arrays, and their form."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scripts.league.workload import (
  Family,
  Form,
  Losses,
  Parts,
  Workload,
  random_rows,
)


def dense(key, sizes) -> list:
  """Layers with normal weights of variance 1 / inputs."""
  keys = jax.random.split(key, len(sizes) - 1)
  shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
  return [(normal(k, n, m), jnp.zeros(m)) for k, n, m in shapes]


def normal(key, *shape, scale=None):
  fan_in = int(np.prod(shape[:-1]))
  return jax.random.normal(key, shape) * (scale or fan_in**-0.5)


def mlp(layers, x, act=jnp.tanh):
  *hidden, (last, bias) = layers
  for weights, offset in hidden:
    x = act(x @ weights + offset)
  return x @ last + bias


def cross_entropy(logits, labels):
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return losses.mean()


def task(
  name: str,
  title: str,
  batch_size: int,
  steps: int,
  load: Callable,
  init: Callable,
  loss: Callable,
  sample: Callable | None = None,
) -> Family:
  """A family of one form, from a loss of (parameters, rows, key or None)."""

  def build(data: Parts, form: Form) -> Workload:
    def evaluate(data, params, state):
      del state
      held = loss(params, data.test, None)
      return Losses(held, held)

    return Workload(
      name,
      form,
      data,
      lambda key: (init(key), {}),
      sample or (lambda data, key: random_rows(data, key, form.batch_size)),
      lambda params, state, rows, key: (loss(params, rows, key), state),
      evaluate,
    )

  form = Form(0, "tanh", 1.0, batch_size, steps)
  files = (
    "scripts/league/development/task.py",
    "scripts/league/workloads/text.py",
  )
  return Family(name, title, form, load, build, False, files)


def held_out(examples, train: int) -> Parts:
  arrays = jax.tree.map(jnp.asarray, examples)
  rest = jax.tree.map(lambda x: x[train:], arrays)
  return Parts(jax.tree.map(lambda x: x[:train], arrays), rest, rest)
