"""Dense Q: any invertible matrix, for few parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.psgd.preconditioner import (
  Normalizer,
  Preconditioner,
  check_normalizer,
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
    triangular: whether Q is upper triangular; the step is then the upper
      triangle of A A' - B B'. It reaches any P too; its inverse is cheaper.
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
    >>> print([f"{x:.1f}" for x in step])
    ['0.5', '0.5', '0.5', '0.5']

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
    Sec. 2.3; Example 4; App. A. (Eq. A.1 lacks a factor 2, which the step size
    absorbs.)
  """
  check_normalizer(normalizer)

  def init(vector, key):
    del key
    return DenseState(jnp.eye(vector.size, dtype=vector.dtype))

  def update(state, v, h, learning_rate, key):
    del key
    q = state.q
    forward = q @ h
    if triangular:
      backward = jax.scipy.linalg.solve_triangular(q, v, trans=1)
    else:
      backward = jnp.linalg.solve(q.T, v)
    aa, bb = forward @ forward, backward @ backward
    bound = aa + bb
    if normalizer == "first":
      bound = spectral_norm(aa, bb, forward @ backward)
    # B'Q = v', so that the full step is two outer products.
    mu = learning_rate.astype(q.dtype) / positive(bound)
    if triangular:
      a, b = forward, backward
      change = jnp.triu(jnp.outer(mu * a, a) - jnp.outer(mu * b, b)) @ q
    else:
      change = jnp.outer(mu * forward, forward @ q)
      change = change - jnp.outer(mu * backward, v)
    usable = jnp.isfinite(bound) & jnp.isfinite(change).all()
    return DenseState(jnp.where(usable, q - change, q))

  return on_one_vector(
    Preconditioner(
      init=init,
      update=update,
      apply=lambda state, x: (state.q @ x) @ state.q,
      rescale=lambda state, factor: DenseState(
        factor.astype(state.q.dtype) * state.q
      ),
    )
  )
