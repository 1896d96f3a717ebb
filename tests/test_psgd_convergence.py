"""PSGD: P reaches |H|^{-1} on known Hessians, and Rosenbrock's minimum."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import assert_finite

from gen_optax import problems, psgd, scale_by_psgd

pytestmark = pytest.mark.usefixtures("x64")

SEEDS = (0, 1, 2)
N = 20


# Hessians with known eigenvalues


def rotation(rng, n):
  return np.linalg.qr(rng.normal(size=(n, n)))[0]


def spread(condition, n=N):
  """Eigenvalues from 1 / sqrt(condition) to sqrt(condition), evenly in log."""
  return condition ** np.linspace(-0.5, 0.5, n)


def signs(n=N):
  return np.where(np.arange(n) % 2 == 0, 1.0, -1.0)


def full(rng, eigenvalues):
  """Nothing is known of the eigenvectors."""
  q = rotation(rng, len(eigenvalues))
  return q * eigenvalues @ q.T


def in_blocks(size, stride):
  """Of blocks {i, i + stride, ...}; a negative stride: {i, n - 1 - i}."""

  def hessian(rng, eigenvalues):
    n = len(eigenvalues)
    left, h = list(range(n)), np.zeros((n, n))
    eigenvalues = rng.permutation(eigenvalues)
    while left:
      first = left[0]
      block = [first + k * stride for k in range(size)]
      if stride < 0:
        block = [first, n - 1 - first]
      left = [i for i in left if i not in block]
      h[np.ix_(block, block)] = full(rng, eigenvalues[: len(block)])
      eigenvalues = eigenvalues[len(block) :]
    return h

  return hessian


def diagonal(rng, eigenvalues):
  return np.diag(rng.permutation(eigenvalues))


def two_tails(rng, eigenvalues):
  """All eigenvalues but the largest and the least are 1: of rank 2."""
  tails = np.ones_like(eigenvalues)
  tails[[0, -1]] = eigenvalues[[0, -1]]
  return full(rng, tails)


def kronecker(rng, eigenvalues):
  """On matrices of shape (4, 5): only the largest eigenvalue is given."""
  condition = eigenvalues.max()
  return np.kron(
    full(rng, spread(condition, 4)), full(rng, spread(condition, 5))
  )


def inverse_root(h, noise=0.0):
  """(H^2 + noise^2 I)^{-1/2}, which is |H|^{-1} without noise."""
  w, q = np.linalg.eigh(h @ h)
  return q * (w + noise**2) ** -0.5 @ q.T


# Fitting


@functools.cache
def fitted(build, shape, options, count, decay, noise):
  """A compiled run of `count` updates; returns the final state and P."""
  preconditioner = build(**dict(options))
  n = int(np.prod(shape))

  def run(h, state, seed, rate):
    def body(state, t):
      key = jax.random.fold_in(jax.random.key(seed), t)
      for_v, for_noise, for_step = jax.random.split(key, 3)
      v = jax.random.normal(for_v, (n,))
      hv = h @ v + noise * jax.random.normal(for_noise, (n,))
      now = rate / jnp.sqrt(1 + t / 100) if decay else rate
      pair = v.reshape(shape), hv.reshape(shape)
      return preconditioner.update(state, *pair, now, for_step), None

    state, _ = jax.lax.scan(body, state, jnp.arange(count))
    eye = jnp.eye(n).reshape(n, *shape)
    product = jax.vmap(lambda g: preconditioner.apply(state, g).ravel())
    return state, product(eye)

  return preconditioner, jax.jit(run)


def fit(build, h, count, rate, seed, shape=(N,), decay=False, noise=0.0, **kw):
  preconditioner, run = fitted(
    build, shape, tuple(kw.items()), count, decay, noise
  )
  state = preconditioner.init(jnp.zeros(shape), jax.random.key(seed))
  rate = jnp.asarray(rate, float)
  state, product = run(jnp.asarray(h), state, seed + 100, rate)
  return state, np.asarray(product)


def distance(product, target):
  return np.linalg.norm(product - target) / np.linalg.norm(target)


def spectral_ratio(product, h):
  """The condition number that P H is left with: 1 where P = |H|^{-1}."""
  sizes = np.abs(np.linalg.eigvals(product @ h))
  return sizes.max() / sizes.min()


class Definite(NamedTuple):
  """A structure, a Hessian that it can fit, and updates for one per cent."""

  build: Callable[..., psgd.Preconditioner]
  hessian: Callable
  condition: float
  rate: float
  count: int
  options: dict = {}
  shape: tuple[int, ...] = (N,)


def over(partition):
  return functools.partial(psgd.blocks, partition)


PAPER, OWN = dict(steps="entry"), dict(steps="block")
MIRRORED = in_blocks(2, -1)
DEFINITE = {
  "diagonal": Definite(psgd.diagonal, diagonal, 100, 0.1, 60),
  "xmat": Definite(psgd.xmat, MIRRORED, 50, 0.5, 100, OWN),
  "xmat, paper": Definite(psgd.xmat, MIRRORED, 50, 0.5, 400, PAPER),
  "butterfly": Definite(
    psgd.butterfly, in_blocks(2, N // 2), 50, 0.5, 100, OWN
  ),
  "cyclic": Definite(
    over(psgd.cyclic(4)), in_blocks(4, N // 4), 50, 0.5, 400, OWN
  ),
  "neighbours": Definite(
    over(psgd.neighbours(5)), in_blocks(5, 1), 50, 0.5, 800, OWN
  ),
  "dense": Definite(psgd.dense, full, 100, 0.5, 2500),
  "triangular": Definite(
    psgd.dense, full, 100, 0.5, 4000, dict(triangular=True)
  ),
  "low rank": Definite(psgd.low_rank, two_tails, 49, 0.1, 4000, dict(rank=2)),
  "kron": Definite(psgd.kron, kronecker, 81, 0.5, 1000, shape=(4, 5)),
}


@pytest.mark.parametrize("name", DEFINITE)
def test_definite_hessians_are_inverted(name):
  build, hessian, condition, rate, count, options, shape = DEFINITE[name]
  for seed in SEEDS:
    h = hessian(np.random.default_rng(seed), spread(condition))
    np.testing.assert_allclose(np.linalg.cond(h), condition, rtol=1e-9)
    _, product = fit(build, h, count, rate, seed, shape, **options)
    assert distance(product, inverse_root(h)) < 0.01


@pytest.mark.parametrize(
  "build, hessian, count",
  [(psgd.diagonal, diagonal, 400), (psgd.xmat, MIRRORED, 500)],
)
def test_noise_free_fits_become_exact(build, hessian, count):
  """Steps vanish at the optimum, so that a constant rate has no floor."""
  h = hessian(np.random.default_rng(0), spread(50))
  _, product = fit(build, h, count, 0.5, 0, steps="block")
  assert distance(product, inverse_root(h)) < 1e-10


def test_signs_do_not_matter_to_the_diagonal():
  """P is 1 / |H| and not 1 / H; the ratio has a root (paper: none)."""
  for seed in SEEDS:
    rng = np.random.default_rng(seed)
    h = diagonal(rng, spread(100) * signs())
    _, product = fit(psgd.diagonal, h, 60, 0.1, seed)
    assert distance(product, np.diag(1 / np.abs(np.diagonal(h)))) < 0.01


@pytest.mark.parametrize(
  "build, options, hessian, condition, sign, noise, floor",
  [
    (psgd.dense, {}, full, 100, signs(), 0.0, 0.03),
    (psgd.xmat, PAPER, MIRRORED, 400, signs(), 0.0, 0.013),
    (psgd.dense, {}, full, 100, 1.0, 0.5, 0.06),
    (psgd.xmat, PAPER, MIRRORED, 73, 1.0, 0.5, 0.05),
  ],
  ids=[
    "dense indefinite",
    "xmat indefinite",
    "dense noisy",
    "xmat noisy",
  ],
)
def test_indefinite_or_noisy_hessians_are_inverted_to_their_floor(
  build, options, hessian, condition, sign, noise, floor
):
  """20000 updates at 0.5 / sqrt(1 + t / 100), on 3 seeds."""
  for seed in SEEDS:
    h = hessian(np.random.default_rng(seed), spread(condition) * sign)
    _, product = fit(
      build, h, 20_000, 0.5, seed, decay=True, noise=noise, **options
    )
    assert distance(product, inverse_root(h, noise)) < 1.6 * floor
    if noise:
      # The noise damps P: it is part of the target.
      assert distance(product, inverse_root(h)) > 5 * floor


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_low_rank_conditions_an_indefinite_hessian(rate):
  """Two large eigenvalues among eighteen near 1; the rate decays."""
  for seed in SEEDS:
    rng = np.random.default_rng(seed)
    sizes = np.append(rng.uniform(1, 1.5, N - 2), [61, 40])
    h = full(rng, sizes * rng.permutation(signs()))
    assert spectral_ratio(np.eye(N), h) > 50
    _, product = fit(psgd.low_rank, h, 10_000, rate, seed, decay=True, rank=2)
    assert spectral_ratio(product, h) < 4


def test_low_rank_at_half_rate_stays_finite_on_an_indefinite_hessian():
  """Without balancing U grows beyond 1e10 here, and V shrinks."""
  for seed in SEEDS:
    h = full(np.random.default_rng(seed), spread(61) * signs())
    state, product = fit(psgd.low_rank, h, 10_000, 0.5, seed, rank=2)
    assert_finite((state, product))
    u, v = np.asarray(state.u), np.asarray(state.v)
    assert max(np.linalg.norm(u), np.linalg.norm(v)) < 100
    assert np.linalg.cond(np.eye(2) + v @ u.T) < 1000


def test_theorem_3_2_low_rank_fits_both_tails():
  """U = 10 e_1, V = 10 e_2: one eigenvalue of P is 1e4, one its inverse."""
  eye = jnp.eye(4)
  u, v = 10 * eye[:1], 10 * eye[1:2]
  preconditioner = psgd.low_rank(1)
  state = preconditioner.init(jnp.zeros(4), jax.random.key(0))
  state = state._replace(
    u=u, v=v, d=jnp.ones(4), uu=u @ u.T, vv=v @ v.T, vu=v @ u.T
  )
  product = np.asarray(jax.vmap(lambda g: preconditioner.apply(state, g))(eye))
  low, *middle, high = np.linalg.eigvalsh(product)
  np.testing.assert_allclose(low, 9.998e-5, atol=5e-9)
  np.testing.assert_allclose(high, 1.0002e4, atol=0.5)
  np.testing.assert_allclose(middle, 1, rtol=1e-9)
  # l1 + l2 = 2 + 2 u'v + |u|^2 |v|^2 and l1 l2 = (1 + u'v)^2.
  np.testing.assert_allclose(low + high, 10_002, rtol=1e-10)
  np.testing.assert_allclose(low * high, 1, rtol=1e-6)


# Rosenbrock


def pairs_of_rosenbrock(w):
  """The sum of independent two-dimensional functions of neighbours."""
  x, y = w[0::2], w[1::2]
  return jnp.sum(100 * (y - x**2) ** 2 + (1 - x) ** 2)


@functools.cache
def descent(loss, preconditioner, learning_rate, precond_rate, count):
  def run(start, seed):
    tx = optax.chain(
      scale_by_psgd(
        preconditioner,
        precond_learning_rate=precond_rate,
        clip_norm=1.0,
        seed=seed,
      ),
      optax.scale(-learning_rate),
    )

    def body(carry, _):
      w, state = carry
      grad = jax.grad(loss)(w)
      updates, state = tx.update(grad, state, w, value_fn=loss)
      w = optax.apply_updates(w, updates)
      return (w, state), loss(w)

    return jax.lax.scan(body, (start, tx.init(start)), length=count)[1]

  return jax.jit(run)


def first_below(losses, threshold):
  """The number of iterations that it took; infinite if never."""
  below = np.asarray(losses) < threshold
  return 1 + int(np.argmax(below)) if below.any() else np.inf


ROSENBROCK = problems.rosenbrock().fn
XMAT = psgd.xmat()
NEIGHBOURS = psgd.blocks(psgd.neighbours(2), steps="block")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_xmat_solves_rosenbrock_within_200(dtype):
  run = descent(ROSENBROCK, XMAT, 1.0, 0.5, 200)
  for seed in SEEDS:
    losses = run(jnp.array([-1.0, 1.0], dtype), seed)
    assert first_below(losses, 1e-10) <= 200


def test_neighbours_solve_fifty_rosenbrocks_within_500():
  """One hundred parameters from the origin; blocks step by themselves."""
  run = descent(pairs_of_rosenbrock, NEIGHBOURS, 0.5, 0.1, 500)
  for seed in SEEDS:
    losses = run(jnp.zeros(100), seed)
    assert first_below(losses, 1e-10) <= 500
