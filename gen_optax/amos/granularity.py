"""Which parameters are routed together, and means and maxima over them.

The numbers of the groups are kept beside the leaves that they belong to:

    tensors      a scalar for each leaf
    chunks       a vector for each leaf; a chunk does not cross its border
    elements     an array of the leaf's shape
    partition    a scalar for each leaf, the same in all leaves of one label

so that all work on groups is a map over trees, and a sharded leaf stays where
it is.
"""

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.helpers import trees
from gen_optax.helpers.checks import is_known

NAMES = ("tensor_mean", "tensor_max", "element")


def _leaf_sizes(tree):
  return jax.tree.map(lambda x: jnp.asarray(x.size), tree)


def _as_it_is(groups, leaf):
  del leaf
  return groups


class Granularity(NamedTuple):
  """How parameters are grouped.

  Attributes:
    mean: from a tree of numbers to their means over each group.
    largest: from a tree of numbers to their maxima over each group.
    sizes: from the parameters to the number of entries in a group that lie in
      this leaf, arrays that broadcast against the leaf's groups.
    spread: `(groups, leaf)`: the groups' numbers, broadcastable to the leaf.
    by_maximum: whether a group's Lipschitz parameter is its largest entry.
    whole_leaves: whether no leaf is divided.
  """

  mean: Callable[[Any], Any]
  largest: Callable[[Any], Any]
  sizes: Callable[[Any], Any] = _leaf_sizes
  spread: Callable[[jax.Array, jax.Array], jax.Array] = _as_it_is
  by_maximum: bool = False
  whole_leaves: bool = True

  def lipschitz(self, tree):
    """Each group's Lipschitz parameter."""
    return self.largest(tree) if self.by_maximum else self.mean(tree)

  def shares(self, params, choice, count: int, dtype):
    """Parts of all parameters, and of each leaf's, with each optimizer."""
    rows = []
    owned = jnp.zeros(count, dtype)
    leaves, treedef = jax.tree.flatten(params)
    for leaf, chosen, sizes in zip(
      leaves,
      treedef.flatten_up_to(choice),
      treedef.flatten_up_to(self.sizes(params)),
      strict=True,
    ):
      mine = [
        jnp.sum(jnp.where(chosen == i, sizes, 0).astype(dtype))
        for i in range(count)
      ]
      rows.append(jnp.stack(mine) / max(leaf.size, 1))
      owned = owned + jnp.stack(mine)
    total = sum(leaf.size for leaf in leaves)
    table = jnp.stack(rows) if rows else jnp.zeros((0, count), dtype)
    return owned / max(total, 1), table


def make_granularity(granularity) -> Granularity:
  """From what users write, see `amos_router`; raises `ValueError`."""
  if isinstance(granularity, str):
    if granularity in ("tensor_mean", "tensor_max"):
      return tensors(by_maximum=granularity == "tensor_max")
    if granularity == "element":
      return elements()
  elif _is_chunk(granularity):
    return chunks(granularity[1])
  elif callable(granularity) or jax.tree.leaves(granularity):
    return partition(granularity)
  raise ValueError(
    f'granularity must be one of {NAMES}, ("chunk", size), a tree of labels, '
    f"or a function from the parameters to one; got {granularity!r}."
  )


def tensors(by_maximum: bool = False) -> Granularity:
  """Each leaf is a group."""
  return Granularity(
    mean=lambda tree: jax.tree.map(_mean, tree),
    largest=lambda tree: jax.tree.map(lambda x: x.max(initial=0), tree),
    by_maximum=by_maximum,
  )


def elements() -> Granularity:
  """Each parameter is a group."""
  same = lambda tree: tree
  return Granularity(
    mean=same,
    largest=same,
    sizes=lambda tree: jax.tree.map(lambda x: jnp.asarray(1), tree),
    whole_leaves=False,
  )


def chunks(size: int) -> Granularity:
  """Each run of `size` consecutive entries of a leaf; the last is shorter."""

  def of_leaf(reduce):
    def rows(x):
      count = math.ceil(x.size / size)
      flat = jnp.pad(x.reshape(-1), (0, count * size - x.size))
      return reduce(flat.reshape(count, size))

    return lambda x: _replicated(rows, x)

  def lengths(x):
    count = math.ceil(x.size / size)
    return jnp.minimum(size, x.size - size * jnp.arange(count))

  def mean(tree):
    total = jax.tree.map(of_leaf(lambda rows: rows.sum(1)), tree)
    return jax.tree.map(
      lambda s, x: s / lengths(x).astype(s.dtype), total, tree
    )

  def spread(groups, leaf) -> Any:
    repeat = lambda g: jnp.repeat(g, size)[: leaf.size].reshape(leaf.shape)
    sharding = trees.explicit_sharding(leaf)
    if sharding is None:
      return repeat(groups)
    return jax.sharding.auto_axes(repeat, out_sharding=sharding)(groups)

  # The zeros of the padding change no maximum, since drifts are not negative.
  largest = of_leaf(lambda rows: rows.max(1, initial=0))
  return Granularity(
    mean=mean,
    largest=lambda tree: jax.tree.map(largest, tree),
    sizes=lambda tree: jax.tree.map(lengths, tree),
    spread=spread,
    whole_leaves=False,
  )


def partition(labels: Any | Callable[[Any], Any]) -> Granularity:
  """The leaves of one label are a group, as in `optax.partition`.

  Args:
    labels: a tree of hashable labels, a prefix of the parameters' tree, or a
      function from the parameters to one.
  """

  def of_groups(tree, leaf_number, combine):
    """`combine` of the numbers of all leaves of a label, at each of them."""
    leaves, treedef = jax.tree.flatten(tree)
    names = _label_of_each_leaf(labels, tree)
    grouped: dict[Hashable, list] = {}
    for name, leaf in zip(names, leaves, strict=True):
      grouped.setdefault(name, []).append(leaf_number(leaf))
    combined = {name: combine(parts) for name, parts in grouped.items()}
    return treedef.unflatten(
      [
        combined[name].astype(leaf.dtype)
        for name, leaf in zip(names, leaves, strict=True)
      ]
    )

  def mean_of(parts):
    total, count = (sum(column) for column in zip(*parts, strict=True))
    return total / max(count, 1)

  return Granularity(
    mean=lambda tree: of_groups(tree, lambda x: (x.sum(), x.size), mean_of),
    largest=lambda tree: of_groups(
      tree, lambda x: x.max(initial=0), lambda parts: jnp.stack(parts).max()
    ),
  )


def _is_chunk(granularity) -> bool:
  named = isinstance(granularity, tuple) and granularity[:1] == ("chunk",)
  if not named:
    return False
  size = granularity[1] if len(granularity) == 2 else None
  known = isinstance(size, (int, float)) and is_known(size)
  if not known or size != int(size) or size < 1:
    raise ValueError(
      'granularity must be ("chunk", size) with a positive integer size, got '
      f"{granularity!r}."
    )
  return True


def _mean(x):
  return x.sum() / max(x.size, 1)


def _replicated(fn, x):
  """`fn(x)`, of another shape; on an Explicit mesh it is replicated."""
  sharding = trees.explicit_sharding(x)
  if sharding is None:
    return fn(x)
  out = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
  return jax.sharding.auto_axes(fn, out_sharding=out)(x)


def _label_of_each_leaf(labels, tree) -> list:
  if callable(labels):
    labels = labels(tree)
  try:
    full = jax.tree.broadcast(labels, tree)
  except ValueError as error:
    raise ValueError(
      "granularity must be a tree of labels for the parameters or a prefix of "
      f"it: {error}"
    ) from error
  return jax.tree.leaves(full)
