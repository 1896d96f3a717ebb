"""Networks and data of `distribution.py`."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from scripts.common.data_sets import Split, cifar10_30k, digits

BATCH = 100


class Network(nn.Module):
  """Dense layers with tanh; with skips each but the first adds its input.

  Smooth, since the third derivative of a ReLU network misses its kinks.
  """

  widths: tuple[int, ...]
  outputs: int
  skips: bool

  @nn.compact
  def __call__(self, x):
    for k, width in enumerate(self.widths):
      z = nn.tanh(nn.Dense(width, param_dtype=x.dtype)(x))
      x = x + z if self.skips and k else z
    return nn.Dense(self.outputs, param_dtype=x.dtype)(x)


class Problem(NamedTuple):
  """A loss of one flat vector of parameters on a batch."""

  kind: str
  size: int
  init: Callable
  loss: Callable


@functools.cache
def make_problem(kind: str, features: int, width: int, depth: int) -> Problem:
  """`kind` is "residual", "plain" (both classify) or "autoencoder"."""
  if kind == "autoencoder":
    network = Network((2 * width, width // 2, 2 * width), features, False)
  else:
    network = Network((width,) * depth, 10, kind == "residual")
  like = jnp.zeros((1, features))
  flat, unravel = ravel_pytree(network.init(jax.random.key(0), like))

  def init(seed):
    return ravel_pytree(network.init(jax.random.key(seed), like))[0]

  def loss(params, x, y):
    out = network.apply(unravel(params), x)
    if kind == "autoencoder":
      return jnp.mean((out - x) ** 2)
    return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

  return Problem(kind, flat.size, init, loss)


def images(data_dir) -> tuple[Split, str]:
  """Flat training images in float64, and what they are."""
  if data_dir is None:
    x, y = digits().train
    return Split(x.reshape(len(y), -1).astype(float), y), "digits, 8x8"
  x, y = cifar10_30k(data_dir).train
  kept = np.random.default_rng(0).permutation(len(y))[:2000]
  x = x[kept].reshape(len(kept), 8, 4, 8, 4, 3).mean((2, 4))
  return (
    Split(x.reshape(len(kept), -1).astype(float), y[kept]),
    "2,000 images of CIFAR-10 averaged to 8x8",
  )


def real(split: Split, seed: int) -> Split:
  del seed
  return split


def random_labels(split: Split, seed: int) -> Split:
  rng = np.random.default_rng(1000 + seed)
  return Split(split.x, rng.integers(0, 10, len(split.y)).astype(np.int32))


def noise(split: Split, seed: int) -> Split:
  """Gaussian noise with the images' mean and scale, and random labels."""
  rng = np.random.default_rng(2000 + seed)
  x = rng.normal(split.x.mean(), split.x.std(), split.x.shape)
  return Split(x, random_labels(split, seed).y)


class Case(NamedTuple):
  """A network of some kind and what it is trained on."""

  kind: str
  data: Callable


CASES = {
  "residual": Case("residual", real),
  "random labels": Case("residual", random_labels),
  "noise": Case("residual", noise),
  "plain": Case("plain", real),
  "autoencoder": Case("autoencoder", real),
}


class Seeds(NamedTuple):
  """Several seeds of a case: parameters, data and rows, leading axis seeds."""

  params: jax.Array
  x: jax.Array
  y: jax.Array
  rows: np.ndarray


def prepare(case: Case, problem: Problem, split: Split, seeds, steps) -> Seeds:
  """Initial parameters, data, and the rows of each step's batch."""
  sets = [case.data(split, seed) for seed in seeds]

  def rows(seed):
    rng = np.random.default_rng(seed)
    epochs = -(-steps * BATCH // len(split.y))
    order = [rng.permutation(len(split.y)) for _ in range(epochs)]
    return np.concatenate(order)[: steps * BATCH].reshape(steps, BATCH)

  return Seeds(
    jnp.stack([problem.init(seed) for seed in seeds]),
    jnp.stack([s.x for s in sets]),
    jnp.stack([s.y for s in sets]),
    np.stack([rows(seed) for seed in seeds]),
  )
