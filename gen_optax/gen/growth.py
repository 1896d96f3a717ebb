r"""A rule that grows the rate while fresh gradients agree with the way come.

With w_0 the start, g_t the gradient and u_t the update of step t, and a the
cosine between them, averaged, the step is r a u, and

.. math::

  N = \sum_t r_t \langle g_t, w_0 - w_t \rangle, \quad
  M = \sum_t r_t \max(\langle g_t, -a_t u_t \rangle, 0), \quad
  r \leftarrow \min(\max(r, c N / M), 2 B / C)

N asks each new batch whether more of all the steps so far would have lowered
its loss. Its noise has no part in them, so a walk at random has N near zero and
grows nothing. M is what the updates promise on their own batches, noise
included. The ceiling is the rate at which a batch's own loss is back where it
began, by the averages B of its slope and C of its curvature; while it binds,
earlier terms of N and M fade. The cosine gives a direction whose length says
nothing (a sign, an orthogonal matrix) the length that others have by
themselves: short where gradients are noise. It is Prodigy's estimate of the
distance without Adam's norm, so that it serves any direction.

Reference: Mishchenko and Defazio, Prodigy, 2023.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.gen import outliers
from gen_optax.gen.observe import Observation
from gen_optax.gen.protocol import Lesson, Look, Taken
from gen_optax.gen.search import MAX_RATE, MIN_RATE, Trial
from gen_optax.gen.state import Averages, Parabola
from gen_optax.helpers import mean, trees
from gen_optax.helpers.checks import check_in, check_positive
from gen_optax.helpers.mean import Mean

# Of the averages behind the cosine: noise is told from signal over some thirty
# gradients.
COSINE_SMOOTHING = 0.97
# A hundredth is as good as none.
LEAST_COSINE = 0.01


class Products(NamedTuple):
  """<g, -u>, <g, g> and <u, u>."""

  slope: jax.Array
  of_grad: jax.Array
  of_update: jax.Array


class Way(NamedTuple):
  """What growth remembers.

  Attributes:
    start: the parameters at the start.
    agreement: N in units of the present rate.
    promise: M in units of the present rate.
    products: running mean of the `Products`.
    cosine: a.
  """

  start: Any
  agreement: jax.Array
  promise: jax.Array
  products: Mean
  cosine: jax.Array


class Growth(NamedTuple):
  """The constants of the rule that grows.

  Attributes:
    answers: c, about two over the number of steps in which the optimizer
      answers one gradient; positive.
    ceiling: the largest rate in units of B / C, positive.
    smoothing: decay of the averages of slope and curvature, in [0, 1).
    first_share: the first rate in units of the one that the search finds, the
      best for one step; positive.
    max_ratio: the rate moves by at most this factor in one step; above 1.
  """

  answers: float = 0.3
  ceiling: float = 2.0
  smoothing: float = mean.SMOOTHING
  first_share: float = 0.01
  max_ratio: float = 10.0

  @property
  def needs_grad(self) -> bool:
    """For what fresh data see."""
    return True

  def check(self):
    """Raises `ValueError` on a constant that is out of its range."""
    check_positive(answers=self.answers, ceiling=self.ceiling)
    check_positive(first_share=self.first_share)
    check_in("smoothing", self.smoothing, 0, 1)
    check_in("max_ratio", self.max_ratio, 1, jnp.inf)

  def init(self, params, dtype) -> Way:
    """The memory before the first step."""
    # A buffer each: donated state must not name one twice.
    zero = lambda: jnp.zeros((), dtype)
    nothing = Products(zero(), zero(), zero())
    return Way(
      start=trees.copy(params),
      agreement=zero(),
      promise=zero(),
      products=mean.no_mean(nothing, dtype),
      cosine=jnp.ones((), dtype),
    )

  def look(self, memory: Way, observed: Observation, rate, due) -> Look:
    """Takes in a gradient; grows the rate where there is a fit to see it."""
    dtype = rate.dtype
    back = jax.tree.map(
      lambda w0, w: w0 - w,
      trees.widen(memory.start),
      trees.widen(observed.params),
    )
    agreement = trees.vdot(observed.grad, back, dtype)
    size = trees.vdot(observed.grad, observed.grad, dtype)
    sound = jnp.isfinite(agreement) & jnp.isfinite(size)

    products = Products(observed.slope, size, observed.size)
    products = mean.include(memory.products, products, COSINE_SMOOTHING)
    slope, of_grad, of_update = products.sum
    norms = jnp.sqrt(of_grad) * jnp.sqrt(of_update)
    cosine = slope / jnp.where(norms > 0, norms, 1.0)
    cosine = jnp.clip(cosine, LEAST_COSINE, 1.0)

    agreement = memory.agreement + agreement
    promise = memory.promise + cosine * jnp.maximum(observed.slope, 0.0)
    known = promise > 0
    reached = self.answers * agreement / jnp.where(known, promise, 1.0)
    old = rate / memory.cosine
    grown = jnp.clip(reached, old, old * self.max_ratio)
    grown = jnp.where(due & known, jnp.minimum(grown, MAX_RATE), old)
    # In units of the rate to probe. The old one has been under the ceiling, so
    # that while this binds each step takes a share of what was.
    share = old / grown
    way = Way(
      memory.start, share * agreement, share * promise, products, cosine
    )
    # A gradient in doubt changes nothing.
    clear = sound & observed.healthy & ~observed.outlier
    return Look(way, jnp.where(clear, cosine * grown, rate), sound)

  def learn(
    self,
    memory: Way,
    averages: Averages,
    observed: Observation,
    trial: Trial,
    rate,
    *,
    first,
    alone,
  ) -> Lesson:
    """The ceiling over the rate that was probed."""
    del observed, alone
    fit = trial.fit
    weight = outliers.weight(fit, averages, rate)
    new = Parabola(weight * fit.slope, weight * fit.curvature)
    averages = averages._replace(
      line=mean.include(averages.line, new, self.smoothing)
    )
    slope, curvature = averages.line.sum
    bounded = (slope > 0) & (curvature > 0)
    top = self.ceiling * slope / jnp.where(bounded, curvature, 1.0)
    rate = jnp.where(first, self.first_share * rate, rate)
    least = jnp.maximum(rate / self.max_ratio, MIN_RATE)
    rate = jnp.where(bounded, jnp.clip(top, least, rate), rate)
    return Lesson(rate, averages, memory, slope > 0)

  def follow(self, memory: Way, before: Way, observed, step: Taken) -> Way:
    """What is in doubt leaves no trace; a wall takes growth back."""
    # Or the rate would grow into it again.
    walled = observed.healthy & ~step.taken & ~step.outlier
    less = before.agreement / self.max_ratio
    less = jnp.where(walled, less, before.agreement)
    before = before._replace(agreement=less)
    return optax.tree.where(step.taken & ~step.outlier, memory, before)
