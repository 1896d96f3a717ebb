"""Cubic regularisation from its definition: shares no code with ELMO."""

import numpy as np
import scipy.optimize


def cubic_step(gradient, hessian, lipschitz):
  r"""The global minimum of g's + s'Hs / 2 + L |s|^3 / 6.

  s = -(H + L r / 2)^{-1} g with r = |s|: one equation for r, whose left side
  falls and right side rises beyond the pole at -2 lambda_1 / L. In the hard
  case, where g has no part along the lowest eigenvector and |s| is too short at
  the pole, that eigenvector fills up the length, to either side.
  """
  values, vectors = np.linalg.eigh(hessian)
  c = vectors.T @ gradient
  pole = max(0.0, -2 * values[0] / lipschitz)
  lowest = values - values[0] <= 1e-12 * abs(values).max()

  def parts(r):
    return -c / (values + lipschitz * r / 2)

  def too_short(r):
    with np.errstate(all="ignore"):
      return np.linalg.norm(parts(r)) < r

  if pole > 0 and np.linalg.norm(c[lowest]) <= 1e-14 * np.linalg.norm(c):
    with np.errstate(over="ignore"):
      s = np.where(lowest, 0.0, -c / np.where(lowest, 1, values - values[0]))
      missing = pole**2 - s @ s
    if missing >= 0:
      s[0] = np.sqrt(missing)
      return vectors @ s
  low = pole * (1 + 1e-15)
  high = max(2 * pole, 1e-12)
  while not too_short(high):
    high *= 2
  for _ in range(200):
    middle = (low + high) / 2
    low, high = (low, middle) if too_short(middle) else (middle, high)
  return vectors @ parts(high)


def cubic_regularisation(task, initial=1.0, relax="halve"):
  """Adaptive: L doubles until a tenth of the promise is kept.

  Where nine tenths are kept, L is halved, or ("gradient", the rule of Cartis,
  Gould and Toint) becomes twice the norm of the gradient if that is less.
  `task` has a `start`, `value`, `gradient` and `hessian`; yields the point, the
  loss there and the evaluations that it took.
  """
  x, f, lipschitz = task.start, task.value(task.start), initial
  while True:
    g, h, spent = task.gradient(x), task.hessian(x), 0
    while True:
      s = cubic_step(g, h, lipschitz)
      promised = -(g @ s + s @ h @ s / 2 + lipschitz * (s @ s) ** 1.5 / 6)
      trial, spent = task.value(x + s), spent + 1
      noise = 8 * np.finfo(float).eps * max(abs(f), abs(trial))
      ratio = (f - trial) / promised if promised > noise else 1.0
      if ratio >= 0.1:
        break
      lipschitz *= 2
    x, f = x + s, trial
    if ratio > 0.9:
      less = lipschitz / 2
      if relax == "gradient":
        less = min(lipschitz, 2 * np.linalg.norm(g))
      lipschitz = max(less, 1e-8)
    yield x, f, spent


def check_cubic_step(count: int, seed: int) -> float:
  """The worst excess of `cubic_step` over a generic minimiser, relative."""
  rng, worst = np.random.default_rng(seed), 0.0
  for k in range(count):
    n = rng.integers(1, 6)
    h = rng.normal(size=(n, n))
    h, g = h + h.T, rng.normal(size=n)
    if k % 5 == 0:  # the hard case
      g -= (v := np.linalg.eigh(h)[1][:, 0]) * (v @ g)
    lipschitz = 10 ** rng.uniform(-1, 2)

    def model(s, g=g, h=h, lipschitz=lipschitz):
      return g @ s + s @ h @ s / 2 + lipschitz * (s @ s) ** 1.5 / 6

    ours = model(cubic_step(g, h, lipschitz))
    starts = rng.normal(size=(8, n)) * (1 + 4 / lipschitz)
    with np.errstate(over="ignore"):
      best = min(scipy.optimize.minimize(model, s).fun for s in starts)
    worst = max(worst, (ours - best) / max(abs(best), 1e-12))
  return worst
