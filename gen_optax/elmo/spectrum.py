"""Where ELMO's eigenpairs come from: a dense Hessian, or Lanczos."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.helpers import trees
from gen_optax.oracle import line
from gen_optax.oracle.hessian import hvp
from gen_optax.oracle.lanczos import basis_sizes, extreme_eigenpairs

# A larger Hessian has over 4 million entries; its decomposition takes seconds.
DENSE_LIMIT = 2000
# Columns of the dense Hessian that are computed together.
_COLUMNS = 32
# A pair is used if its residual is below this part of its eigenvalue.
_CONVERGED = 0.1
# How much of the gradient goes into the start besides the old eigenvectors.
_FRESH = 0.1
# A noise vector other than the one that Lanczos' method starts from.
_SEED = 0xE1


class Point(NamedTuple):
  """The first four fields of `Eigenspaces`, see there."""

  value_fn: line.ValueFn
  params: Any
  value: jax.Array | None
  gradient: Any


class Spectrum(NamedTuple):
  """Eigenpairs of the Hessian at one point.

  Attributes:
    values: k eigenvalues; ascending in the dense form, in a subspace the
      largest descending, then the smallest ascending.
    vectors: k rows of each leaf's shape, with the sign that makes the product
      with a fixed noise vector positive.
    used: which pairs have converged.
    complement_bound: of the |curvature| in the other directions.
  """

  values: jax.Array
  vectors: Any
  used: jax.Array
  complement_bound: jax.Array


class Eigenspaces(NamedTuple):
  """What a Lipschitz estimator reads: a `Point` and the eigenpairs there.

  Attributes:
    value_fn: the loss as a function of the parameters alone.
    params: the point.
    value: the loss there; None if it has not been evaluated.
    gradient: its gradient, a tree like the widened parameters.
    values: k eigenvalues.
    vectors: their orthonormal eigenvectors, k rows of each leaf's shape.
    slopes: the k inner products of vectors and gradient.
    used: which of the k have converged; the others are not to be used.
  """

  value_fn: line.ValueFn
  params: Any
  value: jax.Array | None
  gradient: Any
  values: jax.Array
  vectors: Any
  slopes: jax.Array
  used: jax.Array


def check_subspace(subspace, order):
  """Raises `ValueError` for counts that `extreme_spectrum` does not take."""
  if not isinstance(subspace, tuple) or len(subspace) != 2:
    raise ValueError(
      "subspace must be a tuple (top, bottom) of numbers of eigenvalues, got "
      f"{subspace!r}."
    )
  basis_sizes(*subspace, order, 0)


def find_spaces(point: Point, spectrum: Spectrum) -> Eigenspaces:
  """The eigenpairs with the slopes of the point's gradient."""
  values, vectors, used, _ = spectrum
  slopes = jnp.where(used, trees.project(vectors, point.gradient, values), 0)
  return Eigenspaces(*point, values, vectors, slopes, used)


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
    complement_bound=jnp.zeros((), dtype),
  )


def dense_spectrum(value_fn, params) -> Spectrum:
  """All eigenpairs; `params` is one vector of shape (n,)."""
  n, dtype = len(params), params.dtype
  column = lambda unit: hvp(value_fn, params, unit)[1]
  eye = jnp.eye(n, dtype=dtype)
  hessian = jax.lax.map(column, eye, batch_size=min(n, _COLUMNS))
  values, vectors = jnp.linalg.eigh((hessian + hessian.T) / 2)
  return Spectrum(
    values=values,
    vectors=_with_fixed_signs(vectors.T, values),
    used=jnp.ones(n, bool),
    complement_bound=jnp.zeros((), dtype),
  )


def extreme_spectrum(
  point: Point, top, bottom, order, last: Spectrum
) -> Spectrum:
  """The extreme eigenpairs, started from the last ones and the gradient."""
  value_fn, params, _, gradient = point
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
  # The other pairs belong to the complement.
  unused = jnp.where(used, 0, size).max(initial=0)
  bound = jnp.maximum(pairs.complement_bound, unused)
  # If no Ritz value is left over, only the largest one is known.
  bound = jnp.where(bound > 0, bound, size.max(initial=0))
  vectors = _with_fixed_signs(pairs.vectors, pairs.values)
  return Spectrum(pairs.values, vectors, used, bound)


def _with_fixed_signs(vectors, values):
  """Makes the step independent of the signs that the decomposition chose."""
  one = jax.tree.map(lambda v: v[0], vectors)
  side = trees.project(vectors, trees.noise_like(one, _SEED), values)
  flip = jnp.where(side < 0, -1, 1)

  def leaf_flip(v):
    return v * flip.astype(v.dtype).reshape((-1,) + (1,) * (v.ndim - 1))

  return jax.tree.map(leaf_flip, vectors)
