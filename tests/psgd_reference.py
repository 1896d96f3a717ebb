"""Reads states of PSGD into a dense Q, and makes problems and gradients.

All in one file, because every structure's dense Q is read from the same pieces.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from gen_optax import psgd

KEYS = [jax.random.key(k) for k in range(12)]


def flat(tree):
  return np.asarray(ravel_pytree(tree)[0])


def array(x):
  return jnp.asarray(x, float)


def step(update, state, v, h, rate, key=KEYS[0]):
  """The state after one update on a pair of trees of numpy arrays."""
  v, h = jax.tree.map(array, (v, h))
  return update(state, v, h, array(rate), key)


@functools.cache
def jitted(build, *args, **options):
  """`update` of a preconditioner, compiled once for each shape."""
  return jax.jit(build(*args, **options).update)


def random_matrix(rng, n, mask=True):
  """Invertible, well conditioned, not symmetric, some signs negative."""
  q = rng.normal(size=(n, n)) * mask
  signs = np.where(rng.random(n) < 0.3, -1.0, 1.0)
  return np.diag(signs * (1 + rng.random(n))) + 0.5 * q / np.sqrt(n)


def random_tree(rng, params):
  leaves, structure = jax.tree.flatten(params)
  leaves = [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in leaves]
  return jax.tree.unflatten(structure, leaves)


def assert_close(actual, expected, tolerance=1e-12):
  scale = np.max(np.abs(expected), initial=1e-300)
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=float(tolerance * scale)
  )


# Dense Q of a state: what the docstrings say, entry by entry.


def entries(shape):
  return np.arange(int(np.prod(shape))).reshape(shape)


def diagonal_layout(shape):
  """For each group its entries, and the k-th next entries, k = 0 .. m - 1."""
  return [[entries(shape)]]


def xmat_layout(shape):
  i = entries(shape)
  return [[i, i.ravel()[::-1].reshape(shape)]]


def butterfly_layout(shape):
  """Shifts by half of the first axis of even length, else all but one."""
  i = entries(shape)
  if i.ndim == 0:
    return [[i, i]]
  even = [axis for axis, length in enumerate(shape) if length % 2 == 0]
  axis = even[0] if even else int(np.argmax(shape))
  half = shape[axis] // 2
  swapped = np.array(i)
  first, second = np.arange(half), np.arange(half, 2 * half)
  np.moveaxis(swapped, axis, 0)[first] = np.moveaxis(i, axis, 0)[second]
  np.moveaxis(swapped, axis, 0)[second] = np.moveaxis(i, axis, 0)[first]
  return [[i, swapped]]


def partition_layout(partition):
  def layout(shape):
    i, groups = entries(shape), []
    for group in partition(shape):
      own = i if group.index is None else i.ravel()[group.index]
      move = lambda k, group=group, own=own: group.shift(jnp.asarray(own), k)
      groups.append([np.asarray(move(k)) for k in range(group.size)])
    return groups

  return layout


def leaf_rows(state):
  """For each leaf, for each of its groups, (a_0, ..., a_{m-1})."""
  if isinstance(state, psgd.DiagonalState):
    return [[(q,)] for q in jax.tree.leaves(state.q)]
  if isinstance(state, psgd.PairState):
    leaves = (jax.tree.leaves(state.a), jax.tree.leaves(state.b))
    return [[pair] for pair in zip(*leaves, strict=True)]
  is_leaf = lambda x: (
    isinstance(x, tuple) and all(isinstance(y, tuple) for y in x)
  )
  return jax.tree.leaves(state.q, is_leaf=is_leaf)


def block_diagonal(matrices):
  total = sum(len(m) for m in matrices)
  out, at = np.zeros((total, total)), 0
  for m in matrices:
    out[at : at + len(m), at : at + len(m)] = m
    at += len(m)
  return out


def read_blocks(layouts, state):
  matrices = []
  for layout, groups in zip(layouts, leaf_rows(state), strict=True):
    q = np.zeros((sum(group[0].size for group in layout),) * 2)
    for nexts, rows in zip(layout, groups, strict=True):
      for ends, row in zip(nexts, rows, strict=True):
        assert row.shape == ends.shape
        # Added: where the next entry is the entry itself, a_1 must be zero.
        np.add.at(q, (nexts[0].ravel(), ends.ravel()), np.ravel(row))
    matrices.append(q)
  return block_diagonal(matrices)


def write_blocks(layouts, blank, q):
  """The state like `blank` whose dense Q is `q`."""
  leaves, at = [], 0
  for layout in layouts:
    groups = []
    for nexts in layout:
      i = nexts[0]
      rows = []
      for k, ends in enumerate(nexts):
        row = q[at + i, at + ends]
        alone = (ends == i) & (k > 0)
        rows.append(jnp.asarray(np.where(alone, 0.0, row)))
      groups.append(tuple(rows))
    at += sum(nexts[0].size for nexts in layout)
    leaves.append(groups)
  rows = [x for groups in leaves for group in groups for x in group]
  if isinstance(blank, psgd.PairState):
    # The fields are two trees: all a before all b.
    rows = rows[0::2] + rows[1::2]
  return jax.tree.unflatten(jax.tree.structure(blank), rows)


def kron_matrix(factors):
  """The Kronecker product of the factors of a leaf's axes, in order."""
  q = np.ones((1, 1))
  for factor in factors:
    matrix = np.atleast_1d(factor)
    q = np.kron(q, np.diag(matrix) if matrix.ndim == 1 else matrix)
  return q


def low_rank_matrix(u, v, d):
  return (np.eye(len(d)) + u @ v.T) * d


def low_rank_state(params, u, v, d, count=0):
  """The state of columns u, v and a vector d, its Gram matrices in numpy."""
  shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
  ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]

  def rows(x):
    parts = np.split(x, ends, axis=0)
    return jax.tree.unflatten(
      jax.tree.structure(params),
      [
        jnp.asarray(part.T.reshape(x.shape[1:] + shape))
        for part, shape in zip(parts, shapes, strict=True)
      ],
    )

  return psgd.LowRankState(
    u=rows(u),
    v=rows(v),
    d=rows(d),
    uu=jnp.asarray(u.T @ u),
    vv=jnp.asarray(v.T @ v),
    vu=jnp.asarray(v.T @ u),
    count=jnp.asarray(count, jnp.int32),
  )


def read_columns(tree, rank):
  leaves = [np.asarray(x).reshape(rank, -1) for x in jax.tree.leaves(tree)]
  return np.concatenate(leaves, axis=1).T


def read_low_rank(state):
  rank = len(state.uu)
  u, v = read_columns(state.u, rank), read_columns(state.v, rank)
  return low_rank_matrix(u, v, flat(state.d))


def assert_grams(state, tolerance):
  """The carried Gram matrices are those of U and V."""
  rank = len(state.uu)
  u, v = (read_columns(x, rank).astype(np.float64) for x in (state.u, state.v))
  for name, gram in (("uu", u.T @ u), ("vv", v.T @ v), ("vu", v.T @ u)):
    scale = max(np.linalg.norm(u), np.linalg.norm(v)) ** 2
    np.testing.assert_allclose(
      getattr(state, name), gram, rtol=0, atol=tolerance * scale, err_msg=name
    )


# Which entries belong together, from the docstrings alone.


def single_blocks(shape):
  return [[i] for i in range(int(np.prod(shape)))]


def mirrored_blocks(shape):
  n = int(np.prod(shape))
  return [sorted({i, n - 1 - i}) for i in range((n + 1) // 2)]


def along_axis_blocks(size, first, by_stride):
  """Blocks along the first or last axis that `size` divides, or the longest."""

  def blocks(shape):
    if shape == ():
      return [[0]]
    fits = [axis for axis, length in enumerate(shape) if length % size == 0]
    axis = int(np.argmax(shape))
    if fits:
      axis = fits[0] if first else fits[-1]
    lines = np.moveaxis(entries(shape), axis, -1).reshape(-1, shape[axis])
    full = shape[axis] // size * size
    found = []
    for line in lines.tolist():
      whole = np.array(line[:full], int)
      whole = (
        whole.reshape(size, -1).T if by_stride else whole.reshape(-1, size)
      )
      found += whole.tolist() + [[i] for i in line[full:]]
    return found

  return blocks


def cyclic_blocks(size):
  return along_axis_blocks(size, first=True, by_stride=True)


def neighbour_blocks(size):
  return along_axis_blocks(size, first=False, by_stride=False)


def closure(generators):
  """All elements of the group that the permutations generate."""
  n = len(generators[0])
  found = {tuple(range(n))}
  frontier = list(found)
  while frontier:
    new = {tuple(np.array(g)[list(p)]) for p in frontier for g in generators}
    frontier = list(new - found)
    found |= new
  return np.array(sorted(found))


def orbit_blocks(*generators):
  def blocks(shape):
    n = int(np.prod(shape))
    made = [np.asarray(g(n) if callable(g) else g) for g in generators]
    elements = closure(made)
    return sorted({tuple(sorted(set(elements[:, i]))) for i in range(n)})

  return blocks


def mask_of(blocks, n):
  mask = np.zeros((n, n), bool)
  for block in blocks:
    mask[np.ix_(block, block)] = True
  return mask


# Permutation groups.


def regular(table):
  """Left translations by each element of a group given by permutations."""
  place = {tuple(p): i for i, p in enumerate(table)}
  return [
    np.array([place[tuple(np.array(g)[list(p)])] for p in table]) for g in table
  ]


S3_REGULAR = regular(list(itertools.permutations(range(3))))
GROUPS = {
  "reverse_5": [np.arange(5)[::-1]],
  "c3": [np.array([1, 2, 0])],
  "c4": [np.array([1, 2, 3, 0])],
  "v4": [np.array([1, 0, 3, 2]), np.array([2, 3, 0, 1])],
  "s3_natural": [np.array([1, 2, 0]), np.array([1, 0, 2])],
  "s3_regular": S3_REGULAR,
  "s3_twice": [np.r_[g, 6 + g] for g in S3_REGULAR],
  # The symmetries of a square on its corners, of a pair, of another pair and of
  # a fixed point: neither commutative nor free.
  "d4_mixed": [
    np.array([1, 2, 3, 0, 4, 5, 6, 8, 7]),
    np.array([0, 3, 2, 1, 5, 4, 6, 7, 8]),
  ],
}
SHIFT_BY_THIRD = lambda n: np.roll(np.arange(n), -(n // 3))


# Block structures under test.


class Blocks(NamedTuple):
  """A block structure: how to build it, and what its docstring promises."""

  build: Callable[..., psgd.Preconditioner]
  layout: Callable[[tuple], list]
  blocks: Callable[[tuple], list]


def over(partition, blocks):
  build = functools.partial(psgd.blocks, partition)
  return Blocks(build, partition_layout(partition), blocks)


BLOCKS = {
  "diagonal": Blocks(psgd.diagonal, diagonal_layout, single_blocks),
  "xmat": Blocks(psgd.xmat, xmat_layout, mirrored_blocks),
  "butterfly": Blocks(psgd.butterfly, butterfly_layout, cyclic_blocks(2)),
}
for m in range(1, 7):
  BLOCKS[f"cyclic{m}"] = over(psgd.cyclic(m), cyclic_blocks(m))
  BLOCKS[f"neighbours{m}"] = over(psgd.neighbours(m), neighbour_blocks(m))
ORBITS = {
  name: over(psgd.orbits(*generators), orbit_blocks(*generators))
  for name, generators in GROUPS.items()
}


def shift_blocks(case, shapes):
  """The blocks of all leaves, numbered through."""
  found, at = [], 0
  for shape in shapes:
    found += [[at + int(i) for i in block] for block in case.blocks(shape)]
    at += int(np.prod(shape))
  return found


def block_problem(case, params, rng, steps="block", **options):
  """A preconditioner, a random state of it, its Q, and how to read states."""
  shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
  layouts = [case.layout(shape) for shape in shapes]
  blocks = shift_blocks(case, shapes)
  mask = mask_of(blocks, sum(int(np.prod(shape)) for shape in shapes))
  preconditioner = case.build(steps=steps, **options)
  q = random_matrix(rng, len(mask), mask)
  blank = preconditioner.init(params, jax.random.key(0))
  state = write_blocks(layouts, blank, q)
  read = functools.partial(read_blocks, layouts)
  np.testing.assert_array_equal(read(state), q)
  return preconditioner, state, q, read, blocks, mask


# The gradient, by autodiff.


@jax.jit
def group_gradient(q, v, h):
  """Half the gradient of the criterion at E = 0 through Q -> (I + E) Q."""

  def criterion(e):
    moved = q + e @ q
    back = jnp.linalg.solve(moved.T, v)
    return jnp.sum((moved @ h) ** 2) + jnp.sum(back**2)

  return jax.grad(criterion)(jnp.zeros_like(q)) / 2


def criterion_of(q, v, h):
  return np.sum((q @ h) ** 2) + np.sum(np.linalg.solve(q.T, v) ** 2)


@jax.jit
def low_rank_gradients(u, v, d, vector, hvp):
  """Half gradients of the criterion at zero: of Q (I + diag e), with X V' for
  U's part and with U X' for V's."""
  eye = jnp.eye(len(d))
  q = (eye + u @ v.T) * d

  def criterion(e, x, y):
    moved = (eye + x @ v.T + u @ y.T) @ q * (1 + e)
    back = jnp.linalg.solve(moved.T, vector)
    return jnp.sum((moved @ hvp) ** 2) + jnp.sum(back**2)

  zeros = (jnp.zeros_like(d), jnp.zeros_like(u), jnp.zeros_like(v))
  return jax.tree.map(
    lambda g: g / 2, jax.grad(criterion, argnums=(0, 1, 2))(*zeros)
  )


# Factored structures under test.


def random_low_rank(rng, n, r):
  u, v = (rng.normal(size=(n, r)) / np.sqrt(n) for _ in range(2))
  return u, v, rng.uniform(0.5, 2.0, n)


def low_rank_branches(update, state, v, h, rate):
  """The states after a step of U and after a step of V, by trying keys."""
  found = {}
  for key in KEYS:
    new = step(update, state, v, h, rate, key)
    moved_u = not np.array_equal(flat(new.u), flat(state.u))
    moved_v = not np.array_equal(flat(new.v), flat(state.v))
    assert moved_u != moved_v
    found["u" if moved_u else "v"] = new
    if len(found) == 2:
      return found["u"], found["v"]
  raise AssertionError(f"{len(KEYS)} keys moved only {list(found)}")


def random_factors(rng, shape, max_size):
  factors = []
  for length in shape or (1,):
    upper = random_matrix(rng, length, np.triu(np.ones((length, length))))
    if length > max_size or shape == ():
      upper = np.diagonal(upper)
    factors.append(upper.reshape(()) if shape == () else upper)
  return factors
