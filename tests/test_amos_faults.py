"""AMOS on bad numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import assert_finite

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
      assert_finite(history, bad)
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
      assert_finite(history)
      _, updates, state = history[0]
      assert state.info.rejected and not state.info.refreshed
      assert not state.info.skipped and optax.tree.norm(updates) > 1e-3
      if first:
        assert_same(state.drift, sound[3][2].drift)
        assert_same(state.choice, sound[3][2].choice)
      refreshed = [bool(state.info.refreshed) for *_, state in history]
      assert refreshed == [False, True, True, False], "made up for at once"


@forms
def test_a_curvature_far_from_usual_is_believed_the_second_time(name):
  sound = run(name, [1.0] * 4)
  carry = (sound[3][0], sound[3][2])
  old = sound[3][2]
  assert (
    old.size.usual > 0 and not old.size.flagged and old.drift.mean.weight > 0
  )
  for far in (1e9, 1e-9):
    once = run(name, [1.0] * 3, [far, 1.0, 1.0], carry)
    (*_, refused), (*_, after) = once[:2]
    assert refused.info.rejected and not refused.info.refreshed
    assert refused.pending and refused.size.flagged
    assert refused.size.usual == old.size.usual
    assert_same(refused.drift, old.drift)
    assert_same(refused.choice, old.choice)
    assert after.info.refreshed and not after.info.rejected
    assert not after.pending and not after.size.flagged
    assert after.drift.mean.weight > old.drift.mean.weight
    twice = run(name, [1.0] * 4, [far] * 4, carry)
    believed, later = twice[1][2], twice[2][2]
    assert believed.info.refreshed and not believed.size.flagged
    diagonal = optax.tree.norm(believed.drift.curvature)
    assert 0.1 < diagonal / (far * optax.tree.norm(old.drift.curvature)) < 1
    # L of the other scale is worthless, and starts anew.
    assert believed.drift.mean.weight == 0 and believed.info.fractions[1] == 1
    assert optax.tree.norm(believed.drift.mean.sum) == 0
    assert later.info.refreshed
    np.testing.assert_allclose(later.drift.mean.weight, 0.1, rtol=1e-5)
  # A loss that is a thousand times steeper is an ordinary change.
  steep = run(name, [1.0], [1e3], carry)
  assert steep[0][2].info.refreshed


@forms
def test_a_bad_curvature_says_nothing_of_the_next(name):
  """One that is not finite is no first doubt of one that is far."""
  sound = run(name, [1.0] * 4)
  carry = (sound[3][0], sound[3][2])
  history = run(name, [1.0] * 3, [jnp.nan, 1e9, 1.0], carry)
  rejected = [bool(state.info.rejected) for *_, state in history]
  assert rejected == [True, True, False]
  assert_same(history[1][2].drift, sound[3][2].drift)


def test_a_curvature_that_is_bad_at_the_old_point_alone_is_refused():
  tx = gen_optax.amos_router(
    [optax.sgd(0.1), optax.sgd(0.1)],
    curvature=lambda at: jnp.full_like(at.params, at.value_fn(at.params)),
    threshold=1.0,
    every=1,
  )
  w = jnp.ones(2)
  _, state = tx.update(w, tx.init(w), w, value_fn=lambda p: p[0] ** 2)
  bad_at_one = lambda p: jnp.where(p[0] == 1, jnp.inf, p[0] ** 2)
  _, after = tx.update(w, state, 0.9 * w, value_fn=bad_at_one)
  assert after.info.rejected and after.pending and not after.size.flagged
  assert_same((after.drift, after.size), (state.drift, state.size))


@forms
def test_a_faulty_first_curvature_is_outvoted(name):
  for far in (1e12, 1e-12):
    history = run(name, [1.0] * 5, [far, *[1.0] * 4])
    refreshed = [bool(state.info.refreshed) for *_, state in history]
    assert refreshed == [True, False, False, True, True]
    last = history[-1][2]
    assert 1 < last.size.usual < 100 and last.drift.mean.weight > 0


@forms
def test_absurd_gradients_leave_what_the_router_knows(name):
  for factor in (1e20, -1e30, 1e-20, 0.0):
    for *_, state in run(name, [1.0, 1.0, 1.0, factor]):
      assert_finite(state)
  # The optimizers' own memory is guarded by a wrapper.
  pair = [optax.adam(0.01), amos.sophia(0.01)]
  tx = gen_optax.skip_implausible(gen_optax.amos_router(pair, **FORMS[name]))
  update = jax.jit(functools.partial(tx.update, value_fn=loss_fn))
  state = tx.init(START)
  gradient = jax.grad(loss_fn)(START)
  for factor in (1.0, 1e30, 1.0):
    updates, state = update(optax.tree.scale(factor, gradient), state, START)
    assert_finite((updates, state))
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
    assert_finite(state)
    assert state.info.refreshed
