"""AMOS re-derived in numpy: loops over flat lists, nothing shared with ours."""

import numpy as np


def average_drift(points, diagonals, ema, corrected, eps=0.0):
  """L after each Hessian time, from what was found at each; line 5.

  Points and diagonals are flat vectors, one for each Hessian time.
  """
  lip, observations = np.zeros_like(diagonals[0]), 0
  history = [lip]
  for k in range(1, len(points)):
    length = np.sqrt(np.sum((points[k] - points[k - 1]) ** 2))
    secant = np.abs(diagonals[k] - diagonals[k - 1]) / (eps + length)
    lip = ema * lip + (1 - ema) * secant
    observations += 1
    history.append(lip / (1 - ema**observations) if corrected else lip)
  return history


def groups_of(granularity, shapes, labels=None):
  """Lists of flat indices, one for each group; leaves in order."""
  groups, start = [], 0
  for size in (int(np.prod(shape)) for shape in shapes):
    indices = list(range(start, start + size))
    start += size
    if granularity == "element":
      groups += [[i] for i in indices]
    elif isinstance(granularity, tuple):
      step = granularity[1]
      groups += [indices[i : i + step] for i in range(0, size, step)]
    else:
      groups.append(indices)
  if labels is None:
    return groups
  return [
    sum(
      (g for g, label in zip(groups, labels, strict=True) if label == name), []
    )
    for name in sorted(set(labels))
  ]


def route(lip, groups, by_maximum, cuts):
  """The optimizer of each parameter: the first above the highest cut."""
  choice = np.zeros(len(lip), int)
  for group in groups:
    number = max(lip[group]) if by_maximum else np.mean(lip[group])
    choice[group] = len(cuts) - sum(number > cut for cut in cuts)
  return choice


def newton_route(lip, gradient, diagonal, groups, by_maximum, rate=1.0):
  """Eq. 8: 0 where L |g| > 3 h^2 and Newton's step may raise the loss."""
  choice = np.zeros(len(lip), int)
  for group in groups:
    g, h = np.abs(gradient[group]), diagonal[group]
    if by_maximum:
      risk = max(lip[group]) * np.mean(g)
    else:
      risk = np.mean(lip[group] * g)
    risky = rate**2 * risk > 3 * (2 - rate) * np.mean(h**2)
    choice[group] = 0 if risky else 1
  return choice


def quantile(lip, groups, by_maximum, share):
  """The smallest group's L with at least that share of parameters below it."""
  pairs = sorted(
    (max(lip[g]) if by_maximum else np.mean(lip[g]), len(g)) for g in groups
  )
  total, below = sum(size for _, size in pairs), 0
  for number, size in pairs:
    below += size
    if below >= share * total:
      return number
  return pairs[-1][0]
