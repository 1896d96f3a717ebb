r"""Low-rank Q = (I + U V') diag(d).

U and V are kept as r rows of the parameters' shape, beside the small Gram
matrices U'U, V'V and V'U. Products of these three with r-vectors replace most
inner products of an update. With

    s = d h,   w = v / d,   M = I + V'U,   c = V's,   e = M^{-T} U'w

the group step needs

    A = Q h       = s + U c          V'A = M c          U'A = U's + (U'U) c
    B = Q^{-T} v  = w - V e          U'B = e            V'B = V'w - (V'V) e
    P h           = d (A + V U'A)    P^{-1} v = (B - U M^{-1} V'B) / d

An update reads U and V twice and writes one of them once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.helpers import trees
from gen_optax.helpers.lazy import run_if
from gen_optax.helpers.trees import widen
from gen_optax.psgd.preconditioner import (
  Normalizer,
  Preconditioner,
  check_kind,
  positive,
)

# Updates between two balancings, which also compute the Gram matrices anew.
BALANCE_EVERY = 50
BALANCE_STEPS = 10
BALANCE_RATE = 0.1

# Sums of at most this many rows of a large leaf are written out: they fuse with
# the terms beside them and spare two temporary copies. More rows, or many
# leaves, would compile slowly.
FUSED_RANK = 16


class LowRankState(NamedTuple):
  """State of `low_rank`.

  Attributes:
    u: U, for each leaf r rows of its shape.
    v: V, in the same layout.
    d: a tree like the parameters.
    uu, vv, vu: U'U, V'V and V'U, each of shape (r, r).
    count: number of updates, int32.
  """

  u: Any
  v: Any
  d: Any
  uu: jax.Array
  vv: jax.Array
  vu: jax.Array
  count: jax.Array


def low_rank(
  rank: int = 10, *, normalizer: Normalizer = "second"
) -> Preconditioner:
  r"""A diagonal times a low-rank change of the identity.

  .. math:: Q = (I + U V') \mathrm{diag}(d), \quad U, V \in R^{n \times r}

  It fits both tails of the spectrum, large and small. Each update moves d and,
  at random, U or V. Q is the same for (U G^{-1}, V G') with any invertible G.
  Left alone, G drifts until I + V'U is singular, so every 50 updates take the G
  that brings U'U and V'V together. (The paper considers rotations only.) Only
  inner products cross leaves, so the tree behaves as one vector.

  Args:
    rank: r >= 0, clipped to the number of parameters; 0 is the diagonal group
      with one step for all entries.
    normalizer: "second" (default) divides the learning rate by a bound of the
      second derivative, "first" by the norm of the gradient; see `blocks`.

  Returns:
    A `Preconditioner` whose state is `LowRankState`. Learning rates above 0.5
    are unstable on indefinite Hessians.

  Raises:
    ValueError: `rank` is negative or no integer, or on an unknown `normalizer`.

  Cost: 2 r + 1 copies of the parameters. An update reads U and V twice and
  writes one of them; `apply` reads each twice. A sharded leaf adds all-reduces
  of the order of r^2 numbers.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> tx = gen_optax.scale_by_psgd(gen_optax.psgd.low_rank(rank=2))
    >>> w = jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(1))
    [0.5 0.5 0.5 0.5]

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
    Sec. 3.2; App. C, D.1.3. (App. E.1 writes diag(d)(I + U V'), another
    preconditioner; this is the one of Sec. 3.2.)
  """
  if not isinstance(rank, int) or rank < 0:
    raise ValueError(f"rank must be an integer, at least 0, got {rank!r}.")
  check_kind("normalizer", normalizer, Normalizer)

  def init(params, key):
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    r, dtype = min(rank, size), trees.scalar_dtype(params)
    # U = V = 0 would be a fixed point of their steps.
    width = (max(size, 1) * (rank + 10)) ** -0.5
    u_key, v_key = jax.random.split(key)
    u, v = (_random_rows(k, params, r, width) for k in (u_key, v_key))
    empty = jnp.zeros((r, r), dtype)
    d, count = jax.tree.map(_ones, params), jnp.zeros((), jnp.int32)
    return _measure(LowRankState(u, v, d, empty, empty, empty, count))

  def update(state, vector, hvp, learning_rate, key):
    return _update(state, vector, hvp, learning_rate, key, normalizer)

  def apply(state, updates):
    y = jax.tree.map(jnp.multiply, state.d, widen(updates))
    if not len(state.vu):
      return jax.tree.map(jnp.multiply, state.d, y)
    c = trees.project(state.v, y, state.vu)
    # Q'(y + U c) = d (y + U c + V e) with e = U'(y + U c).
    e = trees.project(state.u, y, state.vu) + state.uu @ c
    uc, ve = _combine(state.u, c), _combine(state.v, e)
    add = lambda d, y, uc, ve: d * (y + uc + ve)
    return jax.tree.map(add, state.d, y, uc, ve)

  def rescale(state, factor):
    d = jax.tree.map(lambda d: factor.astype(d.dtype) * d, state.d)
    return state._replace(d=d)

  return Preconditioner(init, update, apply, rescale)


def _update(state, vector, hvp, learning_rate, key, normalizer):
  r, dtype = len(state.vu), state.vu.dtype
  dot = lambda x, y: trees.vdot(x, y, dtype)
  rate = learning_rate.astype(dtype)
  s = jax.tree.map(jnp.multiply, state.d, hvp)
  w = jax.tree.map(jnp.divide, vector, state.d)
  forward, backward, ph, pv = s, w, s, w
  if r:
    inverse = jnp.linalg.inv(jnp.eye(r, dtype=dtype) + state.vu)
    c = trees.project(state.v, s, state.vu)
    e = inverse.T @ trees.project(state.u, w, state.vu)
    va = c + state.vu @ c
    ua = trees.project(state.u, s, state.vu) + state.uu @ c
    vb, ub = trees.project(state.v, w, state.vu) - state.vv @ e, e
    # Both sums over the rows of U in one pass, and both over those of V.
    in_u = trees.combine(state.u, jnp.stack([c, inverse @ vb]))
    in_v = trees.combine(state.v, jnp.stack([e, ua]))
    forward = jax.tree.map(lambda s, rows: s + rows[0], s, in_u)
    backward = jax.tree.map(lambda w, rows: w - rows[0], w, in_v)
    ph = jax.tree.map(lambda a, rows: a + rows[1], forward, in_v)
    pv = jax.tree.map(lambda b, rows: b - rows[1], backward, in_u)
  aa, bb = dot(forward, forward), dot(backward, backward)
  ab = dot(forward, backward)

  d, finite = _step_d(state.d, vector, hvp, ph, pv, rate, normalizer)
  usable = jnp.isfinite(aa) & jnp.isfinite(bb) & finite
  d = optax.tree.where(usable, d, state.d)
  if not r:
    return state._replace(d=d, count=state.count + 1)

  def step_length(gram, x, y):
    """The rate over the size of A (G x)' - B (G y)'; `gram` is G'G."""
    xx, yy, xy = x @ gram @ x, y @ gram @ y, x @ gram @ y
    if normalizer == "second":
      # Carried Gram matrices may round |G x| to zero; it is x'x / |A| at least.
      size = jnp.sqrt(positive(aa * xx)) + jnp.sqrt(positive(bb * yy))
      size = jnp.maximum(size, x @ x + y @ y)
    else:
      square = aa * xx + bb * yy - 2 * ab * xy
      rounding = jnp.finfo(dtype).eps * (aa * xx + bb * yy)
      size = jnp.sqrt(jnp.maximum(square, rounding))
    return rate / positive(size)

  def outer_square(x, y):
    """(A x' - B y')'(A x' - B y')."""
    mixed = ab * (jnp.outer(x, y) + jnp.outer(y, x))
    return aa * jnp.outer(x, x) + bb * jnp.outer(y, y) - mixed

  def step_u(state):
    # U <- U - mu (AA' - BB') V M
    mu = step_length(state.vv, va, vb)
    x, y = va + state.vu.T @ va, vb + state.vu.T @ vb
    cross = jnp.outer(x, ua) - jnp.outer(y, ub)
    return state._replace(
      u=_subtract_outer(state.u, mu * x, forward, mu * y, backward),
      uu=state.uu - mu * (cross + cross.T) + mu**2 * outer_square(x, y),
      vu=state.vu - mu * (jnp.outer(va, x) - jnp.outer(vb, y)),
    )

  def step_v(state):
    # V <- V - mu (I + V U')(AA' - BB') U, where (I + V U') A = P h / d and
    # (I + V U') B = w.
    mu = step_length(state.uu, ua, ub)
    turn = jnp.outer(ua, ua) - jnp.outer(ub, ub)
    shrink = jnp.eye(r, dtype=dtype) - mu * turn
    cross = shrink @ (jnp.outer(va, ua) - jnp.outer(vb, ub))
    vv = shrink @ state.vv @ shrink - mu * (cross + cross.T)
    return state._replace(
      v=_subtract_outer(state.v, mu * ua, ph, mu * ub, w),
      vv=vv + mu**2 * outer_square(ua, ub),
      vu=shrink @ state.vu - mu * turn,
    )

  coin = jax.random.bernoulli(key)
  state = state._replace(d=d, count=state.count + 1)
  # Loops of one trip write in place, and write only one of U and V.
  state = run_if(usable & coin, step_u, state)
  state = run_if(usable & ~coin, step_v, state)
  due = state.count % BALANCE_EVERY == 0
  return run_if(due, lambda state: _balance(_measure(state)), state)


def _step_d(d, vector, hvp, ph, pv, rate, normalizer):
  """d <- d - mu d (P h h - v P^{-1} v); `ph` is P h / d and `pv` d P^{-1} v."""
  gradient = lambda d, v, h, ph, pv: d * ph * h - v * pv / d
  if normalizer == "second":
    # By Cauchy and Schwarz it bounds each entry and its second derivative.
    size = lambda d, v, h, ph, pv: (
      jnp.sqrt((d * ph) ** 2 + v**2) * jnp.sqrt(h**2 + (pv / d) ** 2)
    )
  else:
    size = lambda *leaf: jnp.abs(gradient(*leaf))
  sizes = jax.tree.map(size, d, vector, hvp, ph, pv)
  largest = trees.largest(sizes, rate.dtype)
  mu = rate / positive(largest)
  move = lambda d, *pair: d - mu.astype(d.dtype) * d * gradient(d, *pair)
  moved = jax.tree.map(move, d, vector, hvp, ph, pv)
  return moved, jnp.isfinite(largest)


def _balance(state: LowRankState) -> LowRankState:
  """(U, V) <- (U L, V L^{-T}), which leaves U V' as it is.

  A few small steps on the Gram matrices alone bring U'U and V'V together. The
  rotation that they leave free makes L lower triangular, so that rows can be
  replaced one by one, in place.
  """
  r, dtype = len(state.vu), state.vu.dtype
  eye = jnp.eye(r, dtype=dtype)

  def step(_, carry):
    total, uu, vv = carry
    ratio = (positive(jnp.trace(uu)) / positive(jnp.trace(vv))) ** 0.25
    uu, vv = uu / ratio**2, vv * ratio**2
    tilt = BALANCE_RATE * (uu - vv) / positive(jnp.trace(uu) + jnp.trace(vv))
    turn = eye - tilt + tilt @ tilt / 2
    back = jnp.linalg.inv(turn)
    return total @ turn / ratio, turn @ uu @ turn, back @ vv @ back

  start = (eye, state.uu, state.vv)
  total, _, _ = jax.lax.fori_loop(0, BALANCE_STEPS, step, start)
  lower = jnp.linalg.cholesky(total @ total.T)
  # Nothing moves if a rank-deficient factor has no balance. V'U is read here,
  # since XLA would copy U and V to read it after they are overwritten.
  finite = jnp.isfinite(lower).all() & jnp.isfinite(state.vu).all()
  lower = jnp.where(finite, lower, eye)
  back = jax.scipy.linalg.solve_triangular(lower, eye, lower=True)
  # Row k of L^{-1} V from the rows before it, which are already replaced.
  scale = 1 / jnp.diagonal(lower)
  unit = scale[:, None] * (eye - jnp.tril(lower, -1))
  return state._replace(
    u=_replace_rows(state.u, lower.T),
    v=_replace_rows(state.v, unit),
    uu=lower.T @ state.uu @ lower,
    vv=back @ state.vv @ back.T,
    vu=back @ state.vu @ lower,
  )


def _measure(state: LowRankState) -> LowRankState:
  """The Gram matrices anew, so that their rounding does not add up."""
  if not len(state.vu):  # The map would have no row to trace.
    return state

  def gram(rows, others):
    # One row of `others` at a time: CPUs multiply flat matrices slowly.
    column = lambda k: trees.project(
      rows, jax.tree.map(lambda x: x[k], others), state.vu
    )
    return jax.lax.map(column, jnp.arange(len(state.vu))).T

  return state._replace(
    uu=gram(state.u, state.u),
    vv=gram(state.v, state.v),
    vu=gram(state.v, state.u),
  )


def _combine(rows, weights):
  """`trees.combine` for one r-vector."""

  def leaf(a):
    if len(weights) > FUSED_RANK or a[0].size <= trees.SMALL:
      return trees.combine(a, weights)
    pairs = zip(weights.astype(a.dtype), a, strict=True)
    return sum(weight * row for weight, row in pairs)

  return jax.tree.map(leaf, rows)


def _replace_rows(rows, weights):
  """Row k <- sum_j weights_kj row_j for k = 0, 1, ..., one after another."""

  def step(k, rows):
    new = trees.combine(rows, weights[k])
    return jax.tree.map(lambda x, row: x.at[k].set(row), rows, new)

  return jax.lax.fori_loop(0, len(weights), step, rows)


def _random_rows(key, params, r, width):
  leaves, treedef = jax.tree.flatten(params)

  def rows(i, leaf):
    ones, own_key = _ones(leaf), jax.random.fold_in(key, i)
    noise = jax.random.normal(own_key, (r, *leaf.shape), ones.dtype)
    return width * noise * ones  # The product takes the leaf's sharding.

  return treedef.unflatten([rows(i, leaf) for i, leaf in enumerate(leaves)])


def _ones(leaf):
  return jnp.ones_like(leaf, trees.at_least_float32(leaf.dtype))


def _subtract_outer(rows, x, a, y, b):
  """Each row k less x_k A - y_k B."""

  def leaf(rows, a, b):
    column = (-1,) + (1,) * a.ndim
    x_, y_ = (z.astype(a.dtype).reshape(column) for z in (x, y))
    return rows - (x_ * a - y_ * b)

  return jax.tree.map(leaf, rows, a, b)
