"""Estimates of the Hessian's diagonal from a closure.

Every random number depends on the key and the shapes alone. So two calls with
one key at two points see the same probes, and their results differ by the
curvature. With fresh probes they differ mostly by the probes' noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gen_optax.helpers import trees
from gen_optax.helpers.checks import is_known
from gen_optax.helpers.trees import widen
from gen_optax.oracle import line
from gen_optax.oracle.hessian import hvp


def hutchinson_diagonal(
  value_fn: line.ValueFn, params: optax.Params, key: jax.Array, samples: int = 1
):
  r"""Hutchinson's estimate of the Hessian's diagonal.

  .. math:: h = \frac{1}{K} \sum_k v_k \odot H v_k, \quad v_k \in \{-1, 1\}^n

  It has no bias, and is exact for a diagonal H. The variance of an entry is the
  sum of the squares beside it in its row, over K.

  Args:
    value_fn: the loss as a function of the parameters alone.
    params: where the Hessian is taken; leaves below float32 are widened.
    key: of the probes. The same key gives the same probes at any point.
    samples: K, the number of probes, at least 1.

  Returns:
    A tree like the widened parameters. Costs K Hessian-vector products, one
    after the other, and holds one probe.

  Raises:
    ValueError: `samples` is not a positive integer.

  Example:

    >>> import jax, jax.numpy as jnp, gen_optax
    >>> loss, key = lambda w: w[0] ** 2 + 3 * w[1] ** 2, jax.random.key(0)
    >>> print(gen_optax.hutchinson_diagonal(loss, jnp.ones(2), key))
    [2. 6.]

  References:
    Bekas, Kokiopoulou and Saad, An estimator for the diagonal of a matrix,
    2007.
  """

  def one(key):
    v = trees.random_like(key, params, jax.random.rademacher)
    product = hvp(value_fn, params, v)[1]
    return jax.tree.map(lambda x, h: x.astype(h.dtype) * h, v, product)

  return _mean(one, params, key, samples)


def gauss_newton_bartlett_diagonal(
  logits_fn: Callable[[Any], jax.Array],
  params: optax.Params,
  key: jax.Array,
  samples: int = 1,
):
  r"""The Gauss-Newton-Bartlett estimate for a mean cross-entropy.

  .. math::

    h = \frac{B}{K} \sum_k \hat g_k \odot \hat g_k, \quad \hat g_k = \nabla
    \frac{1}{B} \sum_b \mathrm{CE}(z_b, \hat y_b), \quad
    \hat y_b \sim \mathrm{softmax}(z_b)

  with B predictions z. It is never negative. It has no bias for the diagonal of
  the Gauss-Newton matrix, because gradients at sampled labels have mean zero.

  Args:
    logits_fn: the logits of this step's batch as a function of the parameters
      alone, shape (..., classes); each row is one of the B predictions.
    params: where the matrix is taken; leaves below float32 are widened.
    key: of the labels. The same key draws with the same noise at any point.
    samples: K, the number of draws, at least 1.

  Returns:
    A tree like the widened parameters. Costs K gradients.

  Raises:
    ValueError: `samples` is not a positive integer, or the logits have no axis
      of classes.

  Example:

    >>> import jax, jax.numpy as jnp, gen_optax
    >>> logits = lambda w: jnp.ones((1000, 1)) * jnp.array([1.0, 0.0]) * w
    >>> h = gen_optax.gauss_newton_bartlett_diagonal(
    ...   logits, jnp.zeros(()), jax.random.key(0), samples=100)
    >>> print(f"{h:.2f}")  # p (1 - p) = 1/4
    0.25

  References:
    Liu et al., Sophia, 2023, Algorithm 2.
  """
  wide = widen(params)

  def one(key):
    def sampled_loss(at):
      logits = logits_fn(at)
      if jnp.ndim(logits) < 1:
        raise ValueError(
          "logits_fn must return logits of shape (..., classes), got shape "
          f"{jnp.shape(logits)}."
        )
      logits = logits.astype(trees.at_least_float32(logits.dtype))
      labels = jax.random.categorical(key, jax.lax.stop_gradient(logits))
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      line.check_averaged("logits_fn", losses, at)
      return losses.mean(), losses.size

    gradient, size = jax.grad(sampled_loss, has_aux=True)(wide)
    return jax.tree.map(lambda g: size * g * g, gradient)

  return _mean(one, wide, key, samples)


def _mean(one, params, key, samples):
  """The mean of `one` over `samples` keys, one after the other."""
  if not is_known(samples) or samples != int(samples) or samples < 1:
    raise ValueError(f"samples must be a positive integer, got {samples!r}.")
  if samples == 1:
    return one(jax.random.fold_in(key, 0))

  def add(total, i):
    term = one(jax.random.fold_in(key, i))
    return jax.tree.map(jnp.add, total, term), None

  zeros = optax.tree.zeros_like(widen(params))
  total, _ = jax.lax.scan(add, zeros, jnp.arange(samples))
  return jax.tree.map(lambda x: x / samples, total)
