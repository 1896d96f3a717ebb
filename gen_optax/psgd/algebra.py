r"""The algebra of block-diagonal Q, one group of blocks at a time.

With a_k[i] = Q[i, S^k i] (see `partition`) and B'Q = v' the group step on the
pair (v, h) moves each entry by two products,

    Q[i, j] <- Q[i, j] - mu (A_i (P h)_j - B_i v_j)    i, j in the same block,

and a block of at most four entries has a closed-form inverse for B = Q^{-T} v.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.helpers import trees
from gen_optax.psgd import partitions
from gen_optax.psgd.partitions import Group
from gen_optax.psgd.preconditioner import Normalizer, positive, spectral_norm


def identity(partition, leaf):
  """The rows of Q = I, for each group of a leaf."""
  dtype = trees.at_least_float32(leaf.dtype)

  def rows(group):
    like = _take(group, leaf)
    zeros = [jnp.zeros_like(like, dtype) for _ in range(1, group.size)]
    return (jnp.ones_like(like, dtype), *zeros)

  return tuple(map(rows, partition(leaf.shape)))


def _take(group: Group, x):
  """The entries of the ravelled leaf that are in the group."""
  return x if group.index is None else x.ravel()[group.index]


def apply_leaf(groups, leaf, x):
  """Q'Q x; `leaf` holds the rows of each group."""
  if len(groups) == 1 and groups[0].index is None:
    (group,), (rows,) = groups, leaf
    wide = x.astype(rows[0].dtype)
    # Compilers fuse slices into one loop, but not rolls. On a sharded axis a
    # slice would gather, where a roll exchanges neighbours.
    if group.stretched is not None and jax.device_count() == 1:
      return _apply_by_stretches(group.stretched, rows, wide)
    return _transposed(group, rows, _product(group, rows, wide))
  out = jnp.zeros(x.size, trees.at_least_float32(x.dtype))
  for group, rows in zip(groups, leaf, strict=True):
    part = _product(group, rows, _take(group, x).astype(out.dtype))
    out = out.at[group.index].set(_transposed(group, rows, part))
  return out.reshape(x.shape)


def _apply_by_stretches(axis: int, rows, x):
  """Q'Q x where each of m stretches holds one entry of every block."""
  m = len(rows)
  x = jnp.split(x, m, axis)
  rows = [jnp.split(a, m, axis) for a in rows]
  y = [sum(rows[k][p] * x[(p + k) % m] for k in range(m)) for p in range(m)]
  out = [sum(rows[k][p - k] * y[p - k] for k in range(m)) for p in range(m)]
  return jnp.concatenate(out, axis)


def _product(group: Group, rows, x) -> Any:
  """Q x."""
  return sum(a * group.shift(x, k) for k, a in enumerate(rows))


def _transposed(group: Group, rows, y):
  """Q' y."""
  return sum(group.shift(a * y, -k) for k, a in enumerate(rows))


def _solve_transposed(group: Group, rows, v) -> Any:
  """Q^{-T} v: cofactors of each entry's row over the determinant.

  Relative to entry i, block entry p is S^p i and M[p, j] = Q[S^p i, S^j i].
  """
  m = group.size
  if m > partitions.LARGEST_CLOSED_FORM:
    return _solve_blocks(rows, v)
  matrix = [
    [group.shift(rows[(j - p) % m], p) for j in range(m)] for p in range(m)
  ]
  cofactors = _first_cofactors(matrix)
  determinant = sum(a * c for a, c in zip(matrix[0], cofactors, strict=True))
  total = sum(c * group.shift(v, j) for j, c in enumerate(cofactors))
  return total / determinant


def _first_cofactors(matrix):
  """The cofactors of the first row of a matrix of at most four rows."""
  if len(matrix) == 1:
    return [1.0]
  if len(matrix) == 2:
    return [matrix[1][1], -matrix[1][0]]
  if len(matrix) == 3:
    _, (a, b, c), (d, e, f) = matrix
    return [b * f - c * e, c * d - a * f, a * e - b * d]
  _, a, c, d = matrix
  minor = lambda i, j: c[i] * d[j] - c[j] * d[i]
  return [
    a[1] * minor(2, 3) - a[2] * minor(1, 3) + a[3] * minor(1, 2),
    a[2] * minor(0, 3) - a[0] * minor(2, 3) - a[3] * minor(0, 2),
    a[0] * minor(1, 3) - a[1] * minor(0, 3) + a[3] * minor(0, 1),
    a[1] * minor(0, 2) - a[0] * minor(1, 2) - a[2] * minor(0, 1),
  ]


def _solve_blocks(rows, v):
  """Q^{-T} v for arrays (m, number of blocks) whose shift rolls axis 0."""
  m = len(rows)
  # [block, p, j] = Q[p, j] = a_{j-p}[p]
  lines = [[rows[(j - p) % m][p] for j in range(m)] for p in range(m)]
  matrices = jnp.stack([jnp.stack(line, axis=-1) for line in lines], axis=-2)
  transposed = jnp.swapaxes(matrices, -1, -2)
  return jnp.linalg.solve(transposed, v.T[..., None])[..., 0].T


class Move(NamedTuple):
  """A = Q h and B = Q^{-T} v of one group, v, and the rows of Q."""

  group: Group
  rows: tuple
  forward: jax.Array
  backward: jax.Array
  vector: jax.Array


def gradient(group: Group, rows, v, h) -> Move:
  """The parts of a step, from the leaves of a pair."""
  v, h = _take(group, v), _take(group, h)
  a, b = _product(group, rows, h), _solve_transposed(group, rows, v)
  return Move(group, rows, forward=a, backward=b, vector=v)


def _block_sum(group: Group, x):
  """The sum of x over each entry's block."""
  entries = range(group.size)
  return sum(_where_present(group, k, group.shift(x, k)) for k in entries)


def _where_present(group: Group, k: int, x):
  """`x`, but zero where the block has no k-th next entry."""
  if k == 0 or not group.alone:
    return x
  alone = group.alone[0]
  for mask in group.alone[1:]:
    alone = alone & mask
  return jnp.where(alone, 0.0, x)


def bound_of(move: Move, normalizer: Normalizer, by_entry: bool):
  """What the learning rate is divided by, at each entry."""
  group, a, b = move.group, move.forward, move.backward
  if by_entry and normalizer == "second":
    return a**2 + b**2
  if by_entry:
    rounding = jnp.finfo(a.dtype).eps * (a**2 + b**2)
    return jnp.stack([rounding, *map(jnp.abs, _first_factor(move))]).max(0)
  if normalizer == "second":
    return _block_sum(group, a**2 + b**2)
  sums = [_block_sum(group, x) for x in (a**2, b**2, a * b)]
  return spectral_norm(*sums)


def _first_factor(move: Move):
  """The rows of AA' - BB'."""
  group, a, b = move.group, move.forward, move.backward
  return [
    _where_present(group, k, a * group.shift(a, k) - b * group.shift(b, k))
    for k in range(group.size)
  ]


def same_for_all(bounds):
  """The largest bound of all leaves, for each of them."""
  largest = trees.largest(bounds, trees.scalar_dtype(bounds))
  return [[largest.astype(x.dtype) for x in leaf] for leaf in bounds]


def step(move: Move, bound, learning_rate):
  """The rows after the step; as they were where the bound overflowed."""
  group = move.group
  # Zero where the bound is infinite. No factor of the step exceeds the root of
  # the bound.
  mu = learning_rate.astype(bound.dtype) / positive(bound)
  few = group.size <= 2 and bound.ndim
  changes = _few(move, mu) if few else _many(move, mu)
  return tuple(
    jnp.where(mu > 0, old - _where_present(group, k, change), old)
    for k, (old, change) in enumerate(zip(move.rows, changes, strict=True))
  )


def _few(move: Move, mu):
  """mu (AA' - BB') Q by the entries of the first factor."""
  group, rows, m = move.group, move.rows, move.group.size
  entries = [mu * entry for entry in _first_factor(move)]
  return [
    sum(e * group.shift(rows[(j - k) % m], k) for k, e in enumerate(entries))
    for j in range(m)
  ]


def _many(move: Move, mu):
  """mu (A (P h)' - B v'): two products for each row."""
  group, a, b = move.group, move.forward, mu * move.backward
  product = mu * _transposed(group, move.rows, a)
  return [
    a * group.shift(product, k) - b * group.shift(move.vector, k)
    for k in range(group.size)
  ]
