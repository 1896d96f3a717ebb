"""Lipschitz parameters along any optimizer's path, without touching it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.elmo.estimators import Lipschitz, make_estimator
from gen_optax.elmo.spectrum import (
  Point,
  Spectrum,
  check_subspace,
  extreme_spectrum,
  find_spaces,
  no_spectrum,
)
from gen_optax.helpers import trees
from gen_optax.helpers.checks import check_integers, require_leaves
from gen_optax.helpers.lazy import run_if
from gen_optax.helpers.trees import widen
from gen_optax.oracle.closures import require
from gen_optax.oracle.lanczos import basis_sizes


class TrackLipschitzState(NamedTuple):
  """State of `track_lipschitz`.

  Attributes:
    count: number of calls, int32.
    spectrum: the extreme eigenpairs; see `Spectrum` for their order.
    lipschitz: their Lipschitz parameters, shape (k,).
    estimator: the estimator's state.
    known: whether the last attempt gave finite numbers.
  """

  count: jax.Array
  spectrum: Spectrum
  lipschitz: jax.Array
  estimator: Any
  known: jax.Array


def track_lipschitz(
  lipschitz: Lipschitz = "eigen_arc",
  *,
  subspace: tuple[int, int] = (1, 1),
  order: int | None = None,
  every: int = 1,
) -> optax.GradientTransformationExtraArgs:
  """Estimates Lipschitz parameters along another optimizer's path.

  The updates pass unchanged; what is learned is in the state. The default is
  Algorithm 3, EigenARC, with the largest and the smallest eigenvalue, as in the
  paper's measurements. It goes first in a chain, where the updates are the
  gradient of `value_fn`.

  Args:
    lipschitz: an estimator, as in `scale_by_elmo`.
    subspace: (top, bottom), how many eigenvalues.
    order: products for each Lanczos run, see `extreme_eigenpairs`.
    every: estimates on every `every`-th step; the others cost nothing.

  Returns:
    A transformation whose `update` takes `value_fn` and whose state is
    `TrackLipschitzState`.

  Raises:
    ValueError: on a wrong configuration, and on a missing argument, with the
      line that fixes the call.

  Cost: on every `every`-th step `order` Hessian-vector products and the
  estimator's cost. On a mesh also about 2 `order`^2 numbers for each sharded
  leaf.

  Example:

    >>> import jax, jax.numpy as jnp, optax, gen_optax
    >>> loss = lambda w: w[0] ** 2 + w[1] ** 4 - w[1] ** 2
    >>> tx = optax.chain(gen_optax.track_lipschitz("third"), optax.sgd(0.1))
    >>> w = jnp.array([1.0, 0.25])
    >>> _, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
    >>> print([f"{x:.2f}" for x in state[0].lipschitz])
    ['0.00', '6.00']

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Algorithm 3; appendices E and I.
  """
  estimator = make_estimator(lipschitz)
  check_subspace(subspace, order)
  check_integers(1, every=every)

  def init_fn(params):
    require_leaves("track_lipschitz", params)
    params = widen(params)
    k = sum(basis_sizes(*subspace, order, optax.tree.size(params))[:2])
    return TrackLipschitzState(
      count=jnp.zeros((), jnp.int32),
      spectrum=no_spectrum(params, k),
      lipschitz=jnp.zeros(k, trees.scalar_dtype(params)),
      estimator=estimator.init(params, k),
      known=jnp.zeros((), bool),
    )

  def update_fn(
    updates, state, params=None, *, value_fn: Any = None, value=None, **_
  ):
    require("track_lipschitz", params=params, value_fn=value_fn)
    if not optax.tree.size(updates):
      return updates, state
    dtype = state.lipschitz.dtype
    value = value if trees.is_wide(params) else None

    def refresh(state):
      at, gradient, loss = jax.lax.optimization_barrier(
        (widen(params), widen(updates), value)
      )
      point = Point(value_fn, at, loss, gradient)
      new = extreme_spectrum(point, *subspace, order, state.spectrum)
      spaces = find_spaces(point, new)
      found, inner, _ = estimator.estimate(spaces, state.estimator)
      known = jnp.isfinite(new.values).all() & jnp.isfinite(found).all()
      following = state._replace(
        spectrum=new, lipschitz=found.astype(dtype), estimator=inner
      )
      return optax.tree.where(known, following, state)._replace(known=known)

    due = (state.count % every == 0) | ~state.known
    due = due & jnp.isfinite(trees.largest(updates, dtype))
    state = run_if(due, refresh, state)
    return updates, state._replace(count=trees.increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
