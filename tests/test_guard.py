"""`skip_implausible`: which gradients are refused, and when it starts anew."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gen_optax

GRADIENT = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}


def run(factors, inner=None):
  """The updates and states after multiples of one gradient, of norm 5."""
  tx = gen_optax.skip_implausible(inner or optax.trace(0.5))
  update, params = jax.jit(tx.update), optax.tree.zeros_like(GRADIENT)
  state, history = tx.init(params), []
  for factor in factors:
    updates, state = update(optax.tree.scale(factor, GRADIENT), state, params)
    history.append((updates, state))
  return history


@pytest.mark.parametrize(
  "factors, refused",
  [
    ([1, 19, 1], "..."),
    ([1, 21, 1], ".x."),
    ([1, 21, 21, 1], ".x.."),  # as a batch that comes again
    ([1, 1, 1e-5, 1], "...."),
    ([1, 1, 1e-7, 1], "..x."),
    ([1, 1, 1e-7, 1e-7, 1e-7], "..x.."),
    ([1e9, 1, 1, 1], ".x.."),
    ([1e-9, 1, 1, 1], ".x.."),
    ([1e-9, 0, 1, 1, 1], "..x.."),  # of no length, and tells nothing
    ([np.nan, 1e-9, 1, 1], "x.x."),
    ([1e-9, np.inf, 1, 1], ".xx."),  # what is not finite tells nothing
    ([1, 1e9, 1e9, 1, 1], ".x.x."),  # the first is alone: two outvote it
    ([1, 1, 1e9, 1e9, 1e9], "..xxx"),
    ([1e-4, 1, 1, 1], ".xxx"),  # no fault: a size that grows
  ],
)
def test_which_gradients_are_refused(factors, refused):
  history = run(factors)
  said = "".join("x" if state.refused else "." for _, state in history)
  assert said == refused
  assert history[-1][1].total_refused == said.count("x")
  for (updates, _), x in zip(history, said, strict=True):
    if x == "x":
      assert optax.tree.norm(updates) == 0


@pytest.mark.parametrize("first", [1e-9, 1e9])
def test_a_restart_remembers_nothing(first):
  inner = optax.adam(0.1)
  restarted, fresh = run([first, 1, 1, 1], inner), run([1, 1], inner)
  for (updates, state), (expected, alone) in zip(
    restarted[2:], fresh, strict=True
  ):
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    jax.tree.map(
      np.testing.assert_array_equal, state.inner_state, alone.inner_state
    )
    assert state.size == alone.size


def test_a_refused_gradient_leaves_the_optimizer_as_it_was():
  """Also one whose squares overflow, after a first doubt."""
  history = run([1, 1e3, 1e30, np.nan], optax.adam(0.1))
  first = history[0][1].inner_state
  for _, state in history[1:]:
    assert state.refused
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, first)


def test_a_length_that_stays_is_accepted_after_a_few_steps():
  said = [bool(state.refused) for _, state in run([1] * 5 + [1e3] * 8)]
  assert said[5] and not any(said[10:])
  assert run([1] * 5 + [1e3] * 60)[-1][1].size.usual == pytest.approx(
    25e6, rel=0.05
  )
