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


def changed(change):
  """A stage: `change` of the gradients' leaves, and of all else by name."""

  def update(updates, state, params=None, **extra_args):
    leaves, treedef = jax.tree.flatten(updates)
    new = change(leaves, params=jax.tree.leaves(params), **extra_args)
    return treedef.unflatten(new), state

  init = lambda params: optax.EmptyState()
  return optax.GradientTransformationExtraArgs(init, update)


def scaled(scale):
  """All leaves times a number that `scale` makes of them and all else."""

  def change(leaves, **rest):
    factor = scale(leaves, **rest)
    return [g * factor for g in leaves]

  return changed(change)


def delayed(calls):
  """All leaves times a norm of so many calls ago."""

  def update(updates, state, params=None):
    del params
    new = jax.tree.map(lambda g: g * state[0], updates)
    return new, (*state[1:], optax.tree.norm(updates))

  init = lambda params: (jnp.ones(()),) * calls
  return optax.GradientTransformation(init, update)


def began():
  """All leaves times a norm of the first parameters."""
  update = lambda updates, norm, params=None: (
    jax.tree.map(lambda g: g * norm, updates),
    norm,
  )
  return optax.GradientTransformation(optax.tree.norm, update)


def trips(leaves, **_):
  """As many halvings as the last leaf needs."""
  size = jnp.max(jnp.abs(leaves[-1]))
  loop = lambda carry: (carry[0] / 2, carry[1] + 1)
  return jax.lax.while_loop(lambda c: c[0] > 1, loop, (size, 0))[1]


def halved(leaves, **_):
  """Each leaf by a loop and a branch of its own."""
  halve = lambda g: jax.lax.while_loop(
    lambda x: jnp.max(jnp.abs(x)) > 1, lambda x: x / 2, g
  )
  big = lambda g: jnp.max(g) > 1
  return [jax.lax.cond(big(g), halve, lambda x: -x, g) for g in leaves]


COUPLING = {
  "global clipping": lambda: optax.chain(
    optax.clip_by_global_norm(1e9), optax.sgd(0.1)
  ),
  "clipped state": lambda: optax.chain(
    optax.trace(0.9), optax.clip_by_global_norm(1.0)
  ),
  "finite gradients": lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
  "implausible": lambda: gen_optax.skip_implausible(optax.sgd(0.1)),
  "psgd": lambda: gen_optax.scale_by_psgd(
    gen_optax.psgd.diagonal(), pairs="whitening"
  ),
  "dog": lambda: optax.contrib.dog(),
  "a rare clipping": lambda: optax.clip_by_global_norm(1e30),
  "a sign": lambda: scaled(lambda g, **_: jnp.where(g[-1][0, 0] < 0, 1, 2)),
  "a count": lambda: scaled(lambda g, **_: jnp.argmax(g[-1])),
  "a branch": lambda: scaled(
    lambda g, **_: jax.lax.cond(jnp.any(g[-1] > 9), lambda: 1.0, lambda: 2.0)
  ),
  "trips of a loop": lambda: scaled(trips),
  "no derivative": lambda: scaled(
    lambda g, **_: jax.lax.stop_gradient(jnp.round(g[-1][0, 0]))
  ),
  "parameters": lambda: scaled(lambda g, params, **_: optax.tree.norm(params)),
  "the diagonal": lambda: scaled(
    lambda g, hessian_diagonal, **_: jnp.max(hessian_diagonal[-1])
  ),
  "the gradient by its name": lambda: scaled(
    lambda g, grad, **_: optax.tree.norm(grad)
  ),
  "an old gradient": lambda: delayed(6),
  "where it began": lambda: began(),
  "the first leaf alone": lambda: changed(
    lambda g, **_: [g[0] + jnp.sum(g[-1]), *g[1:]]
  ),
  "the last leaf alone": lambda: changed(
    lambda g, **_: [*g[:-1], g[-1] + jnp.sum(g[0])]
  ),
}
READING = {
  "GeN": lambda: optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen()),
  "GeN of sgd": lambda: gen_optax.gen_sgd(),
  "Sophia's own": lambda: optax.contrib.sophia(0.1),
  "labels": lambda: optax.partition(
    {"x": optax.sgd(0.1)}, {"a": "x", "b": "x"}
  ),
}
APART = {
  "sgd": lambda: optax.sgd(0.1, momentum=0.9),
  "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 10)),
  "sophia": lambda: amos.sophia(0.1),
  "lion": lambda: optax.lion(0.1),
  "block clipping": lambda: optax.chain(
    optax.clip_by_block_rms(1.0), optax.adafactor(0.1)
  ),
  "masked by a function": lambda: optax.adamw(
    0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
  ),
  "muon": lambda: optax.contrib.muon(0.1),
  "injected": lambda: optax.inject_hyperparams(optax.adam)(0.1),
  "several steps": lambda: optax.MultiSteps(optax.sgd(0.1), 2),
  "loops and branches": lambda: changed(halved),
  "a norm for each": lambda: changed(
    lambda g, **_: [x / jnp.linalg.norm(x) for x in g]
  ),
  "the diagonal of each": lambda: changed(
    lambda g, hessian_diagonal, **_: [
      x / h for x, h in zip(g, hessian_diagonal, strict=True)
    ]
  ),
  "the loss": lambda: scaled(lambda g, value, **_: value),
}


@pytest.mark.parametrize("name", COUPLING)
def test_frozen_refuses_what_couples_leaves(name):
  with pytest.raises(ValueError, match=r"optimizers\[0\] couples leaves"):
    gen_optax.amos_router([COUPLING[name](), optax.sgd(0.1)], states="frozen")


@pytest.mark.parametrize("name", READING)
def test_frozen_refuses_what_needs_the_whole_tree(name):
  with pytest.raises(ValueError, match=r"optimizers\[1\] fails on a leaf"):
    gen_optax.amos_router([optax.sgd(0.1), READING[name]()], states="frozen")


@pytest.mark.parametrize("name", APART)
def test_frozen_takes_what_treats_leaves_apart(name):
  tx = APART[name]()
  if isinstance(tx, optax.MultiSteps):
    tx = tx.gradient_transformation()
  gen_optax.amos_router([optax.sgd(0.1), tx], states="frozen")


@pytest.mark.parametrize("name", ["an old gradient", "trips of a loop"])
def test_frozen_looks_as_far_where_nothing_is_compiled(name):
  with jax.disable_jit(), pytest.raises(ValueError, match="couples leaves"):
    gen_optax.amos_router([COUPLING[name](), optax.sgd(0.1)], states="frozen")


def test_optimizers_of_traced_rates_are_judged():
  def build(rate):
    pair = [optax.sgd(0.1), optax.adaptive_grad_clip(rate)]
    gen_optax.amos_router(pair, states="frozen")
    pair[1] = optax.clip_by_global_norm(rate)
    with pytest.raises(ValueError, match=r"optimizers\[1\] couples leaves"):
      gen_optax.amos_router(pair, states="frozen")
    return rate

  jax.jit(build)(0.1)
  jax.vmap(build)(jnp.ones(2))


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
