r"""A rule that grows the rate while fresh gradients agree with the way come.

With w_0 the start, u_t the update and g_t the gradient of step t,

.. math::

  N = \sum_t r_t \langle g_t, w_0 - w_t \rangle, \quad
  M = \sum_t r_t \max(\langle g_t, -u_t \rangle, 0), \quad
  r \leftarrow \min(\max(r, c N / M), 2 B / C)

N asks each new batch whether more of all the steps so far would have lowered
its loss. Its noise has no part in them, so a walk at random has N near zero and
grows nothing. M is what the updates promise on their own batches, noise
included. The ceiling is the rate at which a batch's own loss is back where it
began, by the averages B of its slope and C of its curvature; while it binds,
earlier terms of N and M fade. This is Prodigy's estimate of the distance
without Adam's norm, so that it serves any direction.

Reference: Mishchenko and Defazio, Prodigy, 2023.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.gen import outliers
from gen_optax.gen.fit import LineFit
from gen_optax.gen.observe import Observation
from gen_optax.gen.rule import MAX_RATE, MIN_RATE
from gen_optax.gen.state import Averages, Parabola
from gen_optax.helpers import mean, trees
from gen_optax.helpers.checks import check_in, check_positive


class Way(NamedTuple):
  """What growth remembers, in units of the present rate.

  Attributes:
    start: the parameters at the start.
    agreement: N.
    promise: M.
  """

  start: Any
  agreement: jax.Array
  promise: jax.Array


class Growth(NamedTuple):
  """The constants of the rule that grows.

  Attributes:
    answers: c, about two over the number of steps in which the optimizer
      answers one gradient; positive.
    ceiling: the largest rate in units of B / C, positive.
    smoothing: decay of the averages of slope and curvature, in [0, 1).
    first_share: the first rate in units of the one that the search finds, the
      best for one step; in (0, 1].
    max_ratio: the rate moves by at most this factor in one step; above 1.
  """

  answers: float = 0.3
  ceiling: float = 2.0
  smoothing: float = mean.SMOOTHING
  first_share: float = 0.01
  max_ratio: float = 10.0

  def check(self):
    """Raises `ValueError` on a constant that is out of its range."""
    check_positive(answers=self.answers, ceiling=self.ceiling)
    check_positive(first_share=self.first_share)
    check_in("smoothing", self.smoothing, 0, 1)
    check_in("max_ratio", self.max_ratio, 1, jnp.inf)

  def init(self, params, dtype) -> Way:
    """What is remembered before the first step."""
    # A buffer each: donated state must not name one twice.
    zero = lambda: jnp.zeros((), dtype)
    return Way(trees.copy(params), zero(), zero())

  def look(
    self, way: Way, observed: Observation, grad, params, rate
  ) -> tuple[Way, jax.Array]:
    """Takes in a gradient: the memory and the rate to probe, grown or not."""
    dtype = rate.dtype
    back = jax.tree.map(
      lambda w0, w: w0 - w, trees.widen(way.start), trees.widen(params)
    )
    agreement = way.agreement + trees.vdot(grad, back, dtype)
    promise = way.promise + jnp.maximum(observed.slope, 0.0)
    known = promise > 0
    reached = self.answers * agreement / jnp.where(known, promise, 1.0)
    grown = jnp.clip(reached, rate, rate * self.max_ratio)
    grown = jnp.where(known, jnp.minimum(grown, MAX_RATE), rate)
    return Way(way.start, agreement, promise), grown

  def follow(self, way: Way, old, probed, learned) -> Way:
    """In units of `learned`, a ceiling under `probed` fading what was."""
    del learned
    share = old / probed
    return Way(way.start, share * way.agreement, share * way.promise)

  def learn(
    self, fit: LineFit, averages: Averages, rate, first
  ) -> tuple[jax.Array, Averages, jax.Array]:
    """The ceiling over `rate`, the averages, and whether the line bends up.

    Args:
      fit: a finite fit at `rate`.
      averages: before it.
      rate: the rate that was probed.
      first: whether `rate` was found by the first search.
    """
    weight = outliers.weight(fit, averages, rate)
    new = Parabola(weight * fit.slope, weight * fit.curvature)
    line = mean.include(averages.line, new, self.smoothing)
    slope, curvature = line.sum
    bounded = (slope > 0) & (curvature > 0)
    top = self.ceiling * slope / jnp.where(bounded, curvature, 1.0)
    rate = jnp.where(first, self.first_share * rate, rate)
    low = jnp.maximum(rate / self.max_ratio, MIN_RATE)
    new_rate = jnp.where(bounded, jnp.clip(top, low, rate), rate)
    return new_rate, averages._replace(line=line), slope > 0
