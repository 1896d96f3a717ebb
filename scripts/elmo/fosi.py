"""FOSI's rule, written from its description, to compare with.

Sivan, Gabel and Schuster, "FOSI: Hybrid First and Second Order Optimization".
The extreme eigenpairs of the Hessian are found by Lanczos' method every so
often. Along them the step is that of Newton, with the absolute eigenvalue and
scaled by alpha; a base optimizer takes what is left of the gradient, and its
step is kept out of the eigenvectors' span. The rule that scales the base step
by a ratio of eigenvalues is left out: the base's rate is tuned here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import gen_optax


class FosiState(NamedTuple):
  """State of `fosi`.

  Attributes:
    count: number of calls.
    values: the eigenvalues, shape (k,).
    vectors: one a row, shape (k, n).
    base: the state of the base optimizer.
  """

  count: jax.Array
  values: jax.Array
  vectors: jax.Array
  base: Any


def order_of(top: int, bottom: int, size: int) -> int:
  """Products of one Lanczos run."""
  return min(4 * (top + bottom), size)


def is_due(state: FosiState, every) -> jax.Array:
  """Whether the next call looks for eigenpairs."""
  return state.count % every == 0


def fosi(
  base: optax.GradientTransformation,
  *,
  top: int,
  bottom: int,
  alpha: float,
  every: int,
) -> optax.GradientTransformationExtraArgs:
  r"""Parameters are one vector w; u is the base's step for the rest r of g.

  .. math::

    r = g - V V' g, \quad
    w \leftarrow w - \alpha V |\Lambda|^{-1} V' g + (I - V V') u(r)
  """

  def init_fn(params):
    k = min(top + bottom, params.size)
    return FosiState(
      jnp.zeros((), jnp.int32),
      jnp.ones(k, params.dtype),
      jnp.zeros((k, params.size), params.dtype),
      base.init(params),
    )

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args

    def refresh(_):
      pairs = gen_optax.extreme_eigenpairs(
        lambda v: gen_optax.hvp(value_fn, params, v)[1],
        params,
        top=top,
        bottom=bottom,
        order=order_of(top, bottom, params.size),
      )
      return pairs.values, pairs.vectors

    values, vectors = jax.lax.cond(
      is_due(state, every),
      refresh,
      lambda _: (state.values, state.vectors),
      None,
    )
    outside = lambda x: x - (vectors @ x) @ vectors
    size = jnp.abs(values)
    size = jnp.maximum(size, jnp.finfo(size.dtype).eps * size.max())
    newton = -alpha * ((vectors @ updates) / size) @ vectors
    other, after = base.update(outside(updates), state.base, params)
    state = FosiState(state.count + 1, values, vectors, after)
    return newton + outside(other), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
