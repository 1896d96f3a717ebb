r"""Kronecker-factored Q: one small factor for each axis of each leaf.

On a matrix G of shape (m, n), Q = Q_2 (x) Q_1 acts as Q_1 G Q_2'. With

    A = Q_1 H Q_2',    B = Q_1^{-T} V Q_2^{-1}

each factor takes the step of its own axis,

    Q_1 <- Q_1 - mu_1 triu(A A' - B B') Q_1,
    Q_2 <- Q_2 - mu_2 triu(A'A - B'B) Q_2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.helpers import trees
from gen_optax.psgd.preconditioner import (
  Normalizer,
  Preconditioner,
  check_kind,
  positive,
)


class KronState(NamedTuple):
  """State of `kron`: `q` holds the `Factors` of each leaf."""

  q: Any


class Factors(NamedTuple):
  """Factors of one leaf: `by_axis` holds for each axis of length m an upper
  triangular matrix of shape (m, m) or a diagonal of shape (m,), and for a
  scalar leaf one number.
  """

  by_axis: tuple[jax.Array, ...]


def kron(
  max_size: int = 1024, *, normalizer: Normalizer = "second"
) -> Preconditioner:
  r"""Kronecker products of triangular factors: the affine group on matrices.

  .. math:: P(G) = Q_1' Q_1 G Q_2' Q_2, \quad Q_i \text{ upper triangular}

  Each leaf has a factor for each axis, and steps of its own.

  Args:
    max_size: axes longer than this have a diagonal factor, at least 0.
    normalizer: "second" (default): mu = learning rate / ||A A' + B B'||_2;
      "first": learning rate / ||triu(A A' - B B')||_2. The norms are estimated
      from below by two products.

  Returns:
    A `Preconditioner` whose state is `KronState(q)`.

  Raises:
    ValueError: `max_size` is not an integer of at least 0, or `normalizer` is
      unknown.

  Cost: m^2 numbers for each axis of length m. For each factor an update takes
  two products, one inverse and two Gram matrices, and `apply` two products.
  On a mesh a product along a sharded axis ends in an all-reduce as large as the
  leaf, on every call; an update sums the Gram matrices and may gather the
  factors.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> tx = gen_optax.scale_by_psgd(gen_optax.psgd.kron())
    >>> w = jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(1))
    [0.5 0.5 0.5 0.5]

  References:
    Li, Preconditioner on matrix Lie group for SGD, 2019; PSGD_A of Table 1.
  """
  if not isinstance(max_size, int) or max_size < 0:
    raise ValueError(
      f"max_size must be an integer, at least 0, got {max_size!r}."
    )
  check_kind("normalizer", normalizer, Normalizer)

  def init(params, key):
    del key
    return KronState(jax.tree.map(lambda x: _identity(x, max_size), params))

  def update(state, vector, hvp, learning_rate, key):
    del key
    step = lambda v, h, q: _step(q, v, h, learning_rate, normalizer)
    return KronState(jax.tree.map(step, vector, hvp, state.q))

  def apply(state, updates):
    def leaf(x, factors):
      y = _multiply(factors.by_axis, x.astype(factors.by_axis[0].dtype))
      return _multiply([q.T for q in factors.by_axis], y)

    return jax.tree.map(leaf, updates, state.q)

  def rescale(state, factor):
    def leaf(factors):
      share = factor ** (1 / len(factors.by_axis))
      return Factors(tuple(share.astype(q.dtype) * q for q in factors.by_axis))

    is_leaf = lambda node: isinstance(node, Factors)
    return KronState(jax.tree.map(leaf, state.q, is_leaf=is_leaf))

  return Preconditioner(init, update, apply, rescale)


def _identity(leaf, max_size) -> Factors:
  dtype = trees.at_least_float32(leaf.dtype)
  if not leaf.shape:
    return Factors((jnp.ones((), dtype),))

  def one(m):
    return jnp.eye(m, dtype=dtype) if 1 < m <= max_size else jnp.ones(m, dtype)

  return Factors(tuple(map(one, leaf.shape)))


def _multiply(factors, x):
  """Each factor, a matrix or a diagonal, on its axis of x."""
  for axis, q in enumerate(factors):
    if q.ndim < 2:
      x = q.reshape([-1 if a == axis else 1 for a in range(x.ndim)]) * x
    else:  # sum_j q[i, j] x[..., j, ...]
      x = jnp.tensordot(q, x, (1, axis), precision="highest")
      x = jnp.moveaxis(x, 0, axis)
  return x


def _invert_transpose(factors):
  """Q^{-T} as matrices: a solve would gather a sharded right-hand side."""
  solve = jax.scipy.linalg.solve_triangular
  return [
    1 / q if q.ndim < 2 else solve(q, jnp.eye(len(q), dtype=q.dtype)).T
    for q in factors
  ]


def _step(factors, v, h, learning_rate, normalizer) -> Factors:
  if not v.size:
    return factors
  factors = _balance(factors.by_axis)
  a = _multiply(factors, h)
  b = _multiply(_invert_transpose(factors), v)
  moved = [
    _step_factor(q, axis, a, b, learning_rate.astype(q.dtype), normalizer)
    for axis, q in enumerate(factors)
  ]
  usable = jnp.isfinite(jnp.stack([q.sum() for q in moved])).all()
  pairs = zip(moved, factors, strict=True)
  return Factors(tuple(jnp.where(usable, new, old) for new, old in pairs))


def _step_factor(q, axis, a, b, rate, normalizer):
  if q.ndim < 2:
    others = tuple(x for x in range(a.ndim) if x != axis)
    aa, bb = jnp.sum(a**2, others), jnp.sum(b**2, others)
    size = (aa + bb).max()
    if normalizer == "first":
      size = jnp.maximum(jnp.abs(aa - bb).max(), _rounding(size))
    return q - rate / positive(size) * (aa - bb) * q
  aa, bb = _gram(a, axis), _gram(b, axis)
  change = jnp.triu(aa - bb)
  size = _norm(aa + bb)
  if normalizer == "first":
    size = jnp.maximum(_norm(change), _rounding(size))
  step = jnp.matmul(change, q, precision="highest")
  return q - rate / positive(size) * step


def _rounding(size):
  """What rounding leaves of a difference of two numbers of this size."""
  return jnp.finfo(size.dtype).eps * size


def _gram(x, axis):
  """x x' with all axes but one contracted."""
  others = [a for a in range(x.ndim) if a != axis]
  return jnp.tensordot(x, x, (others, others), precision="highest")


def _norm(matrix):
  """A lower bound of the spectral norm, by a product with the longest row."""
  rows = jnp.sum(matrix**2, axis=1)
  row = matrix[jnp.argmax(rows)]
  return jnp.linalg.norm(matrix @ (row / positive(jnp.linalg.norm(row))))


def _balance(factors):
  """The same product with factors of the same size."""
  sizes = jnp.stack([jnp.abs(q).max(initial=0.0) for q in factors])
  mean = jnp.exp(jnp.mean(jnp.log(positive(sizes))))
  pairs = zip(sizes, factors, strict=True)
  return [mean / positive(size) * q for size, q in pairs]
