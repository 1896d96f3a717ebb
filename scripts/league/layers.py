"""Layers that several workloads share."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from scripts.league.workload import ACTIVATIONS


class Mlp(nn.Module):
  """Fully connected; the last layer is linear unless told otherwise."""

  widths: Sequence[int]
  activation: str
  last_is_linear: bool = True

  @nn.compact
  def __call__(self, x):
    for layer, width in enumerate(self.widths):
      x = nn.Dense(width)(x)
      if layer + 1 < len(self.widths) or not self.last_is_linear:
        x = ACTIVATIONS[self.activation](x)
    return x


class Block(nn.Module):
  """A pre-norm transformer block.

  With `memory` it attends to that too, between itself and the MLP. Masks are
  True where attention is allowed.
  """

  width: int
  activation: str
  heads: int = 4

  @nn.compact
  def __call__(self, x, mask=None, memory=None, memory_mask=None):
    normed = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(self.heads)(normed, mask=mask)
    if memory is not None:
      attend = nn.MultiHeadDotProductAttention(self.heads)
      x = x + attend(nn.LayerNorm()(x), memory, mask=memory_mask)
    widths = (4 * self.width, self.width)
    return x + Mlp(widths, self.activation)(nn.LayerNorm()(x))


class Lstm(nn.Module):
  """One layer, from (batch, time, features) to (batch, time, width)."""

  width: int
  reverse: bool = False

  @nn.compact
  def __call__(self, x):
    cell = nn.OptimizedLSTMCell(self.width)
    return nn.RNN(cell, reverse=self.reverse, keep_order=True)(x)


def positions(module: nn.Module, length: int, width: int):
  """Learned positions, a parameter of `module`."""
  normal = nn.initializers.normal(0.02)
  return module.param("position", normal, (length, width))


def masked_mean(x, mask, axis):
  """Mean over `axis` of what the mask keeps; 0 where it keeps nothing."""
  count = jnp.maximum(mask.sum(axis), 1.0)
  return (x * mask).sum(axis) / count
