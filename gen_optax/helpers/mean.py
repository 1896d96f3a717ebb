"""A running average that is corrected for having started at zero."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# An average over about ten values; the GeN paper's gamma, Adam's beta_1.
SMOOTHING = 0.9


class Mean(NamedTuple):
  """An exponentially weighted average of trees.

  Attributes:
    sum: the weighted sum, started at zero.
    weight: the sum of the weights in it, 1 - decay^t after t values.
  """

  sum: Any
  weight: jax.Array


def no_mean(like, dtype) -> Mean:
  """The mean of nothing: `sum` like the tree `like`, `weight` of `dtype`."""
  return Mean(jax.tree.map(jnp.zeros_like, like), jnp.zeros((), dtype))


def include(mean: Mean, x, decay) -> Mean:
  """The mean with one more value: decay * old + (1 - decay) * x."""

  def mix(old, new):
    a = decay.astype(old.dtype) if isinstance(decay, jax.Array) else decay
    return a * old + (1 - a) * jnp.asarray(new, old.dtype)

  one = jnp.ones_like(mean.weight)
  return Mean(jax.tree.map(mix, mean.sum, x), mix(mean.weight, one))


def value(mean: Mean):
  """The mean itself, a tree; zero before the first value."""
  weight = jnp.where(mean.weight > 0, mean.weight, 1)
  return jax.tree.map(lambda x: x / weight.astype(x.dtype), mean.sum)
