"""ELMO behind, inside and around the rest of optax, and on meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running
from network import initial_params, loss_fn

import gen_optax

CHAINS = {
  "dense": gen_optax.elmo_dense,
  "lanczos": functools.partial(gen_optax.elmo_lanczos, top=3, bottom=2),
}
chains = pytest.mark.parametrize("name", CHAINS)


def train(tx, steps=12, params=None, value_fn=loss_fn):
  params = initial_params() if params is None else params
  return running.train(tx, value_fn, params, steps)


def check_training(tx, factor=0.1, **options):
  losses, params, state = train(tx, **options)
  assert jnp.all(jnp.isfinite(losses))
  assert losses[-1] < factor * losses[0], losses
  return losses, params, state


@chains
def test_trains_a_network(name):
  losses, _, _ = check_training(CHAINS[name]())
  # Trials see this batch: the loss never rises.
  assert jnp.all(jnp.diff(losses) <= 1e-6 * losses[0])


def test_a_handed_over_value_saves_an_evaluation_and_nothing_else(x64):
  tx = gen_optax.elmo_dense()
  params = initial_params()
  value, gradient = jax.value_and_grad(loss_fn)(params)
  update = lambda **given: jax.jit(
    lambda: tx.update(
      gradient, tx.init(params), params, value_fn=loss_fn, **given
    )
  )()
  (left, with_value), (right, without) = update(value=value), update()
  # Two programs, rounded in two ways.
  same = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
  jax.tree.map(same, left, right)
  spent = lambda state: int(state[0].info.evaluations)
  assert spent(without) == spent(with_value) + 1


def test_inside_and_around_optax():
  make = gen_optax.elmo_dense
  plain, _, _ = check_training(make(0.5), 0.5)
  injected = optax.inject_hyperparams(make)(0.5, initial_sigma=1.0)
  losses, _, state = train(injected)
  np.testing.assert_allclose(losses, plain, rtol=1e-3)
  assert "learning_rate" in state.hyperparams
  groups = {"x": make(), "y": optax.sgd(0.1)}
  labels = {"w": "x", "b": "y", "v": "x"}
  mixed = gen_optax.with_full_params(optax.partition(groups, labels))
  check_training(mixed, 0.5)
  schedule = optax.cosine_decay_schedule(1.0, 12)
  check_training(optax.apply_if_finite(make(schedule), 3), 0.5)
  optax.tree.map_params(make(), lambda p: p, make().init(initial_params()))


def test_gen_behind_elmo():
  """A rate for a direction that has been tried with 1 already."""
  tx = optax.chain(
    gen_optax.scale_by_elmo(subspace=(3, 2)),
    optax.scale(-1.0),
    gen_optax.scale_by_gen(),
  )
  check_training(tx, steps=24)


def test_multi_steps():
  tx = optax.MultiSteps(gen_optax.elmo_dense(), every_k_schedule=2)
  params = initial_params()

  @jax.jit
  def step(params, state):
    value, gradient = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(gradient, state, params, value_fn=loss_fn)
    return optax.apply_updates(params, updates), state, value

  state, values = tx.init(params), []
  for _ in range(10):
    params, state, value = step(params, state)
    values.append(value)
  assert values[0] == values[1] and values[-1] < 0.2 * values[0]


ODD_TREE = {
  "number": jnp.ones(()),
  "one": [jnp.ones((1,)), jnp.ones((1, 1))],
  "none": None,
  "no entry": (jnp.ones((0,)), jnp.ones((2, 0, 3))),
  "three axes": jnp.ones((2, 3, 2)),
}


@chains
@pytest.mark.parametrize(
  "params",
  [{}, {"a": jnp.ones((0,))}, ODD_TREE, jnp.ones(())],
  ids=["empty", "no entry", "odd", "number"],
)
def test_odd_trees(name, params):
  loss = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p)) + 0.0
  tx = CHAINS[name]()
  state = tx.init(params)
  abstract = jax.eval_shape(tx.init, params)
  update = jax.jit(
    lambda p, state: tx.update(jax.grad(loss)(p), state, p, value_fn=loss)
  )
  for _ in range(2):
    updates, state = update(params, state)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    for leaf in jax.tree.leaves(updates):
      # Sigma 1 shortens Newton's step, -x, a little.
      assert jnp.all((leaf <= 0) & (leaf >= -1))
  same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
  assert jax.tree.all(jax.tree.map(same, abstract, state))


@chains
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_leaves_keep_their_dtype_and_the_state_is_wide(name, dtype):
  params = initial_params(dtype) | {"b": jnp.zeros(12, jnp.float32)}
  tx = CHAINS[name]()

  @jax.jit
  def update(p, state):
    value, gradient = jax.value_and_grad(loss_fn)(p)
    return tx.update(gradient, state, p, value=value, value_fn=loss_fn)

  updates, state = update(params, tx.init(params))
  dtypes = lambda tree: jax.tree.map(lambda x: x.dtype, tree)
  assert dtypes(updates) == dtypes(params)
  for leaf in jax.tree.leaves(state):
    assert leaf.dtype in (jnp.float32, jnp.int32, bool)
  # The value came from narrow parameters: it is computed anew.
  info = state[0].info
  assert info.accepted and info.evaluations == info.rejections + 2
