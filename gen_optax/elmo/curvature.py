"""The curvature that ELMO remembers between steps, and when it is renewed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.elmo.lipschitz import LipschitzEstimator
from gen_optax.elmo.spectrum import (
  Point,
  Spectrum,
  dense_spectrum,
  extreme_spectrum,
  find_spaces,
  no_spectrum,
)
from gen_optax.elmo.step import mean_in_space, same_space
from gen_optax.helpers import trees
from gen_optax.helpers.checks import is_known
from gen_optax.helpers.lazy import run_if
from gen_optax.oracle.lanczos import basis_sizes


class Curvature(NamedTuple):
  """The fields of `ScaleByElmoState` that a refresh renews; see there."""

  spectrum: Spectrum
  known: jax.Array
  lipschitz: jax.Array
  estimator: Any


def remembered(
  estimator: LipschitzEstimator,
  subspace: tuple[int, int] | None,
  order: int | None,
  every,
):
  """Three functions for these arguments of `scale_by_elmo`.

  Returns:
    init: from parameters in at least float32 to a `Curvature`.
    find: `(state, point, healthy) -> (curvature, evaluations)` of a step.
    stored: the part of a step's curvature that the state keeps.
  """
  dense = subspace is None
  lazy = not is_known(every) or every > 1
  # The vectors of a dense Hessian are large, and no later step reads them.
  forgetful = dense and not lazy

  def init(params):
    k = optax.tree.size(params)
    if not dense:
      k = sum(basis_sizes(*subspace, order, k)[:2])
    first = Curvature(
      spectrum=no_spectrum(params, k),
      known=jnp.zeros((), bool),
      lipschitz=jnp.zeros(k, trees.scalar_dtype(params)),
      estimator=estimator.init(params, k),
    )
    return stored(first)

  def find(state, point, healthy):
    old = Curvature(*(getattr(state, name) for name in Curvature._fields))
    if not lazy:
      return _refresh(old, point)
    due = ((state.count % every == 0) | ~old.known) & healthy
    start = old, jnp.zeros((), jnp.int32)
    return run_if(due, lambda carry: _refresh(carry[0], point), start)

  def _refresh(old, point):
    if lazy:
      # The compiler moves what does not depend on a loop's carry out of the
      # loop, where it runs on every step.
      *at, lip = jax.lax.optimization_barrier((*point[1:], old.lipschitz))
      point, old = Point(point.value_fn, *at), old._replace(lipschitz=lip)
    if dense:
      spectrum = dense_spectrum(point.value_fn, point.params)
    else:
      spectrum = extreme_spectrum(point, *subspace, order, old.spectrum)
    values, vectors, used, bound = spectrum
    spaces = find_spaces(point, spectrum)
    found, inner, spent = estimator.estimate(spaces, old.estimator)
    found = jnp.where(jnp.isfinite(found), jnp.maximum(found, 0), 0)
    found = mean_in_space(same_space(values, used), found)
    known = jnp.isfinite(values).all() & jnp.isfinite(bound)
    if forgetful:
      none = jnp.zeros_like(vectors)
      old = old._replace(spectrum=old.spectrum._replace(vectors=none))
    new = Curvature(spectrum, known, found.astype(old.lipschitz.dtype), inner)
    return optax.tree.where(known, new, old)._replace(known=known), spent

  def stored(curvature):
    if not forgetful:
      return curvature
    spectrum = curvature.spectrum._replace(vectors=None)
    return curvature._replace(spectrum=spectrum)

  return init, find, stored
