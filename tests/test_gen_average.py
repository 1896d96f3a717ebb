"""`average=True` in GeN's chains."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from network import initial_params, loss_fn
from test_averaging import averages

import gen_optax
from scripts.bench import hlo

CHAINS = [name for name in dir(gen_optax) if name.startswith("gen_")]
START = np.array([5.0, -2.0, 0.1])


@pytest.mark.parametrize("name", CHAINS)
def test_every_chain_has_the_option(name):
  chain = getattr(gen_optax, name)
  assert "average" in inspect.signature(chain).parameters
  for options, count in ((dict(average=True), 1), ({}, 0)):
    state = chain(**options).init(jnp.ones(2))
    found = optax.tree.get_all_with_path(state, "AverageParametersState")
    assert len(found) == count


def walk(tx, factors):
  """Parameters and the point of evaluation after each step, and the state.

  Each of `factors` multiplies the loss of one step.
  """
  curvature = jnp.array([1.0, 2.0, 3.0])

  def body(carry, factor):
    loss = lambda w: factor * jnp.sum(curvature * (w - 3.0) ** 2)
    params, state, _ = running.step(tx, loss, *carry)
    point = gen_optax.evaluate_at(state, params)
    return (params, state), (params, point)

  start = jnp.asarray(START)
  run = lambda w: jax.lax.scan(body, (w, tx.init(w)), factors)
  (_, state), (path, points) = jax.jit(run)(start)
  return np.asarray(path), np.asarray(points), state


NAN, HUGE = [1, 1, 1, np.nan, 1, 1, np.nan], [1, 1, 1, 1e30, 1, 1, 1]
# The optimizer starts anew at the third gradient.
FAINT_START = [1e-9, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("factors", [NAN, HUGE, FAINT_START])
def test_the_average_counts_every_step(x64, factors):
  """Those too that are withheld, and those before the optimizer starts anew."""
  factors = jnp.asarray(factors)
  path, points, state = walk(gen_optax.gen_adam(average=True), factors)
  alone, same, plain = walk(gen_optax.gen_adam(), factors)
  np.testing.assert_array_equal(path, alone)
  np.testing.assert_array_equal(path, same)
  np.testing.assert_allclose(points, averages(path), rtol=1e-12)
  stayed = np.all(np.diff(path, axis=0, prepend=START[None]) == 0, axis=1)
  guard = optax.tree.get(state, "SkipImplausibleState")
  assert guard.total_refused == plain.total_refused == stayed.sum() > 0
  steps = optax.tree.get(state, "AverageParametersState").count
  assert steps == len(factors)
  # GeN began anew where it is meant to.
  missed = len(factors) - optax.tree.get(state, "ScaleByGenState").count
  assert missed == stayed.sum() + (float(factors[0]) < 1)


def test_a_step_that_gen_withholds_leaves_the_average_finite():
  tx, w = gen_optax.gen_adam(average=True), jnp.asarray(START)
  state, skipped = tx.init(w), []
  loss = lambda w: jnp.sum(w**2)
  for value_fn in (loss, lambda w: jnp.nan * loss(w), loss):
    updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=value_fn)
    w = optax.apply_updates(w, updates)
    skipped.append(bool(optax.tree.get(state, "ScaleByGenState").info.skipped))
  assert skipped == [False, True, False]
  running.assert_finite(gen_optax.evaluate_at(state, w))


def test_under_injection_and_with_metrics():
  for build in (
    optax.inject_hyperparams(gen_optax.gen_adamw)(average=True),
    optax.inject_hyperparams(gen_optax.generalized_newton)(
      optax.adamw(1.0), average=True
    ),
  ):
    _, points, state = walk(build, jnp.ones(8))
    _, plain, _ = walk(gen_optax.gen_adamw(average=True), jnp.ones(8))
    np.testing.assert_allclose(points, plain, rtol=1e-5)
    assert "average" not in state.hyperparams
    assert gen_optax.metrics(state)["gen/learning_rate"] > 0


def test_a_step_that_donates_its_state():
  tx = gen_optax.gen_momentum(average=True)
  step = gen_optax.make_step(loss_fn, tx)
  params = initial_params()
  state, before, path = tx.init(params), loss_fn(params), []
  for _ in range(12):
    params, state, *_ = step(params, state)
    point = gen_optax.evaluate_at(state, params)
    path.append(np.asarray(params["w"]))
    np.testing.assert_allclose(
      point["w"], averages(np.array(path))[-1], rtol=1e-5, atol=1e-7
    )
  assert loss_fn(point) < before


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_the_point_lies_where_the_parameters_do(x64, axis_type):
  """And to read it sends nothing."""
  tx = gen_optax.gen_adamw(average=True)
  mesh = jax.make_mesh((4,), ("d",), axis_types=(axis_type,))
  params = initial_params(jnp.float64)
  # It leaves every leaf where it lies, on both kinds of mesh.
  loss = lambda p: sum(jnp.sum((x - 1.0) ** 2) for x in p.values())
  specs = {"b": P("d"), "v": P("d"), "w": P()}
  with jax.set_mesh(mesh):
    shardings = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    placed = jax.device_put(params, shardings)
    point_of = jax.jit(gen_optax.evaluate_at)
    compiled = point_of.lower(tx.init(placed), placed).compile()
    for kind in hlo.KINDS:
      assert kind not in compiled.as_text()
    _, end, state = running.train(tx, loss, placed, 6)
    point = point_of(state, end)
  _, end, state = running.train(tx, loss, params, 6)
  expected = gen_optax.evaluate_at(state, end)
  for name, sharding in shardings.items():
    ndim = params[name].ndim
    assert point[name].sharding.is_equivalent_to(sharding, ndim)
    np.testing.assert_allclose(point[name], expected[name], rtol=1e-9)
