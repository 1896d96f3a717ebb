"""The preconditioners whose cost is measured, ours and psgd_jax's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax import psgd
from scripts.common import psgd_peer

DENSE_SIZE = 10**3  # dense Q holds its square
RANK = 10
TENTH = 10  # calls for an update at probability 0.1


class Method(NamedTuple):
  """`update(state, v, h, rate, key) -> state` and `apply(state, g) -> P g`."""

  state: Any
  update: Callable
  apply: Callable


class Structure(NamedTuple):
  """One preconditioner to measure.

  Attributes:
    name: what the tables call it.
    preconditioner: ours.
    apply_floats: that P g must read and write for each parameter.
    update_floats: likewise of an update.
    shape: n -> the shape of the parameters.
    peer: (shape, key) -> psgd_jax's `Method`, where it has one.
    transform: what psgd_jax calls its transform, where it has one.
  """

  name: str
  preconditioner: psgd.Preconditioner
  apply_floats: float
  update_floats: float
  shape: Callable[[int], tuple[int, ...]] = lambda n: (n,)
  peer: Callable[..., Method] | None = None
  transform: str | None = None


def peer_xmat(shape, key) -> Method:
  del key
  state = (jnp.ones(shape), jnp.zeros(shape))
  return Method(state, psgd_peer.xmat_update, psgd_peer.xmat_apply)


def peer_lra(shape, key) -> Method:
  (n,) = shape
  u, v = jax.random.normal(key, (2, n, RANK)) / (n * (RANK + 10)) ** 0.5
  state = (u, v, jnp.ones((n, 1)))
  return Method(state, psgd_peer.lra_update, psgd_peer.lra_apply)


def peer_affine(shape, key) -> Method:
  del key
  state = tuple(jnp.eye(m) if m <= KRON_SIZE else jnp.ones(m) for m in shape)
  return Method(state, psgd_peer.affine_update, psgd_peer.affine_apply)


KRON_SIZE = 1024


def square(n: int) -> tuple[int, int]:
  side = round(n**0.5)
  return side, side


# Floats. Pairs: a, b, g, P g; an update reads a, b, v, h and writes a, b, twice
# read where the step is the same for all. Low rank: P g reads U and V twice,
# an update too, and writes one of them; the vectors are read in both passes.
STRUCTURES = (
  Structure("diagonal", psgd.diagonal(), 3, 4),
  Structure("xmat", psgd.xmat(), 4, 6, peer=peer_xmat, transform="xmat"),
  Structure(
    "xmat, global step",
    psgd.xmat("global", steps="entry"),
    4,
    10,
    peer=peer_xmat,
    transform="xmat",
  ),
  Structure("butterfly", psgd.butterfly(), 4, 6),
  Structure(
    f"low rank {RANK}",
    psgd.low_rank(RANK),
    4 * RANK + 5,
    5 * RANK + 7,
    peer=peer_lra,
    transform="lra",
  ),
  Structure("kron", psgd.kron(KRON_SIZE), 2, 2, shape=square, peer=peer_affine),
)


DENSE = Structure("dense", psgd.dense(), 2 * DENSE_SIZE, 5 * DENSE_SIZE)


def our_method(structure: Structure, shape, key) -> Method:
  inner = structure.preconditioner
  state = inner.init(jnp.zeros(shape), key)
  return Method(state, inner.update, inner.apply)
