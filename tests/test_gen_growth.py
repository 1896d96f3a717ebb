"""The rule that grows while gradients agree."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from running import BASES, SETTINGS, gen_state, run, step

import gen_optax
from gen_optax.gen.growth import Growth

pytestmark = pytest.mark.usefixtures("x64")

QUADRATIC = np.array([1.0, 3.0, 10.0])


def alternating(w, t):
  curvature = jnp.array([1.0, 10.0])
  centre = jnp.array([1.0, 0.5]) * jnp.array([1.0, 1.0])
  other = jnp.array([-1.0, -0.25])
  return (
    jnp.sum(curvature * (w - jnp.where(t % 2 == 0, centre, other)) ** 2) / 2
  )


@functools.cache
def compiled(base, steps, **options):
  @jax.jit
  def go(start, rate):
    stage = gen_optax.scale_by_gen(rate, **options)
    return run(optax.chain(BASES[base](), stage), alternating, start, steps)

  return go


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("base", ["sgd", "momentum", "adam"])
def test_growth_equals_the_reference(base, every):
  go = compiled(base, 60, rule=Growth(), every=every, dense_start=5)

  @SETTINGS
  @hypothesis.given(
    st.tuples(st.floats(-3, 3), st.floats(-3, 3)), st.floats(-6, 0)
  )
  @hypothesis.example((1.5, 1.0), -2.0)
  def check(start, exponent):
    start = np.round(start, 3)
    hypothesis.assume(np.linalg.norm(start - [1.0, 0.5]) > 0.1)
    expected = reference.GrowthRule(10.0**exponent, every=every, dense_start=5)
    rates, points = reference.run(
      expected, reference.BASES[base](), reference.alternating, start, 60
    )
    hypothesis.assume(not expected.wild and np.max(np.abs(points)) < 6)
    found = go(start, 10.0**exponent)
    np.testing.assert_allclose(found.rate, rates, rtol=1e-7)
    np.testing.assert_allclose(found.params, points, rtol=1e-6, atol=1e-8)

  check()


def rates_under(gradient, steps=200):
  """Rates on a loss that is straight along each step's gradient."""
  # Far below the ceiling and the minimum, which are the bend's alone.
  rule = Growth(first_share=1e-5)
  tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(1e-3, rule=rule))

  # Bends a little, so that the first search ends.
  def loss(w, t):
    return jnp.vdot(gradient(t), w) + 5e-4 * jnp.vdot(w, w)

  return np.asarray(run(tx, loss, jnp.zeros(100), steps).rate)


def test_a_walk_at_random_grows_nothing():
  """And a hundredth of the same numbers' length that stays does."""
  noise = lambda t: jax.random.normal(jax.random.fold_in(KEY, t), (100,))
  walk = rates_under(noise)
  assert walk[-1] < 3 * walk[0]
  drift = rates_under(lambda t: noise(t) + 1.0)
  assert drift[-1] > 30 * drift[0]


KEY = jax.random.key(3)


def test_a_sign_is_as_long_as_gradients_agree():
  """Lion's updates keep their length; the step shrinks where noise rules."""
  stage = gen_optax.scale_by_gen(rule=Growth(first_share=1e-5))
  tx = optax.chain(optax.lion(1.0), stage)

  def loss(w, t):
    noise = jax.random.normal(jax.random.fold_in(KEY, t), (100,))
    noise = jnp.where(t < 50, 0.0, 300.0) * noise
    return jnp.vdot(1.0 + noise, w) + 5e-4 * jnp.vdot(w, w)

  cosine = lambda steps: (
    gen_state(run(tx, loss, jnp.zeros(100), steps).state).memory.cosine
  )
  assert cosine(50) > 0.99
  # That of a normal vector with its own sign is 0.80, and this sign is made of
  # earlier ones too.
  assert 0.5 < cosine(200) < 0.75


@pytest.mark.parametrize("fault", [np.nan, np.inf, 1e15])
def test_a_fault_leaves_no_trace_in_the_way(fault):
  tx = gen_optax.gen_sgd(rule=Growth())
  loss = lambda w: jnp.sum(QUADRATIC * (w - 3.0) ** 2)
  w = jnp.zeros(3)
  state = tx.init(w)
  for _ in range(10):
    w, state, _ = step(tx, loss, w, state)
  before = gen_state(state).memory
  value, grad = jax.value_and_grad(loss)(w)
  updates, state = tx.update(fault * grad, state, w, value=value, value_fn=loss)
  np.testing.assert_array_equal(updates, 0)
  after = gen_state(state).memory
  jax.tree.map(np.testing.assert_array_equal, before, after)


def test_growth_stops_at_a_wall():
  """-log of what is left: a step over the wall is never taken, nor for long."""
  loss = lambda w: (
    jnp.sum(1e-3 / (1.0 - w) - w) + jnp.where(jnp.any(w >= 1.0), jnp.nan, 0.0)
  )
  tx = gen_optax.gen_sgd(rule=Growth())
  w = jnp.zeros(2)
  state = tx.init(w)
  go = jax.jit(functools.partial(step, tx, loss))
  for _ in range(300):
    w, state, value = go(w, state)
    assert np.isfinite(value)
  assert value < -1.8  # the minimum is -1.874


def test_the_line_is_a_ceiling():
  tx = gen_optax.gen_momentum(rule=Growth(answers=100.0))
  loss = lambda w: jnp.sum(jnp.array([1.0, 100.0]) * w**2) / 2
  w = jnp.ones(2)
  state = tx.init(w)
  go = jax.jit(functools.partial(step, tx, loss))
  rates, tops = [], []
  for _ in range(60):
    w, state, _ = go(w, state)
    found = gen_state(state)
    line = found.averages.line.sum
    bounded = (line.slope > 0) & (line.curvature > 0)
    tops.append(np.where(bounded, 2 * line.slope / line.curvature, np.inf))
    rates.append(found.learning_rate)
  rates, tops = np.array(rates), np.array(tops)
  # A tenth of the last rate at the least, where the line asks for less.
  free = rates[1:] > rates[:-1] / 5
  assert np.sum(np.isfinite(tops)) > 40 and np.sum(free) > 40
  assert np.all(rates[1:][free] <= tops[1:][free] * (1 + 1e-9))
  # And it binds.
  assert np.any(rates[1:] > tops[1:] * (1 - 1e-9))


@pytest.mark.parametrize(
  "name", ["answers", "ceiling", "first_share", "smoothing", "max_ratio"]
)
def test_a_constant_of_growth_that_is_out_of_range(name):
  with pytest.raises(ValueError, match=name):
    gen_optax.scale_by_gen(rule=Growth(**{name: -1.0}))
