r"""A preconditioner: four pure functions over a state of arrays.

PSGD fits P = Q'Q to pairs of a random vector v and h = H v by gradient descent
on the group of Q. With A = Q h and B = Q^{-T} v the criterion of a pair is

    c(Q) = |A|^2 + |B|^2 = h'P h + v'P^{-1}v,

whose expectation is least at P = |H|^{-1} (P = (H^2 + E ee')^{-1/2} where
h = H v + e is noisy). Moving Q to (I + E)Q changes it by 2 tr E'(AA' - BB'), so
every structure takes the step

    Q <- Q - mu Proj(AA' - BB') Q

with Proj the projection on its Lie algebra; the factor 2 is part of mu. P is
determined, Q only up to a rotation from the left.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from gen_optax.helpers import trees
from gen_optax.helpers.trees import widen

Normalizer = Literal["second", "first"]
Scope = Literal["leaf", "global"]


class Preconditioner(NamedTuple):
  """One structure of Q.

  Attributes:
    init: `(params, key) -> state`, with P of the order of the identity.
    update: `(state, vector, hvp, learning_rate, key) -> state`, one group step
      on the pair (v, h), each a tree like the parameters in at least float32.
      A pair whose A or B overflows leaves the state as it was.
    apply: `(state, updates) -> P @ updates`, in at least float32.
    rescale: `(state, factor) -> state`, Q multiplied by `factor`.
  """

  init: Callable[[optax.Params, jax.Array], Any]
  update: Callable[[Any, Any, Any, jax.Array, jax.Array], Any]
  apply: Callable[[Any, optax.Updates], optax.Updates]
  rescale: Callable[[Any, jax.Array], Any]


def spectral_norm(aa, bb, ab) -> jax.Array:
  """The largest |eigenvalue| of AA' - BB' from |A|^2, |B|^2 and A'B.

  At least its rounding error, which is all that is left where A = B or A = -B.
  """
  # The root is of (|A|^2 - |B|^2)^2 + 4 (|A|^2 |B|^2 - (A'B)^2) >= 0.
  root = jnp.sqrt(jnp.maximum((aa + bb) ** 2 - 4 * ab**2, 0.0))
  norm = 0.5 * (jnp.abs(aa - bb) + root)
  return jnp.maximum(norm, jnp.finfo(norm.dtype).eps * (aa + bb))


def positive(x: jax.Array) -> jax.Array:
  """`x` as a denominator: at least the smallest normal number."""
  return jnp.maximum(x, jnp.finfo(x.dtype).tiny)


def on_one_vector(inner: Preconditioner) -> Preconditioner:
  """`inner` on the tree as one vector (theta), gathered on every device."""

  def flat(tree):
    return trees.one_vector(widen(tree))[0]

  def apply(state, updates):
    vector, back = trees.one_vector(widen(updates))
    product: Any = inner.apply(state, vector)
    return back(product)

  return Preconditioner(
    init=lambda params, key: inner.init(flat(params), key),
    update=lambda state, v, h, rate, key: inner.update(
      state, flat(v), flat(h), rate, key
    ),
    apply=apply,
    rescale=inner.rescale,
  )


def in_scope(scope: Scope, leafwise: Preconditioner) -> Preconditioner:
  """The preconditioner on each leaf, or on all of them as one vector."""
  check_kind("scope", scope, Scope)
  return leafwise if scope == "leaf" else on_one_vector(leafwise)


def check_kind(name: str, given, kinds):
  """Raises `ValueError` unless `given` is one of the literals `kinds`."""
  if given not in get_args(kinds):
    raise ValueError(f"{name} must be one of {get_args(kinds)}, got {given!r}.")
