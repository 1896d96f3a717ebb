"""What is usual for a number: compare, doubt once, believe what stays.

The one place for that principle. Gradients, updates, products, curvatures and
losses each have a size that is known up to some factor; a value far from it is
either a fault, which passes, or a change of scale, which stays.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.helpers.mean import SMOOTHING

# Curvature along random directions, and gradients of a run that converges, vary
# by several orders of magnitude; nothing healthy changes by eight at once.
FAR = 1e8


class Scale(NamedTuple):
  """A running scale of a positive number.

  Attributes:
    usual: the running average; zero until a first value is known.
    flagged: whether the last value that counts was far from it.
    young: whether a single value has been accepted.
  """

  usual: jax.Array
  flagged: jax.Array
  young: jax.Array


def new_scale(dtype) -> Scale:
  """The scale of a number that has not been seen."""
  # A buffer each: donated state must not name one twice.
  no = lambda: jnp.zeros((), bool)
  return Scale(jnp.zeros((), dtype), no(), no())


def exceeds(usual: jax.Array, x: jax.Array, above: float) -> jax.Array:
  """Whether x is more than `above` times what is usual, where that is known."""
  return (usual > 0) & (x > above * usual)


def include(usual: jax.Array, x: jax.Array, cap: float | None = None):
  """What is usual, with one more value, which counts for `cap` usual at most.

  Zero, and what is not finite, says nothing.
  """
  counted = x if cap is None else jnp.minimum(x, cap * usual)
  mixed = SMOOTHING * usual + (1 - SMOOTHING) * counted
  mixed = jnp.where(usual > 0, mixed, x)
  return jnp.where(jnp.isfinite(x) & (x > 0), mixed, usual)


def check(
  scale: Scale,
  x: jax.Array,
  above: float,
  below: float = 0.0,
  *,
  cap: float | None = None,
) -> tuple[jax.Array, jax.Array, Scale]:
  """Whether to use a value, and whether the usual one was wrong.

  A value that is not finite is refused and says nothing. One that is far from
  the usual value, above or below, is refused once. If the next is far too, it
  stays: it is used, and the scale starts anew from it.

  Args:
    scale: the running scale before this value.
    x: a scalar, at least 0. Zero is used and says nothing.
    above: multiple of the usual value above which x is far.
    below: multiple of the usual value below which x is far.
    cap: None, or for values that are dangerous to believe, such as gradients
      that an optimizer remembers: values far above are never believed at once.
      Each counts for `cap` usual ones, which raises the limit until what stays
      passes. If a single value is known, and two are larger by 1 / `below`,
      that one was the fault.

  Returns:
    `(ok, restart, scale)`: whether x can be used, whether everything derived
    from earlier values is worthless, and the scale with x taken in.
  """
  usual, known = scale.usual, scale.usual > 0
  counts = jnp.isfinite(x) & (x > 0)
  over = counts & exceeds(usual, x, above)
  under = known & counts & (x < below * usual)
  stays = under | over
  if cap is not None:
    stays = under | (over & scale.young & (below * x > usual))
  restart = scale.flagged & stays
  far = (over | under) & ~restart

  new = include(jnp.where(restart, 0.0, usual), x, cap)
  kept = far if cap is None else far & under
  return (
    jnp.isfinite(x) & ~far,
    restart,
    Scale(
      usual=jnp.where(kept, usual, new),
      flagged=jnp.where(counts, far, scale.flagged),
      young=jnp.where(counts & ~far, ~known | restart, scale.young),
    ),
  )
