"""PSGD: each group step is the gradient by autodiff, in its documented size."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from psgd_reference import (
  BLOCKS,
  GROUPS,
  ORBITS,
  array,
  assert_close,
  assert_grams,
  block_problem,
  flat,
  group_gradient,
  jitted,
  kron_matrix,
  low_rank_branches,
  low_rank_gradients,
  low_rank_matrix,
  low_rank_state,
  random_factors,
  random_low_rank,
  random_matrix,
  random_tree,
  read_columns,
  step,
)

import gen_optax
from gen_optax import psgd
from gen_optax.psgd.kron import Factors

pytestmark = pytest.mark.usefixtures("x64")

SETTINGS = hypothesis.settings(
  deadline=None,
  max_examples=5,
  derandomize=True,
  suppress_health_check=list(hypothesis.HealthCheck),
)
SEEDS = st.integers(0, 2**32 - 1)
OPTIONS = [
  dict(normalizer=normalizer, steps=steps)
  for normalizer in ("second", "first")
  for steps in ("block", "global", "entry")
]
TREE = {
  "b": np.zeros(5),
  "m": np.zeros((3, 3)),
  "s": np.zeros(()),
  "t": np.zeros((3, 1, 2)),
  "w": np.zeros((2, 3)),
}


# The blocks are those of the docstrings.


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 12])
def test_blocks_of_a_vector(name, n):
  check_partition(BLOCKS[name], (n,))


@pytest.mark.parametrize(
  "name", [k for k in BLOCKS if not k.endswith(("5", "6"))]
)
@pytest.mark.parametrize("shape", [(), (4, 3), (3, 4), (5, 7), (3, 2, 4)])
def test_blocks_of_an_array(name, shape):
  check_partition(BLOCKS[name], shape)


@pytest.mark.parametrize("name", ORBITS)
def test_blocks_of_orbits(name):
  check_partition(ORBITS[name], (len(GROUPS[name][0]),))


def check_partition(case, shape):
  """Next entries walk once around each block, and each entry is in one."""
  expected = {tuple(sorted(map(int, b))) for b in case.blocks(shape)}
  found = []
  for nexts in case.layout(shape):
    for around in np.stack([np.ravel(x) for x in nexts], axis=1):
      found.append(tuple(sorted(set(around.tolist()))))
      assert len(found[-1]) in (1, len(around))
  assert set(found) == expected
  assert len(found) == np.prod(shape)


# Steps of blocks.


def step_sizes(blocks, q, v, h, rate, normalizer, steps):
  """mu of each entry, as the docstring of `blocks` defines it."""
  a, b = q @ h, np.linalg.solve(q.T, v)
  bounds = np.zeros(len(q))
  for block in blocks:
    aa, bb = a[block], b[block]
    move = np.outer(aa, aa) - np.outer(bb, bb)
    if steps == "entry":
      bound = np.max(aa**2 + bb**2), np.max(np.abs(move))
    else:
      bound = aa @ aa + bb @ bb, np.max(np.abs(np.linalg.eigvalsh(move)))
    bounds[block] = bound[normalizer == "first"]
  if steps != "block":
    bounds[:] = bounds.max()
  return rate / bounds


def check_block_step(
  case, params, seed, normalizer="second", steps="block", rate=0.6
):
  rng = np.random.default_rng(seed)
  preconditioner, state, q, read, blocks, mask = block_problem(
    case, params, rng, normalizer=normalizer, steps=steps
  )
  v, h = random_tree(rng, params), random_tree(rng, params)
  new = step(preconditioner.update, state, v, h, rate)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  moved = read(new)
  np.testing.assert_array_equal(moved[~mask], 0)
  v, h = flat(v), flat(h)
  gradient = np.where(mask, group_gradient(q, v, h), 0)
  sizes = step_sizes(blocks, q, v, h, rate, normalizer, steps)
  assert_close(moved - q, -sizes[:, None] * gradient @ q)


@pytest.mark.parametrize("name", BLOCKS)
@hypothesis.given(seed=SEEDS, n=st.sampled_from([6, 7]))
@SETTINGS
def test_step_of_blocks_is_the_gradient(name, seed, n):
  check_block_step(BLOCKS[name], jnp.zeros(n), seed)


@pytest.mark.parametrize("name", ORBITS)
@hypothesis.given(seed=SEEDS)
@SETTINGS
def test_step_of_orbits_is_the_gradient(name, seed):
  check_block_step(ORBITS[name], jnp.zeros(len(GROUPS[name][0])), seed)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize(
  "name",
  ["diagonal", "xmat", "butterfly", *(f"cyclic{m}" for m in range(1, 7))],
)
def test_step_sizes_of_blocks(name, options):
  for n, seed in ((7, 0), (12, 1)):
    check_block_step(BLOCKS[name], jnp.zeros(n), seed, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("name", ["s3_twice", "d4_mixed"])
def test_step_sizes_of_orbits(name, options):
  check_block_step(
    ORBITS[name], jnp.zeros(len(GROUPS[name][0])), seed=2, **options
  )


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize(
  "name",
  ["diagonal", "xmat", "butterfly", "cyclic3", "neighbours2", "neighbours4"],
)
def test_step_on_a_tree_is_the_gradient(name, options):
  check_block_step(BLOCKS[name], TREE, seed=3, **options)


@pytest.mark.parametrize(
  "build, default",
  [
    (psgd.diagonal, "block"),
    (psgd.xmat, "global"),
    (psgd.butterfly, "global"),
    (functools.partial(psgd.blocks, psgd.neighbours(2)), "global"),
  ],
  ids=["diagonal", "xmat", "butterfly", "neighbours"],
)
def test_steps_by_default(build, default):
  """One step for all but on the diagonal, whose own chain takes one too."""
  rng = np.random.default_rng(4)
  v, h = rng.normal(size=(2, 8))

  def moved(**options):
    preconditioner = build(**options)
    state = preconditioner.init(jnp.zeros(8), jax.random.key(0))
    return flat(step(preconditioner.update, state, v, h, 0.4))

  by_steps = {steps: moved(steps=steps) for steps in ("block", "global")}
  assert np.abs(by_steps["block"] - by_steps["global"]).max() > 0.01
  np.testing.assert_array_equal(moved(), by_steps[default])


def test_the_diagonal_chain_takes_one_step_for_all():
  loss = lambda w: jnp.sum(jnp.arange(1.0, 5.0) * w**2)
  w = jnp.ones(4)
  chain, stage = (
    tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)[1]
    for tx in (
      gen_optax.psgd_diagonal(),
      gen_optax.scale_by_psgd(psgd.diagonal(steps="global")),
    )
  )
  q = optax.tree.get(chain, "q")
  np.testing.assert_array_equal(q, optax.tree.get(stage, "q"))


# Steps of factored structures.


def low_rank_step(u, v, d, vector, hvp, rate, normalizer):
  """The new U (were U to move), V (were V to) and d."""
  n = len(d)
  gd, gu, gv = map(np.asarray, low_rank_gradients(u, v, d, vector, hvp))
  q = low_rank_matrix(u, v, d)
  a, b = q @ hvp, np.linalg.solve(q.T, vector)
  ph, pv = q.T @ a, np.linalg.solve(q, b)
  norm = np.linalg.norm
  bounds = {
    "second": (
      np.max(np.sqrt(ph**2 + vector**2) * np.sqrt(hvp**2 + pv**2)),
      norm(a) * norm(v @ (v.T @ a)) + norm(b) * norm(v @ (v.T @ b)),
      norm(a) * norm(u @ (u.T @ a)) + norm(b) * norm(u @ (u.T @ b)),
    ),
    "first": (np.max(np.abs(gd)), norm(gu @ v.T), norm(gv @ u.T)),
  }[normalizer]
  mu_d, mu_u, mu_v = (rate / bound for bound in bounds)
  r = u.shape[1]
  new_u = u - mu_u * gu @ (np.eye(r) + v.T @ u)
  new_v = v - mu_v * (np.eye(n) + v @ u.T) @ gv
  return new_u, new_v, d - mu_d * d * gd


@pytest.mark.parametrize(
  "normalizer, n, r",
  [("second", 6, 1), ("second", 7, 3), ("second", 5, 5), ("first", 7, 3)],
)
@hypothesis.given(seed=SEEDS)
@SETTINGS
def test_step_of_low_rank_is_the_gradient(normalizer, n, r, seed):
  rng = np.random.default_rng(seed)
  u, v, d = random_low_rank(rng, n, r)
  vector, hvp = rng.normal(size=(2, n))
  update = jitted(psgd.low_rank, r, normalizer=normalizer)
  state = low_rank_state(jnp.zeros(n), u, v, d)
  after_u, after_v = low_rank_branches(update, state, vector, hvp, 0.5)
  new_u, new_v, new_d = low_rank_step(u, v, d, vector, hvp, 0.5, normalizer)
  assert_close(read_columns(after_u.u, r), new_u)
  assert_close(read_columns(after_v.v, r), new_v)
  assert_close(after_u.d, new_d)
  assert_close(after_v.d, new_d)
  assert_grams(after_u, 1e-13)
  assert_grams(after_v, 1e-13)


@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("normalizer", ["second", "first"])
@pytest.mark.parametrize("n", [1, 6, 7])
@hypothesis.given(seed=SEEDS)
@SETTINGS
def test_step_of_dense_is_the_gradient(triangular, normalizer, n, seed):
  rng = np.random.default_rng(seed)
  mask = np.triu(np.ones((n, n), bool)) if triangular else True
  q = random_matrix(rng, n, mask)
  v, h = rng.normal(size=(2, n))
  update = jitted(psgd.dense, triangular=triangular, normalizer=normalizer)
  new = step(update, psgd.DenseState(array(q)), v, h, 0.6)
  gradient = np.asarray(group_gradient(q, v, h))
  a, b = q @ h, np.linalg.solve(q.T, v)
  bound = a @ a + b @ b
  if normalizer == "first":
    bound = np.max(np.abs(np.linalg.eigvalsh(gradient)))
  # Where AA' and BB' nearly cancel, their difference is known to fewer digits.
  tolerance = 1e-12 + np.finfo(float).eps * ((a @ a + b @ b) / bound) ** 2
  expected = -0.6 / bound * np.where(mask, gradient, 0) @ q
  assert_close(new.q - q, expected, tolerance)
  if triangular:
    np.testing.assert_array_equal(np.tril(new.q, -1), 0)


# Norms of matrices are estimated from below, so that steps are a bit longer.
KRON_SLACK = 1.25
KRON_LEAVES = {
  "vector": (5,),
  "odd matrix": (3, 5),
  "even matrix": (4, 2),
  "three axes": (3, 2, 4),
  "number": (),
}


def on_axis(gradient, shape, axis):
  """What a matrix over all entries of a leaf is to E on one axis of it."""
  lengths = shape or (1,)
  rows = int(np.prod(lengths[:axis]))
  columns = int(np.prod(lengths[axis + 1 :]))
  split = (rows, lengths[axis], columns) * 2
  return np.einsum("iajibj->ab", gradient.reshape(split))


@pytest.mark.parametrize(
  "normalizer, max_size", [("second", 1024), ("second", 3), ("first", 3)]
)
@pytest.mark.parametrize("name", KRON_LEAVES)
@hypothesis.given(seed=SEEDS)
@SETTINGS
def test_step_of_kron_is_the_gradient(name, normalizer, max_size, seed):
  """Each factor moves to a multiple of (I - mu T) Q; the multiples cancel."""
  shape, rate = KRON_LEAVES[name], 0.5
  rng = np.random.default_rng(seed)
  factors = random_factors(rng, shape, max_size)
  q = kron_matrix(factors)
  v, h = rng.normal(size=(2, *shape))
  update = jitted(psgd.kron, max_size, normalizer=normalizer)
  state = psgd.KronState(Factors(tuple(map(array, factors))))
  new = step(update, state, v, h, rate)
  gradient = np.asarray(group_gradient(q, flat(v), flat(h)))
  a, b = q @ flat(h), np.linalg.solve(q.T, flat(v))
  both = np.outer(a, a) + np.outer(b, b)
  moved = []
  for axis, (before, after) in enumerate(
    zip(factors, new.q.by_axis, strict=True)
  ):
    assert after.shape == before.shape
    mask = np.eye(max(before.shape, default=1), dtype=bool)
    if before.ndim == 2:
      mask = np.triu(np.ones_like(mask))
    move = np.where(mask, on_axis(gradient, shape, axis), 0)
    sizes = np.where(mask, on_axis(both, shape, axis), 0)
    if before.ndim == 2:
      sizes = on_axis(both, shape, axis)
    norm = np.linalg.norm(move if normalizer == "first" else sizes, 2)
    old = kron_matrix([before])
    ratio = kron_matrix([after]) @ np.linalg.inv(old)
    eye = np.eye(len(ratio))
    if len(ratio) == 1:
      mu = rate / norm
    else:
      # ratio = s (I - mu T) for some s.
      basis = np.stack([eye.ravel(), move.ravel()], axis=1)
      s, s_mu = np.linalg.lstsq(basis, ratio.ravel(), rcond=None)[0]
      mu = -s_mu / s
      assert_close(ratio, s * (eye - mu * move))
    slack = 1 if before.ndim < 2 else KRON_SLACK
    assert 1 - 1e-9 <= mu * norm / rate <= slack + 1e-9
    moved.append((eye - mu * move) @ old)
  assert_close(kron_matrix(new.q.by_axis), kron_matrix(moved))


def test_kron_against_two_matrices():
  """P(G) = A'A G B'B and the paper's step, by matrix products alone."""
  rng = np.random.default_rng(5)
  left = np.triu(random_matrix(rng, 3))
  right = np.triu(random_matrix(rng, 4))
  v, h, g = rng.normal(size=(3, 3, 4))
  preconditioner = psgd.kron()
  state = psgd.KronState(Factors((array(left), array(right))))
  product = left.T @ left @ g @ right.T @ right
  assert_close(preconditioner.apply(state, array(g)), product)
  after = step(preconditioner.update, state, v, h, 0.1)
  a = left @ h @ right.T
  b = np.linalg.inv(left).T @ v @ np.linalg.inv(right)
  new = []
  for old, aa, bb, factor in (
    (left, a @ a.T, b @ b.T, after.q.by_axis[0]),
    (right, a.T @ a, b.T @ b, after.q.by_axis[1]),
  ):
    move = np.triu(aa - bb)
    # The size of a factor is free, so mu is read off two diagonal entries.
    ratio = np.diagonal(factor) / np.diagonal(old)
    first, last = move[0, 0], move[-1, -1]
    mu = (ratio[-1] - ratio[0]) / (ratio[-1] * first - ratio[0] * last)
    norm = np.linalg.norm(aa + bb, 2)
    assert 0.1 <= mu * norm * (1 + 1e-9) <= 0.1 * KRON_SLACK
    new.append(old - mu * move @ old)
  assert_close(kron_matrix(after.q.by_axis), kron_matrix(new), 1e-10)
