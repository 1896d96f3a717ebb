"""Every precision, tree shape and leaf that optax's users bring."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import assert_finite, gen_state, run, step

import gen_optax
from gen_optax.oracle import line

STAGES = {
  "default": lambda: optax.chain(optax.adam(1.0), gen_optax.scale_by_gen()),
  "fit": lambda: optax.chain(
    optax.adam(1.0), gen_optax.scale_by_gen(estimator="fit", every=3)
  ),
  "paper": lambda: optax.chain(
    optax.adam(1.0), gen_optax.scale_by_gen_paper(1e-3)
  ),
  "ready-made": lambda: gen_optax.gen_adam(),
}


def sum_of_squares(params, t=0):
  return sum(
    jnp.sum((jnp.asarray(x, jnp.float32) - 1.0 - 0.1 * t) ** 2)
    for x in jax.tree.leaves(params)
    if jnp.issubdtype(x.dtype, jnp.floating)
  ) + jnp.float32(0.0)


def types(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def bf16_network():
  """A network that computes in its parameters' dtype, and its batch."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(64, 16)).astype(np.float32)
  y = np.sin(x[:, :2] * 2)
  params = {
    "in": rng.normal(size=(16, 32)).astype(np.float32) / 4,
    "out": rng.normal(size=(32, 2)).astype(np.float32) / 6,
  }
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), params)

  def loss(p):
    hidden = jnp.tanh(jnp.asarray(x, p["in"].dtype) @ p["in"])
    error = hidden @ p["out"] - jnp.asarray(y, p["in"].dtype)
    return jnp.mean(error.astype(jnp.float32) ** 2)

  return params, loss


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(
  "options", [dict(), dict(estimator="known_slope", probes=(1.0,))]
)
def test_a_bf16_fit_is_that_of_float32(options, value):
  """Within 5 % at h = 0.1; reusing bfloat16's own loss at zero is not."""
  params, loss = bf16_network()
  wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  grad = jax.grad(loss)(wide)
  u = jax.tree.map(lambda g: (-g).astype(jnp.bfloat16), grad)

  def optimum(p, **extra):
    tx = gen_optax.scale_by_gen_paper(0.1, **options)
    state = tx.update(u, tx.init(p), p, value_fn=loss, grad=grad, **extra)[1]
    return float(state.info.optimum)

  exact = line.exact_by_forward_mode(loss, wide, u)
  expected = optimum(jax.tree.map(lambda p: p, wide), value=loss(wide))
  np.testing.assert_allclose(expected, -exact.first / exact.second, rtol=0.3)
  extra = dict(value=loss(params)) if value else {}
  np.testing.assert_allclose(optimum(params, **extra), expected, rtol=0.05)


def test_value_is_reused_only_where_the_probes_compute_alike():
  """Below float32 the probes run wider: `value` is of another computation."""
  params, loss = bf16_network()
  for dtype, reused in ((jnp.bfloat16, False), (jnp.float32, True)):
    p = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), params)
    grad = jax.grad(loss)(p)
    u = jax.tree.map(jnp.negative, grad)
    optima = []
    for shift in (0.0, 0.01):
      tx = gen_optax.scale_by_gen_paper(0.1)
      state = tx.update(u, tx.init(p), p, value_fn=loss, value=loss(p) + shift)[
        1
      ]
      optima.append(float(state.info.optimum))
    assert (optima[0] != optima[1]) == reused


@pytest.mark.parametrize("dtype, reused", [("bfloat16", 0), ("float32", 1)])
def test_a_first_rate_is_judged_by_a_value_that_computes_alike(dtype, reused):
  """A value far below the loss: no exact estimator's first rate stands it."""
  tx = gen_optax.scale_by_gen(estimator="forward")
  p = jnp.zeros(2, dtype)
  grad = jax.grad(sum_of_squares)(p)
  arguments = dict(value_fn=sum_of_squares, value=jnp.float32(-9.0), grad=grad)
  _, state = tx.update(-grad, tx.init(p), p, **arguments)
  assert state.calibrated == (not reused)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("stage", STAGES)
def test_state_and_updates_keep_their_types(stage, dtype):
  """From `init` on, under scan, and the updates in the leaf's own dtype."""
  with jax.enable_x64(dtype == "float64"):
    dtype = jnp.dtype(dtype)
    params = {"a": jnp.zeros((3, 2), dtype), "b": jnp.ones((), dtype)}
    tx = STAGES[stage]()
    state = tx.init(params)
    value, grad = jax.value_and_grad(sum_of_squares)(params)

    @jax.jit
    def update(params, state):
      return tx.update(
        grad, state, params, value=value, grad=grad, value_fn=sum_of_squares
      )

    updates, after = update(params, state)
    assert types(after) == types(state)
    assert types(updates) == types(params)
    gen = gen_state(after)
    scalars = jnp.promote_types(dtype, jnp.float32)
    assert gen.learning_rate.dtype == scalars
    assert gen.info.slope.dtype == scalars
    assert gen.count.dtype == jnp.int32
    # scan refuses a state whose types change
    found = jax.jit(lambda p: run(tx, sum_of_squares, p, 12))(params)
    for leaf in jax.tree.leaves(found.params):
      assert leaf.dtype == dtype
    # Adam itself divides by zero in float16: its eps, 1e-8, is zero there.
    if stage != "paper" or dtype != jnp.float16:
      assert_finite(found.params, (stage, dtype))
    if stage != "paper":  # Algorithm 1 need not descend
      assert float(found.loss[-1]) < float(value)


def test_eval_shape_of_init_agrees_with_init():
  params = {"a": jnp.zeros((3, 2)), "b": jnp.ones((), jnp.bfloat16)}
  tx = gen_optax.gen_adam()
  assert types(jax.eval_shape(tx.init, params)) == types(tx.init(params))


@pytest.mark.usefixtures("x64")
def test_float64_carries_float64():
  """The first rate on a parabola is exact to more than float32's digits."""
  tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(smoothing=0.0))
  w = jnp.array([7.0, 1.0])
  loss = lambda p: 3.0 * jnp.sum((p - 2.0) ** 2)
  w, state, _ = step(tx, loss, w, tx.init(w))
  assert gen_state(state).learning_rate.dtype == jnp.float64
  np.testing.assert_allclose(gen_state(state).learning_rate, 1 / 6, rtol=1e-12)
  np.testing.assert_allclose(w, 2.0, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_highest_precision_of_a_mixed_tree_rules():
  params = {
    "half": jnp.zeros(3, jnp.bfloat16),
    "single": jnp.zeros((2, 2), jnp.float32),
    "double": jnp.zeros((), jnp.float64),
  }
  tx = STAGES["default"]()
  found = jax.jit(lambda p: run(tx, sum_of_squares, p, 30))(params)
  last = jax.tree.map(lambda x: x[-1], found.params)
  assert types(last) == types(params)
  assert gen_state(found.state).learning_rate.dtype == jnp.float64
  assert found.loss[-1] < 0.1 * found.loss[0]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("params", [{}, (), {"a": {}}])
def test_an_empty_tree(stage, params):
  """Nothing moves, nothing breaks; `map_params` builds such a state."""
  tx = STAGES[stage]()
  state = tx.init(params)
  for _ in range(3):
    updates, after = tx.update(
      params,
      state,
      params,
      value=jnp.float32(1.0),
      grad=params,
      value_fn=lambda p: jnp.float32(1.0),
    )
    assert updates == params
    assert types(after) == types(state)
    assert np.isfinite(gen_state(after).learning_rate)
    state = after


@pytest.mark.parametrize("stage", ["default", "fit", "ready-made"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,)])
def test_leaves_of_size_one_and_none(stage, shape):
  params = {"a": jnp.zeros(shape), "b": jnp.full((2,), 3.0)}
  tx = STAGES[stage]()
  found = jax.jit(lambda p: run(tx, sum_of_squares, p, 30))(params)
  assert found.params["a"].shape == (30, *shape)
  assert found.loss[-1] < 0.1 * found.loss[0]
  assert_finite(found.params)


def test_integer_leaves_stay():
  """optax.sgd takes integer leaves with float0 or zero gradients; so do we."""
  params = {"w": jnp.array([3.0, -1.0]), "step": jnp.array(7, jnp.int32)}
  grad = {"w": 2 * (params["w"] - 1.0), "step": jnp.array(0, jnp.int32)}
  tx = gen_optax.scale_by_gen()
  state = tx.init(params)
  updates = jax.tree.map(jnp.negative, grad)
  updates, after = tx.update(
    updates,
    state,
    params,
    grad=grad,
    value=sum_of_squares(params),
    value_fn=sum_of_squares,
  )
  assert types(after) == types(state)
  moved = optax.apply_updates(params, updates)
  assert moved["step"] == 7 and moved["step"].dtype == jnp.int32
  np.testing.assert_allclose(moved["w"], 1.0, atol=1e-5)


def test_state_map_params():
  """optax calls `init` with placeholders; every leaf must be reachable."""
  params = {"a": jnp.zeros(3), "b": jnp.ones(())}
  tx = gen_optax.gen_adam()
  state = tx.init(params)
  seen = optax.tree.map_params(tx, lambda leaf: leaf + 1, state)
  assert jax.tree.structure(seen) == jax.tree.structure(state)


def test_init_does_not_alias_its_buffers():
  """Donation would fail on a buffer that stands twice in the state."""
  params = {"a": jnp.zeros(3), "b": jnp.ones(2)}
  tx = gen_optax.gen_momentum()
  state = tx.init(params)
  train = jax.jit(
    lambda p, s: step(tx, sum_of_squares, p, s)[:2], donate_argnums=(0, 1)
  )
  for _ in range(3):
    params, state = train(params, state)
  assert np.isfinite(sum_of_squares(params))


@pytest.mark.parametrize("estimator", ["known_slope", "fit"])
def test_a_narrow_loss_is_refused_where_it_is_fitted(estimator):
  """Its rounding hides the curvature; exact derivatives do not subtract."""
  loss = lambda w: jnp.mean((w - 2.0) ** 2).astype(jnp.bfloat16)
  w = jnp.zeros(4)

  def step(estimator):
    tx = gen_optax.generalized_newton(optax.sgd(1.0), estimator=estimator)
    grad = jax.grad(loss)(w)
    return tx.update(grad, tx.init(w), w, value=loss(w), value_fn=loss)

  with pytest.raises(ValueError, match="bfloat16.*float32"):
    step(estimator)
  updates, _ = step("hvp")
  np.testing.assert_allclose(updates, 2.0, rtol=0.01)
