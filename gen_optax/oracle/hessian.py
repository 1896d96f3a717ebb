"""Hessian-vector products of a loss closure."""

import jax
import jax.numpy as jnp
import optax

from gen_optax.oracle import trees
from gen_optax.oracle.line import Slope, ValueFn, scalar_loss


def widen(params):
  """The parameters with every floating leaf in at least float32."""
  return jax.tree.map(
    lambda p: (
      p.astype(trees.at_least_float32(p.dtype)) if trees.is_float(p) else p
    ),
    params,
  )


def hvp(value_fn: ValueFn, params: optax.Params, vector: optax.Updates):
  """The gradient and the product H v, by forward over reverse mode.

  Args:
    value_fn: the loss as a function of the parameters alone.
    params: where the Hessian is taken; leaves below float32 are widened.
    vector: v, a tree like `params`.

  Returns:
    `(gradient, product)`, each a tree like the widened parameters.

  Costs about one gradient with its tangent: two to three times F + B, and the
  activations of both.
  """
  wide = widen(params)
  tangent = jax.tree.map(lambda p, v: v.astype(p.dtype), wide, vector)
  gradient_fn = jax.grad(lambda p: scalar_loss(value_fn, p))
  return jax.jvp(gradient_fn, (wide,), (tangent,))


def exact_by_hvp(
  value_fn: ValueFn, params: optax.Params, direction: optax.Updates
) -> Slope:
  """phi'(0) = <G, u> and phi''(0) = <u, H u> along u (GeN, Algorithm 2).

  `value` is left at NaN: no forward pass is spent on it.
  """
  dtype = trees.scalar_dtype(params)
  gradient, product = hvp(value_fn, params, direction)
  return Slope(
    value=jnp.full((), jnp.nan, dtype),
    first=trees.vdot(gradient, direction, dtype),
    second=trees.vdot(direction, product, dtype),
  )
