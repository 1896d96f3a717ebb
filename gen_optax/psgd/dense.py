"""Dense Q: any invertible matrix, for few parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.psgd.preconditioner import (
  Normalizer,
  Preconditioner,
  check_kind,
  on_one_vector,
  positive,
  spectral_norm,
)


class DenseState(NamedTuple):
  """Q: `q` has shape (n, n)."""

  q: jax.Array


def dense(
  *, triangular: bool = False, normalizer: Normalizer = "second"
) -> Preconditioner:
  r"""Dense Q on all parameters as one vector.

  .. math:: Q \leftarrow Q - \mu (A A' - B B') Q,
    \quad A = Q h, \; B = Q^{-T} v

  Args:
    triangular: whether Q is upper triangular, with the upper triangle of
      A A' - B B' as its step. It reaches any P too, and is cheaper to invert.
    normalizer: "second" (default): mu = learning rate / (|A|^2 + |B|^2);
      "first": learning rate / ||A A' - B B'||_2. See `blocks`.

  Returns:
    A `Preconditioner` whose state is `DenseState(q)`.

  Raises:
    ValueError: on an unknown `normalizer`.

  Cost: n copies of the parameters. An update solves one system of n equations,
  `apply` is two products with Q. On a mesh sharded leaves are gathered on every
  device, and the compiler may distribute Q and gather its n^2 numbers.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> tx = gen_optax.scale_by_psgd(gen_optax.psgd.dense())
    >>> w = jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(1))
    [0.5 0.5 0.5 0.5]

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
    Sec. 2.3; Example 4; App. A. (Eq. A.1 lacks a factor 2, which the step size
    absorbs.)
  """
  check_kind("normalizer", normalizer, Normalizer)

  def init(vector, key):
    del key
    return DenseState(jnp.eye(vector.size, dtype=vector.dtype))

  def update(state, v, h, learning_rate, key):
    del key
    q = state.q
    a = q @ h
    if triangular:
      b = jax.scipy.linalg.solve_triangular(q, v, trans=1)
    else:
      b = jnp.linalg.solve(q.T, v)
    aa, bb = a @ a, b @ b
    bound = aa + bb if normalizer == "second" else spectral_norm(aa, bb, a @ b)
    mu = learning_rate.astype(q.dtype) / positive(bound)
    if triangular:
      change = jnp.triu(jnp.outer(mu * a, a) - jnp.outer(mu * b, b)) @ q
    else:  # B'Q = v', so the step is two outer products.
      change = jnp.outer(mu * a, a @ q) - jnp.outer(mu * b, v)
    usable = jnp.isfinite(bound) & jnp.isfinite(change).all()
    return DenseState(jnp.where(usable, q - change, q))

  def apply(state, x):
    return (state.q @ x) @ state.q

  def rescale(state, factor):
    return DenseState(factor.astype(state.q.dtype) * state.q)

  return on_one_vector(Preconditioner(init, update, apply, rescale))
