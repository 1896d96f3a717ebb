"""What a rule is asked in a step of `scale_by_gen`, in this order."""

from typing import Any, NamedTuple, Protocol, Self

import jax

from gen_optax.gen.observe import Observation
from gen_optax.gen.search import Trial
from gen_optax.gen.state import Averages


class Look(NamedTuple):
  """What a rule sees before any forward pass.

  Attributes:
    memory: the memory with this gradient, and what the step alone needs.
    sound: whether what the rule computed is finite.
  """

  memory: Any
  sound: jax.Array | bool


class Lesson(NamedTuple):
  """What a rule learns from a fit.

  Attributes:
    rate: the rate to step by.
    averages: with this line.
    memory: with this line.
    accepted: whether the rate followed the fit.
  """

  rate: jax.Array
  averages: Averages
  memory: Any
  accepted: jax.Array


class Taken(NamedTuple):
  """The step that is emitted.

  Attributes:
    updates: the direction, zero where the step is withheld.
    rate: what multiplies it, horizon included, zero where it is withheld.
    curvature: along it, as far as is known.
    taken: whether it is emitted at all.
    outlier: whether its line was one.
  """

  updates: Any
  rate: jax.Array
  curvature: jax.Array
  taken: jax.Array
  outlier: jax.Array


class Rule(Protocol):
  """How the rate follows from gradients and lines. Its methods are pure."""

  @property
  def smoothing(self) -> Any:
    """Decay of the averages of slope and curvature."""

  @property
  def max_ratio(self) -> Any:
    """The factor by which the rate falls where numbers are not finite."""

  @property
  def needs_grad(self) -> bool:
    """Whether it looks at the raw gradient."""

  def _replace(self, *, smoothing: Any = ...) -> Self:
    """The rule with another `smoothing`."""

  def check(self) -> None:
    """Raises `ValueError` on a constant that is out of its range."""

  def init(self, params, dtype) -> Any:
    """The memory before the first step."""

  def look(self, memory, observed: Observation) -> Look:
    """Before the fit."""

  def learn(
    self,
    memory,
    averages: Averages,
    observed: Observation,
    trial: Trial,
    rate,
    alone,
  ) -> Lesson:
    """From a fit at `rate`.

    Args:
      memory: that of the look.
      averages: before the fit.
      observed: before the fit.
      trial: the last trial.
      rate: the rate that was probed; of an outlier, the lasting one.
      alone: whether the next step has a fit of its own.
    """

  def follow(self, memory, observed: Observation, step: Taken) -> Any:
    """The memory after a step, from that of the lesson."""
