"""Tells a lasting change of size from a single absurd value."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Values this many times larger or smaller than usual are not believed at once.
FAR = 1e8
SMOOTHING = 0.9


class Gauge(NamedTuple):
  """Attributes:
  size: the usual size, zero until the first one is known.
  doubted: whether the last value was far from it.
  """

  size: jax.Array
  doubted: jax.Array


def new_gauge(dtype) -> Gauge:
  return Gauge(jnp.zeros((), dtype), jnp.zeros((), bool))


def judge(gauge: Gauge, size: jax.Array) -> tuple[jax.Array, jax.Array, Gauge]:
  """Whether to use a value of this size, and whether the usual size was wrong.

  A value that is not finite is refused. One that is far from the usual size is
  refused once; if the next is far too, what came before was the absurd one.

  Returns:
    `(accepted, restart, gauge)`.
  """
  finite, positive = jnp.isfinite(size), size > 0
  ratio = size / jnp.where(gauge.size > 0, gauge.size, 1)
  far = finite & positive & (gauge.size > 0)
  far = far & ((ratio > FAR) | (ratio < 1 / FAR))
  restart = far & gauge.doubted
  accepted = finite & (~far | restart)
  known = (gauge.size > 0) & ~restart
  mixed = jnp.where(
    known, SMOOTHING * gauge.size + (1 - SMOOTHING) * size, size
  )
  return (
    accepted,
    restart,
    Gauge(
      size=jnp.where(accepted & positive, mixed, gauge.size),
      doubted=jnp.where(finite & positive, far & ~restart, gauge.doubted),
    ),
  )
