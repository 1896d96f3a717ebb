"""Lines far from the averages, and the search for a rate of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_optax.gen import outliers, rule, trace
from gen_optax.gen.fit import LineFit, unknown_fit
from gen_optax.gen.observe import Observation
from gen_optax.gen.protocol import Taken
from gen_optax.gen.search import fit_or_search, search_step
from gen_optax.gen.state import forget_fits, no_averages

NO_TRACE = trace.no_trace(jnp.zeros(1), jnp.float32)


@pytest.mark.parametrize("curvature", [1e3, 1e20])
def test_an_absurd_fit_weighs_less_than_a_steep_one(curvature):
  """A steep batch counts in full; what no loss can have does not."""
  fit = lambda a: LineFit(*(jnp.float32(x) for x in (1, a, 1 / a, 1)), True)
  rate, averages = jnp.float32(1.0), no_averages(jnp.float32)
  after = []
  for a in [1.0] * 60 + [curvature] + [1.0] * 40:
    rate, averages, _ = rule.learn(
      rule.GenRule(), fit(a), averages, NO_TRACE, rate, False
    )
    after.append(float(rate))
  assert after[59] == pytest.approx(1.0)
  if curvature == 1e3:
    np.testing.assert_allclose(after[60], 0.1)  # 1 / 100.9, ten times at most
    np.testing.assert_allclose(after[61], 1 / (0.9 * 100.9 + 0.1), rtol=1e-2)
  else:
    assert after[60] > 0.2 and after[100] > 0.9


def test_a_loss_that_grows_for_good_is_learnt():
  """Ten times average fits nearly double the averages, one by one."""
  fit = lambda x: LineFit(*(jnp.float32(y) for y in (x, x, 1, 1)), True)
  rate, averages = jnp.float32(1.0), no_averages(jnp.float32)
  outliers_met = []
  for x in [1.0] * 60 + [1e8] * 40:
    outliers_met.append(bool(outliers.is_outlier_fit(fit(x), averages, rate)))
    rate, averages, _ = rule.learn(
      rule.GenRule(), fit(x), averages, NO_TRACE, rate, False
    )
  assert not any(outliers_met[:60]) and outliers_met[60]
  assert not any(outliers_met[90:])


def test_an_outlying_update_counts_ten_in_the_size():
  averages = no_averages(jnp.float32)._replace(size=jnp.float32(2.0))
  far = outliers.include_size(averages, jnp.float32(1e20))
  np.testing.assert_allclose(far.size, 0.9 * 2 + 0.1 * 20, rtol=1e-6)


@pytest.mark.parametrize(
  "taken, outlier, length",
  [(True, False, 7 + 9), (True, True, 7), (False, False, 7)],
)
def test_what_counts_in_the_path(taken, outlier, length):
  """Neither an outlier nor a step that was withheld."""
  w, yes = jnp.zeros(1), jnp.ones((), bool)
  memory = NO_TRACE._replace(sum_sq_norms=jnp.float32(7.0))
  seen = Observation(0, None, None, None, jnp.float32(9.0), None, yes, ~yes)
  step = Taken(w, 1.0, 1.0, yes & taken, yes & outlier)
  after = rule.GenRule().follow(memory, seen, step)
  assert after.sum_sq_norms == length
  assert after.follows == (taken and not outlier)


@pytest.mark.parametrize(
  "fits, optimum, absurd",
  [(0, 1e9, False), (1, 1e9, True), (1, 1e3, False), (2, 1e9, False)],
)
def test_what_makes_a_first_fit_absurd(fits, optimum, absurd):
  fit = lambda optimum: unknown_fit(jnp.float32)._replace(
    slope=jnp.float32(optimum),
    curvature=jnp.float32(1.0),
    optimum=jnp.float32(optimum),
    finite=jnp.asarray(True),
  )
  averages = no_averages(jnp.float32)
  for _ in range(fits):
    _, averages, _ = rule.learn(
      rule.GenRule(), fit(1.0), averages, NO_TRACE, 1.0, False
    )
  assert outliers.contradicts_first(fit(optimum), averages, 1.0, 0.9) == absurd
  kept = forget_fits(averages._replace(size=jnp.float32(7.0)), True)
  assert not any(jax.tree.leaves(kept.line)) and kept.size == 7


# The search


def test_a_search_that_would_jump_from_end_to_end():
  """Each optimum lies nearly as far on the other side of the best rate."""

  def estimate(_, rate):
    optimum = rate * (0.02 / rate) ** 1.99
    one = jnp.ones(())
    return LineFit(one, 1 / optimum, optimum, one, jnp.ones((), bool))

  yes, no = jnp.ones((), bool), jnp.zeros((), bool)
  trial, _ = fit_or_search(
    estimate,
    jnp.ones(2),
    jnp.float32(1e-3),
    no_averages(jnp.float32),
    pending=yes,
    searching=yes,
    outlier=no,
    exact=False,
  )
  assert trial.found and 0.01 < trial.rate < 0.04


@pytest.mark.parametrize("halve", [False, True])
def test_what_a_late_search_finds_it_goes_to(halve):
  yes, one = jnp.ones((), bool), jnp.ones(())
  fit = LineFit(one, one / 1.5, 1.5 * one, one, yes)
  rate, *_, found, _ = search_step(fit, one, 0.1, 100.0, halve=halve)
  assert found and rate == 1.5
  fit = fit._replace(curvature=one / 9, optimum=9 * one)
  rate, *_, found, _ = search_step(fit, one, 0.1, 100.0, halve=halve)
  assert not found and rate == (10.0 if halve else 9.0)
