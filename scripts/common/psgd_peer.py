"""psgd_jax 0.2.9 beside our preconditioners: its own functions, unchanged.

It does not import with optax 0.2.8: `optax._src.clipping`, of which it wants
one function, has moved. A module of that name holds optax's public one here;
the package itself never sees it.
"""

import contextlib
import functools
import importlib
import io
import sys
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import optax

from gen_optax import psgd


@functools.cache
def load() -> SimpleNamespace | None:
  """Its modules `xmat`, `lra` and `affine`; None where it is not installed."""
  clipping = ModuleType("optax._src.clipping")
  clipping.clip_by_global_norm = optax.clip_by_global_norm
  sys.modules.setdefault(clipping.__name__, clipping)
  names = {
    "xmat": "xmat",
    "lra": "low_rank_approximation",
    "affine": "affine",
  }
  try:
    return SimpleNamespace(
      **{
        short: importlib.import_module(f"psgd_jax.{name}")
        for short, name in names.items()
      }
    )
  except ImportError:
    return None


def xmat_update(state, v, h, rate, key, normalizer="second"):
  del key
  return load().xmat._update_precond_Xmat_math_(
    *state, v, h, rate, _order(normalizer), "float32"
  )


def xmat_apply(state, g):
  return load().xmat._precond_grad_Xmat_math(*state, g)


def lra_update(state, v, h, rate, key, normalizer="second"):
  return load().lra._update_precond_UVd_math(
    key, *state, v[:, None], h[:, None], rate, _order(normalizer), "float32"
  )


def lra_apply(state, g):
  return load().lra._precond_grad_UVd_math(*state, g[:, None])[:, 0]


def affine_update(state, v, h, rate, key, normalizer="second"):
  return tuple(
    load().affine._update_precond_affine_math_(
      key, *state, v, h, rate, _order(normalizer), "float32"
    )
  )


def affine_apply(state, g):
  return load().affine._precond_grad_affine_math(*state, g)


def transform(name: str, probability) -> optax.GradientTransformationExtraArgs:
  """Its whitening transform, random numbers and momentum included."""
  make = {"xmat": "scale_by_xmat", "lra": "scale_by_lra"}[name]
  inner = getattr(getattr(load(), name), make)(probability)

  def init(params):
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
      return inner.init(params)

  return optax.GradientTransformationExtraArgs(init, inner.update)


def parity(n: int) -> list[dict]:
  """Largest differences of one step and of P g, over the largest entry.

  In float64, from the same random states and on the same pairs.
  """
  rows = []
  with jax.enable_x64(True):
    for normalizer in ("second", "first"):
      for size in (n, n + 1):
        rows += _xmat_parity(size, normalizer)
      rows += _lra_parity(n, normalizer)
  return rows


def _xmat_parity(n, normalizer):
  a, b, v, h, g = jax.random.normal(jax.random.key(0), (5, n))
  a, b = 1 + jnp.abs(a), b / 3
  if n % 2:
    b = b.at[n // 2].set(0.0)  # the middle entry is on both diagonals
  ours = psgd.xmat("global", normalizer=normalizer, steps="entry")
  rate, key = jnp.asarray(0.1), jax.random.PRNGKey(0)
  mine = ours.update(psgd.PairState(a, b), v, h, rate, key)
  theirs = xmat_update((a, b), v, h, rate, key, normalizer)
  pg = (ours.apply(mine, g), xmat_apply(theirs, g))
  return [_row("xmat", n, normalizer, tuple(mine), theirs, pg)]


def _lra_parity(n, normalizer, rank=10):
  v, h, g, d = jax.random.normal(jax.random.key(1), (4, n))
  u, w = jax.random.normal(jax.random.key(2), (2, rank, n)) / n**0.5
  d = 1 + jnp.abs(d)
  ours = psgd.low_rank(rank, normalizer=normalizer)
  state = ours.init(v, jax.random.key(0))._replace(
    u=u, v=w, d=d, uu=u @ u.T, vv=w @ w.T, vu=w @ u.T
  )
  rate, rows = jnp.asarray(0.1), []
  for heads in (True, False):
    mine = ours.update(state, v, h, rate, _our_key(heads))
    theirs = lra_update(
      (u.T, w.T, d[:, None]), v, h, rate, _their_key(heads), normalizer
    )
    pg = (ours.apply(mine, g), lra_apply(theirs, g))
    mine = (mine.u.T, mine.v.T, mine.d[:, None])
    name = f"low rank {rank}, {'U' if heads else 'V'}"
    rows.append(_row(name, n, normalizer, mine, theirs, pg))
  return rows


def _our_key(heads):
  keys = map(jax.random.PRNGKey, range(99))
  return next(k for k in keys if bool(jax.random.bernoulli(k)) == heads)


def _their_key(heads):
  """Of a step on U (or V) that does not balance first."""
  for key in map(jax.random.PRNGKey, range(99)):
    coin, balance = jax.random.split(key)
    plain = jax.random.uniform(balance) >= 0.01
    if plain and bool(jax.random.uniform(coin) < 0.5) == heads:
      return key


def _row(name, n, normalizer, mine, theirs, pg):
  def difference(x, y):
    return float(jnp.abs(x - y).max() / jnp.abs(y).max())

  state = max(difference(x, y) for x, y in zip(mine, theirs, strict=True))
  return {
    "structure": name,
    "n": n,
    "normalizer": normalizer,
    "state": state,
    "product": difference(*pg),
  }


def _order(normalizer):
  return {"second": "2nd", "first": "1st"}[normalizer]
