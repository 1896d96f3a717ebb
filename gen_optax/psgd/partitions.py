"""Partitions of the entries of an array into blocks.

Theorem 3.1 of the PSGD paper builds a Lie group from a subgroup K of the
permutations. Its elements are exactly the block-diagonal matrices over the
orbits of K, each block any invertible matrix, so that the partition determines
the group.

Q is kept as arrays a_0, ..., a_{m-1} of the shape of what it multiplies, with
a_k[i] = Q[i, S^k i], where S goes to the next entry of the same block and from
the last back to the first. Then Q x = sum_k a_k * S^k x needs no reshape and no
gather, and the arrays are sharded like the parameters.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_optax.helpers import trees

# Larger blocks are solved as matrices: see `blocks`.
LARGEST_CLOSED_FORM = 4


class Group(NamedTuple):
  """Blocks of one size.

  Attributes:
    size: m, the number of entries in a block.
    shift: `(x, k) -> S^k x`, the k-th next entry of the block, at each entry.
    alone: masks of one axis each, broadcastable. An entry where all hold is a
      block of its own, S i = i; empty if there is no such entry.
    index: which entries of the ravelled leaf these are, of shape (m, number of
      blocks); None: all, as they stand.
    stretched: the axis that consists of m equal stretches, one for each entry
      of a block; None for other layouts.
  """

  size: int
  shift: Callable[[jax.Array, int], jax.Array]
  alone: tuple[np.ndarray, ...] = ()
  index: np.ndarray | None = None
  stretched: int | None = None


Partition = Callable[[tuple[int, ...]], tuple[Group, ...]]


def singles() -> Partition:
  """Blocks of one entry: the diagonal group (Example 1)."""
  return lambda shape: (Group(1, lambda x, k: x),)


def mirrored() -> Partition:
  """Pairs (i, n - 1 - i): X-shaped matrices (Example 2).

  The reverse of a ravelled leaf is the leaf reversed along every axis.
  """

  def groups(shape):
    shift = lambda x, k: jnp.flip(x) if k % 2 else x
    alone = _everywhere(shape)
    if shape and all(length % 2 for length in shape):
      alone = tuple(
        _along(shape, axis, np.arange(length) == length // 2)
        for axis, length in enumerate(shape)
      )
    return (Group(2, shift, alone),)

  return groups


def cyclic(size: int) -> Partition:
  """Blocks {i, i + n/m, i + 2n/m, ...}; m = 2 is the butterfly.

  On a leaf of several axes n is the length of the first axis that m divides.
  If m divides none, the last entries of the longest axis are blocks of their
  own. Blocks of more than four entries are cut from the ravelled leaf.

  Args:
    size: m, the number of entries in a block, at least 1.

  Returns:
    A function from the shape of a leaf to its groups of blocks, for `blocks`.

  Raises:
    ValueError: `size` is not a positive integer.

  Example:

    >>> import gen_optax
    >>> pairs = gen_optax.psgd.blocks(gen_optax.psgd.cyclic(2))
    >>> tx = gen_optax.scale_by_psgd(pairs)
  """
  _check_size(size)

  def groups(shape):
    if size > LARGEST_CLOSED_FORM:
      return _by_index(shape, size, lambda i: i.reshape(size, -1))
    axis, stride, remainder = _divide(shape, size, first=True)

    def shift(x, k):
      roll = lambda y: jnp.roll(y, -stride * k, axis)
      return x if k == 0 else _on_full_blocks(x, axis, remainder, roll)

    stretched = None if remainder or size == 1 else axis
    alone = _last(shape, axis, remainder)
    return (Group(size, shift, alone, stretched=stretched),)

  return groups


def neighbours(size: int) -> Partition:
  """Blocks {mi, mi + 1, ..., mi + m - 1} of entries side by side.

  On a leaf of several axes they lie along the last axis that m divides. Where m
  divides none or exceeds four, the rules of `cyclic` hold.

  Args:
    size: m, the number of entries in a block, at least 1.

  Returns:
    A function from the shape of a leaf to its groups of blocks, for `blocks`.

  Raises:
    ValueError: `size` is not a positive integer.

  Example:

    >>> import gen_optax
    >>> pairs = gen_optax.psgd.blocks(gen_optax.psgd.neighbours(2))
    >>> tx = gen_optax.scale_by_psgd(pairs)
  """
  _check_size(size)

  def groups(shape):
    if size > LARGEST_CLOSED_FORM:
      return _by_index(shape, size, lambda i: i.reshape(-1, size).T)
    axis, _, remainder = _divide(shape, size, first=False)

    def shift(x, k):
      k = k % size
      if k == 0 or axis is None:
        return x

      def within(y):
        place = jax.lax.broadcasted_iota(jnp.int32, y.shape, axis) % size
        ahead, behind = jnp.roll(y, -k, axis), jnp.roll(y, size - k, axis)
        return jnp.where(place < size - k, ahead, behind)

      return _on_full_blocks(x, axis, remainder, within)

    return (Group(size, shift, _last(shape, axis, remainder)),)

  return groups


def orbits(
  *generators: Sequence[int] | Callable[[int], Sequence[int]],
) -> Partition:
  """The orbits of a subgroup of the permutations (PSGD paper, Theorem 3.1).

  Args:
    generators: permutations that generate the subgroup: arrays that send i to
      generator[i], or functions from n to such an array.

  Returns:
    A partition for leaves that every generator fits, for `blocks`.

  Raises:
    ValueError: there is no generator, or one is not a permutation of a leaf's
      entries.

  Example:

    >>> import numpy as np
    >>> from gen_optax.psgd.partitions import orbits
    >>> reverse = lambda n: np.arange(n)[::-1]
    >>> [group.index.tolist() for group in orbits(reverse)((5,))]
    [[[2]], [[0, 1], [4, 3]]]
  """
  if not generators:
    raise ValueError("orbits needs at least one generator.")

  def groups(shape):
    n = int(np.prod(shape))
    moves = [_permutation(g(n) if callable(g) else g, n) for g in generators]
    # The least entry that each can reach, until nothing changes.
    label, changed = np.arange(n), True
    while changed:
      lower = label
      for move in moves:
        lower = _least_on_cycle(lower, move)
      label, changed = lower, bool((lower != label).any())
    order = np.argsort(label, kind="stable")
    sizes = np.bincount(label, minlength=n)[label[order]]
    return tuple(
      _rolled(order[sizes == m].reshape(-1, m).T)
      for m in np.unique(sizes).tolist()
    )

  return groups


def _least_on_cycle(label, move) -> np.ndarray:
  """The least label on each entry's cycle, by steps of 1, 2, 4, ..."""
  for _ in range(max(len(label) - 1, 0).bit_length()):
    label = np.minimum(label, label[move])
    move = move[move]
  return label


def _permutation(image, n: int) -> np.ndarray:
  image = np.asarray(image)
  if image.shape != (n,) or not (np.sort(image) == np.arange(n)).all():
    raise ValueError(
      f"a generator must be a permutation of the {n} entries of the leaf, got "
      f"{image!r}; a function from n to a permutation fits every leaf."
    )
  return image


def _rolled(index: np.ndarray) -> Group:
  shift = lambda x, k: jnp.roll(x, -k, axis=0)
  return Group(len(index), shift, index=index)


def _by_index(shape, size, arrange) -> tuple[Group, ...]:
  """Full blocks of the ravelled leaf, and the remainder one by one."""
  entries = np.arange(int(np.prod(shape)))
  full = len(entries) // size * size
  parts = arrange(entries[:full]), entries[full:][None]
  return tuple(_rolled(part) for part in parts if part.size)


def _divide(shape, size, first):
  """The axis for blocks of `size`, the number of blocks, and the remainder."""
  if shape == ():
    return None, 0, 0
  axes = range(len(shape)) if first else reversed(range(len(shape)))
  longest = max(range(len(shape)), key=lambda axis: shape[axis])
  axis = next((a for a in axes if shape[a] % size == 0), longest)
  return axis, shape[axis] // size, shape[axis] % size


def _on_full_blocks(x, axis, remainder, move):
  """`move` on the full blocks; the last `remainder` entries stay."""
  if axis is None or x.shape[axis] == remainder:
    return x
  if not remainder:
    return trees.keep_sharding(move, x)
  full = x.shape[axis] - remainder

  def cut(x):
    head = jax.lax.slice_in_dim(x, 0, full, axis=axis)
    tail = jax.lax.slice_in_dim(x, full, None, axis=axis)
    return jnp.concatenate([move(head), tail], axis)

  return trees.keep_sharding(cut, x)


def _last(shape, axis, remainder) -> tuple[np.ndarray, ...]:
  if axis is None or not remainder:
    return _everywhere(shape)
  full = shape[axis] - remainder
  return (_along(shape, axis, np.arange(shape[axis]) >= full),)


def _everywhere(shape) -> tuple[np.ndarray, ...]:
  """A scalar leaf is a block of its own."""
  return (np.ones((), bool),) if shape == () else ()


def _along(shape, axis, mask) -> np.ndarray:
  """A mask of one axis, broadcastable to `shape`."""
  return mask.reshape([-1 if a == axis else 1 for a in range(len(shape))])


def _check_size(size):
  if not isinstance(size, int) or size < 1:
    raise ValueError(f"size must be a positive integer, got {size!r}.")
