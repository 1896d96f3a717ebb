"""Small problems whose whole loss fits into one evaluation, and their work.

Parameters are one vector, so that every method sees the same thing. Each seed
draws its own data and initial parameters, but for the differential equation,
whose points are fixed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import gen_optax
from scripts.common import data_sets


class Problem(NamedTuple):
  """What is minimised.

  Attributes:
    name: the short one.
    title: what it is, for pictures.
    budget: of a run, in gradients.
    float64: whether it is solved in double precision.
    draw: seed -> (parameters, shape (n,); data).
    loss: (parameters, data) -> scalar.
    lowest: data -> the least loss, or None where it is not known. What is
      reported is the loss above it.
  """

  name: str
  title: str
  budget: int
  float64: bool
  draw: Callable
  loss: Callable
  lowest: Callable | None = None


class Weights(NamedTuple):
  """What one evaluation and one Hessian-vector product cost, in gradients."""

  value: float
  product: float


def weights(problem: Problem) -> Weights:
  """By the floating-point operations that XLA counts in each program."""
  params, data = problem.draw(0)

  def flops(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]

  def product(params, vector, data):
    value_fn = lambda p: problem.loss(p, data)
    return gen_optax.hvp(value_fn, params, vector)[1]

  gradient = flops(jax.value_and_grad(problem.loss), params, data)
  return Weights(
    flops(problem.loss, params, data) / gradient,
    flops(product, params, params, data) / gradient,
  )


# --- networks on one vector ---------------------------------------------------


def mlp_size(widths) -> int:
  return sum((a + 1) * b for a, b in zip(widths, widths[1:], strict=False))


def mlp_init(rng, widths) -> np.ndarray:
  """Weights of variance 1 / inputs, biases of zero."""
  parts = []
  for a, b in zip(widths, widths[1:], strict=False):
    parts += [rng.normal(size=a * b) / np.sqrt(a), np.zeros(b)]
  return np.concatenate(parts)


def mlp(flat, widths, x):
  """Fully connected, tanh between layers."""
  at = 0
  for layer, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
    if layer:
      x = jnp.tanh(x)
    x = x @ flat[at : at + a * b].reshape(a, b)
    x = x + flat[at + a * b : at + (a + 1) * b]
    at += (a + 1) * b
  return x


def _images(rng, count):
  train = data_sets.digits().train
  rows = rng.choice(len(train.y), count, replace=False)
  return train.x[rows].reshape(count, -1), train.y[rows]


# --- the problems -------------------------------------------------------------


def classifier(hidden=32, images=500, decay=1e-4, budget=1500) -> Problem:
  """Cross-entropy of digits, and decay |w|^2 / 2."""
  widths = (64, hidden, 10)

  def draw(seed):
    rng = np.random.default_rng(seed)
    x, y = _images(rng, images)
    flat = mlp_init(rng, widths)
    return jnp.asarray(flat, jnp.float32), (jnp.asarray(x), jnp.asarray(y))

  def loss(flat, data):
    x, y = data
    logs = jax.nn.log_softmax(mlp(flat, widths, x))
    right = jnp.take_along_axis(logs, y[:, None], axis=1)
    return -right.mean() + decay / 2 * flat @ flat

  return Problem(
    "classifier",
    f"digits, MLP {'-'.join(map(str, widths))} with tanh, "
    f"{mlp_size(widths)} parameters, {images} images, weight decay {decay:g}",
    *(budget, False, draw, loss),
  )


def autoencoder(
  hidden=24, code=4, images=400, decay=1e-5, budget=3000
) -> Problem:
  """Squared error of digits through a bottleneck, summed over pixels."""
  widths = (64, hidden, code, hidden, 64)

  def draw(seed):
    rng = np.random.default_rng(seed)
    x, _ = _images(rng, images)
    return jnp.asarray(mlp_init(rng, widths), jnp.float32), jnp.asarray(x)

  def loss(flat, x):
    error = mlp(flat, widths, x) - x
    return (error**2).sum(1).mean() + decay / 2 * flat @ flat

  return Problem(
    "autoencoder",
    f"digits, autoencoder {'-'.join(map(str, widths))} with tanh, "
    f"{mlp_size(widths)} parameters, {images} images, weight decay {decay:g}",
    *(budget, False, draw, loss),
  )


def logistic(
  features=100,
  examples=500,
  decades=3,
  flipped=0.1,
  start=10.0,
  decay=1e-8,
  budget=2000,
  float64=False,
  name="logistic",
) -> Problem:
  """Two classes whose features' scales fall by `decades`.

  The scaled features are turned by a random rotation, so that no rescaling of
  coordinates mends the condition, and a part of the labels is flipped, so that
  the minimum is finite. Weights start at `start` times normal numbers: many
  examples are surely classified, half of them wrong, where the loss is nearly
  straight and Newton's step far too long.
  """

  def draw(seed):
    rng = np.random.default_rng(seed)
    scales = np.geomspace(1, 10.0**-decades, features)
    x = rng.normal(size=(examples, features))
    y = x @ rng.normal(size=features) > 0
    y ^= rng.random(examples) < flipped
    rotation = np.linalg.qr(rng.normal(size=(features, features)))[0]
    signs = np.where(y, 1.0, -1.0)[:, None]
    rows = signs * (x * scales) @ rotation
    w = start * rng.normal(size=features)
    return jnp.asarray(w), jnp.asarray(rows)

  def loss(w, rows):
    return jax.nn.softplus(-(rows @ w)).mean() + decay / 2 * w @ w

  def lowest(rows):
    with jax.enable_x64(True):
      return _minimum(loss, jnp.asarray(np.float64(rows)), features)

  origin = f"weights from {start:g} N(0, 1)" if start else "weights from 0"
  return Problem(
    name,
    f"logistic regression, {features} features with scales from 1 to "
    f"1e-{decades} in a random rotation, {examples} examples, "
    f"{flipped:.0%} of labels flipped, {origin}, {_precision(float64)}",
    *(budget, float64, draw, loss, lowest),
  )


def poisson(
  hidden=16,
  points=64,
  boundary_weight=10.0,
  budget=20_000,
  float64=False,
  name="poisson",
) -> Problem:
  """A network u with -u'' = f on (0, 1) and u(0) = u(1) = 0.

  f belongs to u = sin(pi x) + sin(4 pi x) / 4. The loss is the mean squared
  residual over that of f, and the weighted squares at the boundary.
  """
  widths = (1, hidden, hidden, 1)
  x = (np.arange(points) + 0.5) / points
  f = np.pi**2 * (np.sin(np.pi * x) + 4 * np.sin(4 * np.pi * x))

  def draw(seed):
    rng = np.random.default_rng(seed)
    data = jnp.asarray(x), jnp.asarray(f)
    return jnp.asarray(mlp_init(rng, widths)), data

  def loss(flat, data):
    x, f = data
    u = lambda x: mlp(flat, widths, x[:, None])[:, 0]
    one = jnp.ones_like(x)
    slope = lambda x: jax.jvp(u, (x,), (one,))[1]
    residual = jax.jvp(slope, (x,), (one,))[1] + f
    ends = u(jnp.asarray([0.0, 1.0], x.dtype))
    inside = (residual**2).mean() / (f**2).mean()
    return inside + boundary_weight * (ends**2).sum()

  return Problem(
    name,
    "-u'' = f on (0, 1), u(0) = u(1) = 0, by a network "
    f"{'-'.join(map(str, widths))} with tanh, {mlp_size(widths)} parameters, "
    f"{points} points, {_precision(float64)}",
    *(budget, float64, draw, loss),
  )


def _minimum(loss, data, size) -> float:
  """The least value of a convex loss, by Newton's method in float64."""
  value, slope, bend = (
    jax.jit(fn) for fn in (loss, jax.grad(loss), jax.hessian(loss))
  )
  found = scipy.optimize.minimize(
    lambda w: float(value(w, data)),
    np.zeros(size),
    jac=lambda w: np.asarray(slope(w, data)),
    hess=lambda w: np.asarray(bend(w, data)),
    method="trust-exact",
    options={"gtol": 1e-12, "maxiter": 500, "max_trust_radius": 1e6},
  )
  w = found.x
  for _ in range(5):  # to the last digit
    w = w - np.linalg.solve(bend(w, data), slope(w, data))
  return float(value(w, data))


def _precision(float64: bool) -> str:
  return "float64" if float64 else "float32"


PROBLEMS: dict[str, Callable[..., Any]] = {
  "classifier": classifier,
  "logistic": logistic,
  "autoencoder": autoencoder,
  "poisson": poisson,
  # The same in double precision, and from where Newton's step is safe.
  "logistic_float64": functools.partial(
    logistic, budget=1000, float64=True, name="logistic_float64"
  ),
  "logistic_from_zero": functools.partial(
    logistic, start=0.0, name="logistic_from_zero"
  ),
  "poisson_float64": functools.partial(
    poisson, float64=True, name="poisson_float64"
  ),
}
