"""AMOS behind, inside and around the rest of optax, and on meshes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running

import gen_optax
from gen_optax import amos
from gen_optax.oracle import diagonal


def initial_params(dtype=jnp.float32):
  return {
    "b": jnp.linspace(-1.0, 1.0, 12).astype(dtype),
    "w": jnp.linspace(-1.0, 1.5, 96).reshape(8, 12).astype(dtype),
  }


def loss_fn(params):
  """A quartic that couples the leaves: its curvature drifts everywhere."""
  b, w = params["b"], params["w"]
  return jnp.mean((w + b) ** 4) + jnp.mean(b**2)


def router(rate=0.1, **options):
  pair = [optax.sgd(rate), amos.sophia(rate / 10)]
  defaults = dict(threshold=("quantile", 0.3), every=3)
  return gen_optax.amos_router(pair, **defaults | options)


def train(tx, steps=20, params=None, value_fn=loss_fn):
  start = initial_params() if params is None else params
  return running.train(tx, value_fn, start, steps)


def test_gen_behind_a_router_finds_the_rate():
  tx = optax.chain(router(1.0), gen_optax.scale_by_gen())
  losses, _, state = train(tx, 30)
  assert jnp.all(jnp.isfinite(losses)) and losses[-1] < 0.2 * losses[0]
  assert 0 < state[0].info.fractions[0] < 1
  metrics = gen_optax.metrics(state)
  assert {"gen/learning_rate", "amos_router/fractions"} <= set(metrics)


def test_inside_and_around_optax():
  make = lambda ema, cut: gen_optax.amos_router(
    [optax.sgd(0.1), amos.sophia(0.01)], ema=ema, threshold=cut, every=3
  )
  injected = optax.inject_hyperparams(make)(ema=0.5, cut=0.1)
  losses, _, state = train(injected, 8)
  assert set(state.hyperparams) == {"ema", "cut"}
  np.testing.assert_allclose(losses, train(make(0.5, 0.1), 8)[0], rtol=1e-5)
  groups = {"x": router(), "y": optax.sgd(0.1)}
  tx = optax.partition(groups, {"w": "x", "b": "y"})
  losses, _, _ = train(gen_optax.with_full_params(tx))
  assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("states", ["run_all", "frozen"])
def test_states_map_like_parameters(states):
  tx = gen_optax.amos_router([optax.sgd(0.1), optax.adam(0.1)], states=states)
  state = tx.init(initial_params())
  mapped = optax.tree.map_params(tx, lambda p: p + 1, state)
  assert jnp.all(mapped.drift.mean.sum["w"] == 1)
  second = mapped.optimizers[1]
  mu = second[-1][0].mu if states == "frozen" else second[0].mu["w"]
  assert jnp.all(mu == 1) and mapped.count == 0


@pytest.mark.parametrize("states", ["run_all", "frozen"])
def test_nnx_trains_with_a_router(states):
  """Whose trees keep parameters in boxes."""
  from flax import nnx

  from gen_optax.flax_training import value_grad_and_closure

  pair = {"sgd": optax.sgd(0.1), "adam": optax.adam(0.03)}
  tx = gen_optax.amos_router(pair, states=states, threshold=0.1, every=2)
  model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  x = jax.random.normal(jax.random.key(0), (16, 3))

  @nnx.jit
  def step(model, optimizer):
    loss_fn = lambda model: jnp.mean((model(x) ** 2 - 1.0) ** 2)
    value, grad, value_fn = value_grad_and_closure(loss_fn, model)
    optimizer.update(model, grad, value=value, grad=grad, value_fn=value_fn)
    return value

  losses = [step(model, optimizer) for _ in range(30)]
  assert losses[-1] < 0.7 * losses[0]
  share = gen_optax.metrics(nnx.as_pure(optimizer.opt_state))
  np.testing.assert_allclose(sum(share["amos_router/fractions"]), 1.0)


# --- what a call between Hessian times costs ---------------------------------


@pytest.mark.parametrize("replicas", [None, 2])
def test_other_calls_ask_and_draw_nothing(monkeypatch, replicas):
  counted = {"loss": 0, "vector": 0}

  def counter(kind):
    def add(_):
      counted[kind] += 1

    return add

  random_like = diagonal.trees.random_like

  def counting(key, tree, sample):
    v = random_like(key, tree, sample)
    jax.debug.callback(counter("vector"), v["b"][0])
    return v

  monkeypatch.setattr(diagonal.trees, "random_like", counting)

  def value_fn(params):
    loss = loss_fn(params)
    jax.debug.callback(counter("loss"), loss)
    return loss

  tx = router(every=4, samples=2)

  def run(params):
    def step(carry, _):
      params, state = carry
      grad = jax.grad(loss_fn)(params)
      updates, state = tx.update(grad, state, params, value_fn=value_fn)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=9)[0]

  params = initial_params()
  if replicas:
    run = jax.vmap(run)
    params = jax.tree.map(lambda p: jnp.stack([p] * replicas), params)
  jax.block_until_ready(jax.jit(run)(params))
  jax.effects_barrier()
  # Three Hessian times, two points, two probes.
  assert counted["loss"] == 12 * (replicas or 1)
  # A key that no replica owns may be drawn from once for all of them.
  assert counted["vector"] in (12, 12 * (replicas or 1))


@pytest.mark.parametrize("states", ["run_all", "frozen"])
def test_nothing_of_a_hessian_time_leaves_its_loop(states):
  """XLA moves what does not depend on a loop's carry in front of the loop."""
  tx = router(states=states)
  params = initial_params()

  def step(params, state, grad):
    return tx.update(grad, state, params, value_fn=loss_fn)

  compiled = jax.jit(step).lower(params, tx.init(params), params).compile()
  entry = re.search(r"^ENTRY .*?^}", compiled.as_text(), re.M | re.S)[0]
  assert re.findall(r'op_name="([^"]*)"', entry)
  moved = [
    line
    for line in entry.splitlines()
    if re.search(r" (power|multiply|fusion)\(", line) and "/while/body/" in line
  ]
  assert moved == []


# --- shapes, dtypes and odd trees --------------------------------------------

ODD_TREE = {
  "number": jnp.ones(()),
  "one": [jnp.ones((1,)), jnp.ones((1, 1))],
  "none": None,
  "no entry": (jnp.ones((0,)), jnp.ones((2, 0, 3))),
  "odd": jnp.ones((3, 5)),
}
FORMS = {
  "tensors": {},
  "chunks": dict(granularity=("chunk", 4)),
  "elements": dict(granularity="element", threshold="newton"),
  "labels": dict(granularity=lambda p: jax.tree.map(lambda x: x.ndim, p)),
  "frozen": dict(states="frozen", granularity="tensor_max"),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("params", [{}, ODD_TREE], ids=["empty", "odd"])
def test_odd_trees(name, params):
  loss = lambda p: sum(jnp.sum(x**4) for x in jax.tree.leaves(p)) + 0.0
  options = dict(every=1, threshold=0.1) | FORMS[name]
  tx = gen_optax.amos_router([optax.sgd(0.01), optax.adam(0.01)], **options)
  abstract, state = jax.eval_shape(tx.init, params), tx.init(params)
  after = jax.eval_shape(
    lambda p, s: tx.update(jax.grad(loss)(p), s, p, value_fn=loss),
    params,
    state,
  )[1]
  same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
  assert jax.tree.all(jax.tree.map(same, state, after))
  assert jax.tree.all(jax.tree.map(same, state, abstract))
  if name == "chunks":
    _, params, state = train(tx, 3, params, loss)
    running.assert_finite((params, state))


def test_narrow_leaves_keep_their_dtype_and_the_state_is_wide():
  params = initial_params(jnp.bfloat16) | {"b": jnp.zeros(12, jnp.float32)}
  for states in ("run_all", "frozen"):
    tx = gen_optax.amos_router([optax.sgd(0.1)] * 2, states=states)
    updates, state = jax.eval_shape(
      lambda p, tx=tx: tx.update(
        jax.grad(loss_fn)(p), tx.init(p), p, value_fn=loss_fn
      ),
      params,
    )
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(
      lambda x: x.dtype, params
    )
    for leaf in jax.tree.leaves(state.drift):
      assert leaf.dtype in (jnp.float32, bool)
