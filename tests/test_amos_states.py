"""Who updates what: running and frozen states, and what they refuse."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running

import gen_optax
from gen_optax import amos

START = {"a": jnp.linspace(0.5, 1.5, 6).reshape(2, 3), "b": jnp.ones(3)}


def loss_fn(params):
  """The curvature of `a` changes, that of `b` does not."""
  a, b = params["a"], params["b"]
  return jnp.sum(a**4) / 4 + jnp.sum(b**2) + a[0, 0] * b[0]


def run(tx, steps=8, params=START):
  return running.train(tx, loss_fn, params, steps)


@pytest.mark.parametrize(
  "states, granularity, make",
  [
    ("run_all", "tensor_mean", lambda: optax.adamw(0.05)),
    ("run_all", "element", lambda: optax.sgd(0.05, momentum=0.9)),
    ("frozen", "tensor_mean", lambda: optax.sgd(0.05)),
    ("frozen", {"a": 0, "b": 1}, lambda: optax.sgd(0.05)),
  ],
)
def test_equal_optimizers_are_that_optimizer_exactly(states, granularity, make):
  tx = gen_optax.amos_router(
    [make(), make(), make()],
    granularity=granularity,
    threshold=(0.5, 2.0),
    every=2,
    states=states,
  )
  # One operation at a time: what is compiled together rounds otherwise.
  with jax.disable_jit():
    _, params, state = run(tx)
    _, alone, _ = run(make())
  assert 0 < state.info.fractions[2] < 1, "routed to more than one"
  jax.tree.map(np.testing.assert_array_equal, params, alone)


class CountState(NamedTuple):
  calls: jax.Array
  seen: Any


def remembering(rate):
  """SGD whose state holds the calls and the sum of the gradients it saw."""

  def update(updates, state, params=None):
    del params
    moves = jax.tree.map(lambda g: -rate * g, updates)
    return moves, CountState(
      state.calls + 1, jax.tree.map(jnp.add, state.seen, updates)
    )

  init = lambda params: CountState(
    jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params)
  )
  return optax.GradientTransformation(init, update)


def test_states_run_or_freeze():
  """`a` goes to the first at the second Hessian time, the third call."""
  pair = [remembering(0.01), remembering(0.02)]
  common = dict(threshold=0.5, every=2)
  run_all = run(gen_optax.amos_router(pair, **common), 7)[2]
  for i in range(2):
    assert run_all.optimizers[i].calls == 7
  frozen = run(gen_optax.amos_router(pair, states="frozen", **common), 7)[2]
  # A state for each leaf, `a` and then `b`.
  first, second = frozen.optimizers
  assert [int(state.calls) for state in first] == [5, 0]
  assert [int(state.calls) for state in second] == [2, 7]
  np.testing.assert_array_equal(first[1].seen, 0)
  # Both walk the same way: what a leaf's owner does does not depend on it.
  np.testing.assert_allclose(
    first[0].seen + second[0].seen,
    run_all.optimizers[0].seen["a"],
    rtol=1e-5,
  )


def counted(tx, counts, name):
  """`tx` that counts, when it runs, the arrays that it is given."""

  def update(updates, state, params=None, **extra_args):
    def add(*_):
      counts[name] = counts.get(name, 0) + 1

    for leaf in jax.tree.leaves(updates):
      jax.debug.callback(add, leaf.ravel()[0])
    return tx.update(updates, state, params, **extra_args)

  tx = optax.with_extra_args_support(tx)
  return optax.GradientTransformationExtraArgs(tx.init, update)


@pytest.mark.parametrize("replicas", [None, 3])
def test_frozen_optimizers_do_nothing_for_leaves_that_they_do_not_own(replicas):
  counts = {}
  tx = gen_optax.amos_router(
    [
      counted(optax.adam(0.01), counts, 0),
      counted(optax.adam(0.01), counts, 1),
    ],
    threshold=0.5,
    every=2,
    states="frozen",
  )
  start = START
  train = lambda params: run(tx, 7, params)[1]
  if replicas:
    start = jax.tree.map(lambda p: jnp.stack([p] * replicas), START)
    train = jax.vmap(train)
  jax.block_until_ready(train(start))
  jax.effects_barrier()
  assert counts == {0: 5 * (replicas or 1), 1: 9 * (replicas or 1)}


def test_a_dict_keeps_its_order_and_names():
  pair = {"z": optax.sgd(0.0), "a": optax.sgd(0.01)}
  tx = gen_optax.amos_router(pair, curvature=exact, threshold=0.0, every=1)
  _, params, state = run(tx, 4)
  # All of `a` changes, and nothing of `b`: 0 is not above 0.
  np.testing.assert_array_equal(state.info.leaf_fractions, [[1, 0], [0, 1]])
  _, before, _ = run(tx, 1)
  np.testing.assert_array_equal(params["a"], before["a"])
  assert jnp.all(params["b"] < before["b"])
  with pytest.raises(ValueError, match=r"optimizers\['a'\] couples leaves"):
    pair["a"] = optax.clip_by_global_norm(1.0)
    gen_optax.amos_router(pair, states="frozen")


def test_optimizers_of_traced_rates_may_be_frozen():
  def final(rate):
    pair = [optax.sgd(rate), optax.adam(rate)]
    tx = gen_optax.amos_router(pair, threshold=0.5, states="frozen", every=1)
    return run(tx, 3)[1]["b"]

  assert jnp.any(jax.jit(final)(0.1) != START["b"])


def test_frozen_with_what_it_cannot_serve():
  pair = [optax.sgd(0.1), optax.sgd(0.1)]
  for granularity in ("element", ("chunk", 4)):
    with pytest.raises(ValueError, match="frozen.*whole leaves"):
      gen_optax.amos_router(pair, states="frozen", granularity=granularity)
  with pytest.raises(ValueError, match="frozen.*'nu'"):
    gen_optax.amos_router(pair, states="frozen", curvature=("state", "nu"))


# --- Sophia -----------------------------------------------------------------


def exact_diagonal(params):
  return {"a": 3 * params["a"] ** 2, "b": 2 * jnp.ones(3)}


def exact(point):
  return exact_diagonal(point.params)


@pytest.mark.parametrize("states", ["run_all", "frozen"])
def test_sophia_gets_the_routers_diagonal(states):
  """Sophia behind the router is optax's own with the same diagonal."""

  def diagonal_fn(updates, state, params=None, **extra_args):
    return exact_diagonal(params), state

  options = dict(gamma=0.5, weight_decay=0.1, update_interval=3)
  own = optax.contrib.sophia(
    0.01,
    hessian_diagonal_fn=optax.GradientTransformation(
      lambda params: optax.EmptyState(), diagonal_fn
    ),
    **options,
  )
  tx = gen_optax.amos_router(
    [optax.sgd(0.1), amos.sophia(0.01, **options)],
    curvature=exact,
    threshold=1e9,
    every=3,
    states=states,
  )
  _, params, state = run(tx)
  assert state.info.fractions[1] == 1
  _, alone, _ = run(own)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), params, alone
  )


@pytest.mark.parametrize("size", [1e20, -1e20, 3.0])
def test_a_diagonal_beyond_a_narrow_float_stays_finite(size):
  """A float16 of optax's Sophia would average infinities for good."""
  params = {"w": jnp.ones(3, jnp.float16)}
  diagonal = {"w": jnp.full(3, size, jnp.float32)}
  tx = amos.given_diagonal()
  given, _ = tx.update(
    params, tx.init(params), params, hessian_diagonal=diagonal
  )
  assert given["w"].dtype == jnp.float16
  np.testing.assert_array_equal(given["w"], np.clip(size, -65504, 65504))


def test_sophia_alone_says_what_it_lacks():
  tx = amos.sophia(0.1)
  with pytest.raises(ValueError, match="hessian_diagonal.*amos_router"):
    jax.eval_shape(lambda: tx.update(START, tx.init(START), START))


def test_sophias_own_estimate_as_curvature():
  """A field, and optax's Sophia with a product of its own."""
  own = gen_optax.rename_extra_args(
    optax.contrib.sophia(0.01, update_interval=1), obj_fn="value_fn"
  )
  tx = gen_optax.amos_router(
    [optax.sgd(0.01), own],
    curvature=("state", "nu"),
    threshold=("quantile", 0.3),
    every=2,
  )
  _, _, state = run(tx, 5)
  assert 0 < state.info.fractions[0] < 1
  with pytest.raises(ValueError, match="hessian_diagonal"):
    pair = [optax.sgd(0.01), amos.sophia(0.1)]
    tx = gen_optax.amos_router(pair, curvature=("state", "nu"))
    jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), START)
  with pytest.raises(ValueError, match="'mean'.*found 0"):
    tx = gen_optax.amos_router([own, own], curvature=("state", "mean"))
    jax.eval_shape(
      lambda p: tx.update(p, tx.init(p), p, value_fn=loss_fn), START
    )
