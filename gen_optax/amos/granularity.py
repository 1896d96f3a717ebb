"""Which parameters are routed together, and means and maxima over them.

Each leaf keeps the numbers of its own groups,

    tensors      a scalar
    chunks       a vector; no chunk crosses the border of a leaf
    elements     an array of the leaf's shape
    partition    a scalar, the same in all leaves of one label

so that all work on groups is a map over trees, and sharded leaves stay in
place.
"""

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.helpers import trees

NAMES = ("tensor_mean", "tensor_max", "element")


def _leaf_sizes(tree):
  return jax.tree.map(lambda x: jnp.asarray(x.size), tree)


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
  spread: Callable[[jax.Array, jax.Array], jax.Array] = lambda groups, _: groups
  by_maximum: bool = False
  whole_leaves: bool = True

  def lipschitz(self, tree):
    """Each group's Lipschitz parameter."""
    return self.largest(tree) if self.by_maximum else self.mean(tree)

  def shares(self, params, choice, count: int, dtype):
    """Parts of all parameters, and of each leaf's, with each optimizer."""
    leaves, treedef = jax.tree.flatten(params)
    choices = treedef.flatten_up_to(choice)
    sizes = treedef.flatten_up_to(self.sizes(params))
    rows, owned = [], jnp.zeros(count, dtype)
    for leaf, chosen, size in zip(leaves, choices, sizes, strict=True):
      mine = [jnp.where(chosen == i, size, 0) for i in range(count)]
      mine = jnp.stack([jnp.sum(x.astype(dtype)) for x in mine])
      rows.append(mine / max(leaf.size, 1))
      owned = owned + mine
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
  """Each run of `size` consecutive entries of a leaf; the last has the rest."""

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
    divide = lambda total, x: total / lengths(x).astype(total.dtype)
    return jax.tree.map(divide, total, tree)

  def spread(groups, leaf) -> Any:
    repeat = lambda g: jnp.repeat(g, size)[: leaf.size].reshape(leaf.shape)
    sharding = trees.explicit_sharding(leaf)
    if sharding is None:
      return repeat(groups)
    return jax.sharding.auto_axes(repeat, out_sharding=sharding)(groups)

  # The padding changes no maximum, since drifts are not negative.
  largest = of_leaf(lambda rows: rows.max(1, initial=0))
  return Granularity(
    mean=mean,
    largest=lambda tree: jax.tree.map(largest, tree),
    sizes=lambda tree: jax.tree.map(lengths, tree),
    spread=spread,
    whole_leaves=False,
  )


def partition(labels: Any | Callable[[Any], Any]) -> Granularity:
  """The leaves of one label are a group, as in `optax.partition`."""

  def of_groups(tree, leaf_number, combine):
    """`combine` of the numbers of all leaves of a label, at each of them."""
    leaves, treedef = jax.tree.flatten(tree)
    names = _label_of_each_leaf(labels, tree)
    grouped: dict[Hashable, list] = {}
    for name, leaf in zip(names, leaves, strict=True):
      grouped.setdefault(name, []).append(leaf_number(leaf))
    combined = {name: combine(parts) for name, parts in grouped.items()}
    pairs = zip(names, leaves, strict=True)
    return treedef.unflatten([combined[n].astype(x.dtype) for n, x in pairs])

  def mean_of(parts):
    total, count = (sum(column) for column in zip(*parts, strict=True))
    return total / max(count, 1)

  total, peak = lambda x: (x.sum(), x.size), lambda x: x.max(initial=0)
  largest_of = lambda parts: jnp.stack(parts).max()
  return Granularity(
    mean=lambda tree: of_groups(tree, total, mean_of),
    largest=lambda tree: of_groups(tree, peak, largest_of),
  )


def _is_chunk(granularity) -> bool:
  if not (isinstance(granularity, tuple) and granularity[:1] == ("chunk",)):
    return False
  size = granularity[1] if len(granularity) == 2 else None
  if not isinstance(size, (int, float)) or size != int(size) or size < 1:
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
