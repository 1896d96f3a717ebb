"""Where ELMO's eigenpairs come from: a dense Hessian, or Lanczos."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.helpers import trees
from gen_optax.oracle.hessian import hvp
from gen_optax.oracle.lanczos import extreme_eigenpairs

# Above, the Hessian alone has 4 million entries and its decomposition takes
# seconds.
DENSE_LIMIT = 2000
# Columns of the dense Hessian that are computed together.
_COLUMNS = 32
# A pair is used if its residual is below this part of its eigenvalue.
_CONVERGED = 0.1
# How much of the gradient goes into the start besides the old eigenvectors.
_FRESH = 0.1
# Its noise is not that of a Lanczos run.
_SEED = 0xE1


class Spectrum(NamedTuple):
  """Eigenpairs of the Hessian at one point.

  Attributes:
    values: k eigenvalues; ascending in the dense form, in a subspace the
      largest descending, then the smallest ascending.
    vectors: k rows of each leaf's shape. Each has the sign that gives it a
      positive product with a fixed noise vector.
    used: which pairs have converged.
    rest: how sharply the Hessian bends the directions that are left.
  """

  values: jax.Array
  vectors: Any
  used: jax.Array
  rest: jax.Array


def no_spectrum(params, k: int) -> Spectrum:
  """A spectrum of the right shapes for `params`, which are at least float32."""
  dtype = trees.scalar_dtype(params)
  column = jnp.zeros(k, dtype)
  return Spectrum(
    values=column,
    vectors=jax.tree.map(
      # The product takes the leaf's sharding.
      lambda p: jnp.zeros((k,) + p.shape, p.dtype) * jnp.zeros_like(p),
      params,
    ),
    used=jnp.zeros(k, bool),
    rest=jnp.zeros((), dtype),
  )


def dense_spectrum(value_fn, params) -> Spectrum:
  """All eigenpairs; `params` is one vector of shape (n,)."""
  n, dtype = len(params), params.dtype

  def column(unit):
    return hvp(value_fn, params, unit)[1]

  hessian = jax.lax.map(
    column, jnp.eye(n, dtype=dtype), batch_size=min(n, _COLUMNS)
  )
  values, vectors = jnp.linalg.eigh((hessian + hessian.T) / 2)
  used, rest = jnp.ones(n, bool), jnp.zeros((), dtype)
  return Spectrum(values, _with_fixed_signs(vectors.T, values), used, rest)


def extreme_spectrum(
  value_fn, params, gradient, top, bottom, order, last: Spectrum
) -> Spectrum:
  """The extreme eigenpairs, started from the last ones and the gradient."""
  dtype = trees.scalar_dtype(params)
  length = trees.norm(gradient, dtype)
  part = trees.scale(gradient, _FRESH / jnp.where(length > 0, length, 1))
  old = trees.combine(last.vectors, last.used.astype(dtype))
  pairs = extreme_eigenpairs(
    lambda v: hvp(value_fn, params, v)[1],
    params,
    top=top,
    bottom=bottom,
    order=order,
    start=jax.tree.map(lambda v, g: v + g.astype(v.dtype), old, part),
  )
  size = jnp.abs(pairs.values)
  used = pairs.residuals <= _CONVERGED * size
  # What is not used is left to the complement, which must be as careful.
  rest = jnp.maximum(pairs.rest, jnp.where(used, 0, size).max(initial=0))
  # A basis with nothing left over says no more than this about the rest.
  rest = jnp.where(rest > 0, rest, size.max(initial=0))
  vectors = _with_fixed_signs(pairs.vectors, pairs.values)
  return Spectrum(pairs.values, vectors, used, rest)


def _with_fixed_signs(vectors, values):
  """Decompositions choose signs at will; what follows must not see it."""
  one = jax.tree.map(lambda v: v[0], vectors)
  side = trees.project(vectors, trees.noise_like(one, _SEED), values)
  flip = jnp.where(side < 0, -1, 1)

  def leaf_flip(v):
    return v * flip.astype(v.dtype).reshape((-1,) + (1,) * (v.ndim - 1))

  return jax.tree.map(leaf_flip, vectors)
