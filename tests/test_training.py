"""Training steps: plain JAX, linen, nnx, with dropout and batch statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import gen_optax
from gen_optax.flax_training import TrainState, value_grad_and_closure

X = jax.random.normal(jax.random.key(0), (32, 5))
Y = jnp.sin(X @ jnp.arange(1.0, 6.0)[:, None])


def test_make_step_hands_value_gradient_and_closure_over():
  seen = {}

  def update(updates, state, params=None, *, value, grad, value_fn, **_):
    seen["same"] = (value, value_fn(params), grad, updates)
    return optax.tree.scale(-0.1, updates), state

  spy = optax.GradientTransformationExtraArgs(lambda p: (), update)
  loss_fn = lambda w, x, y: (jnp.mean((x @ w - y) ** 2), "aux")
  step = gen_optax.make_step(
    lambda w, x, y: (loss_fn(w, x, y)[0], {"n": len(x)}),
    spy,
    has_aux=True,
    donate=False,
  )
  w = jnp.ones((5, 1))
  with jax.disable_jit():
    result = step(w, (), X, Y)
  value, again, grad, updates = seen["same"]
  assert value == again == result.value == loss_fn(w, X, Y)[0]
  np.testing.assert_array_equal(grad, updates)
  assert result.aux == {"n": 32}
  np.testing.assert_allclose(result.params, w - 0.1 * grad)


def test_make_step_donates_and_takes_optimizers_that_read_nothing():
  loss_fn = lambda w, x: jnp.mean((x @ w) ** 2)
  for optimizer in (optax.adam(0.1), gen_optax.gen_adam()):
    step = gen_optax.make_step(loss_fn, optimizer)
    w = jnp.ones((5, 1))
    state = optimizer.init(w)
    first = None
    for _ in range(60):
      old = w
      w, state, value, aux, metrics = step(w, state, X)
      first = value if first is None else first
      assert old.is_deleted() and aux is None
    assert value < 0.5 * first
  assert metrics["gen/learning_rate"] > 0 and not metrics["gen/skipped"]


def test_metrics_number_the_stages_of_one_name():
  tx = optax.chain(
    gen_optax.gen_sgd(), optax.masked(gen_optax.gen_sgd(), {"a": True})
  )
  state = tx.init({"a": jnp.zeros(2)})
  names = set(gen_optax.metrics(state))
  assert {"gen/learning_rate", "gen_2/learning_rate"} < names
  assert gen_optax.metrics(optax.adam(1.0).init(jnp.zeros(2))) == {}


class LinenNet(linen.Module):
  @linen.compact
  def __call__(self, x, train=True):
    x = linen.relu(linen.Dense(16)(x))
    x = linen.BatchNorm(use_running_average=not train)(x)
    x = linen.Dropout(0.5, deterministic=not train)(x)
    return linen.Dense(1)(x)


def test_linen_with_dropout_and_batch_norm():
  """One mask for the step and its probes; statistics advance once."""
  model = LinenNet()
  variables = model.init(jax.random.key(1), X, train=False)

  class State(TrainState):
    batch_stats: dict

  state = State.create(
    apply_fn=model.apply,
    params=variables["params"],
    tx=gen_optax.gen_adamw(),
    batch_stats=variables["batch_stats"],
  )

  def loss_at(state):
    key = jax.random.fold_in(jax.random.key(2), state.step)

    def loss(params):
      out, changes = state.apply_fn(
        {"params": params, "batch_stats": state.batch_stats},
        X,
        mutable=["batch_stats"],
        rngs={"dropout": key},
      )
      return jnp.mean((out - Y) ** 2), changes

    return loss

  @jax.jit
  def step(state):
    loss = loss_at(state)
    (value, changes), grad = jax.value_and_grad(loss, has_aux=True)(
      state.params
    )
    return state.apply_gradients(
      grads=grad,
      value=value,
      value_fn=lambda p: loss(p)[0],
      batch_stats=changes["batch_stats"],
    ), value

  values = []
  for _ in range(80):
    expected = loss_at(state)(state.params)[1]["batch_stats"]
    state, value = step(state)
    values.append(value)
  np.testing.assert_allclose(
    state.batch_stats["BatchNorm_0"]["mean"],
    expected["BatchNorm_0"]["mean"],
    rtol=1e-4,
    atol=1e-6,
  )
  assert np.mean(values[-10:]) < 0.7 * np.mean(values[:5])
  gen_optax.check_value_fn(
    lambda p: loss_at(state)(p)[0],
    state.params,
    loss_at(state)(state.params)[0],
  )


class NnxNet(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Linear(5, 16, rngs=rngs)
    self.norm = nnx.BatchNorm(16, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.last = nnx.Linear(16, 1, rngs=rngs)

  def __call__(self, x):
    return self.last(self.drop(self.norm(nnx.relu(self.first(x)))))


def nnx_loss(model, x, y):
  return jnp.mean((model(x) - y) ** 2)


def test_nnx_closure_sees_the_mask_and_statistics_of_the_gradient():
  model = NnxNet(nnx.Rngs(0))
  params = nnx.as_pure(nnx.state(model, nnx.Param))
  before = int(model.drop.rngs.count[...])
  value, grad, value_fn = value_grad_and_closure(nnx_loss, model, X, Y)
  assert value_fn(params) == value
  assert value_fn(params) == value  # the probes mutate nothing
  assert int(model.drop.rngs.count[...]) == before + 1

  # A split after the forward pass would have been another loss.
  graphdef, late, rest = nnx.split(model, nnx.Param, ...)
  assert nnx_loss(nnx.merge(graphdef, late, rest, copy=True), X, Y) != value


# A stage that keeps the loss it is told, and what the closure says twice.
SPY = optax.GradientTransformationExtraArgs(
  lambda params: {"seen": jnp.zeros(3)},
  lambda updates, state, params, *, value, value_fn, **_: (
    optax.tree.zeros_like(updates),
    {"seen": jnp.stack([value, value_fn(params), value_fn(params)])},
  ),
)


def step_of_plain_jax():
  """What the stage saw, and the running mean before and after the step."""
  keys = jax.random.split(jax.random.key(4), 3)
  params = {
    "a": jax.random.normal(keys[0], (5, 16)),
    "b": jax.random.normal(keys[1], (16, 1)),
  }

  def loss_fn(params, mean, key):
    hidden = jax.nn.relu(X @ params["a"])
    now = hidden.mean(0)
    keep = jax.random.bernoulli(key, 0.5, hidden.shape)
    out = jnp.where(keep, 2 * (hidden - now), 0.0) @ params["b"]
    return jnp.mean((out - Y) ** 2), 0.9 * mean + 0.1 * now

  step = gen_optax.make_step(loss_fn, SPY, has_aux=True)
  before = jnp.zeros(16)
  once = loss_fn(params, before, keys[2])[1]
  _, seen, _, after, _ = step(params, SPY.init(params), before, keys[2])
  return seen, once, after


def step_of_linen():
  model = LinenNet()
  variables = model.init(jax.random.key(1), X, train=False)
  params, stats = variables["params"], variables["batch_stats"]

  @jax.jit
  def loss(params):
    out, changes = model.apply(
      {"params": params, "batch_stats": stats},
      X,
      mutable=["batch_stats"],
      rngs={"dropout": jax.random.key(2)},
    )
    return jnp.mean((out - Y) ** 2), changes["batch_stats"]

  class State(TrainState):
    batch_stats: dict

  @jax.jit
  def step(state):
    (value, new), grad = jax.value_and_grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(
      grads=grad,
      value=value,
      value_fn=lambda p: loss(p)[0],
      batch_stats=new,
    )

  state = State.create(
    apply_fn=model.apply, params=params, tx=SPY, batch_stats=stats
  )
  state = step(state)
  mean_of = lambda stats: stats["BatchNorm_0"]["mean"]
  return state.opt_state, mean_of(loss(params)[1]), mean_of(state.batch_stats)


def step_of_nnx():
  model, copy = NnxNet(nnx.Rngs(0)), NnxNet(nnx.Rngs(0))
  copy(X)
  optimizer = nnx.Optimizer(model, SPY, wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer):
    value, grad, value_fn = value_grad_and_closure(nnx_loss, model, X, Y)
    optimizer.update(model, grad, value=value, grad=grad, value_fn=value_fn)

  step(model, optimizer)
  seen = nnx.as_pure(optimizer.opt_state)
  return seen, copy.norm.mean[...], model.norm.mean[...]


@pytest.mark.parametrize(
  "step", [step_of_plain_jax, step_of_linen, step_of_nnx]
)
def test_one_mask_for_all_probes_and_statistics_advance_once(step):
  state, once, after = step()
  value, first, second = state["seen"]
  np.testing.assert_allclose([first, second], value, rtol=1e-6)
  np.testing.assert_allclose(after, once, rtol=1e-5, atol=1e-6)
  assert jnp.linalg.norm(after) > 1e-3


def test_a_fresh_mask_for_each_probe_is_caught():
  model = NnxNet(nnx.Rngs(0))
  graphdef, *parts = nnx.split(model, nnx.Param, ...)
  params, early = map(nnx.as_pure, parts)
  value = nnx_loss(model, X, Y)
  live = lambda p: (nnx.update(model, p), nnx_loss(model, X, Y))[1]
  with pytest.raises(ValueError, match="one random key"):
    gen_optax.check_value_fn(live, params, value)
  model = NnxNet(nnx.Rngs(0))
  value = nnx_loss(model, X, Y)
  late = nnx.as_pure(nnx.split(model, nnx.Param, ...)[2])
  closure_over = lambda rest: (
    lambda p: nnx_loss(nnx.merge(graphdef, p, rest, copy=True), X, Y)
  )
  gen_optax.check_value_fn(closure_over(early), params, value)
  with pytest.raises(ValueError, match="both must be the same loss"):
    gen_optax.check_value_fn(closure_over(late), params, value)


@pytest.mark.parametrize("evaluate", ["vmap", "map"])
def test_nnx_trains_under_jit(evaluate):
  model = NnxNet(nnx.Rngs(0))
  optimizer = nnx.Optimizer(
    model,
    gen_optax.generalized_newton(
      optax.adam(1.0), probes=(0.5, 1.0), evaluate=evaluate
    ),
    wrt=nnx.Param,
  )

  @nnx.jit
  def step(model, optimizer):
    value, grad, value_fn = value_grad_and_closure(nnx_loss, model, X, Y)
    optimizer.update(model, grad, value=value, grad=grad, value_fn=value_fn)
    return value

  values = [step(model, optimizer) for _ in range(80)]
  assert np.mean(values[-10:]) < 0.7 * np.mean(values[:5])
  assert int(model.drop.rngs.count[...]) == 80


def test_nnx_trains_a_subset():
  model = NnxNet(nnx.Rngs(0))
  only = nnx.PathContains("last")
  optimizer = nnx.Optimizer(model, gen_optax.gen_adam(), wrt=only)
  frozen = jnp.array(model.first.kernel[...])

  @nnx.jit
  def step(model, optimizer):
    value, grad, value_fn = value_grad_and_closure(
      nnx_loss, model, X, Y, wrt=only
    )
    optimizer.update(model, grad, value=value, grad=grad, value_fn=value_fn)
    return value

  moved = jnp.array(model.last.kernel[...])
  for _ in range(5):
    step(model, optimizer)
  np.testing.assert_array_equal(model.first.kernel[...], frozen)
  assert jnp.any(model.last.kernel[...] != moved)


def test_linen_nnx_and_plain_jax_agree(x64):
  """One MLP, the same weights, three ways to train it."""
  key = jax.random.split(jax.random.key(3), 2)
  weights = {
    "a": jax.random.normal(key[0], (5, 8), jnp.float64) / 2,
    "b": jax.random.normal(key[1], (8, 1), jnp.float64) / 2,
  }
  x, y = X.astype(jnp.float64), Y.astype(jnp.float64)
  forward = lambda a, b, x: jnp.tanh(x @ a) @ b
  mse = lambda out: jnp.mean((out - y) ** 2)
  steps = 20

  plain, params = [], jax.tree.map(jnp.copy, weights)
  tx = gen_optax.gen_adamw()
  opt_state = tx.init(params)
  step = gen_optax.make_step(lambda p: mse(forward(p["a"], p["b"], x)), tx)
  for _ in range(steps):
    params, opt_state, value, *_ = step(params, opt_state)
    plain.append(value)

  class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
      a = self.param("a", lambda _: weights["a"])
      b = self.param("b", lambda _: weights["b"])
      return forward(a, b, x)

  model = Linen()
  state = TrainState.create(
    apply_fn=model.apply,
    params=model.init(jax.random.key(0), x)["params"],
    tx=gen_optax.gen_adamw(),
  )

  @jax.jit
  def linen_step(state):
    loss = lambda p: mse(state.apply_fn({"params": p}, x))
    value, grad = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grad, value=value, value_fn=loss), value

  by_linen = []
  for _ in range(steps):
    state, value = linen_step(state)
    by_linen.append(value)

  class Nnx(nnx.Module):
    def __init__(self):
      self.a, self.b = nnx.Param(weights["a"]), nnx.Param(weights["b"])

    def __call__(self, x):
      return forward(self.a[...], self.b[...], x)

  module = Nnx()
  optimizer = nnx.Optimizer(module, gen_optax.gen_adamw(), wrt=nnx.Param)

  @nnx.jit
  def nnx_step(module, optimizer):
    loss = lambda m: mse(m(x))
    value, grad, value_fn = value_grad_and_closure(loss, module)
    optimizer.update(module, grad, value=value, value_fn=value_fn)
    return value

  by_nnx = [nnx_step(module, optimizer) for _ in range(steps)]
  assert plain[-1] < 0.5 * plain[0]
  np.testing.assert_allclose(by_linen, plain, rtol=1e-10)
  np.testing.assert_allclose(by_nnx, plain, rtol=1e-10)
