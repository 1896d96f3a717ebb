"""The greedy rule: the rate that is best for the next step (eq. 3.2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.gen import outliers
from gen_optax.gen.fit import LineFit
from gen_optax.gen.protocol import Lesson, Look
from gen_optax.gen.search import MAX_RATE, MIN_RATE
from gen_optax.gen.state import Parabola
from gen_optax.helpers.checks import check_in, is_known


class Greedy(NamedTuple):
  """The constants of the greedy rule; it remembers nothing but the averages.

  Attributes:
    smoothing: decay of the averages of slope and curvature, in [0, 1). 0 takes
      each line alone.
    max_ratio: the rate moves by at most this factor in one fit; above 1.
  """

  smoothing: float = 0.0
  max_ratio: float = 10.0

  @property
  def needs_grad(self) -> bool:
    """Its estimator may."""
    return False

  def check(self):
    """Raises `ValueError` on a constant that is out of its range."""
    check_in("smoothing", self.smoothing, 0, 1)
    check_ratio(self.max_ratio)

  def init(self, params, dtype) -> tuple:
    """Nothing."""
    del params, dtype
    return ()

  def look(self, memory, observed) -> Look:
    """Nothing."""
    del observed
    return Look(memory, True)

  def learn(self, memory, averages, observed, trial, rate, alone) -> Lesson:
    """The optimum of the averages; the same where they go uphill."""
    del observed, alone
    fit = trial.fit
    averages = outliers.include_line(averages, fit, rate, self.smoothing)
    optimum = optimum_of(averages.line.sum, fit)
    accepted = averages.line.sum.slope > 0
    rate = jnp.where(accepted, moved(rate, optimum, self.max_ratio), rate)
    return Lesson(rate, averages, memory, accepted)

  def follow(self, memory, observed, step) -> tuple:
    """Nothing."""
    del observed, step
    return memory


def check_ratio(max_ratio):
  """Raises `ValueError` unless the rate can move."""
  check_in("max_ratio", max_ratio, 1, jnp.inf)
  if is_known(max_ratio) and max_ratio == 1:
    raise ValueError(
      "max_ratio must be above 1, got 1: the rate could not move."
    )


def optimum_of(usual: Parabola, fit: LineFit) -> jax.Array:
  """Where the averages have their minimum, else this line, else nowhere.

  Ten times a rate that overshoots, step after step, leads beyond the reach of
  any average: so this line's optimum where the averages bend down.
  """
  bends_up = usual.curvature > 0
  optimum = usual.slope / jnp.where(bends_up, usual.curvature, 1.0)
  own = jnp.where(fit.curvature > 0, fit.optimum, jnp.inf)
  return jnp.where(bends_up, optimum, own)


def moved(rate, optimum, max_ratio) -> jax.Array:
  """The optimum, or as near to it as a move by `max_ratio` comes."""
  optimum = jnp.clip(optimum, rate / max_ratio, rate * max_ratio)
  return jnp.clip(optimum, MIN_RATE, MAX_RATE)


def greedy(smoothing: float = 0.0) -> Greedy:
  r"""The rule that takes the rate which is best for the next step (eq. 3.2).

  .. math:: \eta = B / C

  of this line alone, or of averages over lines. For losses that are the same
  function at every step: full batches, toys, fits of a curve. There it goes
  deeper than the default rule. Where batches are random it is too short: it
  pays for the noise of a direction at each step, while the loss that noise
  costs stays bounded and the progress adds up.

  Args:
    smoothing: decay of the averages of slope and curvature, in [0, 1). 0 takes
      each line alone.

  Returns:
    A rule to pass as `rule=` to `scale_by_gen` and its chains.

  Raises:
    ValueError: in the chain, on a smoothing that is out of range.

  Cost: one forward pass on a fitting step; no buffer of the parameters' size.

  Example:

    >>> import jax, jax.numpy as jnp, optax, gen_optax
    >>> problem = gen_optax.problems.rosenbrock()
    >>> tx = gen_optax.gen_adam(rule=gen_optax.greedy())
    >>> w = jnp.array([-1.2, 1.0])
    >>> state = tx.init(w)
    >>> @jax.jit
    ... def step(w, state):
    ...   value, grad = jax.value_and_grad(problem.fn)(w)
    ...   updates, state = tx.update(
    ...     grad, state, w, value=value, value_fn=problem.fn)
    ...   return optax.apply_updates(w, updates), state
    >>> for _ in range(300):
    ...   w, state = step(w, state)
    >>> bool(problem.fn(w) < 1e-6)
    True

  References:
    Bu and Xu, Gradient descent with generalized Newton's method, 2024: eq. 3.2.
  """
  return Greedy(smoothing=smoothing)
