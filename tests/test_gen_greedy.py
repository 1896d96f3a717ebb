"""The greedy rule, and exact derivatives that losses bound."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import BASES, fit_of, run

import gen_optax
from gen_optax.gen import estimators, greedy
from gen_optax.gen.search import MAX_RATE, MIN_RATE
from gen_optax.gen.state import Parabola

pytestmark = pytest.mark.usefixtures("x64")

QUADRATIC = np.array([1.0, 3.0, 10.0])


@pytest.mark.parametrize("base", ["sgd", "momentum", "rmsprop"])
def test_a_greedy_step_ends_at_its_line_s_minimum(base):
  loss = lambda w, t: jnp.sum(QUADRATIC * (w - 1.0) ** 2) / 2
  stage = gen_optax.scale_by_gen(rule=gen_optax.greedy())
  tx = optax.chain(BASES[base](), stage)
  start = jnp.array([4.0, -3.0, 2.0])
  found = jax.jit(lambda w: run(tx, loss, w, 12))(start)
  points = np.concatenate([start[None], found.params])
  move = np.diff(points, axis=0)
  grad = QUADRATIC * (points[:-1] - 1.0)
  short = -np.sum(grad * move, 1) / np.sum(QUADRATIC * move**2, 1)
  downhill = np.sum(grad * move, 1) < 0
  np.testing.assert_allclose(short[2:][downhill[2:]], 1.0, rtol=1e-6)
  assert np.sum(downhill) > 8


def test_without_fresh_slopes_the_rule_is_greedy():
  def ends(**options):
    loss = lambda w, t: jnp.sum(QUADRATIC * (w - 1.0 / (1 + t % 2)) ** 2)
    tx = gen_optax.gen_momentum(**options)
    return jax.jit(lambda w: run(tx, loss, w, 40).params)(jnp.ones(3))

  np.testing.assert_array_equal(
    ends(fresh_slope=False), ends(rule=gen_optax.greedy(0.9))
  )


def test_greedy_goes_deep_on_a_loss_without_noise():
  problem = gen_optax.problems.rosenbrock()
  loss = lambda w, t: problem.fn(w)
  ends = {}
  for name, rule in (
    ("default", gen_optax.GenRule()),
    ("greedy", gen_optax.greedy()),
  ):
    tx = gen_optax.gen_momentum(rule=rule)
    go = jax.jit(lambda w, tx=tx: run(tx, loss, w, 1000).params[-1])
    ends[name] = float(problem.fn(go(jnp.array([-1.2, 1.0]))))
  assert ends["greedy"] < 1e-16 and ends["greedy"] < ends["default"]


@pytest.mark.parametrize(
  "usual, line, optimum",
  [
    ((1.0, 2.0), (1.0, 4.0), 0.5),
    ((1.0, -2.0), (1.0, 4.0), 0.25),
    ((1.0, 0.0), (1.0, 4.0), 0.25),
    ((1.0, -2.0), (1.0, -4.0), np.inf),
  ],
)
def test_where_averages_bend_down_this_line_decides(usual, line, optimum):
  assert greedy.optimum_of(Parabola(*usual), fit_of(*line)) == optimum


@pytest.mark.parametrize(
  "rate, optimum, moved",
  [
    (1.0, 3.0, 3.0),
    (1.0, 30.0, 10.0),
    (1.0, 0.03, 0.1),
    (MAX_RATE, np.inf, MAX_RATE),
    (MIN_RATE, 0.0, MIN_RATE),
  ],
)
def test_a_rate_moves_by_a_ratio_inside_what_float32_holds(
  rate, optimum, moved
):
  assert greedy.moved(rate, optimum, 10.0) == moved


# Exact derivatives that losses bound


def line_of(phi, estimator, probes, rate):
  """What an estimator finds on the line w + s from zero."""
  estimate = estimators.make_estimate(estimator, probes, 2, "vmap")
  zero, one = jnp.zeros(()), jnp.ones(())
  return estimate(phi, zero, one, jnp.asarray(rate), phi(zero), None)


@pytest.mark.parametrize("estimator", ["forward", "hvp"])
def test_the_larger_curvature_counts(estimator):
  # Flat where it starts: the derivatives say 2 / 0.02, the chord over one step
  # 2 (1 - 2 + 0.01 + 2) = 2.02.
  steepens = lambda s: s**4 - 2 * s + 0.01 * s**2
  found = line_of(steepens, estimator, (1.0,), 1.0)
  np.testing.assert_allclose(found[:3], [2.0, 2.02, 2.0 / 2.02])
  bare = line_of(steepens, estimator, None, 1.0)
  np.testing.assert_allclose(bare[:3], [2.0, 0.02, 100.0])
  # Steep where it starts: the chord says less, and nothing changes.
  flattens = lambda s: jnp.log(jnp.cosh(s - 0.3))
  found = line_of(flattens, estimator, (1.0,), 4.0)
  bare = line_of(flattens, estimator, None, 4.0)
  np.testing.assert_array_equal(found, bare)


@pytest.mark.parametrize("estimator", ["forward", "hvp"])
def test_a_wall_that_derivatives_do_not_see(estimator):
  walled = lambda s: jnp.where(s < 2.0, s**2 - s, jnp.nan)
  assert line_of(walled, estimator, None, 3.0).finite
  assert not line_of(walled, estimator, (1.0,), 3.0).finite
  assert line_of(walled, estimator, (1.0,), 1.0).finite


def test_bounded_derivatives_go_on_where_bare_ones_stop():
  """AdaGrad on Rosenbrock: the worst of the four usual starts."""
  problem = gen_optax.problems.rosenbrock()

  def worst(probes):
    tx = gen_optax.generalized_newton(
      optax.adagrad(1.0),
      rule=gen_optax.greedy(),
      estimator="hvp",
      probes=probes,
    )
    loss = lambda w, t: problem.fn(w)
    end = lambda w: problem.fn(run(tx, loss, w, 1000).params[-1])
    return max(jax.jit(jax.vmap(end))(jnp.asarray(problem.starts)))

  assert worst((1.0,)) < 0.01 and worst(None) > 0.1
