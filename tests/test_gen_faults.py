"""Wrong numbers reach no parameter and no average."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import BASES, assert_finite, gen_state, run, step

import gen_optax

LOSS = lambda w: jnp.sum((w - 3.0) ** 2)

# Losses that are not finite


SCALE = np.array([1.0, 4.0])


@functools.cache
def breakable(ready, every, probes_only):
  """An optimizer, and a compiled step whose losses can be broken."""
  tx = (
    gen_optax.gen_momentum(every=every)
    if ready
    else optax.chain(
      optax.sgd(1.0, momentum=0.9), gen_optax.scale_by_gen(every=every)
    )
  )

  @jax.jit
  def train(w, state, broken, bad):
    clean = lambda p: jnp.sum(SCALE * (p - 3.0) ** 2)
    elsewhere = lambda p: jnp.any(p != w) if probes_only else True
    value_fn = lambda p: jnp.where(broken & elsewhere(p), bad, clean(p))
    value, grad = jax.value_and_grad(clean)(w)
    updates, state = tx.update(
      grad, state, w, value=value_fn(w), grad=grad, value_fn=value_fn
    )
    return optax.apply_updates(w, updates), state, value

  return tx, train


@pytest.mark.parametrize("every, probes_only", [(1, True), (8, False)])
@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("when", [0, 5, 30])
def test_losses_that_are_not_finite(bad, ready, when, every, probes_only):
  """The parameters stay for this step, and training goes on after it.

  `probes_only` leaves the loss at the parameters themselves as it was;
  otherwise the lazy step, t = 30, is withheld as well.
  """
  tx, train = breakable(ready, every, probes_only)
  w = jnp.array([20.0, -9.0])
  state = tx.init(w)
  for _ in range(when):
    w, state, _ = train(w, state, False, bad)
  stood, rate = w, gen_state(state).learning_rate
  w, state, before = train(w, state, True, bad)
  np.testing.assert_array_equal(w, stood)
  assert gen_state(state).info.skipped
  assert gen_state(state).learning_rate <= rate
  assert_finite(gen_state(state).averages)
  for _ in range(60):
    w, state, _ = train(w, state, False, bad)
  assert not gen_state(state).info.skipped
  assert jnp.sum(SCALE * (w - 3.0) ** 2) < before


@pytest.mark.parametrize("ready", [True, False])
def test_fresh_data_see_each_step_that_was_taken_once(ready):
  tx, train = breakable(ready, 1, True)
  w = jnp.array([20.0, -9.0])
  state = tx.init(w)
  weights = []
  for t in range(8):
    w, state, _ = train(w, state, t == 5, np.nan)
    weights.append(float(gen_state(state).memory.fresh_slope.weight))
  grew = np.diff(weights) > 0
  # The gradient of step 5 sees step 4; step 6 has nothing to see.
  np.testing.assert_array_equal(grew, [True] * 5 + [False, True])


def test_fresh_data_see_no_step_that_was_zero():
  """An optimizer that moves on every fourth step only."""
  tx = optax.chain(
    optax.sgd(0.1), optax.apply_every(4), gen_optax.scale_by_gen()
  )
  loss = lambda w: jnp.sum(SCALE * (w - 3.0) ** 2)
  w = jnp.array([20.0, -9.0])
  state, moved, grew = tx.init(w), [], []
  for _ in range(12):
    before, weight = w, gen_state(state).memory.fresh_slope.weight
    w, state, _ = step(tx, loss, w, state)
    moved.append(bool(jnp.any(w != before)))
    grew.append(bool(gen_state(state).memory.fresh_slope.weight > weight))
  assert any(moved) and not all(moved)
  assert grew[1:] == moved[:-1]


def test_updates_that_grow_for_good_are_fitted_lazily_again():
  """3000 times as long from step 40 on: outliers, and then the usual ones."""
  grow = lambda t: jnp.where(t < 40, -1.0, -3000.0)
  tx = optax.chain(
    optax.scale_by_schedule(grow), gen_optax.scale_by_gen(every=8)
  )
  # A gradient that stays: its path is what a fit adds to.
  loss = lambda w: jnp.sum(jnp.sqrt(1 + w**2))
  w, wild = jnp.array([1e6, -2e6]), []
  state = tx.init(w)
  go_on = jax.jit(functools.partial(step, tx, loss))
  for _ in range(120):
    w, state, _ = go_on(w, state)
    inner = gen_state(state)
    wild.append(not bool(inner.memory.follows))
  size = float(inner.averages.size)
  assert any(wild[40:60]) and not any(wild[100:])
  np.testing.assert_allclose(size, 2 * 3000.0**2, rtol=0.5)


def test_a_step_whose_numbers_are_not_finite_leaves_a_tenth_of_the_rate():
  tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen())
  loss = lambda w: jnp.sum(SCALE * (w - 3.0) ** 2)
  w = jnp.array([20.0, -9.0])
  state = tx.init(w)
  for _ in range(3):
    w, state, _ = step(tx, loss, w, state)
  rate = gen_state(state).learning_rate
  grad = jax.grad(loss)(w)
  _, state = tx.update(
    grad, state, w, value=jnp.float32(np.nan), grad=grad, value_fn=loss
  )
  assert gen_state(state).learning_rate == rate / 10


@pytest.mark.parametrize("estimator", ["forward", "hvp"])
def test_an_exact_estimator_leaves_a_concave_start(estimator):
  """It sees no loss, and takes the given rate until the line bends up."""
  loss = lambda w: jnp.sum(w**2 / 2 - 2 * jnp.exp(-(w**2)))
  tx = gen_optax.gen_sgd(0.1, estimator=estimator)
  w = jnp.array([1.5])
  go_on = jax.jit(functools.partial(step, tx, loss))
  w, state, _ = go_on(w, tx.init(w))
  first = gen_state(state)
  assert not first.info.skipped and not first.calibrated
  assert first.info.curvature < 0 and first.learning_rate == np.float32(0.1)
  for _ in range(40):
    w, state, _ = go_on(w, state)
  assert gen_state(state).calibrated and loss(w) < -1.9


@pytest.mark.parametrize("estimator", ["forward", "hvp"])
def test_an_exact_estimator_leaves_an_absurd_start(estimator):
  """No loss tells that the first curvature was none; the second line does."""
  tx = gen_optax.gen_sgd(estimator=estimator)
  state, w = tx.init(jnp.ones(2)), jnp.ones(2)

  @jax.jit
  def train(w, state, steep):
    value_fn = lambda p: jnp.sum(jnp.cosh(p) + steep * (p - w) ** 2)
    value, grad = jax.value_and_grad(value_fn)(w)
    updates, state = tx.update(
      grad, state, w, value=value, grad=grad, value_fn=value_fn
    )
    return optax.apply_updates(w, updates), state

  for k in range(4):
    w, state = train(w, state, jnp.where(k == 0, 1e20, 0.0))
    rate = float(gen_state(state).learning_rate)
    assert (rate < 1e-15) == (k == 0), k
  assert jnp.sum(w**2) < 1e-2


@pytest.mark.parametrize("estimator", ["forward", "hvp"])
def test_an_exact_estimator_looks_where_its_first_rate_leads(estimator):
  """Nearly straight at the start, and steep behind: rates beyond 1e3 fit."""
  tx = gen_optax.gen_sgd(estimator=estimator)
  loss = lambda w: jnp.sum(jnp.log1p(jnp.exp(-w)) + jnp.maximum(w - 2, 0) ** 2)
  w = jnp.full(2, -9.0)
  state = tx.init(w)
  train = jax.jit(lambda w, state: step(tx, loss, w, state)[:2])
  values = [float(loss(w))]
  for _ in range(30):
    w, state = train(w, state)
    values.append(float(loss(w)))
  assert values == sorted(values, reverse=True)
  assert values[-1] < values[0]


def test_a_wall_beyond_the_minimum():
  """The first probe always falls off the domain; the rate comes down."""
  loss = lambda w: jnp.sum(-jnp.log(w) - jnp.log(1 - w))
  tx = gen_optax.gen_sgd(1.0)
  w = jnp.array([0.01, 0.6])
  found = run(tx, lambda p, t: loss(p), w, 100)
  assert np.all(np.isfinite(found.params))
  np.testing.assert_allclose(found.params[-1], 0.5, atol=0.05)


@pytest.mark.parametrize(
  "build",
  [
    gen_optax.gen_adam,
    lambda: optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen()),
  ],
  ids=["ready-made", "chain"],
)
def test_a_nan_in_one_leaf_of_the_gradient(build):
  """The step is withheld, in the other leaves too."""
  tx = build()
  params = {"a": jnp.ones(2), "b": jnp.full((3,), 2.0)}
  loss = lambda p: jnp.sum(p["a"] ** 2) + 10 * jnp.sum(p["b"] ** 4)

  @jax.jit
  def train(params, state, broken):
    value, grad = jax.value_and_grad(loss)(params)
    grad["b"] = jnp.where(broken, grad["b"].at[1].set(jnp.nan), grad["b"])
    updates, state = tx.update(
      grad, state, params, value=value, grad=grad, value_fn=loss
    )
    return optax.apply_updates(params, updates), state

  before, state = train(params, tx.init(params), False)
  after, state = train(before, state, True)
  jax.tree.map(np.testing.assert_array_equal, after, before)
  assert_finite(state)
  for _ in range(30):
    after, state = train(after, state, False)
  assert loss(after) < loss(before)


# Gradients and lines of no use

SHAPES = {
  "flat": lambda w: 0.0 * jnp.sum(w) + 3.0,
  "kinked": lambda w: jnp.sum(jnp.abs(w - 30.0)),  # straight for long
  "straight": lambda w: jnp.sum(w),
  "concave": lambda w: -jnp.sum(w**2),
  "concave at first": lambda w: jnp.sum(jnp.cos(w / 10)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("base", ["sgd", "adam", "lion"])
def test_flat_straight_and_concave_lines(shape, base):
  """Nothing becomes NaN, and where there is a bounded way down it is taken."""
  tx = gen_optax.generalized_newton(BASES[base]())
  loss = SHAPES[shape]
  w = jnp.array([1.0, 2.0])
  first, state = loss(w), tx.init(w)
  train = jax.jit(lambda w, state: step(tx, loss, w, state)[:2])
  for _ in range(5):
    w, state = train(w, state)
    assert_finite((w, state))
  assert loss(w) <= first
  if shape in ("kinked", "concave at first"):
    assert loss(w) < first


@pytest.mark.parametrize("base", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("size", [0.0, 1e-20])
def test_gradients_of_no_size(base, size):
  """They move nothing, poison nothing, and do not pass for a first fit."""
  tx = gen_optax.generalized_newton(BASES[base]())

  @jax.jit
  def train(w, state, scale):
    value, grad = jax.value_and_grad(LOSS)(w)
    grad = jnp.where(scale < 0, grad, jnp.full_like(grad, scale))
    updates, state = tx.update(
      grad, state, w, value=value, grad=grad, value_fn=LOSS
    )
    return optax.apply_updates(w, updates), state

  w = jnp.array([10.0, -4.0])
  state, start = tx.init(w), LOSS(w)
  for _ in range(3):
    w, state = train(w, state, size)
    assert np.all(np.isfinite(w))
    if size == 0.0:
      np.testing.assert_array_equal(w, [10.0, -4.0])
  for _ in range(100):
    w, state = train(w, state, -1.0)
  assert LOSS(w) < 0.1 * start
