"""A search over several numbers, with as many trials for everybody."""

from collections.abc import Callable, Mapping

import numpy as np


def pattern_search(
  trial: Callable[[dict], float],
  start: Mapping[str, float],
  steps: Mapping[str, float],
  trials: int,
) -> dict:
  """Tries exactly `trials` settings, each beside the best so far.

  Axes take turns: one step up, then one down, in a number's logarithm (of
  its odds, for a share in (0, 1)). Once every neighbour of the best is known,
  steps are halved. Nothing bounds the search, so that no optimum lies on the
  edge of a grid; `bracketed` tells whether all neighbours are worse.

  Args:
    trial: from a setting to what is to be smallest; NaN counts as infinite.
    start: the first setting, positive numbers.
    steps: for each, the factor of the first step, greater than 1; below 1 for
      a share, where its inverse multiplies the odds.
    trials: the number of settings tried, at least 1.

  Returns:
    `tried`, a list of settings with their `score`, `best`, and `bracketed`.
  """
  names = list(start)
  scores: dict[tuple, float] = {}

  def setting(position):
    return {
      name: _moved(start[name], steps[name], x)
      for name, x in zip(names, position, strict=True)
    }

  def attempt(position):
    score = float(trial(setting(position)))
    scores[position] = score if np.isfinite(score) else float("inf")

  def neighbours(position, spacing):
    for k in range(len(names)):
      for sign in (1, -1):
        move = (0,) * k + (sign * spacing,) + (0,) * (len(names) - k - 1)
        yield tuple(a + b for a, b in zip(position, move, strict=True))

  attempt((0.0,) * len(names))
  spacing = 1.0
  while len(scores) < trials:
    best = min(scores, key=scores.get)
    untried = [p for p in neighbours(best, spacing) if p not in scores]
    if untried:
      attempt(untried[0])
    else:
      spacing /= 2
  best = min(scores, key=scores.get)
  return {
    "tried": [{**setting(p), "score": scores[p]} for p in scores],
    "best": setting(best),
    "bracketed": all(p in scores for p in neighbours(best, spacing)),
  }


def _moved(start: float, factor: float, steps: float) -> float:
  if factor > 1:
    return float(start * factor**steps)
  odds = start / (1 - start) * factor**-steps
  return float(odds / (1 + odds))
