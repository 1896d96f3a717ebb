"""The exact greedy rate: each line's own optimum (eq. 3.2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.gen import outliers
from gen_optax.gen.fit import LineFit
from gen_optax.gen.observe import Observation
from gen_optax.gen.rule import MAX_RATE, MIN_RATE
from gen_optax.gen.state import Averages, Parabola
from gen_optax.helpers import mean
from gen_optax.helpers.checks import check_in


class Greedy(NamedTuple):
  """The constants of the greedy rule.

  Attributes:
    smoothing: decay of the averages of slope and curvature, in [0, 1); 0 takes
      each line alone.
    max_ratio: the rate moves by at most this factor in one step; above 1.
  """

  smoothing: float = 0.0
  max_ratio: float = 10.0

  def check(self):
    """Raises `ValueError` on a constant that is out of its range."""
    check_in("smoothing", self.smoothing, 0, 1)
    check_in("max_ratio", self.max_ratio, 1, jnp.inf)

  def init(self, params, dtype) -> None:
    """Nothing is remembered but the averages."""
    del params, dtype

  def look(self, memory, observed: Observation, grad, params, rate):
    """The rate to probe is the last one."""
    del observed, grad, params
    return memory, rate

  def follow(self, memory, old, probed, learned):
    """Nothing is remembered."""
    del old, probed, learned
    return memory

  def learn(
    self, fit: LineFit, averages: Averages, rate, first
  ) -> tuple[jax.Array, Averages, jax.Array]:
    """B / C, at most `max_ratio` away; `max_ratio` up where the line does not
    bend; the same where it goes uphill."""
    del first
    weight = outliers.weight(fit, averages, rate)
    new = Parabola(weight * fit.slope, weight * fit.curvature)
    line = mean.include(averages.line, new, self.smoothing)
    slope, curvature = line.sum
    bends = curvature > 0
    optimum = slope / jnp.where(bends, curvature, 1.0)
    optimum = jnp.where(bends, optimum, jnp.inf)
    low, high = rate / self.max_ratio, rate * self.max_ratio
    optimum = jnp.clip(jnp.clip(optimum, low, high), MIN_RATE, MAX_RATE)
    accepted = slope > 0
    return (
      jnp.where(accepted, optimum, rate),
      averages._replace(line=line),
      accepted,
    )
