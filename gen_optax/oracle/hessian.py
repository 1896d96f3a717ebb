"""Hessian-vector products of a loss closure."""

import jax
import jax.numpy as jnp
import optax

from gen_optax.helpers import trees
from gen_optax.oracle.line import Slope, ValueFn, scalar_loss


def hvp(value_fn: ValueFn, params: optax.Params, vector: optax.Updates):
  r"""The gradient and the product H v, by forward over reverse mode.

  .. math:: H v = \partial_t \nabla L(w + t v) |_{t = 0}

  Args:
    value_fn: the loss as a function of the parameters alone.
    params: where the Hessian is taken; leaves below float32 are widened.
    vector: v, a tree like `params`.

  Returns:
    `(gradient, product)`, each a tree like the widened parameters.

  Raises:
    ValueError: `value_fn` does not return one real scalar.

  Cost: a gradient and its tangent, two to three times a forward and a backward
  pass, with the activations of both.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> loss = lambda w: w[0] ** 2 + 3 * w[0] * w[1]
    >>> w, v = jnp.ones(2), jnp.array([1.0, 0.0])
    >>> gradient, product = gen_optax.hvp(loss, w, v)
    >>> print(product)
    [2. 3.]

  References:
    Pearlmutter, Fast exact multiplication by the Hessian, 1994.
  """
  wide = trees.widen(params)
  tangent = jax.tree.map(lambda p, v: v.astype(p.dtype), wide, vector)
  gradient_fn = jax.grad(lambda p: scalar_loss(value_fn, p))
  return jax.jvp(gradient_fn, (wide,), (tangent,))


def exact_by_hvp(
  value_fn: ValueFn, params: optax.Params, direction: optax.Updates
) -> Slope:
  """phi'(0) = <G, u> and phi''(0) = <u, H u> along u (GeN, Algorithm 2).

  `value` is NaN, because it would cost a forward pass.
  """
  dtype = trees.scalar_dtype(params)
  gradient, product = hvp(value_fn, params, direction)
  return Slope(
    value=jnp.full((), jnp.nan, dtype),
    first=trees.vdot(gradient, direction, dtype),
    second=trees.vdot(direction, product, dtype),
  )


def eigenvalue_gradient(
  value_fn: ValueFn, params: optax.Params, vector: optax.Updates
):
  r"""The gradient of an eigenvalue of the Hessian, D3f[v, v, .].

  .. math:: \nabla \lambda = \nabla_w (v' H(w) v) \quad \text{for fixed } v

  That is exact for a simple eigenvalue with unit eigenvector v, because the
  eigenvector turns at right angles to itself, which leaves v'Hv unchanged to
  first order. For any other v it is the gradient of the curvature along v.

  Args:
    value_fn: the loss as a function of the parameters alone.
    params: where the Hessian is taken; leaves below float32 are widened.
    vector: v, a tree like `params`.

  Returns:
    A tree like the widened parameters. Costs about three Hessian-vector
    products.

  Raises:
    ValueError: `value_fn` does not return one real scalar.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> loss = lambda w: w[0] ** 2 * (1 + w[1]) / 2
    >>> v = jnp.array([1.0, 0.0])
    >>> print(gen_optax.eigenvalue_gradient(loss, jnp.zeros(2), v))
    [0. 1.]
  """
  wide = trees.widen(params)
  tangent = jax.tree.map(lambda p, v: v.astype(p.dtype), wide, vector)

  loss = lambda p: scalar_loss(value_fn, p)
  slope = lambda p: jax.jvp(loss, (p,), (tangent,))[1]
  curvature = lambda p: jax.jvp(slope, (p,), (tangent,))[1]
  return jax.grad(curvature)(wide)
