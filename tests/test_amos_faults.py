"""AMOS on bad numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gen_optax
from gen_optax import amos

START = {"a": jnp.linspace(0.5, 1.5, 6).reshape(2, 3), "b": jnp.ones(2)}
FORMS = {
  "run_all": {},
  "frozen": dict(states="frozen"),
}
forms = pytest.mark.parametrize("name", FORMS)


def loss_fn(params, scale=1.0):
  a, b = params["a"], params["b"]
  return scale * (jnp.sum(a**4) + jnp.sum(b**2))


def finite(tree):
  return all(
    bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree)
  )


@functools.cache
def stage(name):
  """A router and its compiled step; `scale` multiplies the loss."""
  pair = [optax.sgd(0.01, momentum=0.9), amos.sophia(0.01)]
  tx = gen_optax.amos_router(pair, every=2, threshold=3.0, **FORMS[name])

  @jax.jit
  def step(params, state, factor, scale):
    value_fn = lambda p: loss_fn(p, scale)
    gradient = jax.tree.map(lambda g: factor * g, jax.grad(loss_fn)(params))
    updates, state = tx.update(gradient, state, params, value_fn=value_fn)
    return optax.apply_updates(params, updates), updates, state

  return tx, step


def run(name, factors, scales=None, carry=None):
  """What each step leaves, from the true gradient times each factor."""
  tx, step = stage(name)
  params, state = carry or (START, tx.init(START))
  history = []
  for factor, scale in zip(
    factors, scales or [1.0] * len(factors), strict=True
  ):
    params, updates, state = step(params, state, factor, scale)
    history.append((params, updates, state))
  return history


def assert_same(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


@forms
def test_bad_gradients_are_withheld_and_forgotten(name):
  for bad in (jnp.nan, jnp.inf, -jnp.inf):
    for first in ([], [1.0, 1.0], [1.0, 1.0, 1.0]):
      history = run(name, [*first, bad, 1.0, 1.0, 1.0])
      assert finite(history), bad
      _, updates, state = history[len(first)]
      assert state.info.skipped and optax.tree.norm(updates) == 0
      if first:
        before = history[len(first) - 1][2]
        assert_same(state.optimizers, before.optimizers)
        assert_same(state.drift, before.drift)
      # A Hessian time that was missed is made up for at the next call.
      missed = len(first) % 2 == 0
      assert state.info.rejected == missed
      assert history[len(first) + 1][2].info.refreshed
      _, updates, state = history[-1]
      assert not state.info.skipped and optax.tree.norm(updates) > 1e-3


@forms
def test_a_bad_curvature_leaves_average_and_routing(name):
  """The closure turns bad at a Hessian time while the gradient is sound."""
  sound = run(name, [1.0] * 4)
  for bad in (jnp.nan, jnp.inf):
    for first in (0, 4):
      carry = (sound[3][0], sound[3][2]) if first else None
      history = run(name, [1.0] * 4, [bad, 1.0, 1.0, 1.0], carry)
      assert finite(history)
      _, updates, state = history[0]
      assert state.info.rejected and not state.info.refreshed
      assert not state.info.skipped and optax.tree.norm(updates) > 1e-3
      if first:
        assert_same(state.drift, sound[3][2].drift)
        assert_same(state.choice, sound[3][2].choice)
      refreshed = [bool(state.info.refreshed) for *_, state in history]
      assert refreshed == [False, True, True, False], "made up for at once"


@forms
def test_an_absurd_curvature_is_believed_the_second_time(name):
  sound = run(name, [1.0] * 4)
  carry = (sound[3][0], sound[3][2])
  once = run(name, [1.0] * 3, [1e9, 1.0, 1.0], carry)
  assert once[0][2].info.rejected and not once[0][2].info.refreshed
  assert_same(once[0][2].drift, sound[3][2].drift)
  assert once[1][2].info.refreshed and not once[1][2].info.rejected
  twice = run(name, [1.0] * 3, [1e9, 1e9, 1.0], carry)
  assert twice[1][2].info.refreshed
  assert optax.tree.norm(twice[1][2].drift.curvature) > 1e8
  # A steeper loss is none: a thousand times.
  steep = run(name, [1.0], [1e3], carry)
  assert steep[0][2].info.refreshed


@forms
def test_absurd_gradients_leave_what_the_router_knows(name):
  for factor in (1e20, -1e30, 1e-20, 0.0):
    for *_, state in run(name, [1.0, 1.0, 1.0, factor]):
      assert finite(state)
  # The optimizers' own memory is guarded by a wrapper.
  pair = [optax.adam(0.01), amos.sophia(0.01)]
  tx = gen_optax.skip_implausible(gen_optax.amos_router(pair, **FORMS[name]))
  update = jax.jit(functools.partial(tx.update, value_fn=loss_fn))
  state = tx.init(START)
  gradient = jax.grad(loss_fn)(START)
  for factor in (1.0, 1e30, 1.0):
    updates, state = update(optax.tree.scale(factor, gradient), state, START)
    assert finite((updates, state))
  assert 1e-3 < optax.tree.norm(updates) < 1


def test_where_nothing_moves_there_is_no_observation():
  """Steps of zero: a secant over no distance says nothing."""
  pair = [optax.sgd(0.0), optax.sgd(0.0)]
  tx = gen_optax.amos_router(pair, every=1, eps=1e-3, threshold=0.0)
  update = jax.jit(functools.partial(tx.update, value_fn=loss_fn))
  state = tx.init(START)
  for _ in range(3):
    _, state = update(jax.grad(loss_fn)(START), state, START)
    assert state.drift.mean.weight == 0 and state.info.fractions[1] == 1
    assert finite(state) and state.info.refreshed
