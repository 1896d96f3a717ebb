"""ScheduleFree+, from its formula: Schedule-Free Adam with Polyak's step.

Three sequences, of which the gradient is taken at y and evaluated is x:

    y = (1 - beta) z + beta x
    e <- EMA of sqrt(pi / 2) |g|_1
    alpha = max(0, f(y) + beta <g, z - x>) / e
    z <- z - alpha mhat / sqrt(vhat)
    w = t^r max_s alpha_s^2,  c = w / sum of w
    x <- (1 - c) x + c z

The numerator is the loss that the linear model at y has at z, over a least loss
that is taken for 0; |g|_1 sqrt(pi / 2) stands for <g, ghat> / sigma of normal
numbers. beta rises from 0.9 to 0.965 over the run.

Defazio, arXiv 2605.19095, 2026. What the formula leaves open is an argument:
Adam's constants, the decay of e, and r. A factor on alpha and a warm-up, as
Schedule-Free has them, are there so that a search can find a setting that does
not jump: the first step alone takes four fifths of the loss from its linear
model, and runs diverge by it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

BETA_START, BETA_END = 0.9, 0.965


class ScheduleFreePlusState(NamedTuple):
  count: jax.Array
  z: Any
  x: Any
  mu: Any
  nu: Any
  scale: jax.Array  # e, not debiased
  largest: jax.Array  # of alpha
  weights: jax.Array  # their sum


def schedule_free_plus(
  steps,
  *,
  b1=0.9,
  b2=0.999,
  scale_decay=0.99,
  power=0.0,
  eps=1e-8,
  factor=1.0,
  warm_up=0.0,
) -> optax.GradientTransformationExtraArgs:
  """Parameters are y; `evaluate_at` gives x.

  Args:
    steps: length of the run, over which beta rises.
    b1, b2, eps: Adam's; the moments are those of the gradients at y.
    scale_decay: of the average of gradient norms.
    power: r.
    factor, warm_up: on alpha, and the share of the run that it rises over.
  """

  def beta_at(count):
    share = jnp.clip(count / steps, 0.0, 1.0)
    return BETA_START + share * (BETA_END - BETA_START)

  def init_fn(params):
    zeros = optax.tree.zeros_like(params)
    copy = jax.tree.map(jnp.array, params)
    zero = jnp.zeros((), jnp.result_type(float))
    return ScheduleFreePlusState(
      jnp.int32(0), copy, params, zeros, zeros, zero, zero, zero
    )

  def update_fn(grads, state, params=None, *, value, **extra_args):
    del extra_args
    t = state.count + 1
    time = t.astype(jnp.result_type(float))
    debias = lambda decay: 1 - decay**time
    norm = math.sqrt(math.pi / 2) * optax.tree.norm(grads, ord=1)
    scale = scale_decay * state.scale + (1 - scale_decay) * norm
    apart = optax.tree.vdot(grads, optax.tree.sub(state.z, state.x))
    model = value + beta_at(state.count) * apart
    alpha = jnp.maximum(model, 0.0) / (scale / debias(scale_decay) + eps)
    alpha = alpha * factor * jnp.minimum(time / (warm_up * steps + 1), 1.0)

    ema = lambda decay, old, new: decay * old + (1 - decay) * new
    mu = jax.tree.map(lambda m, g: ema(b1, m, g), state.mu, grads)
    nu = jax.tree.map(lambda v, g: ema(b2, v, g**2), state.nu, grads)

    def moved(z, m, v):
      root = jnp.sqrt(v / debias(b2)) + eps
      return z - alpha * m / debias(b1) / root

    z = jax.tree.map(moved, state.z, mu, nu)
    largest = jnp.maximum(state.largest, alpha)
    weight = time**power * largest**2
    weights = state.weights + weight
    c = jnp.where(weights > 0, weight / jnp.where(weights > 0, weights, 1), 0)
    x = jax.tree.map(lambda x, z: x + c * (z - x), state.x, z)
    beta = beta_at(t)
    y = jax.tree.map(lambda z, x: z + beta * (x - z), z, x)
    state = ScheduleFreePlusState(t, z, x, mu, nu, scale, largest, weights)
    return optax.tree.sub(y, params), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def evaluate_at(state, params):
  del params
  return optax.tree.get(state, "ScheduleFreePlusState").x
