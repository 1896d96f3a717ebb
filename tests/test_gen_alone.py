"""Fits that stand alone: no memory in the base, no noise, one fit a step.

On a quadratic with Hessian H the line's own optimum is <g, -u> / <u, H u>, for
gradient descent Cauchy's step, which is computed here without a loss.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import gen_state, run

import gen_optax

pytestmark = pytest.mark.usefixtures("x64")

HESSIAN = np.array([1.0, 3.0, 10.0, 30.0])
START = np.array([4.0, -3.0, 2.0, 1.0])
DENSE, STEPS = 20, 40
# After steps in which the averages come near the lines they now bound.
LATE = DENSE + 10

WITHOUT_MEMORY = {
  "sgd": lambda: optax.sgd(1.0),
  "rmsprop": lambda: optax.rmsprop(1.0),
  "adagrad": lambda: optax.adagrad(1.0),
  "sign": lambda: optax.sign_sgd(1.0),
  "clipped": lambda: optax.chain(optax.clip(0.1), optax.sgd(1.0)),
  "slightly decaying": lambda: optax.chain(
    optax.add_decayed_weights(1e-6), optax.sgd(1.0)
  ),
}
WITH_MEMORY = {
  "momentum": lambda: optax.sgd(1.0, momentum=0.9),
  "nesterov": lambda: optax.sgd(1.0, momentum=0.9, nesterov=True),
  "adam": lambda: optax.adam(1.0),
  "lion": lambda: optax.lion(1.0),
}


def quadratic(w, t=0):
  """A loss without noise."""
  del t
  return jnp.sum(HESSIAN * w**2) / 2


def noisy(w, t):
  """The same in the mean of two steps, but each sees its own minimum."""
  return quadratic(w - jnp.where(t % 2 == 0, 1.0, -1.0))


@functools.cache
def steps_of(base, loss=quadratic, **options):
  """The state at the end, and how far short of its line's minimum each step is.

  <g, -m> / <m, H m> is 1 for a move m that ends there, 2 for one half as long.
  """
  make = (WITHOUT_MEMORY | WITH_MEMORY)[base]
  tx = optax.chain(make(), gen_optax.scale_by_gen(0.1, **options))
  found = jax.jit(lambda start: run(tx, loss, start, STEPS))(START)
  points = np.concatenate([START[None], found.params])
  move = np.diff(points, axis=0)
  grad = np.array([jax.grad(loss)(w, t) for t, w in enumerate(points[:-1])])
  short = -np.sum(grad * move, 1) / np.sum(HESSIAN * move**2, 1)
  return gen_state(found.state), short


@pytest.mark.parametrize("base", WITHOUT_MEMORY)
def test_without_memory_a_step_ends_at_its_line_s_minimum(base):
  state, short = steps_of(base)
  assert state.memory.momentum_free
  np.testing.assert_allclose(short[LATE:], 1.0, rtol=1e-6)
  assert np.median(np.abs(short[1:DENSE] - 1)) > 0.1


@pytest.mark.parametrize("base", WITH_MEMORY)
def test_momentum_shows_in_the_dense_start(base):
  state, short = steps_of(base)
  assert not state.memory.momentum_free
  assert np.median(np.abs(short[LATE:] - 1)) > 0.1


@pytest.mark.parametrize(
  "options",
  [dict(every=2), dict(fresh_slope=False), dict(dense_start=STEPS)],
  ids=str,
)
def test_what_else_averages(options):
  """A fit that serves several steps, or one whose noise nothing tells."""
  _, short = steps_of("sgd", **options)
  assert np.min(np.abs(short[LATE:] - 1)) > 0.1


def test_noise_is_averaged():
  state, short = steps_of("sgd", noisy)
  assert state.memory.momentum_free
  assert np.min(np.abs(short[LATE:] - 1)) > 0.1
