"""What an entrant is, and the ranges that its setting is searched in."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Range(NamedTuple):
  """Numbers between two others, evenly spread or so in their logarithm."""

  low: float
  high: float
  log: bool = True

  def at(self, share: float) -> float:
    """The number a share of the way up, from 0 to 1."""
    if self.log:
      return float(self.low * (self.high / self.low) ** share)
    return float(self.low + share * (self.high - self.low))

  def share_of(self, number: float) -> float:
    """The inverse of `at`."""
    if self.log:
      return math.log(number / self.low) / math.log(self.high / self.low)
    return (number - self.low) / (self.high - self.low)


class Entrant(NamedTuple):
  """An optimizer whose runs differ by numbers.

  Attributes:
    name: what tables call it.
    make: setting, number of steps -> optimizer. Both may be traced, so that
      one program serves all settings.
    space: the range of each number that is searched.
    default: the setting of its paper or package.
    files: what it is made of beside the references' file, relative to the
      repository: a run is made anew where one of them has changed.
    evaluate_at: state of the optimizer, parameters -> parameters to evaluate
      at, for one that has an average of its own.
  """

  name: str
  make: Callable
  space: Mapping[str, Range]
  default: Mapping[str, float]
  files: tuple[str, ...] = ()
  evaluate_at: Callable | None = None

  @property
  def readings(self) -> tuple[str, ...]:
    """Where it is evaluated: "iterate" is a place of its own."""
    return ("iterate",) if self.evaluate_at else ("iterate", "average")
