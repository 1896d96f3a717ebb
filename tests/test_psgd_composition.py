"""PSGD behind, inside and around the rest of optax, and its cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running
from network import initial_params, loss_fn

import gen_optax
from gen_optax import psgd
from gen_optax.psgd import sources

STRUCTURES = {
  "diagonal": psgd.diagonal,
  "xmat": psgd.xmat,
  "butterfly": psgd.butterfly,
  "neighbours": lambda: psgd.blocks(psgd.neighbours(2)),
  "cyclic of five": lambda: psgd.blocks(psgd.cyclic(5)),
  "low rank": lambda: psgd.low_rank(3),
  "dense": psgd.dense,
  "kron": psgd.kron,
  "global xmat": lambda: psgd.xmat("global"),
}
structures = pytest.mark.parametrize("name", STRUCTURES)


def train(tx, steps=40, params=None, value_fn=loss_fn):
  start = initial_params() if params is None else params
  return running.train(tx, value_fn, start, steps)


def check_training(tx, factor=0.5, **options):
  losses, params, state = train(tx, **options)
  assert jnp.all(jnp.isfinite(losses))
  assert losses[-1] < factor * losses[0]
  return losses, params, state


PAIRS = ("hvp", "finite_difference", "whitening")


@pytest.mark.parametrize(
  "name, pairs",
  [("xmat", pairs) for pairs in PAIRS]
  + [(name, PAIRS[i % 3]) for i, name in enumerate(STRUCTURES)],
)
def test_every_structure_trains(name, pairs):
  stage = gen_optax.scale_by_psgd(STRUCTURES[name](), pairs=pairs)
  rate = 0.03 if pairs == "whitening" else 0.3
  _, _, state = check_training(optax.chain(stage, optax.scale(-rate)))
  assert state[0].info.updated and state[0].scaled


@pytest.mark.parametrize("name", ["xmat", "low rank"])
def test_gen_finds_the_rate_of_a_preconditioned_gradient(name):
  pairs = "finite_difference" if name == "xmat" else "hvp"
  tx = optax.chain(
    gen_optax.scale_by_psgd(STRUCTURES[name](), pairs=pairs),
    optax.scale(-1.0),
    gen_optax.scale_by_gen(),
  )
  check_training(tx)


def test_inside_and_around_optax():
  """One of the six; optax's own suite (test_conformance) wraps all."""
  make = gen_optax.psgd_xmat
  plain, params, _ = check_training(make(0.3, momentum=0.5))
  injected = optax.inject_hyperparams(make)
  losses, _, state = train(injected(0.3, momentum=0.5))
  np.testing.assert_allclose(losses, plain, rtol=1e-3)
  assert {"learning_rate", "weight_decay"} <= set(state.hyperparams)
  check_training(optax.apply_if_finite(make(0.3), 3))
  groups = {"x": make(0.3), "y": optax.sgd(0.1)}
  labels = {"w": "x", "b": "y", "v": "x"}
  check_training(gen_optax.with_full_params(optax.partition(groups, labels)))
  decayed = make(
    0.3, weight_decay=1e-2, mask={"w": True, "b": False, "v": True}
  )
  check_training(decayed)
  optax.tree.map_params(make(), lambda p: p, make().init(params))
  check_training(make(optax.cosine_decay_schedule(0.3, 40)))


def test_multi_steps():
  tx = optax.MultiSteps(gen_optax.psgd_lra(0.3), every_k_schedule=2)

  @jax.jit
  def step(params, state):
    value, grad = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grad, state, params, value_fn=loss_fn)
    return optax.apply_updates(params, updates), state, value

  params = initial_params()
  state = tx.init(params)
  values = []
  for _ in range(40):
    params, state, value = step(params, state)
    values.append(value)
  assert values[-1] < 0.9 * values[0]
  assert values[0] == values[1]


@structures
def test_shapes_alone(name):
  tx = gen_optax.scale_by_psgd(STRUCTURES[name](), momentum=0.9)
  params = initial_params()
  abstract = jax.eval_shape(tx.init, params)
  state = tx.init(params)
  update = lambda p, s: tx.update(jax.grad(loss_fn)(p), s, p, value_fn=loss_fn)
  after = jax.eval_shape(update, params, state)[1]
  for other in (state, after):
    same = jax.tree.map(
      lambda a, b: a.shape == b.shape and a.dtype == b.dtype, abstract, other
    )
    assert jax.tree.all(same)


ODD_TREE = {
  "number": jnp.ones(()),
  "one": [jnp.ones((1,)), jnp.ones((1, 1))],
  "none": None,
  "no entry": (jnp.ones((0,)), jnp.ones((2, 0, 3))),
  "odd": jnp.ones((3, 5)),
  "seven": jnp.ones((7,)),
  "three axes": jnp.ones((2, 3, 4)),
}


@structures
@pytest.mark.parametrize("params", [{}, ODD_TREE], ids=["empty", "odd"])
def test_odd_trees(name, params):
  loss = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p)) + 0.0
  tx = gen_optax.scale_by_psgd(STRUCTURES[name](), momentum=0.5)
  update = jax.jit(
    lambda p, state: tx.update(jax.grad(loss)(p), state, p, value_fn=loss)
  )
  state = tx.init(params)
  for _ in range(3):
    updates, state = update(params, state)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    running.assert_finite(updates)


@structures
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_leaves_keep_their_dtype_and_the_state_is_wide(name, dtype):
  params = initial_params(dtype) | {"b": jnp.zeros(12, jnp.float32)}
  tx = gen_optax.scale_by_psgd(STRUCTURES[name](), momentum=0.9)
  update = lambda p: tx.update(
    jax.grad(loss_fn)(p), tx.init(p), p, value_fn=loss_fn
  )
  updates, state = jax.eval_shape(update, params)
  assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(
    lambda x: x.dtype, params
  )
  for leaf in jax.tree.leaves(state):
    assert leaf.dtype in (jnp.float32, jnp.int32, bool)


@pytest.mark.parametrize("pairs", ["hvp", "finite_difference"])
def test_pairs_of_bfloat16_parameters_are_taken_in_float32(pairs, x64):
  params = initial_params(jnp.bfloat16)
  v = sources.draw(jax.random.key(0), params, "normal")
  wide = jax.tree.map(lambda p: p.astype(jnp.float64), params)
  exact = jax.jvp(
    jax.grad(loss_fn),
    (wide,),
    (jax.tree.map(lambda x: x.astype(jnp.float64), v),),
  )[1]
  grad = jax.grad(loss_fn)(params)
  h = sources.product(pairs, v, loss_fn, params, grad, grad)
  error = optax.tree.norm(optax.tree.sub(h, exact)) / optax.tree.norm(exact)
  assert error < (1e-5 if pairs == "hvp" else 3e-2)


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_vectors_are_white_and_leaves_differ(kind):
  params = {"a": jnp.zeros((200, 50)), "b": jnp.zeros((200, 50))}
  v = sources.draw(jax.random.key(3), params, kind)
  assert abs(float(jnp.mean(v["a"] ** 2)) - 1) < 0.05
  assert abs(float(jnp.mean(v["a"] * v["b"]))) < 0.05
  assert (set(np.unique(v["a"])) == {-1.0, 1.0}) == (kind == "rademacher")


def test_differences_serve_where_forward_mode_is_refused():
  @jax.custom_vjp
  def double(x):
    return 2 * x

  double.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))

  @jax.custom_vjp
  def square(x):
    return x**2

  # A backward pass that has no forward-mode rule of its own.
  square.defvjp(lambda x: (x**2, x), lambda x, g: (double(x) * g,))
  loss = lambda w: jnp.sum(square(w))
  w = jnp.ones(3)
  grad = jax.grad(loss)(w)
  tx = gen_optax.scale_by_psgd(psgd.diagonal())
  with pytest.raises(TypeError, match="forward-mode"):
    tx.update(grad, tx.init(w), w, value_fn=loss)
  tx = gen_optax.scale_by_psgd(psgd.diagonal(), pairs="finite_difference")
  tx.update(grad, tx.init(w), w, grad=grad, value_fn=loss)


# --- what a lazy step costs -------------------------------------------------


def count_work(monkeypatch, tx, steps, replicas=None):
  """Hessian-vector products and random vectors at run time, in one scan."""
  counted = {"loss": 0, "vector": 0}

  def counter(kind):
    def add(_):
      counted[kind] += 1

    return add

  draw = sources.draw

  def counting_draw(*args):
    v = draw(*args)
    jax.debug.callback(counter("vector"), v["b"][0])
    return v

  monkeypatch.setattr(sources, "draw", counting_draw)

  def value_fn(params):
    loss = loss_fn(params)
    jax.debug.callback(counter("loss"), loss)
    return loss

  def run(params):
    def step(carry, _):
      params, state = carry
      grad = jax.grad(loss_fn)(params)
      updates, state = tx.update(
        grad, state, params, grad=grad, value_fn=value_fn
      )
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0]

  params = initial_params()
  if replicas:
    run = jax.vmap(run)
    params = jax.tree.map(lambda p: jnp.stack([p] * replicas), params)
  jax.block_until_ready(jax.jit(run)(params))
  jax.effects_barrier()
  return counted


@pytest.mark.parametrize("replicas", [None, 3])
@pytest.mark.parametrize("pairs", PAIRS)
def test_no_update_draws_nothing_and_asks_nothing(monkeypatch, pairs, replicas):
  make = functools.partial(
    gen_optax.scale_by_psgd, psgd.diagonal(), pairs=pairs
  )
  on_some_steps = lambda count: jnp.where(count % 4 == 2, 1.0, 0.0)
  count = functools.partial(count_work, monkeypatch, replicas=replicas)
  # The closure stands in for the product: it is evaluated once in each.
  each = 0 if pairs == "whitening" else replicas or 1
  drawn = replicas or 1
  assert count(make(probability=0.0), 5) == {"loss": 0, "vector": 0}
  monkeypatch.undo()
  assert count(make(probability=on_some_steps), 8) == {
    "loss": 2 * each,
    # A key that no replica owns is drawn from once for all of them.
    "vector": pytest.approx(2, abs=2 * (drawn - 1)),
  }
  monkeypatch.undo()
  assert count(make(), 5)["loss"] == 5 * each


@pytest.mark.parametrize("name", ["xmat", "low rank"])
def test_nothing_of_an_update_leaves_its_loop(name):
  tx = gen_optax.scale_by_psgd(STRUCTURES[name](), probability=0.1)
  params = initial_params()

  def step(params, state, grad):
    return tx.update(grad, state, params, value_fn=loss_fn)

  assert running.left_loops(step, params, tx.init(params), params) == []


def test_probability_is_the_share_of_updates():
  tx = gen_optax.scale_by_psgd(psgd.diagonal(), probability=0.3)

  def step(state, _):
    grad = jax.grad(loss_fn)(params)
    _, state = tx.update(grad, state, params, value_fn=loss_fn)
    return state, state.info.updated

  params = initial_params()
  _, updated = jax.lax.scan(step, tx.init(params), length=400)
  # Five standard deviations of 400 draws.
  assert abs(float(updated.mean()) - 0.3) < 0.115
