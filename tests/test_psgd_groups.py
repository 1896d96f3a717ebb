"""PSGD: properties of its groups, of their steps and of what states carry.

All in one file, because every property is asked of every group of one table.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from psgd_reference import (
  BLOCKS,
  GROUPS,
  KEYS,
  ORBITS,
  SHIFT_BY_THIRD,
  array,
  assert_close,
  assert_grams,
  block_diagonal,
  block_problem,
  closure,
  criterion_of,
  flat,
  jitted,
  kron_matrix,
  low_rank_matrix,
  low_rank_state,
  mask_of,
  orbit_blocks,
  over,
  random_factors,
  random_low_rank,
  random_matrix,
  random_tree,
  read_blocks,
  read_columns,
  read_low_rank,
  step,
  write_blocks,
)

from gen_optax import psgd, scale_by_psgd
from gen_optax.helpers import trees
from gen_optax.psgd.kron import Factors

pytestmark = pytest.mark.usefixtures("x64")

# Theorem 3.1


@pytest.mark.parametrize(
  "name, order, dimension",
  [
    ("reverse_5", 2, 9),
    ("c3", 3, 9),
    ("c4", 4, 16),
    ("v4", 4, 16),
    ("s3_natural", 6, 9),
    ("s3_regular", 6, 36),
    ("s3_twice", 6, 72),
    ("d4_mixed", 8, 25),
  ],
)
def test_theorem_3_1_is_block_diagonal_over_orbits(name, order, dimension):
  """Sums of a_k P_k span, and `orbits` fills, all matrices on the orbits."""
  elements = closure(GROUPS[name])
  assert len(elements) == order
  n = elements.shape[1]
  # One matrix for each entry of each a_k: the only non-zero of a_k P_k.
  pattern = {(i, int(p[i])) for p in elements for i in range(n)}
  blocks = ORBITS[name].blocks((n,))
  assert len(pattern) == sum(len(b) ** 2 for b in blocks) == dimension
  # Products of such sums stay among them.
  rng = np.random.default_rng(0)
  mask = np.zeros((n, n), bool)
  mask[tuple(zip(*pattern, strict=True))] = True
  one, other = (rng.normal(size=(n, n)) * mask for _ in range(2))
  assert not (one @ other)[~mask].any()
  # A state moves in all these directions and in no other.
  preconditioner, state, _, read, _, _ = block_problem(
    ORBITS[name], jnp.zeros(n), rng
  )
  v, h = rng.normal(size=(2, n))
  moved = step(preconditioner.update, state, v, h, 0.5)
  np.testing.assert_array_equal(read(moved) != read(state), mask)
  assert sum(int((x != 0).sum()) for x in jax.tree.leaves(moved)) == dimension


# Properties of every structure

LEAVES = {"b": np.zeros(3), "w": np.zeros((2, 3))}


class Problem(NamedTuple):
  """A preconditioner of `LEAVES`, a random state and how states are read."""

  preconditioner: psgd.Preconditioner
  state: Any
  read: Callable[[Any], np.ndarray]
  mask: Any = True


def read_kron(state):
  is_leaf = lambda x: isinstance(x, Factors)
  leaves = jax.tree.leaves(state.q, is_leaf=is_leaf)
  return block_diagonal([kron_matrix(leaf.by_axis) for leaf in leaves])


def low_rank_problem(rng):
  state = low_rank_state(LEAVES, *random_low_rank(rng, 9, 2))
  update = jitted(psgd.low_rank, 2)
  return Problem(psgd.low_rank(2)._replace(update=update), state, read_low_rank)


def dense_problem(rng, triangular=False):
  mask = np.triu(np.ones((9, 9), bool)) if triangular else True
  state = psgd.DenseState(jnp.asarray(random_matrix(rng, 9, mask)))
  preconditioner = psgd.dense(triangular=triangular)
  return Problem(preconditioner, state, lambda s: np.asarray(s.q), mask)


def kron_problem(rng, max_size):
  q = {
    name: Factors(tuple(map(array, random_factors(rng, leaf.shape, max_size))))
    for name, leaf in LEAVES.items()
  }
  return Problem(psgd.kron(max_size), psgd.KronState(q), read_kron)


def blocks_problem(rng, case, **options):
  params = np.zeros(9) if "scope" in options else LEAVES
  preconditioner, state, _, read, _, mask = block_problem(
    case, params, rng, **options
  )
  return Problem(preconditioner, state, read, mask)


PROBLEMS = {
  "low rank": low_rank_problem,
  "dense": dense_problem,
  "triangular": functools.partial(dense_problem, triangular=True),
  "kron": functools.partial(kron_problem, max_size=1024),
  "kron diagonal": functools.partial(kron_problem, max_size=2),
}
for name in ("diagonal", "xmat", "butterfly", "cyclic3", "neighbours2"):
  PROBLEMS[name] = functools.partial(blocks_problem, case=BLOCKS[name])
for name, case in {
  "neighbours4": BLOCKS["neighbours4"],
  "xmat": BLOCKS["xmat"],
  "butterfly": BLOCKS["butterfly"],
  "d4": ORBITS["d4_mixed"],
}.items():
  PROBLEMS[f"{name} global"] = functools.partial(
    blocks_problem, case=case, scope="global"
  )


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("name", PROBLEMS)
def test_apply_is_q_transposed_q(monkeypatch, name, devices):
  monkeypatch.setattr(jax, "device_count", lambda: devices)
  rng = np.random.default_rng(11)
  preconditioner, state, read, _ = PROBLEMS[name](rng)
  g = random_tree(rng, LEAVES)
  product = preconditioner.apply(state, g)
  assert jax.tree.map(jnp.shape, product) == jax.tree.map(np.shape, LEAVES)
  q = read(state)
  assert_close(flat(product), q.T @ q @ flat(g))


@pytest.mark.parametrize("name", PROBLEMS)
def test_rescale_multiplies_q_and_commutes_with_the_step(name):
  """(v, h) -> (v, s h) with Q -> Q / sqrt(s)."""
  rng = np.random.default_rng(12)
  preconditioner, state, read, _ = PROBLEMS[name](rng)
  v, h = random_tree(rng, LEAVES), random_tree(rng, LEAVES)
  s, update = 7.3, preconditioner.update
  small = preconditioner.rescale(state, array(s**-0.5))
  assert_close(read(small), read(state) * s**-0.5)
  long = jax.tree.map(lambda x: s * x, h)
  one = step(update, state, v, h, 0.4, KEYS[1])
  other = step(update, small, v, long, 0.4, KEYS[1])
  assert_close(read(other), read(one) * s**-0.5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_step_lowers_the_criterion_of_its_pair(name):
  for seed in range(3):
    rng = np.random.default_rng(seed)
    preconditioner, state, read, _ = PROBLEMS[name](rng)
    v, h = random_tree(rng, LEAVES), random_tree(rng, LEAVES)
    new = step(preconditioner.update, state, v, h, 0.1, KEYS[seed])
    before = criterion_of(read(state), flat(v), flat(h))
    assert criterion_of(read(new), flat(v), flat(h)) < before


def walk(preconditioner, state, vectors, products, rate):
  """The states along updates on the given pairs."""

  @jax.jit
  def steps(state):
    def body(state, pair):
      key, v, h = pair
      state = preconditioner.update(state, v, h, array(rate), key)
      return state, state

    keys = jax.random.split(jax.random.key(3), len(jax.tree.leaves(vectors)[0]))
    return jax.lax.scan(body, state, (keys, vectors, products))[1]

  return jax.tree.map(np.asarray, steps(state))


def unstack(states, i):
  return jax.tree.map(lambda x: x[i], states)


def random_pairs_of(rng, params, count):
  draw = lambda x: array(rng.normal(size=(count, *x.shape)))
  return [jax.tree.map(draw, params) for _ in range(2)]


@pytest.mark.parametrize("name", PROBLEMS)
def test_steps_stay_in_the_group(name):
  """The determinant's sign and the zeros of Q hold over 1000 rough steps.

  Vectors and products are independent, so that no step is a small one.
  """
  rng = np.random.default_rng(13)
  preconditioner, state, read, mask = PROBLEMS[name](rng)
  # The bounds of "kron" are estimates from below.
  rate = {"low rank": 0.5, "kron": 0.7, "kron diagonal": 0.7}.get(name, 0.95)
  states = walk(
    preconditioner, state, *random_pairs_of(rng, LEAVES, 1000), rate
  )
  matrices = np.stack([read(unstack(states, i)) for i in range(0, 1000, 3)])
  assert np.isfinite(matrices).all()
  np.testing.assert_array_equal(matrices * ~np.asarray(mask), 0)
  signs, _ = np.linalg.slogdet(matrices)
  np.testing.assert_array_equal(signs, np.linalg.slogdet(read(state))[0])


# Structures that are special cases of others


def assert_same_steps(one, other, n, steps="block", **options):
  """Two constructions give the same Q, step after step, and the same P."""
  rng = np.random.default_rng(17)
  mask = mask_of(one.blocks((n,)), n)
  q = random_matrix(rng, n, mask)
  v, h, g = rng.normal(size=(3, n))
  results = []
  for case in (one, other):
    layouts = [case.layout((n,))]
    preconditioner = case.build(steps=steps, **options)
    state = write_blocks(layouts, preconditioner.init(jnp.zeros(n), KEYS[0]), q)
    for _ in range(2):
      state = step(preconditioner.update, state, v, h, 0.4)
    results.append(
      (read_blocks(layouts, state), preconditioner.apply(state, array(g)))
    )
  assert_close(results[0][0], results[1][0], 1e-13)
  assert_close(results[0][1], results[1][1], 1e-13)


@pytest.mark.parametrize(
  "options",
  [dict(steps="block"), dict(normalizer="first", steps="entry")],
  ids=["second-block", "first-entry"],
)
@pytest.mark.parametrize(
  "name, generators, n",
  [
    ("diagonal", [np.arange], 7),
    ("xmat", [lambda n: np.arange(n)[::-1]], 8),
    ("xmat", [lambda n: np.arange(n)[::-1]], 7),
    ("butterfly", [lambda n: np.roll(np.arange(n), n // 2)], 8),
    ("cyclic3", [SHIFT_BY_THIRD], 12),
    ("cyclic4", [lambda n: np.roll(np.arange(n), n // 4)], 8),
  ],
)
def test_presets_are_orbits(name, generators, n, options):
  partition = psgd.orbits(*generators)
  assert_same_steps(
    BLOCKS[name], over(partition, orbit_blocks(*generators)), n, **options
  )


def test_groups_with_the_same_orbits_are_the_same():
  assert_same_steps(ORBITS["c4"], ORBITS["v4"], 4)
  assert_same_steps(ORBITS["c3"], ORBITS["s3_natural"], 3)


@pytest.mark.parametrize("build", [psgd.xmat, psgd.butterfly])
@pytest.mark.parametrize("n", [8, 9])
def test_global_scope_of_one_vector_is_leaf_scope(build, n):
  rng = np.random.default_rng(19)
  v, h = random_pairs_of(rng, np.zeros(n), 4)
  results = []
  for scope in ("leaf", "global"):
    preconditioner = build(scope, steps="block")
    state = preconditioner.init(jnp.zeros(n), KEYS[0])
    for i in range(4):
      state = step(preconditioner.update, state, v[i], h[i], 0.4)
    results.append(state)
  jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("name", ["xmat", "butterfly", "neighbours2"])
def test_global_scope_of_a_tree_is_its_ravelled_vector(name):
  rng = np.random.default_rng(20)
  v, h = random_pairs_of(rng, LEAVES, 3)
  build = BLOCKS[name].build
  tree, vector = build(scope="global", steps="block"), build(steps="block")
  one = tree.init(LEAVES, KEYS[0])
  other = vector.init(jnp.zeros(9), KEYS[0])
  for i in range(3):
    pair = unstack(v, i), unstack(h, i)
    one = step(tree.update, one, *pair, 0.4)
    other = step(vector.update, other, *map(flat, pair), 0.4)
  assert_close(flat(one), flat(other))
  g = unstack(v, 0)
  assert_close(flat(tree.apply(one, g)), vector.apply(other, array(flat(g))))


@pytest.mark.parametrize("normalizer", ["second", "first"])
def test_rank_zero_is_the_diagonal_group(normalizer):
  rng = np.random.default_rng(21)
  low_rank = psgd.low_rank(0, normalizer=normalizer)
  diagonal = psgd.diagonal(normalizer=normalizer, steps="global")
  d = array(rng.uniform(0.5, 2, 6))
  one = low_rank.init(jnp.zeros(6), KEYS[0])._replace(d=d)
  other = psgd.DiagonalState(d)
  update = jax.jit(low_rank.update)
  for i in range(3):
    v, h = (array(x) for x in rng.normal(size=(2, 6)))
    one = step(update, one, v, h, 0.4, KEYS[i])
    other = step(diagonal.update, other, v, h, 0.4)
  assert_close(one.d, other.q)
  assert_close(low_rank.apply(one, v), diagonal.apply(other, v))


@pytest.mark.parametrize("size", [9, trees.SMALL + 1])
@pytest.mark.parametrize("rank", [1, 16, 17])
def test_product_of_low_rank(rank, size):
  """Few rows of a large leaf are summed in another way."""
  rng = np.random.default_rng(23)
  u, v, d = random_low_rank(rng, size, rank)
  g = rng.normal(size=size)
  state = low_rank_state(jnp.zeros(size), u, v, d)
  product = jax.jit(psgd.low_rank(rank).apply)(state, array(g))
  y = d * g + u @ (v.T @ (d * g))
  assert_close(product, d * (y + v @ (u.T @ y)))


def test_low_rank_of_a_tree_is_that_of_its_vector():
  rng = np.random.default_rng(22)
  factors = random_low_rank(rng, 9, 2)
  preconditioner = psgd.low_rank(2)
  # The 50th update balances the factors.
  start = [low_rank_state(x, *factors, count=40) for x in (LEAVES, np.zeros(9))]
  v, h = random_pairs_of(rng, LEAVES, 20)
  stack = lambda tree: jnp.concatenate(
    [x.reshape(20, -1) for x in jax.tree.leaves(tree)], axis=1
  )
  one = walk(preconditioner, start[0], v, h, 0.3)
  other = walk(preconditioner, start[1], stack(v), stack(h), 0.3)
  for i in (0, 19):
    assert_close(
      read_low_rank(unstack(one, i)), read_low_rank(unstack(other, i)), 1e-11
    )
    assert_close(
      read_columns(unstack(one.u, i), 2), unstack(other.u, i).T, 1e-11
    )
    assert_close(one.vu[i], other.vu[i], 1e-11)


# Permutations of the entries


def test_blocks_follow_a_permutation_of_the_entries():
  rng = np.random.default_rng(23)
  n = len(GROUPS["d4_mixed"][0])
  order = rng.permutation(n)
  # Entry i of the new vector is entry order[i] of the old one.
  back = np.argsort(order)
  moved = [back[g[order]] for g in GROUPS["d4_mixed"]]
  case = ORBITS["d4_mixed"]
  other = over(psgd.orbits(*moved), orbit_blocks(*moved))
  preconditioner, state, q, read, _, _ = block_problem(case, np.zeros(n), rng)
  again = other.build(steps="block")
  layouts = [other.layout((n,))]
  twin = write_blocks(
    layouts, again.init(jnp.zeros(n), KEYS[0]), q[np.ix_(order, order)]
  )
  v, h = rng.normal(size=(2, n))
  one = read(step(preconditioner.update, state, v, h, 0.4))
  twin = step(again.update, twin, v[order], h[order], 0.4)
  assert_close(read_blocks(layouts, twin), one[np.ix_(order, order)])


def test_dense_and_low_rank_follow_a_permutation_of_the_entries():
  rng = np.random.default_rng(24)
  n = 7
  order = rng.permutation(n)
  orders = (np.arange(n), order)
  v, h = rng.normal(size=(2, n))
  u, w, d = random_low_rank(rng, n, 2)
  update = jitted(psgd.low_rank, 2)
  one, other = (
    step(update, low_rank_state(np.zeros(n), u[o], w[o], d[o]), v[o], h[o], 0.4)
    for o in orders
  )
  assert_close(read_low_rank(other), read_low_rank(one)[np.ix_(order, order)])
  q = random_matrix(rng, n)
  dense = psgd.dense().update
  one, other = (
    step(dense, psgd.DenseState(array(q[np.ix_(o, o)])), v[o], h[o], 0.4).q
    for o in orders
  )
  assert_close(other, np.asarray(one)[np.ix_(order, order)])


# What the low-rank state carries


@pytest.mark.parametrize(
  "dtype, tolerance", [(jnp.float64, 1e-12), (jnp.float32, 1e-5)]
)
def test_carried_gram_matrices_stay_exact(dtype, tolerance):
  """Through 520 rough steps, ten balancings among them."""
  rng = np.random.default_rng(25)
  preconditioner = psgd.low_rank(3)
  cast = lambda tree: jax.tree.map(
    lambda x: x.astype(dtype) if x.dtype == jnp.float64 else x, tree
  )
  state = cast(low_rank_state(LEAVES, *random_low_rank(rng, 9, 3)))
  v, h = map(cast, random_pairs_of(rng, LEAVES, 520))
  with jax.enable_x64(dtype == jnp.float64):
    states = walk(preconditioner, state, v, h, 0.3)
  assert states.uu.dtype == dtype
  for i in (0, 1, 2, 30, 48, 49, 50, 51, 98, 99, 100, 519):
    assert_grams(unstack(states, i), tolerance)


def test_balancing_changes_the_factors_and_not_q():
  """With a rate of zero nothing else moves. U and V start far apart."""
  rng = np.random.default_rng(26)
  u, v, d = random_low_rank(rng, 9, 3)
  gauge = rng.normal(size=(3, 3)) + 2 * np.eye(3)
  u, v = 3 * u @ gauge, v @ np.linalg.inv(gauge).T / 3
  state = low_rank_state(LEAVES, u, v, d)
  states = walk(
    psgd.low_rank(3), state, *random_pairs_of(rng, LEAVES, 200), 0.0
  )
  moved, previous = [], read_columns(state.u, 3)
  for i in range(200):
    now = unstack(states, i)
    columns = read_columns(now.u, 3)
    if not np.array_equal(columns, previous):
      moved.append(i + 1)
    previous = columns
    assert_close(read_low_rank(now), low_rank_matrix(u, v, d))
    assert_grams(now, 1e-12)
  assert moved == [50, 100, 150, 200]
  apart = lambda s: np.linalg.norm(s.uu - s.vv) / np.linalg.norm(s.uu + s.vv)
  assert apart(unstack(states, 199)) < 0.2 * apart(state)


# The initial scale


def test_initial_scale_of_normal_vectors():
  """With H = c I the step shows the direction e of v: Q is s I - k e e'.

  In s = (mean v^2)^{1/4} (mean (c v)^4)^{-1/8} the length of v cancels.
  """
  n, c = 5, 30.0
  loss = lambda w: c * jnp.sum(w**2) / 2
  for seed in range(3):
    tx = scale_by_psgd(psgd.dense(), precond_learning_rate=0.9, seed=seed)
    w = jnp.ones(n)
    _, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
    sizes, directions = np.linalg.eigh(np.asarray(state.preconditioner.q))
    scale = np.median(sizes)
    np.testing.assert_allclose(
      np.sort(np.abs(sizes - scale))[:-1], 0, atol=1e-9
    )
    e = directions[:, np.argmax(np.abs(sizes - scale))]
    expected = n**-0.25 * c**-0.5 * np.mean(e**4) ** -0.125
    np.testing.assert_allclose(scale, expected, rtol=1e-8)
