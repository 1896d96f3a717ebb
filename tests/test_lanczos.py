"""Lanczos on trees against dense decompositions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gen_optax

EPS = {"float32": float(np.finfo(np.float32).eps), "float64": 2.3e-16}
dtypes = pytest.mark.parametrize("dtype", EPS)


def split(x, n):
  """A vector as a tree of three leaves."""
  half = n // 2
  return {"a": x[..., :half], "b": [x[..., half : n - 1], x[..., n - 1]]}


def join(tree):
  b = [tree["b"][0], tree["b"][1][..., None]]
  return jnp.concatenate([tree["a"], *b], axis=-1)


def random_basis(n, seed=0):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def symmetric(values, seed=0):
  basis = random_basis(len(values), seed)
  return (basis * np.asarray(values)) @ basis.T


@functools.partial(jax.jit, static_argnames=("top", "bottom", "order"))
def pairs_of(matrix, top, bottom, order=None, start=None):
  n = len(matrix)
  product = lambda tree: split(
    jnp.matmul(matrix, join(tree), precision="highest"), n
  )
  like = split(jnp.zeros(n, matrix.dtype), n)
  start = None if start is None else split(start, n)
  return gen_optax.extreme_eigenpairs(
    product, like, top=top, bottom=bottom, order=order, start=start
  )


def check(matrix, dtype, top, bottom, order=None, tolerance=40, start=None):
  """Values and vectors to `tolerance` eps of the largest eigenvalue."""
  with jax.enable_x64(dtype == "float64"):
    matrix = np.asarray(matrix)
    rounded = jnp.asarray(matrix, dtype)
    pairs = pairs_of(rounded, top, bottom, order, start)
    exact = np.linalg.eigvalsh(np.float64(rounded))
    expected = [*exact[::-1][:top], *exact[:bottom]]
    eps = EPS[dtype] * max(abs(exact).max(), 1e-300)
    rows = np.float64(join(pairs.vectors))
    assert pairs.values.dtype == rounded.dtype
    np.testing.assert_allclose(pairs.values, expected, atol=tolerance * eps)
    gram = rows @ rows.T
    np.testing.assert_allclose(gram, np.eye(len(rows)), atol=100 * EPS[dtype])
    left = rows @ np.float64(rounded) - np.float64(pairs.values)[:, None] * rows
    residuals = np.linalg.norm(left, axis=1)
    # What is reported is what is there, up to rounding.
    bound = 1.01 * np.float64(pairs.residuals) + 3 * tolerance * eps
    assert np.all(residuals <= bound)
    assert np.all(np.float64(pairs.residuals) <= 1.01 * residuals + 100 * eps)
  return pairs


SPECTRUM = np.r_[np.linspace(-1, 1, 30), 10.0, 8.0, 5.0, -4.0, -6.0]


@dtypes
def test_extremes_of_a_generic_spectrum(dtype):
  check(symmetric(SPECTRUM), dtype, 3, 2, order=25)


@dtypes
def test_a_complete_basis_is_exact(dtype):
  pairs = check(symmetric(SPECTRUM), dtype, 3, 2, order=99)
  assert float(pairs.complement_bound) == pytest.approx(1.0, rel=1e-5)


@dtypes
@pytest.mark.parametrize(
  "matrix",
  [
    np.eye(35),
    np.zeros((35, 35)),
    symmetric([5.0, 5.0, -2.0] + 32 * [0.0]),
    symmetric([0.0] * 34 + [3.0]),
    np.diag(np.r_[np.linspace(0, 1, 30), 10.0, 10.0, 10.0, -3.0, -3.0]),
  ],
  ids=["identity", "zero", "rank 3", "rank 1", "clusters"],
)
def test_breakdown_goes_on_and_finds_copies(dtype, matrix):
  check(matrix, dtype, 3, 2, order=99)


@dtypes
@pytest.mark.parametrize("largest", [10.0, 1e3])
def test_a_basis_stays_orthogonal_in_crowded_spectra(dtype, largest):
  """Ghosts: without reorthogonalisation converged values come back."""
  top = largest * np.array([1.0, 0.9, 0.8])
  values = np.r_[np.linspace(0, 1, 95), top, 2.0, -2.0]
  check(symmetric(values), dtype, 3, 1, order=60)


@dtypes
@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_scale_does_not_matter(dtype, scale):
  check(scale * symmetric(SPECTRUM), dtype, 3, 2, order=25)


def test_an_unfinished_run_says_so(x64):
  spectrum = np.linspace(-1, 1, 100)
  pairs = check(symmetric(spectrum), "float64", 3, 2, 12, tolerance=1e15)
  found = np.asarray(pairs.values)
  assert abs(found - spectrum[[-1, -2, -3, 0, 1]]).max() > 1e-3
  # Some eigenvalue lies within the residual of each.
  nearest = abs(found[:, None] - spectrum).min(1)
  assert np.all(nearest <= pairs.residuals)


def test_a_warm_start_needs_fewer_products(x64):
  values = np.r_[np.linspace(-1, 1, 95), 3.0, 2.5, 2.0, -1.5, -2.0]
  matrix = symmetric(values)
  turn = np.random.default_rng(1).normal(size=matrix.shape)
  near = matrix + 1e-4 * (turn + turn.T)
  old = pairs_of(jnp.asarray(matrix), 3, 2, 60)
  start = join(old.vectors).sum(0)
  exact = np.linalg.eigvalsh(near)

  def error(start):
    found = pairs_of(jnp.asarray(near), 3, 2, 12, start).values
    return abs(found - np.r_[exact[::-1][:3], exact[:2]]).max()

  assert error(start) < 1e-2 * error(None)


def test_a_start_in_an_invariant_subspace_is_not_blind(x64):
  """The sum of old eigenvectors has no part in anything else."""
  matrix = jnp.diag(jnp.r_[5.0, 4.0, jnp.linspace(-1, 1, 33)])
  start = jnp.zeros(35).at[1].set(1.0)
  pairs = pairs_of(matrix, 3, 2, 25, start)
  np.testing.assert_allclose(pairs.values[:2], [5, 4], rtol=1e-9)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_useless_start_is_replaced(x64, bad):
  check(symmetric(SPECTRUM), "float64", 3, 2, 25, start=jnp.full(35, bad))


def test_counts_are_clipped_to_the_size():
  eye = jnp.eye(2)
  pairs = gen_optax.extreme_eigenpairs(
    lambda v: eye @ v, jnp.zeros(2), top=10, bottom=5
  )
  np.testing.assert_allclose(pairs.values, [1, 1], rtol=1e-6)
  pairs = gen_optax.extreme_eigenpairs(
    lambda v: 3 * v, jnp.zeros(()), top=0, bottom=5
  )
  np.testing.assert_allclose(pairs.values, [3], rtol=1e-6)


def test_one_end_alone(x64):
  check(symmetric(SPECTRUM), "float64", 3, 0, order=25)


def test_an_operator_that_is_not_finite_says_so():
  pairs = gen_optax.extreme_eigenpairs(
    lambda v: jnp.nan * v, jnp.zeros(8), top=1, bottom=1
  )
  assert jnp.isnan(pairs.values).all()
