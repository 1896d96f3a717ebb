"""Training and measurements of `distribution.py`.

Along a run of SGD each look takes the extreme eigenpairs of the minibatch's
Hessian and estimates, for each, how fast the Hessian changes along it. Seeds
run side by side. All in float64: the decreases of short trial steps drown in
float32's rounding.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gen_optax
from gen_optax import elmo
from scripts.elmo.lipschitz.cases import BATCH, Problem, Seeds

# The largest eigenvalues that are looked at, and one smallest.
TOP = 5
ENDS = np.array([0, TOP])
# Products in a Lanczos run: enough for residuals far below a percent.
ORDER = 40
# Powers of two that the validated L is sought among. The lowest is its floor.
EXPONENTS = np.arange(-20, 21)
# Lengths among which the best step along an eigenvector is sought.
LENGTHS = 2.0 ** np.linspace(-16, 8, 73)
ESTIMATORS = {
  "third": elmo.third_derivative(),
  "gradient": elmo.eigenvalue_gradient(),
}
EIGEN_ARC = elmo.eigen_arc()
# With appendix J's caps, and no floor: how far down does it go?
NO_FLOOR = elmo.eigen_arc(max_raises=11, max_reductions=11, floor=1e-300)


# --- what is measured at one point --------------------------------------------


def validated(loss, params, value, slope, curvature, vector):
  """The smallest power of two with at least half of the promised decrease.

  The promise is the cubic upper model's at the minmax step along `vector` with
  that L. NaN where no power keeps it.
  """
  lipschitz = 2.0**EXPONENTS
  step = elmo.minmax_step(slope, curvature, lipschitz)
  moves = -jnp.sign(slope) * step
  promised = -elmo.upper_model(moves, slope, curvature, lipschitz)
  after = jax.vmap(lambda s: loss(params + s * vector))(moves)
  kept = value - after >= 0.5 * promised
  return jnp.where(kept.any(), jnp.asarray(lipschitz)[kept.argmax()], jnp.nan)


def remainder(loss, params, value, slope, curvature, vector):
  """6 |f - its quadratic| / s^3 after Newton's length s down along `vector`.

  The L that the cubic models need there, and by the same rule for both signs of
  the curvature. Lengths below 1e-3 would show rounding, and are taken as that.
  """
  s = jnp.maximum(jnp.abs(slope / curvature), 1e-3)
  x = -jnp.sign(slope) * s
  quadratic = x * (slope + curvature / 2 * x)
  change = loss(params + x * vector) - value
  return 6 * jnp.abs(change - quadratic) / s**3


def best_length(loss, params, value, slope, curvature, vector):
  """The step down along `vector` with the lowest loss, among `LENGTHS`."""
  del value, curvature
  down = -jnp.sign(slope) * vector
  after = jax.vmap(lambda s: loss(params + s * down))(jnp.asarray(LENGTHS))
  return jnp.asarray(LENGTHS)[jnp.nan_to_num(after, nan=jnp.inf).argmin()]


def moves_of(gradient, slopes, values, vectors, rate) -> dict:
  """Newton's and gradient descent's moves that are compared, two by two."""

  def part(sizes, count):
    return sizes[:count] @ vectors[:count]

  newton, descent = -slopes / values, -rate * slopes
  rest = -rate * gradient - part(descent, TOP)
  pairs = {
    name: jnp.stack([part(newton, count), part(descent, count)])
    for name, count in (("saved", 1), ("saved_top", TOP))
  }
  return pairs | {"saved_step": pairs["saved_top"] + rest}


def start_arcs(params) -> tuple:
  """The states of EigenARC with its floor and without."""
  return EIGEN_ARC.init(params, 2), NO_FLOOR.init(params, 2)


def look(loss, params, arcs, rate):
  """Everything that is measured at `params`, and EigenARC's next states."""
  value, gradient = jax.value_and_grad(loss)(params)
  pairs = gen_optax.extreme_eigenpairs(
    lambda v: gen_optax.hvp(loss, params, v)[1],
    *(params,),
    top=TOP,
    bottom=1,
    order=ORDER,
  )
  slopes = pairs.vectors @ gradient
  spaces = elmo.Eigenspaces(
    *(loss, params, value, gradient, pairs.values, pairs.vectors, slopes),
    jnp.ones(TOP + 1, bool),
  )
  ends = spaces._replace(
    values=pairs.values[ENDS],
    vectors=pairs.vectors[ENDS],
    slopes=slopes[ENDS],
    used=jnp.ones(2, bool),
  )
  found = {
    name: estimator.estimate(spaces, ())[0]
    for name, estimator in ESTIMATORS.items()
  }
  found["eigen_arc"], first, _ = EIGEN_ARC.estimate(ends, arcs[0])
  found["no_floor"], second, _ = NO_FLOOR.estimate(ends, arcs[1])
  # One program for both ends, and one for all moves: it takes long to compile.
  at_ends = (ends.slopes, ends.values, ends.vectors)
  for along in (remainder, validated, best_length):
    one = functools.partial(along, loss, params, value)
    found[along.__name__] = jax.vmap(one)(*at_ends)
  moves = moves_of(gradient, slopes, pairs.values, pairs.vectors, rate)
  after = jax.vmap(lambda move: loss(params + move))(
    jnp.concatenate(list(moves.values()))
  )
  saved = value - after.reshape(len(moves), 2)
  return {
    **found,
    **dict(zip(moves, saved, strict=True)),
    "values": pairs.values,
    "slopes": slopes,
    "residuals": pairs.residuals,
    "share": jnp.sum(slopes[:TOP] ** 2) / jnp.sum(gradient**2),
  }, (first, second)


def control():
  """Validated L and EigenARC's where the true L is 1 on both sides.

  f = sum over two axes of c x + h x^2 / 2 + |x|^3 / 6 with h = 1 and h = -1:
  the upper model with L = 1 is f itself.
  """
  slopes, values = jnp.array([0.3, 0.3]), jnp.array([1.0, -1.0])
  loss = lambda x: elmo.upper_model(x, slopes, values, 1.0).sum()
  start, axes = jnp.zeros(2), jnp.eye(2)
  measured = [
    float(validated(loss, start, loss(start), slopes[i], values[i], axes[i]))
    for i in range(2)
  ]
  spaces = elmo.Eigenspaces(
    *(loss, start, loss(start), slopes, values, axes, slopes),
    jnp.ones(2, bool),
  )
  state = EIGEN_ARC.init(start, 2)
  estimate = jax.jit(lambda state: EIGEN_ARC.estimate(spaces, state)[:2])
  for _ in range(60):
    found, state = estimate(state)
  return {"validated": measured, "eigen_arc": found.tolist()}


# --- training -----------------------------------------------------------------


@functools.cache
def measured_training(problem: Problem):
  """Compiled `(params, arcs, x, y, rows, rate)` to these and what was seen.

  `rows` has shape (seeds, looks, steps between looks, batch).
  """

  def one_seed(params, arcs, x, y, rows, rate):
    def look_and_train(carry, rows):
      params, arcs = carry
      first = rows[0]
      on_batch = lambda p: problem.loss(p, x[first], y[first])
      seen, arcs = look(on_batch, params, arcs, rate)

      def step(params, row):
        value, gradient = jax.value_and_grad(problem.loss)(
          params, x[row], y[row]
        )
        return params - rate * gradient, value

      params, losses = jax.lax.scan(step, params, rows)
      return (params, arcs), {**seen, "loss": losses}

    return jax.lax.scan(look_and_train, (params, arcs), rows)

  return jax.jit(jax.vmap(one_seed, (0, 0, 0, 0, 0, None)))


def measure(problem: Problem, seeds: Seeds, rate, looks, chunk, bar) -> dict:
  """Trains all seeds with `looks` looks; arrays of shape (seeds, looks, ...).

  `chunk` looks are one compiled call.
  """
  params = seeds.params
  count, steps = seeds.rows.shape[:2]
  arcs = jax.vmap(start_arcs)(params)
  rows = seeds.rows.reshape(count, looks, steps // looks, BATCH)
  advance, seen = measured_training(problem), []
  for start in range(0, looks, chunk):
    (params, arcs), part = advance(
      *(params, arcs, seeds.x, seeds.y, rows[:, start : start + chunk], rate)
    )
    seen.append(jax.device_get(part))
    bar.update(part["loss"][0].size)
    bar.set_postfix(loss=f"{seen[-1]['loss'][:, -1].mean():.4f}")
  return {
    name: np.concatenate([part[name] for part in seen], axis=1)
    for name in seen[0]
  }


REFRESH = 10


@functools.cache
def plain_training(problem: Problem, newton: bool):
  """Compiled `(rates, damping, params, x, y, rows)` to losses of each step.

  `newton` takes damped Newton steps along the TOP largest eigenvectors of a
  batch REFRESH steps ago at most, and SGD's in what is left, as FOSI does.
  The losses have shape (rates, seeds, steps).
  """

  def one_run(rate, damping, params, x, y, rows):
    def gradient_step(frame):
      def step(params, row):
        value, g = jax.value_and_grad(problem.loss)(params, x[row], y[row])
        if frame is None:
          return params - rate * g, value
        values, vectors = frame
        c = vectors @ g
        along = (damping / jnp.abs(values) - rate) * c
        return params - rate * g - along @ vectors, value

      return step

    def phase(params, rows):
      frame = None
      if newton:
        batch = x[rows[0]], y[rows[0]]
        on_batch = lambda p: problem.loss(p, *batch)
        pairs = gen_optax.extreme_eigenpairs(
          lambda v: gen_optax.hvp(on_batch, params, v)[1],
          *(params,),
          top=TOP,
          bottom=0,
          order=4 * TOP,
        )
        frame = pairs.values, pairs.vectors
      return jax.lax.scan(gradient_step(frame), params, rows)

    groups = rows.reshape(-1, REFRESH, BATCH)
    return jax.lax.scan(phase, params, groups)[1].ravel()

  seeds = jax.vmap(one_run, (None, None, 0, 0, 0, 0))
  return jax.jit(jax.vmap(seeds, (0, 0, None, None, None, None)))


def train(problem, seeds: Seeds, rates, damping=None) -> np.ndarray:
  """Losses of SGD, or with a damping of the hybrid; (rates, seeds, steps)."""
  rates = jnp.asarray(rates, float)
  run = plain_training(problem, damping is not None)
  factors = jnp.full(len(rates), damping or 0.0, float)
  return np.asarray(run(rates, factors, *seeds[:3], jnp.asarray(seeds.rows)))


class Searched(NamedTuple):
  """The best rate, all that were tried, and their scores."""

  rate: float
  rates: list
  scores: list


def search(score, exponents, extensions: int) -> Searched:
  """The rate 10^e of lowest score; the grid grows where the best is its edge.

  `score` takes a list of rates and gives as many numbers, lower is better.
  """
  grid = list(exponents)
  spacing = grid[1] - grid[0]
  scores = list(score([10.0**e for e in grid]))
  for _ in range(extensions):
    at = int(np.argmin(scores))
    if 0 < at < len(grid) - 1:
      break
    new = grid[0] - spacing if at == 0 else grid[-1] + spacing
    (found,) = score([10.0**new])
    grid = [new, *grid] if at == 0 else [*grid, new]
    scores = [found, *scores] if at == 0 else [*scores, found]
  best = int(np.argmin(scores))
  rates = [10.0**e for e in grid]
  return Searched(rates[best], rates, [float(s) for s in scores])


def last_loss(losses) -> np.ndarray:
  """The mean over the last tenth of steps; infinite where it diverged."""
  tail = losses[..., -max(1, losses.shape[-1] // 10) :].mean(-1)
  return np.where(np.isfinite(tail), tail, np.inf)
