"""GeN in plain numpy, written from the formulas and not from the package.

`DefaultRule` is section 2 of the derivation notes of the default rule and
`PaperRule` is Algorithm 1 of the paper with the sign of its line 6 put right.
Both work on flat float64 vectors: no jax, no trees, Python control flow.
"""

import dataclasses

import numpy as np

EPS = np.finfo(np.float64).eps


def rosenbrock(w):
  x, y = w
  return 100.0 * (y - x**2) ** 2 + (1.0 - x) ** 2


def rosenbrock_grad(w):
  x, y = w
  bend = y - x**2
  return np.array([-400.0 * x * bend - 2.0 * (1.0 - x), 200.0 * bend])


def beale(w):
  x, y = w
  return sum(
    (c - x + x * y**k) ** 2 for k, c in ((1, 1.5), (2, 2.25), (3, 2.625))
  )


def beale_grad(w):
  x, y = w
  terms = [
    (c - x + x * y**k, y**k - 1.0, k * x * y ** (k - 1))
    for k, c in ((1, 1.5), (2, 2.25), (3, 2.625))
  ]
  return np.array(
    [
      sum(2 * r * dx for r, dx, _ in terms),
      sum(2 * r * dy for r, _, dy in terms),
    ]
  )


PROBLEMS = {
  "rosenbrock": (rosenbrock, rosenbrock_grad),
  "beale": (beale, beale_grad),
}


class Sgd:
  def __call__(self, grad):
    return -grad


class Momentum:
  def __init__(self, decay=0.9):
    self.decay, self.trace = decay, 0.0

  def __call__(self, grad):
    self.trace = grad + self.decay * self.trace
    return -self.trace


class Adam:
  def __init__(self, b1=0.9, b2=0.999, eps=1e-8):
    self.b1, self.b2, self.eps = b1, b2, eps
    self.m, self.v, self.t = 0.0, 0.0, 0

  def __call__(self, grad):
    self.t += 1
    self.m = self.b1 * self.m + (1 - self.b1) * grad
    self.v = self.b2 * self.v + (1 - self.b2) * grad**2
    m = self.m / (1 - self.b1**self.t)
    v = self.v / (1 - self.b2**self.t)
    return -m / (np.sqrt(v) + self.eps)


BASES = {"sgd": Sgd, "momentum": Momentum, "adam": Adam}


@dataclasses.dataclass
class DefaultRule:
  """Averages of slope and curvature apart, fresh slope, dense start.

  `share` = 0 leaves the least rate by distance out.
  """

  eta: float
  every: int = 1
  dense_start: int = 20
  gamma: float = 0.9
  gamma_fresh: float = 0.97
  share: float = 0.15
  fresh: bool = True
  horizon: int | None = None

  def __post_init__(self):
    self.t = self.n = 0
    self.uphill = self.wild = False
    self.B = self.A = self.F = self.emitted_bend = 0.0
    self.previous = self.start = None
    self.lengths, self.distances = [], []
    self.fit_steps = []

  def _bend(self, value_fn, w, u, value, b):
    """P = 2 (L(w + eta u) - L0 + b eta), zero where it is rounding."""
    P = 2.0 * (value_fn(w + self.eta * u) - value + b * self.eta)
    return 0.0 if abs(P) <= 100 * EPS * abs(value) else P

  def _calibrate(self, value_fn, w, u, value, b):
    for _ in range(25):
      P = self._bend(value_fn, w, u, value, b)
      q = b * self.eta
      if not np.isfinite(P):
        ratio = 0.1
      elif q < 0:
        ratio = 1.0
      else:
        ratio = q / P if P > 0 else 10.0
      self.eta *= np.clip(ratio, 0.1, 10.0)
      if np.isfinite(P) and 0.5 <= ratio <= 2.0:
        return

  def _distance_rate(self):
    """By the updates before this one, and the points looked at so far."""
    return self.share * max(self.distances) / np.linalg.norm(self.lengths)

  def _usual(self):
    """How much a step of eta moves the loss by the averages, over eta."""
    known = 1 - self.gamma**self.n
    return (abs(self.B) + abs(self.A) * self.eta / 2) / known

  def _share(self, b, curvature):
    """A line that bends down outweighs nothing that is known already."""
    known = 1 - self.gamma**self.n
    if curvature >= 0 or self.n == 0:
      return 1.0
    change = abs(b) + abs(curvature) * self.eta / 2
    return min(1.0, known * self._usual() / change)

  def _is_wild(self, b, curvature):
    """Whether the stage guards against this line, as the reference does not."""
    change = abs(b) + abs(curvature) * self.eta / 2
    rise = curvature * self.eta / 2 - b
    return self.n > 0 and max(change / 1000, rise / 30) > self._usual()

  def step(self, w, grad, u, value_fn):
    """The update to add, eta's emitted multiple of `u`."""
    value = value_fn(w)
    b = -grad @ u
    self.start = w if self.start is None else self.start
    if self.t < 20 or (self.t - 20) % 8 == 0:
      self.distances.append(np.linalg.norm(w - self.start))
      up, down = (np.maximum(x, 0).sum() for x in (grad * u, -grad * u))
      self.uphill |= up > down / 1999
    if self.fresh and self.t > 0:
      seen = self.emitted_bend - grad @ self.previous
      self.F = self.gamma_fresh * self.F + (1 - self.gamma_fresh) * seen
    if self.t == 0:
      self._calibrate(value_fn, w, u, value, b)
    if self.t < self.dense_start or self.t % self.every == 0:
      self.fit_steps.append(self.t)
      curvature = self._bend(value_fn, w, u, value, b) / self.eta**2
      self.wild |= self._is_wild(b, curvature)
      share = self._share(b, curvature)
      self.B = self.gamma * self.B + (1 - self.gamma) * share * b
      self.A = self.gamma * self.A + (1 - self.gamma) * share * curvature
      slope, noiseless = self.B, False
      if self.fresh and self.n > 0 and self.B > 0:
        fresh = self.F / (1 - self.gamma_fresh**self.t)
        fresh *= 1 - self.gamma ** (self.n + 1)
        noiseless = fresh >= self.B
        slope = min(max(fresh, self._distance_rate() * self.A), self.B)
      one_step = self.every == 1 and self.t >= self.dense_start
      alone = one_step and not self.uphill and noiseless
      if alone and curvature > 0:
        own = min(b / curvature, 2 * slope / self.A if self.A > 0 else np.inf)
        self.eta = np.clip(own, self.eta / 10, self.eta * 10)
      elif slope > 0 and self.A > 0:
        self.eta = np.clip(slope / self.A, self.eta / 10, self.eta * 10)
      elif slope > 0:
        self.eta *= 10
      self.n += 1
    else:
      curvature = self.A / (1 - self.gamma**self.n)
    emitted = self.eta
    if self.horizon is not None:
      emitted *= 1 - self.t / self.horizon
    self.emitted_bend = emitted * curvature
    self.previous = u
    self.lengths.append(np.linalg.norm(u))
    self.t += 1
    return emitted * u


@dataclasses.dataclass
class PaperRule:
  """Algorithm 1: smooth the optima, hold on rejection, no safeguards."""

  eta: float
  every: int = 1
  gamma: float = 0.9
  probes: tuple[float, ...] = (-1.0, 1.0)

  def __post_init__(self):
    self.t = 0
    self.fit_steps = []

  def step(self, w, grad, u, value_fn):
    del grad
    self.t += 1
    if self.t % self.every == 0:
      self.fit_steps.append(self.t)
      value = value_fn(w)
      rises = [value_fn(w + x * self.eta * u) - value for x in self.probes]
      slope, curvature = parabola(self.probes, rises, self.eta)
      if slope > 0 and curvature > 0:
        optimum = slope / curvature
        self.eta = self.gamma * self.eta + (1 - self.gamma) * optimum
    return self.eta * u


def parabola(probes, rises, eta):
  """Least squares -q x + p x^2 / 2 to `rises` at x: b = q/eta, A = p/eta^2."""
  x = np.asarray(probes)
  design = np.stack([-x, x**2 / 2], axis=1)
  q, p = np.linalg.lstsq(design, np.asarray(rises), rcond=None)[0]
  return q / eta, p / eta**2


def run(rule, base, problem, start, steps):
  """Etas after each step, the points visited after them, the last value.

  `problem(t)` gives the loss and the gradient of step t's batch.
  """
  w, etas, points = np.array(start, float), [], []
  for t in range(steps):
    value_fn, grad_fn = problem(t)
    grad = grad_fn(w)
    w = w + rule.step(w, grad, base(grad), value_fn)
    etas.append(rule.eta)
    points.append(w)
  return np.array(etas), np.array(points)


def fixed(name):
  """The problem that shows every step the same loss."""
  return lambda t: PROBLEMS[name]


def alternating(t):
  """Quadratics whose centre alternates (goldens G4 and G6)."""
  curvature = np.array([1.0, 10.0])
  centre = np.array([1.0, 0.5]) if t % 2 == 0 else np.array([-1.0, -0.25])
  return (
    lambda w: 0.5 * np.sum(curvature * (w - centre) ** 2),
    lambda w: curvature * (w - centre),
  )


def faint(t):
  """The first of them with a hundredth of the noise."""
  noise = 0.01 if t % 2 == 0 else -0.01
  value, grad = alternating(0)
  return lambda w: value(w - noise), lambda w: grad(w - noise)


NOISY = {"alternating": alternating, "faint noise": faint}
