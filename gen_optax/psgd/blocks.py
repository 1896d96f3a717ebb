r"""Block-diagonal Q over any partition: diagonal, XMat, butterfly and the rest.

With a_k[i] = Q[i, S^k i] (see `partition`) and B'Q = v' the group step on the
pair (v, h) moves each entry by two products,

    Q[i, j] <- Q[i, j] - mu (A_i (P h)_j - B_i v_j)    i, j in the same block,

and a block of at most four entries has a closed-form inverse for B = Q^{-T} v.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.oracle import trees
from gen_optax.psgd import partition as partitions
from gen_optax.psgd.partition import Group, Partition
from gen_optax.psgd.preconditioner import (
  Normalizer,
  Preconditioner,
  Scope,
  check_normalizer,
  in_scope,
  positive,
  spectral_norm,
)

Steps = Literal["block", "global", "entry"]


class DiagonalState(NamedTuple):
  """Q = diag(q): `q` is a tree like the parameters."""

  q: Any


class PairState(NamedTuple):
  """Q x = a x + b S x with S an involution: trees like the parameters."""

  a: Any
  b: Any


class BlocksState(NamedTuple):
  """Block-diagonal Q.

  Attributes:
    q: for each leaf a tuple over sizes of blocks of (a_0, ..., a_{m-1}).
  """

  q: Any


def diagonal(
  *, normalizer: Normalizer = "second", steps: Steps = "block"
) -> Preconditioner:
  r"""Diagonal Q: the solution that ESGD and AdaHessian average for.

  .. math::

    q \leftarrow q - \mu (A^2 - B^2) q, \quad A = q h, \; B = v / q,
    \qquad P \to \sqrt{E v^2 / E h^2}

  (The paper prints the ratio without the root.)

  Args:
    normalizer: see `blocks`.
    steps: "block" (default) gives each entry its own step, which fits a
      noise-free Hessian many times faster and follows the noise of a batch: on
      networks take "global", or a tenth of the learning rate.

  Returns:
    A `Preconditioner` whose state is `DiagonalState(q)`: one copy of the
    parameters. Update and apply are one pass each.

  Raises:
    ValueError: on an unknown `normalizer` or `steps`.

  Example:

    >>> import gen_optax
    >>> tx = gen_optax.scale_by_psgd(gen_optax.psgd.diagonal())

  References:
    Example 1; App. D.1.2.1.
  """
  return _blocks(partitions.singles(), normalizer, steps, _DIAGONAL)


def xmat(
  scope: Scope = "leaf",
  *,
  normalizer: Normalizer = "second",
  steps: Steps = "global",
) -> Preconditioner:
  r"""X-shaped Q: a diagonal and an anti-diagonal.

  .. math:: Q x = a \odot x + b \odot f(x), \quad f(x)_i = x_{n - 1 - i}

  Blocks of two: entries i and n - 1 - i.

  Args:
    scope: "leaf" flips each leaf by itself: nothing is gathered. "global" is
      the paper's flip of all parameters as one vector, another group.
    normalizer: see `blocks`.
    steps: see `blocks`.

  Returns:
    A `Preconditioner` whose state is `PairState(a, b)`: two copies of the
    parameters.

  Raises:
    ValueError: on an unknown `scope`, `normalizer` or `steps`.

  Example:

    >>> import gen_optax
    >>> tx = gen_optax.scale_by_psgd(gen_optax.psgd.xmat())

  References:
    Example 2; App. D.1.2.2.
  """
  return in_scope(
    scope, _blocks(partitions.mirrored(), normalizer, steps, _PAIR)
  )


def butterfly(
  scope: Scope = "leaf",
  *,
  normalizer: Normalizer = "second",
  steps: Steps = "global",
) -> Preconditioner:
  r"""Butterfly Q: a diagonal and one at distance n / 2.

  .. math:: Q x = a \odot x + b \odot s(x), \quad s(x)_i = x_{i + n/2 \bmod n}

  Blocks of two: entries i and i + n/2. With odd n the last entry is alone.

  Args:
    scope: "leaf" shifts each leaf by half its first axis of even length;
      "global" shifts all parameters as one vector.
    normalizer: see `blocks`.
    steps: see `blocks`.

  Returns:
    A `Preconditioner` whose state is `PairState(a, b)`: two copies of the
    parameters.

  Raises:
    ValueError: on an unknown `scope`, `normalizer` or `steps`.

  Example:

    >>> import gen_optax
    >>> tx = gen_optax.scale_by_psgd(gen_optax.psgd.butterfly())

  References:
    Example 3.
  """
  return in_scope(
    scope, _blocks(partitions.cyclic(2), normalizer, steps, _PAIR)
  )


def blocks(
  partition: Partition,
  scope: Scope = "leaf",
  *,
  normalizer: Normalizer = "second",
  steps: Steps = "global",
) -> Preconditioner:
  r"""Block-diagonal Q over any partition of the entries.

  .. math:: Q_b \leftarrow Q_b - \mu_b (A_b A_b' - B_b B_b') Q_b,
    \quad A_b = Q_b h_b, \; B_b = Q_b^{-T} v_b

  Every group of Theorem 3.1 is this one over the orbits of its permutations;
  what distinguishes subgroups with the same orbits is no part of the group.
  (Where they do not act freely, as XMat with odd n, the theorem's parameters
  are redundant; these are not.)

  Args:
    partition: `cyclic(m)`, `neighbours(m)` or `orbits(*generators)` of
      `gen_optax.psgd.partition`. Blocks of up to four entries are inverted in
      closed form and keep to the leaf's sharding; larger ones are gathered and
      solved.
    scope: "leaf" partitions each leaf, "global" all parameters as one vector.
    normalizer: "second": mu = learning rate / (|A|^2 + |B|^2), whose steps
      vanish at the optimum of a noise-free definite Hessian. "first": mu =
      learning rate / ||AA' - BB'||_2, whose steps never shrink, so that a noise
      floor stays (take a tenth of the learning rate).
    steps: "global" (default) takes one mu for all, the least. "block" gives
      each block its own, since the group is a direct sum: many times faster on
      a noise-free Hessian, noisier on networks. "entry" is the paper's global
      bound, over single entries of Q's gradient instead of blocks: not a bound
      of the spectral norm, up to twice as long, safe below rate 0.5.

  Returns:
    A `Preconditioner` whose state is `BlocksState(q)`: m copies of the
    parameters.

  Raises:
    ValueError: on an unknown `scope`, `normalizer` or `steps`; at `init`, where
      a generator does not fit a leaf.

  Example:

    >>> import gen_optax
    >>> from gen_optax.psgd.partition import neighbours
    >>> tx = gen_optax.scale_by_psgd(gen_optax.psgd.blocks(neighbours(2)))

  References:
    Theorem 3.1.
  """
  return in_scope(scope, _blocks(partition, normalizer, steps, _BLOCKS))


class _Layout(NamedTuple):
  """Between a state and, for each leaf, its groups' (a_0, ..., a_{m-1})."""

  read: Callable[[Any, jax.tree_util.PyTreeDef], list]
  write: Callable[[list, jax.tree_util.PyTreeDef], Any]


def _by_rows(kind) -> _Layout:
  """One tree like the parameters for each a_k; every leaf is one group."""

  def read(state, treedef):
    columns = map(treedef.flatten_up_to, state)
    return [(rows,) for rows in zip(*columns, strict=True)]

  def write(leaves, treedef):
    columns = [
      [rows[k] for (rows,) in leaves] for k in range(len(kind._fields))
    ]
    return kind(*map(treedef.unflatten, columns))

  return _Layout(read, write)


_DIAGONAL = _by_rows(DiagonalState)
_PAIR = _by_rows(PairState)
_BLOCKS = _Layout(
  lambda state, treedef: treedef.flatten_up_to(state.q),
  lambda leaves, treedef: BlocksState(treedef.unflatten(leaves)),
)


def _blocks(
  partition: Partition, normalizer: Normalizer, steps: Steps, layout: _Layout
) -> Preconditioner:
  check_normalizer(normalizer)
  if steps not in ("block", "global", "entry"):
    raise ValueError(
      f'steps must be "block", "global" or "entry", got {steps!r}.'
    )

  def init(params, key):
    del key
    leaves, treedef = jax.tree.flatten(params)
    return layout.write([_identity(partition, x) for x in leaves], treedef)

  def update(state, vector, hvp, learning_rate, key):
    del key
    vs, treedef = jax.tree.flatten(vector)
    hs = treedef.flatten_up_to(hvp)
    moves = [
      [
        _gradient(group, rows, _take(group, v), _take(group, h))
        for group, rows in zip(partition(v.shape), leaf, strict=True)
      ]
      for leaf, v, h in zip(layout.read(state, treedef), vs, hs, strict=True)
    ]
    bounds = [
      [_bound(move, normalizer, steps == "entry") for move in leaf]
      for leaf in moves
    ]
    if steps != "block":
      bounds = _largest(bounds)
    leaves = [
      tuple(
        _step(move, bound, learning_rate)
        for move, bound in zip(leaf, own, strict=True)
      )
      for leaf, own in zip(moves, bounds, strict=True)
    ]
    return layout.write(leaves, treedef)

  def apply(state, updates):
    leaves, treedef = jax.tree.flatten(updates)
    return treedef.unflatten(
      [
        _apply_leaf(partition(x.shape), leaf, x)
        for leaf, x in zip(layout.read(state, treedef), leaves, strict=True)
      ]
    )

  def rescale(state, factor):
    return jax.tree.map(lambda a: factor.astype(a.dtype) * a, state)

  return Preconditioner(init, update, apply, rescale)


def _identity(partition, leaf):
  dtype = trees.at_least_float32(leaf.dtype)

  def rows(group):
    like = _take(group, leaf)
    zeros = [jnp.zeros_like(like, dtype) for _ in range(1, group.size)]
    return (jnp.ones_like(like, dtype), *zeros)

  return tuple(rows(group) for group in partition(leaf.shape))


def _take(group: Group, x):
  """The entries of the ravelled leaf that are in the group."""
  return x if group.index is None else x.ravel()[group.index]


def _apply_leaf(groups, leaf, x):
  if len(groups) == 1 and groups[0].index is None:
    (group,), (rows,) = groups, leaf
    wide = x.astype(rows[0].dtype)
    return _transposed(group, rows, _product(group, rows, wide))
  out = jnp.zeros(x.size, trees.at_least_float32(x.dtype))
  for group, rows in zip(groups, leaf, strict=True):
    part = _product(group, rows, _take(group, x).astype(out.dtype))
    out = out.at[group.index].set(_transposed(group, rows, part))
  return out.reshape(x.shape)


def _product(group: Group, rows, x):
  """Q x."""
  return sum(a * group.shift(x, k) for k, a in enumerate(rows))


def _transposed(group: Group, rows, y):
  """Q' y."""
  return sum(group.shift(a * y, -k) for k, a in enumerate(rows))


def _solve_transposed(group: Group, rows, v):
  """Q^{-T} v: cofactors of each entry's row over the determinant.

  Seen from entry i, block entry p is S^p i and M[p, j] = Q[S^p i, S^j i].
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
  matrices = jnp.stack(
    [
      jnp.stack([rows[(j - p) % m][p] for j in range(m)], axis=-1)
      for p in range(m)
    ],
    axis=-2,
  )
  transposed = jnp.swapaxes(matrices, -1, -2)
  return jnp.linalg.solve(transposed, v.T[..., None])[..., 0].T


class _Move(NamedTuple):
  """A and B of one group, the pair, and the rows that they act on."""

  group: Group
  rows: tuple
  forward: jax.Array
  backward: jax.Array
  vector: jax.Array


def _gradient(group: Group, rows, v, h) -> _Move:
  return _Move(
    group=group,
    rows=rows,
    forward=_product(group, rows, h),
    backward=_solve_transposed(group, rows, v),
    vector=v,
  )


def _block_sum(group: Group, x):
  """The sum of x over each entry's block."""
  return sum(
    _where_present(group, k, group.shift(x, k)) for k in range(group.size)
  )


def _where_present(group: Group, k: int, x):
  """`x`, but zero where the block has no k-th next entry."""
  if k == 0 or not group.alone:
    return x
  alone = group.alone[0]
  for mask in group.alone[1:]:
    alone = alone & mask
  return jnp.where(alone, 0.0, x)


def _bound(move: _Move, normalizer: Normalizer, by_entry: bool):
  """What the learning rate is divided by, at each entry."""
  group, a, b = move.group, move.forward, move.backward
  if by_entry and normalizer == "second":
    return a**2 + b**2
  if by_entry:
    rounding = jnp.finfo(a.dtype).eps * (a**2 + b**2)
    entries = [
      jnp.abs(a * group.shift(a, k) - b * group.shift(b, k))
      for k in range(group.size)
    ]
    present = [_where_present(group, k, e) for k, e in enumerate(entries)]
    return jnp.stack([rounding, *present]).max(0)
  if normalizer == "second":
    return _block_sum(group, a**2 + b**2)
  return spectral_norm(
    _block_sum(group, a**2), _block_sum(group, b**2), _block_sum(group, a * b)
  )


def _largest(bounds):
  """The same bound everywhere: the largest of all leaves."""
  largest = [x.max(initial=0.0) for leaf in bounds for x in leaf]
  if not largest:
    return bounds
  largest = jnp.stack(largest).max()
  return [[largest.astype(x.dtype) for x in leaf] for leaf in bounds]


def _step(move: _Move, bound, learning_rate):
  """The rows after the step; as they were where the bound overflowed."""
  group = move.group
  # Zero where the bound is infinite: not one factor of the step is larger than
  # its root.
  mu = learning_rate.astype(bound.dtype) / positive(bound)
  few = group.size <= 2 and bound.ndim
  changes = _few(move, mu) if few else _many(move, mu)
  return tuple(
    jnp.where(mu > 0, old - _where_present(group, k, change), old)
    for k, (old, change) in enumerate(zip(move.rows, changes, strict=True))
  )


def _few(move: _Move, mu):
  """mu (AA' - BB') Q by the entries of the first factor."""
  group, m = move.group, move.group.size
  a, b = move.forward, move.backward
  entries = [
    mu * _where_present(group, k, a * group.shift(a, k) - b * group.shift(b, k))
    for k in range(m)
  ]
  return [
    sum(
      entry * group.shift(move.rows[(j - k) % m], k)
      for k, entry in enumerate(entries)
    )
    for j in range(m)
  ]


def _many(move: _Move, mu):
  """mu (A (P h)' - B v'): two products for each row."""
  group, a, b = move.group, move.forward, mu * move.backward
  product = mu * _transposed(group, move.rows, a)
  return [
    a * group.shift(product, k) - b * group.shift(move.vector, k)
    for k in range(group.size)
  ]
