"""Extreme eigenpairs of a symmetric operator on trees, by Lanczos' method.

The basis is kept as `order` rows of each leaf's shape and is never ravelled, so
a sharded leaf stays where it is: inner products cost one all-reduce each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.helpers import trees
from gen_optax.helpers.lazy import run_if
from gen_optax.helpers.rounding import CANCELLED

# A product that keeps less than this part of its length is orthogonalised once
# more, because its relative rounding has grown by the inverse.
_REPEAT = 1e-2


class Eigenpairs(NamedTuple):
  """Eigenpairs: k = top + bottom, clipped to the number of parameters.

  Attributes:
    values: shape (k,): the largest in descending order, then the smallest in
      ascending order.
    vectors: a tree with k orthonormal rows of each leaf's shape.
    residuals: the norm of H v - value v, shape (k,), by Lanczos' recurrence;
      rounding adds about eps |H|. An eigenvalue is no further off.
    complement_bound: the largest |Ritz value| that is not among `values`, or 0:
      an estimate of the bound of the |curvature| in the other directions.
  """

  values: jax.Array
  vectors: Any
  residuals: jax.Array
  complement_bound: jax.Array


def extreme_eigenpairs(
  hvp: Callable[[Any], Any],
  like: Any,
  *,
  top: int,
  bottom: int,
  order: int | None = None,
  start: Any = None,
) -> Eigenpairs:
  r"""The largest and smallest eigenvalues of a Hessian and their eigenvectors.

  .. math:: H Q = Q T + \beta_m q_{m+1} e_m', \quad
    T = S \Theta S' \;\Rightarrow\;
    H (Q s_i) \approx \theta_i Q s_i, \;
    \text{residual } \beta_m |S_{m i}|

  Each new vector is orthogonalised against all before it; otherwise copies of
  converged eigenvalues come back. Once is enough, in float32 too, unless little
  of the vector is left. If the space is exhausted (the identity, low rank), the
  basis goes on from a noise vector, which also finds repeated eigenvalues.

  Args:
    hvp: the product with a symmetric operator, a tree like `like` to another.
    like: a tree of the shapes, dtypes and sharding of the parameters.
    top: how many of the largest eigenvalues, at least 0.
    bottom: how many of the smallest, at least 0.
    order: size m of the basis, the number of products, at least top + bottom.
      None: 4 top + 8 bottom, because a crowded lower end converges more slowly.
      Clipped to the number of parameters, where the result is exact.
    start: a tree to start from, for a warm start the sum of the eigenvectors of
      a Hessian nearby. Fixed noise if None, zero or not finite.

  Returns:
    `Eigenpairs`. Drop those whose residual is large beside their eigenvalue.

  Raises:
    ValueError: a count is negative, both are zero, or `order` is too small.

  Cost: m products, and m copies of the parameters while it runs, which are read
  once for each product.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> diagonal = jnp.arange(-3.0, 5.0)
    >>> pairs = gen_optax.extreme_eigenpairs(
    ...   lambda v: diagonal * v, diagonal, top=2, bottom=1)
    >>> print([f"{value:.2f}" for value in pairs.values])
    ['4.00', '3.00', '-3.00']

  References:
    Lanczos, An iteration method for the solution of the eigenvalue problem of
    linear differential and integral operators, 1950.
  """
  size = sum(leaf.size for leaf in jax.tree.leaves(like))
  top, bottom, order = basis_sizes(top, bottom, order, size)
  dtype = trees.scalar_dtype(like)
  first = _start(like, start, dtype)
  basis, alpha, beta = _tridiagonal(hvp, first, order, dtype)
  ritz, weights = jnp.linalg.eigh(
    jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
  )
  chosen = [*range(order - 1, order - 1 - top, -1), *range(bottom)]
  chosen = jnp.asarray(chosen, jnp.int32)
  left = ritz[bottom : order - top]
  return Eigenpairs(
    values=ritz[chosen],
    vectors=trees.combine(basis, weights[:, chosen].T),
    residuals=jnp.abs(beta[-1:] * weights[-1:, chosen]).sum(0),
    complement_bound=jnp.abs(left).max(initial=0.0),
  )


def basis_sizes(top, bottom, order, size) -> tuple[int, int, int]:
  """The three counts, checked and clipped to `size` parameters."""
  for name, count in (("top", top), ("bottom", bottom)):
    if not isinstance(count, int) or count < 0:
      raise ValueError(
        f"{name} must be a number of eigenvalues, at least 0, got {count!r}."
      )
  if top + bottom == 0:
    raise ValueError("top and bottom are both 0: ask for one eigenvalue.")
  if order is None:
    order = 4 * top + 8 * bottom
  if not isinstance(order, int) or order < top + bottom:
    raise ValueError(
      f"order must be an integer, at least top + bottom = {top + bottom}, got "
      f"{order!r}."
    )
  top = min(top, size)
  return top, min(bottom, size - top), min(order, size)


def _start(like, start, dtype):
  """`start` with unit norm, or noise where it has none."""

  def unit(tree):
    length = trees.norm(tree, dtype)
    # A zero factor hides what is not finite.
    usable = jnp.isfinite(length) & (length > 0)
    return trees.scale(tree, jnp.where(usable, 1 / length, 0)), usable

  noise, _ = unit(trees.noise_like(like, 0))
  if start is None:
    return noise
  start, usable = unit(start)
  start = jax.tree.map(lambda s, x: s.astype(x.dtype), start, noise)
  return optax.tree.where(usable, start, noise)


def _tridiagonal(hvp, first, order, dtype):
  """`(Q, alpha, beta)` with Q'HQ = T; beta[-1] is the one that is cut off."""
  eps = jnp.finfo(dtype).eps
  like = jnp.zeros(order, dtype)

  def no_rows(x):
    # The product takes the leaf's sharding.
    return jnp.zeros((order, 1), x.dtype).reshape((order,) + (1,) * x.ndim) * x

  def orthogonalise(basis, w):
    overlap = trees.project(basis, w, like)
    return jax.tree.map(jnp.subtract, w, trees.combine(basis, overlap))

  def unit(w, length):
    return trees.scale(w, 1 / jnp.maximum(length, jnp.finfo(dtype).tiny))

  def step(j, carry):
    basis, q, last, alpha, beta, size = carry
    basis = jax.tree.map(lambda b, x: b.at[j].set(x), basis, q)
    w = jax.tree.map(lambda h, x: h.astype(x.dtype), hvp(q), q)
    a, b = trees.vdot(q, w, dtype), beta[j - 1]
    # The large parts go first: together with the small ones they would multiply
    # the basis' loss of orthogonality in every step.
    w = jax.tree.map(
      lambda w, q, p: w - a.astype(w.dtype) * q - b.astype(w.dtype) * p,
      *(w, q, last),
    )
    w = orthogonalise(basis, w)
    length = trees.norm(w, dtype)
    size = jnp.maximum(size, jnp.abs(a) + length)
    exhausted = length <= CANCELLED * eps * size

    def again(x):
      x = optax.tree.where(exhausted, trees.noise_like(x, j + 1), x)
      for _ in range(2):
        x = orthogonalise(basis, x)
        x = unit(x, jnp.sqrt(trees.vdot(x, x, dtype)))
      return x

    following = run_if(length <= _REPEAT * size, again, unit(w, length))
    alpha = alpha.at[j].set(a)
    beta = beta.at[j].set(jnp.where(exhausted, 0, length))
    return basis, following, q, alpha, beta, size

  # beta[-1], which the first step reads, is zero until the last one writes it.
  basis, nothing = (jax.tree.map(f, first) for f in (no_rows, jnp.zeros_like))
  carry = (basis, first, nothing, like, like, jnp.zeros((), dtype))
  basis, _, _, alpha, beta, _ = jax.lax.fori_loop(0, order, step, carry)
  return basis, alpha, beta
