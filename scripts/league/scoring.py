"""The score: how soon each entrant reaches each workload's target.

    r = t / min t,  rho(tau) = share of workloads with r <= tau,
    score = integral of rho from 1 to 4, over 3

as in AlgoPerf (Dahl and others, 2023). t is the work until the target is first
met at an evaluation, the median over seeds; infinite where it never is.
"""

from collections.abc import Mapping, Sequence

import numpy as np

LARGEST = 4.0


def time_to(clock, losses, target: float) -> float:
  """The clock at the first evaluation at or below the target."""
  reached = np.flatnonzero(np.asarray(losses) <= target)
  return float(clock[reached[0]]) if reached.size else float("inf")


def ratios(times: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
  """Each entrant's times over the best ones, a number for each workload."""
  table = np.array(list(times.values()), float)
  best = table.min(0)
  with np.errstate(invalid="ignore"):
    found = np.where(np.isfinite(table), table / best, np.inf)
  return dict(zip(times, found, strict=True))


def profile(ratio, taus) -> np.ndarray:
  """rho: share of workloads within each tau."""
  return (np.asarray(ratio)[:, None] <= np.asarray(taus)).mean(0)


def score(ratio) -> float:
  """A workload won counts 1; one that took four times as long counts 0."""
  clipped = np.clip(ratio, 1.0, LARGEST)
  return float(np.mean((LARGEST - clipped) / (LARGEST - 1)))


def speed(ratio) -> float:
  """Geometric mean of 1 / r, at least 1/4."""
  return float(np.exp(-np.mean(np.log(np.clip(ratio, 1.0, LARGEST)))))
