r"""Block-diagonal Q over any partition: diagonal, XMat, butterfly and others.

They differ only in the partition and in the layout of the state.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from gen_optax.psgd import algebra, partitions
from gen_optax.psgd.partitions import Partition
from gen_optax.psgd.preconditioner import (
  Normalizer,
  Preconditioner,
  Scope,
  check_kind,
  in_scope,
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
  """Block-diagonal Q: `q` holds for each leaf a tuple over sizes m of blocks of
  (a_0, ..., a_{m-1}).
  """

  q: Any


def diagonal(
  *, normalizer: Normalizer = "second", steps: Steps = "block"
) -> Preconditioner:
  r"""Diagonal Q, which tends to what ESGD and AdaHessian find by averaging.

  .. math::

    q \leftarrow q - \mu (A^2 - B^2) q, \quad A = q h, \; B = v / q,
    \qquad P \to \sqrt{E v^2 / E h^2}

  (The paper prints the ratio without the root.)

  Args:
    normalizer: see `blocks`.
    steps: "block" (default) gives each entry its own step, which fits a
      noise-free Hessian many times faster but follows a batch's noise: on
      networks take "global", or a tenth of the learning rate.

  Returns:
    A `Preconditioner` whose state is `DiagonalState(q)`, one copy of the
    parameters. Update and `apply` are one pass each.

  Raises:
    ValueError: on an unknown `normalizer` or `steps`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> tx = gen_optax.scale_by_psgd(gen_optax.psgd.diagonal())
    >>> w = jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(1))
    [0.5 0.5 0.5 0.5]

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
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
    scope: "leaf" flips each leaf by itself and gathers nothing. "global" flips
      all parameters as one vector, the paper's group.
    normalizer, steps: see `blocks`.

  Returns:
    A `Preconditioner` whose state is `PairState(a, b)`, two copies of the
    parameters. The cost is that of `blocks` with m = 2.

  Raises:
    ValueError: on an unknown `scope`, `normalizer` or `steps`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> tx = gen_optax.scale_by_psgd(gen_optax.psgd.xmat())
    >>> w = jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(1))
    [0.5 0.5 0.5 0.5]

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
    Example 2; App. D.1.2.2.
  """
  pairs = partitions.mirrored()
  return in_scope(scope, _blocks(pairs, normalizer, steps, _PAIR))


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
    normalizer, steps: see `blocks`.

  Returns:
    A `Preconditioner` whose state is `PairState(a, b)`, two copies of the
    parameters. The cost is that of `blocks` with m = 2.

  Raises:
    ValueError: on an unknown `scope`, `normalizer` or `steps`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> tx = gen_optax.scale_by_psgd(gen_optax.psgd.butterfly())
    >>> w = jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(1))
    [0.5 0.5 0.5 0.5]

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
    Example 3.
  """
  pairs = partitions.cyclic(2)
  return in_scope(scope, _blocks(pairs, normalizer, steps, _PAIR))


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

  Every group of Theorem 3.1 is this one over the orbits of its permutations:
  subgroups with the same orbits give the same group. (Where a subgroup does not
  act freely, as XMat with odd n, the theorem's parameters are redundant; these
  are not.)

  Args:
    partition: `cyclic(m)`, `neighbours(m)` or `orbits(*generators)` of
      `gen_optax.psgd`. Blocks of up to four entries are inverted in closed form
      and keep the leaf's sharding; larger ones are gathered and solved.
    scope: "leaf" partitions each leaf, "global" all parameters as one vector.
    normalizer: "second": mu = learning rate / (|A|^2 + |B|^2); steps vanish at
      the optimum of a noise-free definite Hessian. "first": mu = learning rate
      / ||AA' - BB'||_2; steps never shrink, so a noise floor stays (take a
      tenth of the learning rate).
    steps: "global" (default) takes the smallest mu for all blocks. "block"
      gives each its own, since the group is a direct sum: many times faster on
      a noise-free Hessian, noisier on networks. "entry" is the paper's global
      bound, over single entries of Q's gradient. It does not bound the spectral
      norm, so steps are up to twice as long: safe below rate 0.5.

  Returns:
    A `Preconditioner` whose state is `BlocksState(q)`.

  Raises:
    ValueError: on an unknown `scope`, `normalizer` or `steps`; at `init`, if a
      generator does not fit a leaf.

  Cost: m copies of the parameters. An update inverts each block of (m, m)
  numbers, `apply` multiplies by each twice. Where the entries of a pair lie on
  two devices, they exchange their parts of the leaf, twice in each call and
  about eight times in an update; `neighbours` exchanges with both sides.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> from gen_optax.psgd import blocks, neighbours
    >>> tx = gen_optax.scale_by_psgd(blocks(neighbours(2)))
    >>> w = jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(1))
    [0.5 0.5 0.5 0.5]

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
    Theorem 3.1.
  """
  return in_scope(scope, _blocks(partition, normalizer, steps, _BLOCKS))


class _Layout(NamedTuple):
  """From a state to each leaf's groups' (a_0, ..., a_{m-1}), and back."""

  read: Callable[[Any, jax.tree_util.PyTreeDef], list]
  write: Callable[[list, jax.tree_util.PyTreeDef], Any]


def _by_rows(kind) -> _Layout:
  """One tree like the parameters for each a_k; every leaf is one group."""

  def read(state, treedef):
    columns = map(treedef.flatten_up_to, state)
    return [(rows,) for rows in zip(*columns, strict=True)]

  def write(leaves, treedef):
    rows = [rows for (rows,) in leaves]
    columns = [[row[k] for row in rows] for k in range(len(kind._fields))]
    return kind(*map(treedef.unflatten, columns))

  return _Layout(read, write)


_DIAGONAL = _by_rows(DiagonalState)
_PAIR = _by_rows(PairState)
_BLOCKS = _Layout(
  lambda state, treedef: treedef.flatten_up_to(state.q),
  lambda leaves, treedef: BlocksState(treedef.unflatten(leaves)),
)


def _blocks(partition, normalizer, steps, layout: _Layout) -> Preconditioner:
  check_kind("normalizer", normalizer, Normalizer)
  check_kind("steps", steps, Steps)

  def init(params, key):
    del key
    leaves, treedef = jax.tree.flatten(params)
    ones = [algebra.identity(partition, x) for x in leaves]
    return layout.write(ones, treedef)

  def update(state, vector, hvp, learning_rate, key):
    del key
    vs, treedef = jax.tree.flatten(vector)
    hs = treedef.flatten_up_to(hvp)
    moves = [
      [
        algebra.gradient(group, rows, v, h)
        for group, rows in zip(partition(v.shape), leaf, strict=True)
      ]
      for leaf, v, h in zip(layout.read(state, treedef), vs, hs, strict=True)
    ]
    bounds = [
      [algebra.bound_of(move, normalizer, steps == "entry") for move in leaf]
      for leaf in moves
    ]
    if steps != "block":
      bounds = algebra.same_for_all(bounds)
    leaves = [
      tuple(
        algebra.step(move, bound, learning_rate)
        for move, bound in zip(leaf, own, strict=True)
      )
      for leaf, own in zip(moves, bounds, strict=True)
    ]
    return layout.write(leaves, treedef)

  def apply(state, updates):
    leaves, treedef = jax.tree.flatten(updates)
    out = [
      algebra.apply_leaf(partition(x.shape), leaf, x)
      for leaf, x in zip(layout.read(state, treedef), leaves, strict=True)
    ]
    return treedef.unflatten(out)

  def rescale(state, factor):
    return jax.tree.map(lambda a: factor.astype(a.dtype) * a, state)

  return Preconditioner(init, update, apply, rescale)
