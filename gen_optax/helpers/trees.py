"""The few operations on trees of arrays that `optax.tree` lacks.

They stay in tree space, leaf by leaf, so that a sharded leaf is never gathered,
and they accumulate in at least float32, whatever the leaves hold.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from gen_optax.helpers.lazy import run_if

# An array of at most so many entries is small.
SMALL = 2**14


def is_float(leaf) -> bool:
  """Whether a leaf can be moved along a line: real or complex floating."""
  return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def at_least_float32(dtype) -> jnp.dtype:
  """The dtype in which a leaf of `dtype` is probed."""
  return jnp.promote_types(dtype, jnp.float32)


def is_wide(tree) -> bool:
  """Whether every floating leaf has at least float32."""
  return all(
    at_least_float32(leaf.dtype) == leaf.dtype
    for leaf in jax.tree.leaves(tree)
    if is_float(leaf)
  )


def widen(tree):
  """The tree with every floating leaf in at least float32."""
  return jax.tree.map(
    lambda x: x.astype(at_least_float32(x.dtype)) if is_float(x) else x, tree
  )


def scalar_dtype(tree) -> jnp.dtype:
  """The real dtype in which scalars derived from `tree` are kept."""
  dtype = jnp.dtype(jnp.float32)
  for leaf in jax.tree.leaves(tree):
    if is_float(leaf):
      real = jnp.finfo(jnp.result_type(leaf)).dtype
      dtype = jnp.promote_types(dtype, real)
  return dtype


def vdot(a, b, dtype) -> jax.Array:
  """Re<a, b>, accumulated in `dtype`.

  `optax.tree.vdot` ravels each leaf: an Explicit mesh refuses that, and it
  gathers a sharded leaf.
  """

  def product(x, y):
    wide = at_least_float32(jnp.promote_types(x.dtype, y.dtype))
    return jnp.real(jnp.conj(x).astype(wide) * y.astype(wide))

  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  floats = [pair for pair in pairs if all(map(is_float, pair))]
  return total([product(x, y) for x, y in floats], dtype)


def vdot_of_sizes(a, b, dtype) -> jax.Array:
  """The sum of |a_i| |b_i|: |<a, b>| where all its terms have one sign."""

  def size(x):
    return jnp.abs(x) if is_float(x) else x

  return vdot(jax.tree.map(size, a), jax.tree.map(size, b), dtype)


def total(terms, dtype) -> jax.Array:
  """The sum of all entries of real arrays.

  Small arrays of one shape are added first, because a network has many and each
  reduction costs a kernel or two. Large ones are not, because XLA would gather
  those that are sharded differently.
  """
  groups = {}
  for i, x in enumerate(terms):
    x = x.astype(at_least_float32(x.dtype))
    key = (x.shape, x.dtype, explicit_sharding(x)) if x.size <= SMALL else i
    groups[key] = groups[key] + x if key in groups else x
  out = jnp.zeros((), dtype)
  for x in groups.values():
    out = out + jnp.sum(x).astype(dtype)
  return out


def distance(a, b, dtype) -> jax.Array:
  """|a - b|, subtracted and accumulated in at least float32."""

  def apart(x, y):
    wide = at_least_float32(jnp.promote_types(x.dtype, y.dtype))
    return x.astype(wide) - y.astype(wide)

  away = jax.tree.map(apart, a, b)
  return jnp.sqrt(vdot(away, away, dtype))


def copy(tree):
  """The same arrays in buffers of their own."""
  return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def largest(tree, dtype) -> jax.Array:
  """max |x|; NaN where any entry is."""
  sizes = [jnp.abs(x) for x in jax.tree.leaves(tree)]
  out = jnp.zeros((), dtype)
  for size in sizes:
    out = jnp.maximum(out, size.max(initial=0).astype(dtype))
  # XLA's maximum of more than a few thousand floats drops NaN on a CPU; a sum
  # does not. A maximum of their bits takes two to nine times as long.
  return jnp.where(jnp.isnan(total(sizes, dtype)), jnp.nan, out)


def l1_norm(tree, dtype) -> jax.Array:
  """sum |x|, the cheapest pass that sees every number."""
  return total([jnp.abs(x) for x in jax.tree.leaves(tree)], dtype)


def is_finite(tree) -> jax.Array:
  """Whether every number is finite, and the sum of their sizes too.

  The sum overflows only where a gradient is absurd anyway.
  """
  return jnp.isfinite(l1_norm(tree, scalar_dtype(tree)))


def norm(tree, dtype) -> jax.Array:
  """The global norm, right also where squares over- or underflow."""
  out = jnp.sqrt(vdot(tree, tree, dtype))
  info = jnp.finfo(dtype)
  # A smaller norm may have lost more than the last digit of a square.
  smallest = float(info.tiny / info.eps) ** 0.5

  def scaled(_):
    size = largest(tree, dtype)
    unit = scale(tree, 1 / jnp.where(size > 0, size, 1))
    return size * jnp.sqrt(vdot(unit, unit, dtype))

  return run_if(jnp.isinf(out) | (out < smallest), scaled, out)


def random_like(key, tree, sample=jax.random.normal):
  """A random tree like `tree` in at least float32, sharded as it is.

  Each leaf has its own key, so that no number depends on the other leaves.
  """
  leaves, treedef = jax.tree.flatten(tree)

  def leaf_random(i, leaf):
    return sample(
      jax.random.fold_in(key, i),
      leaf.shape,
      at_least_float32(leaf.dtype),
      out_sharding=explicit_sharding(leaf),
    )

  return treedef.unflatten([leaf_random(i, x) for i, x in enumerate(leaves)])


def noise_like(tree, seed):
  """Fixed noise in [-1, 1) for each entry, a hash of its place and the seed.

  For vectors that only have to be generic, sharded as `tree` is. It compiles to
  a few integer operations, where a random key takes thousands. `seed` may be
  traced.
  """
  leaves, treedef = jax.tree.flatten(tree)

  def leaf_noise(i, leaf):
    place, stride = jnp.zeros_like(leaf, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
      column = (leaf.shape[axis],) + (1,) * (leaf.ndim - 1 - axis)
      steps = jnp.arange(leaf.shape[axis], dtype=jnp.uint32).reshape(column)
      place += steps * jnp.uint32(stride % 2**32)
      stride *= leaf.shape[axis]
    salt = jnp.asarray(seed, jnp.uint32) * jnp.uint32(0x9E3779B1)
    x = place + salt + jnp.uint32(0x85EBCA6B * i % 2**32)
    # Every input bit reaches every output bit: shifts, and odd multipliers.
    for shift, odd in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
      x = (x ^ (x >> shift)) * jnp.uint32(odd)
    return x.astype(at_least_float32(leaf.dtype)) * 2.0**-31 - 1

  return treedef.unflatten([leaf_noise(i, x) for i, x in enumerate(leaves)])


def project(rows, x, like) -> jax.Array:
  """The r inner products of rows with x over the whole tree.

  `rows` has r rows of each leaf's shape; `like` has r entries along its first
  axis and the dtype of the result.
  """
  total = jnp.zeros(len(like), like.dtype)
  for a, b in zip(jax.tree.leaves(rows), jax.tree.leaves(x), strict=True):
    total = total + contract(a, b).astype(like.dtype)
  return total


def combine(rows, weights):
  """sum_k weights_k rows_k, for one r-vector or for each row of a matrix."""
  return jax.tree.map(
    lambda a: jnp.tensordot(
      weights.astype(a.dtype), a, 1, precision=jax.lax.Precision.HIGHEST
    ),
    rows,
  )


def contract(rows, x) -> jax.Array:
  """Inner products of the rows of an array with an array of a row's shape.

  In full precision, and replicated where the arrays are sharded.
  """
  axes = (tuple(range(1, rows.ndim)), tuple(range(x.ndim)))
  sharding = explicit_sharding(x)
  return jnp.tensordot(
    rows,
    x,
    axes,
    precision=jax.lax.Precision.HIGHEST,
    out_sharding=None if sharding is None else _replicated(sharding),
  )


def explicit_sharding(leaf) -> jax.sharding.NamedSharding | None:
  """The sharding of a leaf on an Explicit mesh, which new arrays must name."""
  sharding = jax.typeof(leaf).sharding
  explicit = not sharding.mesh.empty and sharding.mesh.are_all_axes_explicit
  return sharding if explicit else None


def one_vector(tree):
  """The tree as one vector on every device, and the way back.

  It gathers sharded leaves, for which an Explicit mesh needs `reshard`.
  """
  shardings = jax.tree.map(explicit_sharding, tree)

  def gather(leaf, sharding):
    if sharding is None:
      return leaf
    return jax.sharding.reshard(leaf, _replicated(sharding))

  def put_back(leaf, sharding):
    return leaf if sharding is None else jax.sharding.reshard(leaf, sharding)

  vector, unravel = ravel_pytree(jax.tree.map(gather, tree, shardings))
  return vector, lambda v: jax.tree.map(put_back, unravel(v), shardings)


def _replicated(sharding) -> jax.sharding.NamedSharding:
  """The sharding of an array that is whole on every device of that mesh."""
  spec = jax.sharding.PartitionSpec()
  return jax.sharding.NamedSharding(sharding.mesh, spec)


def keep_sharding(move, x) -> Any:
  """`move(x)`, which has x's shape, with x's sharding on an Explicit mesh too.

  Explicit meshes refuse to cut a sharded axis, as `jnp.roll` does. So the
  compiler finds the exchange of neighbours there, as it does on Auto meshes.
  """
  sharding = explicit_sharding(x)
  if sharding is None:
    return move(x)
  return jax.sharding.auto_axes(move, out_sharding=sharding)(x)


def increment(count) -> jax.Array:
  """One more, or the same at the largest integer."""
  return jnp.asarray(optax.safe_increment(count))


def multiply(tree, factor):
  """`factor * tree`: multiplied in at least float32, kept in its own dtype."""

  def leaf_multiply(x):
    if not is_float(x):
      return x
    wide = at_least_float32(x.dtype)
    product = factor.astype(jnp.finfo(wide).dtype) * x.astype(wide)
    return product.astype(x.dtype)

  return jax.tree.map(leaf_multiply, tree)


def scale(tree, factor):
  """`multiply`, but a factor of zero gives zeros even for NaN and infinity.

  A withheld step must not carry them on.
  """

  def leaf_scale(x, product):
    if not is_float(x):
      return x
    return jnp.where(factor == 0, jnp.zeros_like(product), product)

  return jax.tree.map(leaf_scale, tree, multiply(tree, factor))
