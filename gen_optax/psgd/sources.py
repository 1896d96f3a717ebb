r"""The pairs (v, h) that preconditioners are fitted to.

    "hvp"                h = H v exactly, by forward over reverse mode
    "finite_difference"  h = (grad(w + eps v) - grad(w)) / eps
    "whitening"          h = the gradient: P tends to (E gg')^{-1/2}

Everything runs in at least float32, whatever the parameters hold.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from gen_optax.helpers import trees
from gen_optax.helpers.trees import widen
from gen_optax.oracle import line
from gen_optax.oracle.hessian import hvp

Pairs = Literal["hvp", "finite_difference", "whitening"]
Vector = Literal["normal", "rademacher"]


def draw(key: jax.Array, params, kind: Vector):
  """A random tree like the widened parameters, with E vv' = I."""
  sample = jax.random.normal if kind == "normal" else jax.random.rademacher
  return trees.random_like(key, params, sample)


def product(pairs: Pairs, vector, value_fn, params, grad, updates):
  """h for a random tree v."""
  if pairs == "whitening":
    return widen(updates)
  if pairs == "hvp":
    return hvp(value_fn, params, vector)[1]
  return gradient_difference(value_fn, params, grad, vector)


def gradient_difference(value_fn, params, grad, vector):
  """(grad(w + eps v) - grad(w)) / eps, eps the root of the rounding error.

  Below float32 the gradient is taken anew in float32, since its rounding
  exceeds the difference.
  """
  gradient_fn = jax.grad(lambda p: line.scalar_loss(value_fn, p))
  wide = widen(params)
  if not trees.is_wide(params):
    grad = gradient_fn(wide)
  eps = float(jnp.finfo(trees.scalar_dtype(params)).eps) ** 0.5
  moved = gradient_fn(jax.tree.map(lambda w, v: w + eps * v, wide, vector))
  return jax.tree.map(lambda m, g: (m - g) / eps, moved, grad)


def condition(vector, hvp, size: jax.Array):
  """The pair without zeros and without extremes: (c v, c (h + delta v)).

  delta = eps max|h| adds to the Hessian what the product rounds away. Without
  it, Q would overflow in rows where h is always zero, since the loss does not
  depend on their entries.

  c = max|h|^{-1/2} brings A and B to order one, or their squares would
  underflow for losses of scale 1e-20. The step does not depend on c.
  """
  scaled = lambda x: x / jnp.sqrt(size.astype(x.dtype))

  def lifted(v, h):
    return scaled(h + jnp.finfo(h.dtype).eps * size.astype(h.dtype) * v)

  return jax.tree.map(scaled, vector), jax.tree.map(lifted, vector, hvp)


def initial_scale(vector, hvp) -> jax.Array:
  """(mean v^2)^{1/4} (mean h^4)^{-1/8}: the size of Q that fits the pair.

  Powers of numbers over their maximum neither over- nor underflow.
  """
  count = sum(v.size for v in jax.tree.leaves(vector))
  dtype = trees.scalar_dtype(vector)

  def mean_power(tree, power):
    size = trees.largest(tree, dtype)
    total = jnp.zeros((), dtype)
    for x in jax.tree.leaves(tree):
      total += jnp.sum((x / size.astype(x.dtype)) ** power).astype(dtype)
    return size, total / max(count, 1)

  v_size, squares = mean_power(vector, 2)
  h_size, fourths = mean_power(hvp, 4)
  return jnp.sqrt(v_size / h_size) * squares**0.25 * fourths**-0.125
