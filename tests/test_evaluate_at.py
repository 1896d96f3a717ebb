"""Where `evaluate_at` says to evaluate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from test_averaging import averages

import gen_optax
from gen_optax import flax_training


def averaged():
  return optax.chain(optax.sgd(0.5), gen_optax.average_parameters())


WRAPPERS = {
  "chain": lambda tx: optax.chain(optax.clip(10.0), optax.chain(tx)),
  "named_chain": lambda tx: optax.named_chain(
    ("a", optax.identity()), ("b", tx)
  ),
  "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
  "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
  "skip_implausible": gen_optax.skip_implausible,
  "inject_hyperparams": lambda tx: optax.inject_hyperparams(
    lambda scale: optax.chain(optax.scale(scale), tx)
  )(1.0),
  "partition": lambda tx: optax.partition({"a": tx}, "a"),
  "with_full_params": gen_optax.with_full_params,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_average_is_found_within(name):
  tx = optax.with_extra_args_support(WRAPPERS[name](averaged()))
  params = {"x": jnp.array([1.0, 2.0]), "y": jnp.array(3.0)}
  state, path = tx.init(params), []
  loss = lambda p: jnp.sum(p["x"] ** 2) + p["y"]
  for _ in range(3):
    grad = jax.grad(loss)(params)
    updates, state = tx.update(grad, state, params, value_fn=loss)
    params = optax.apply_updates(params, updates)
    path.append(np.asarray(params["y"]))
  point = gen_optax.evaluate_at(state, params)
  assert jax.tree.structure(point) == jax.tree.structure(params)
  np.testing.assert_allclose(point["y"], averages(np.array(path))[-1])
  assert point["y"] != params["y"]


def test_what_the_average_leaves_out_is_where_it_is():
  mask = {"table": False, "rest": True}
  tx = optax.chain(
    optax.sgd(0.5), optax.masked(gen_optax.average_parameters(), mask)
  )
  params = {"table": {"a": jnp.ones(2), "b": jnp.ones(1)}, "rest": jnp.ones(3)}
  state = tx.init(params)
  for _ in range(2):
    updates, state = tx.update(params, state, params)
    params = optax.apply_updates(params, updates)
  point = gen_optax.evaluate_at(state, params)
  assert point["table"] == params["table"]
  expected = averages(np.array([0.5, 0.25]))[-1]
  np.testing.assert_allclose(point["rest"], expected)


def test_in_the_dtypes_of_the_parameters():
  tx = averaged()
  params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2), "n": jnp.array(3)}
  state = tx.init(params)
  updates = jax.tree.map(lambda p: jnp.full_like(p, 1), params)
  for _ in range(3):
    out, state = tx.update(updates, state, params)
    params = optax.apply_updates(params, out)
  point = gen_optax.evaluate_at(state, params)
  wide = gen_optax.averaged_parameters(state)
  for name, leaf in params.items():
    assert point[name].dtype == leaf.dtype
    np.testing.assert_array_equal(point[name], wide[name].astype(leaf.dtype))
  assert wide["a"].dtype == jnp.float32
  assert jnp.any(wide["a"] != point["a"])


def descend(tx, params, steps=5):
  state = tx.init(params)
  for _ in range(steps):
    updates, state = tx.update(params, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def test_schedule_free_has_its_own_point():
  params = {"x": jnp.array([1.0, 2.0]), "y": jnp.array(3.0)}
  free = optax.contrib.schedule_free_sgd(0.3)
  end, state = descend(free, params)
  expected = optax.contrib.schedule_free_eval_params(state, end)
  nested = descend(optax.chain(optax.clip(1e3), optax.chain(free)), params)
  for params, held in ((end, state), nested):
    point = gen_optax.evaluate_at(held, params)
    jax.tree.map(np.testing.assert_array_equal, point, expected)
    assert jnp.all(point["x"] != params["x"])


def test_schedule_free_for_some_leaves():
  """Two of them in one partition, and a leaf that neither moves."""
  free = optax.contrib.schedule_free_sgd
  groups = {"a": free(0.3), "b": free(0.1, b1=0.8), "c": optax.sgd(0.2)}
  params = {"a": jnp.ones(2), "b": {"x": jnp.ones(1)}, "c": jnp.ones(3)}
  end, state = descend(
    optax.partition(groups, {"a": "a", "b": "b", "c": "c"}), params
  )
  point = gen_optax.evaluate_at(state, end)
  assert jax.tree.structure(point) == jax.tree.structure(params)
  for name, tx in groups.items():
    alone, its_state = descend(tx, params[name])
    expected = gen_optax.evaluate_at(its_state, alone)
    jax.tree.map(np.testing.assert_array_equal, point[name], expected)
    moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), expected, alone)
    assert all(jax.tree.leaves(moved)) == (name != "c")


def test_schedule_free_in_the_dtypes_of_the_parameters():
  free = optax.contrib.schedule_free_sgd(0.3, state_dtype=jnp.float32)
  params = jnp.ones(2, jnp.bfloat16)
  point = gen_optax.evaluate_at(free.init(params), params)
  assert point.dtype == jnp.bfloat16


def test_the_average_goes_before_the_schedule_free_point():
  free = optax.contrib.schedule_free_sgd(0.3)
  tx = optax.chain(free, gen_optax.average_parameters())
  end, state = descend(tx, jnp.array([1.0, 2.0]))
  average = gen_optax.averaged_parameters(state)
  np.testing.assert_array_equal(gen_optax.evaluate_at(state, end), average)


def test_else_the_parameters():
  params = {"x": jnp.ones(2)}
  for tx in (optax.adam(0.1), gen_optax.gen_adam(), optax.identity()):
    assert gen_optax.evaluate_at(tx.init(params), params) is params
  assert gen_optax.evaluate_at((), {}) == {}
  empty = gen_optax.gen_adam(average=True).init({})
  assert gen_optax.evaluate_at(empty, {}) == {}


# --- Flax ---------------------------------------------------------------------

X = np.random.default_rng(0).normal(1.0, 2.0, size=(64, 4)).astype(np.float32)
Y = np.sin(X @ np.arange(1.0, 5.0)[:, None])


class Normalised(linen.Module):
  @linen.compact
  def __call__(self, x, training):
    x = linen.Dense(8)(x)
    x = linen.BatchNorm(use_running_average=not training, momentum=0.9)(x)
    return linen.Dense(1)(jnp.tanh(x))


def test_batch_statistics_are_estimated_anew_at_the_average():
  """The recipe of `evaluate_at`; linen's state is read as it is."""
  model = Normalised()
  variables = model.init(jax.random.key(0), X, True)
  tx = gen_optax.gen_adam(average=True)
  state = flax_training.TrainState.create(
    apply_fn=model.apply, params=variables["params"], tx=tx
  )

  def apply(params, stats, training):
    variables = {"params": params, "batch_stats": stats}
    mutable = ["batch_stats"] if training else False
    return model.apply(variables, X, training, mutable=mutable)

  @jax.jit
  def step(state, stats):
    def loss(params):
      out, new = apply(params, stats, True)
      return jnp.mean((out - Y) ** 2), new["batch_stats"]

    (value, new), grad = jax.value_and_grad(loss, has_aux=True)(state.params)
    value_fn = lambda p: loss(p)[0]
    return state.apply_gradients(
      grads=grad, value=value, value_fn=value_fn
    ), new

  stats = variables["batch_stats"]
  for _ in range(30):
    state, stats = step(state, stats)
  point = gen_optax.evaluate_at(state.opt_state, state.params)
  expected, _ = apply(point, stats, True)
  stale = apply(point, stats, False)
  for _ in range(100):
    _, new = apply(point, stats, True)
    stats = new["batch_stats"]
  anew = apply(point, stats, False)
  error = lambda out: float(jnp.max(jnp.abs(out - expected)))
  assert error(anew) < 1e-3 < 0.1 * error(stale)


def test_nnx():
  model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
  tx = gen_optax.gen_adam(average=True)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  mse = lambda model, x, y: jnp.mean((model(x) - y) ** 2)

  @nnx.jit
  def step(model, optimizer):
    value, grad, value_fn = flax_training.value_grad_and_closure(
      mse, model, X, Y
    )
    optimizer.update(model, grad, value=value, grad=grad, value_fn=value_fn)

  path = []
  for _ in range(4):
    step(model, optimizer)
    path.append(np.asarray(model.kernel[...]))
  graphdef, params = nnx.split(model)
  point = gen_optax.evaluate_at(*nnx.as_pure((optimizer.opt_state, params)))
  average = nnx.merge(graphdef, point)
  np.testing.assert_allclose(
    average.kernel[...], averages(np.array(path))[-1], rtol=1e-5
  )
  assert average(X).shape == Y.shape
