"""Goldens: the paper's rule and the default rule, to the digits printed.

The digits come from implementations that share no code with the package;
`reference.py` derives them once more in numpy.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from running import (
  BASES,
  LOSSES,
  ROSENBROCK_START,
  SETTINGS,
  assert_digits,
  fit_of,
  gen_state,
  run,
  static,
  step,
)

import gen_optax
from gen_optax.gen import rule
from gen_optax.gen.paper import paper_rule
from gen_optax.gen.state import Parabola
from gen_optax.helpers import mean

pytestmark = pytest.mark.usefixtures("x64")


# The paper's rule


def test_paper_rule_on_beale():
  tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen_paper(0.01))
  found = run(tx, LOSSES["beale"], jnp.ones(2), 6)
  assert_digits(
    found.rate[:5],
    "0.0105172734373 0.0136355335954 0.0196681521941 0.0279904057582"
    " 0.0370865628324",
  )
  assert_digits(
    found.loss[1:],
    "8.44811554158 6.10409549395 4.25964176342 2.76663976658 1.73104472756",
  )


def test_paper_rule_fits_every_third_step_from_the_third():
  tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen_paper(0.01, every=3))
  rate = run(tx, LOSSES["beale"], jnp.ones(2), 8).rate
  np.testing.assert_array_equal(rate[:2], [0.01, 0.01])
  assert_digits(rate[2::3], ".0151545723404 .0247243122553")
  np.testing.assert_array_equal(rate[3:5], rate[2])
  np.testing.assert_array_equal(rate[6:], rate[5])


def test_paper_rule_holds_on_rejection():
  """Uphill and concave lines leave eta alone and are stepped on."""
  tx = gen_optax.scale_by_gen_paper(0.1)
  for fn, u in (
    (lambda w: jnp.sum(w**2), 2.0),  # convex, but u points uphill
    (lambda w: -jnp.sum(w**2), 2.0),  # downhill, but concave
  ):
    w = jnp.ones(1)
    updates, state = tx.update(
      jnp.array([u]), tx.init(w), w, value_fn=fn, value=fn(w)
    )
    assert float(state.learning_rate) == 0.1
    assert not state.info.accepted
    np.testing.assert_allclose(updates, [0.1 * u])


def test_paper_rule_emits_the_new_rate_times_the_horizon():
  """The factor touches the step alone: the rate stays Algorithm 1's."""
  tx = optax.chain(
    optax.sgd(1.0), gen_optax.scale_by_gen_paper(0.01, horizon=lambda t: 0.0)
  )
  found = run(tx, LOSSES["beale"], jnp.ones(2), 1)
  assert_digits(found.rate, "0.0105172734373")
  np.testing.assert_array_equal(found.params[-1], jnp.ones(2))


@pytest.mark.parametrize(
  "slope, curvature, rate",
  [(2.0, 4.0, 0.14), (-2.0, 4.0, 0.1), (2.0, -4.0, 0.1), (2.0, 0.0, 0.1)],
)
def test_the_paper_smooths_or_holds(slope, curvature, rate):
  found, accepted = paper_rule(fit_of(slope, curvature), jnp.asarray(0.1), 0.9)
  np.testing.assert_allclose(found, rate, rtol=1e-12)
  assert bool(accepted) == (slope > 0 and curvature > 0)


# The default rule


def default(base="sgd", **options):
  return optax.chain(BASES[base](), gen_optax.scale_by_gen(**options))


@pytest.mark.parametrize("rate", [0.01, 1e-6])
def test_g1(rate):
  found = run(default(learning_rate=rate), LOSSES["beale"], jnp.ones(2), 6)
  assert_digits(
    found.rate[:5],
    ".020876254751 .0228128106362 .0242043125015 .0251946118503 .0259004906361",
  )
  assert_digits(found.params[4], "1.54695842649 .0866787098598")
  assert_digits(found.loss[5], "1.68268327241")


def test_g2():
  start = jnp.array([-1.2, 1.0])
  found = run(default("momentum"), LOSSES["rosenbrock"], start, 6)
  assert_digits(
    found.rate[:5],
    "7.40685185955e-4 4.58608157371e-4 3.30500245126e-4 3.47089544403e-4"
    " 4.39323918041e-4",
  )
  assert_digits(found.params[4], "-.953260171306 1.06912253163")
  assert_digits(found.loss[5], "6.38860521188")


def test_g3():
  found = run(
    default("adam", learning_rate=1.0),
    LOSSES["beale"],
    jnp.array([3.0, 4.0]),
    6,
  )
  assert_digits(
    found.rate[:5],
    ".828784283418 .826018852502 .825658407623 .825634264363 .825635447618",
  )
  assert_digits(found.params[4], ".191545991604 1.22270840778")
  assert_digits(found.loss[5], "15.6263651268")


def test_g4_lazy():
  found = run(
    default("momentum", learning_rate=0.01, every=4, dense_start=4),
    LOSSES["alternating"],
    jnp.array([1.5, 1.0]),
    13,
  )
  assert_digits(
    found.rate[:5],
    ".100899100899 .0715350360642 .0555082105414 .053899610951 .0313243899566",
  )
  assert_digits(found.rate[8], ".0270487711702")
  assert_digits(found.rate[12], ".0170859694386")
  np.testing.assert_array_equal(found.rate[5:8], found.rate[4])
  np.testing.assert_array_equal(found.rate[9:12], found.rate[8])
  assert_digits(found.params[-1], "-.229711249989 -.0522970844078")


@pytest.mark.parametrize(
  "horizon", [10, lambda t: 1 - jnp.asarray(t, float) / 10]
)
def test_g5_horizon(horizon):
  found = run(
    default(learning_rate=0.01, horizon=horizon),
    LOSSES["beale"],
    jnp.ones(2),
    6,
  )
  assert_digits(
    found.rate[:5],
    ".020876254751 .0228128106362 .0242669506945 .0253968468202 .0263108081582",
  )
  assert_digits(found.params[4], "1.43178122796 .130896846703")
  assert_digits(found.loss[5], "2.20702264067")


# The last two steps differ: there the least rate by distance holds.
G6 = (
  ".100899100899 .107119125343 .063638443523 .0539375129593 .0341982656416"
  " .023694235466"
)
G6_RATES = f"{G6} .0133720453635 .0128142118216"


def test_g6_fresh_slope():
  start = jnp.array([1.5, 1.0])
  found = run(default(learning_rate=0.01), LOSSES["alternating"], start, 8)
  assert_digits(found.rate, G6_RATES)
  assert_digits(found.params[-1], ".981408023285 .0652588102261")


def test_g6_without_the_distance(monkeypatch):
  """The rule of the derivation: fresh data may take nine tenths of the rate."""

  learn = rule.learn

  def with_a_tenth(constants, fit, averages, *others):
    new = Parabola(fit.slope, fit.curvature)
    slope, curvature = mean.include(averages.line, new, constants.smoothing).sum
    tenth = 0.1 * slope / curvature
    monkeypatch.setattr(rule, "distance_rate", lambda *_: tenth)
    return learn(constants, fit, averages, *others)

  monkeypatch.setattr(rule, "learn", with_a_tenth)
  start = jnp.array([1.5, 1.0])
  found = run(default(learning_rate=0.01), LOSSES["alternating"], start, 8)
  assert_digits(found.rate, f"{G6} .0130546407728 .0107830261589")
  assert_digits(found.params[-1], ".985487140791 .0713337986811")


@pytest.mark.parametrize("estimator", ["forward", "hvp", "fit"])
def test_estimators_agree_on_quadratics(estimator):
  """On a quadratic every estimator sees the same line, so G6 holds."""
  start = jnp.array([1.5, 1.0])
  found = run(
    default(learning_rate=0.01, estimator=estimator),
    LOSSES["alternating"],
    start,
    8,
  )
  assert_digits(found.rate, G6_RATES, units=2)


def test_generalized_newton_equals_the_chain():
  base = optax.sgd(1.0, momentum=0.9)
  start = jnp.array([1.5, 1.0])
  loss = LOSSES["alternating"]
  found = run(gen_optax.generalized_newton(base, 0.01), loss, start, 30)
  ready = run(gen_optax.gen_momentum(0.01), loss, start, 30)
  chain = run(default("momentum", learning_rate=0.01), loss, start, 30)
  np.testing.assert_allclose(found.rate, chain.rate, rtol=1e-12)
  np.testing.assert_allclose(ready.rate, chain.rate, rtol=1e-12)


def test_gen_lion_averages_over_its_memory():
  """Its momentum's decay is the default rule's averaging constant."""
  start, loss = jnp.array([1.5, 1.0]), LOSSES["alternating"]
  base = optax.lion(1.0, b2=0.95)
  ready = run(gen_optax.gen_lion(0.01, b2=0.95), loss, start, 30)
  long = gen_optax.generalized_newton(base, 0.01, smoothing=0.95)
  short = gen_optax.generalized_newton(base, 0.01)
  chosen = run(
    gen_optax.gen_lion(0.01, b2=0.95, smoothing=0.9), loss, start, 30
  )
  np.testing.assert_array_equal(ready.rate, run(long, loss, start, 30).rate)
  np.testing.assert_array_equal(chosen.rate, run(short, loss, start, 30).rate)
  assert ready.rate[-1] != chosen.rate[-1]
  rule = gen_optax.greedy()
  own = run(gen_optax.gen_lion(0.01, b2=0.95, rule=rule), loss, start, 30)
  bare = gen_optax.generalized_newton(base, 0.01, rule=rule)
  np.testing.assert_array_equal(own.rate, run(bare, loss, start, 30).rate)


# The numpy reference over longer runs


@functools.cache
def compiled(kind, base, loss, steps, **options):
  """One compilation for all starts and first rates."""
  stage = {
    "default": gen_optax.scale_by_gen,
    "paper": gen_optax.scale_by_gen_paper,
  }[kind]

  @jax.jit
  def go(start, rate):
    tx = optax.chain(BASES[base](), stage(rate, **options))
    found = run(tx, LOSSES[loss], start, steps)
    return found.rate, found.params

  return go


def reference_run(make_rule, base, problem, start, steps):
  """The reference's rule after a run, its rates and points.

  Hypothesis looks elsewhere where a start beside this one ends far from it:
  there rounding decides.
  """
  rule, base = make_rule(), reference.BASES[base]
  rates, points = reference.run(rule, base(), problem, start, steps)
  beside = np.add(start, 1e-12)
  nearby, _ = reference.run(make_rule(), base(), problem, beside, steps)
  hypothesis.assume(np.allclose(nearby, rates, rtol=1e-8, atol=0))
  return rule, rates, points


CASES = {
  "momentum": dict(base="momentum"),
  "sgd": dict(base="sgd"),
  "faint noise": dict(base="sgd", loss="faint noise"),
  "adam": dict(base="adam"),
  "every 3": dict(base="momentum", every=3, dense_start=4),
  "every 5, no dense start": dict(base="sgd", every=5, dense_start=0),
  "horizon": dict(base="momentum", horizon=80),
  "smoothing": dict(base="momentum", smoothing=0.7),
  "no fresh slope": dict(base="momentum", fresh_slope=False),
}
RENAMED = {"smoothing": "gamma", "fresh_slope": "fresh"}


@pytest.mark.parametrize("case", CASES)
def test_default_rule_equals_the_reference(case):
  options = dict(CASES[case])
  base, loss = options.pop("base"), options.pop("loss", "alternating")
  go = compiled("default", base, loss, 60, **options)

  @SETTINGS
  @hypothesis.given(
    st.tuples(st.floats(-3, 3), st.floats(-3, 3)), st.floats(-6, 0)
  )
  @hypothesis.example((1.5, 1.0), -2.0)
  def check(start, exponent):
    start = np.round(start, 3)
    named = {RENAMED.get(k, k): v for k, v in options.items()}
    expected, rates, points = reference_run(
      lambda: reference.DefaultRule(10.0**exponent, **named),
      *(base, reference.NOISY[loss], start, 60),
    )
    # The stage guards there, and where lazy steps let the iterates explode.
    hypothesis.assume(not expected.wild and np.max(np.abs(points)) < 6)
    found_rates, found_points = go(start, 10.0**exponent)
    np.testing.assert_allclose(found_rates, rates, rtol=1e-7)
    np.testing.assert_allclose(found_points, points, rtol=1e-6, atol=1e-8)

  check()


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("base", ["sgd", "momentum"])
def test_paper_rule_equals_the_reference(base, every):
  go = compiled("paper", base, "alternating", 30, every=every)

  @SETTINGS
  @hypothesis.given(
    st.tuples(st.floats(-3, 3), st.floats(-3, 3)), st.floats(-4, -1)
  )
  def check(start, exponent):
    start = np.round(start, 3)
    hypothesis.assume(np.linalg.norm(start - [1.0, 0.5]) > 0.1)
    _, rates, _ = reference_run(
      lambda: reference.PaperRule(10.0**exponent, every=every),
      *(base, reference.alternating, start, 30),
    )
    hypothesis.assume(np.all(np.isfinite(rates)) and np.max(rates) < 10)
    found, _ = go(start, 10.0**exponent)
    np.testing.assert_allclose(found, rates, rtol=1e-6)

  check()


@pytest.mark.parametrize("name", ["beale", "rosenbrock"])
@pytest.mark.parametrize("base", ["sgd", "momentum", "adam"])
def test_default_rule_equals_the_reference_on_the_toys(base, name):
  """Chaos spares the first 15 steps; starts are the problems' own."""
  go = compiled("default", base, name, 15)
  start = {"beale": (1.0, 1.0), "rosenbrock": (-1.2, 1.0)}[name]
  rates, points = reference.run(
    reference.DefaultRule(1e-3),
    reference.BASES[base](),
    reference.fixed(name),
    start,
    15,
  )
  found_rates, found_points = go(jnp.array(start), 1e-3)
  np.testing.assert_allclose(found_rates, rates, rtol=1e-7)
  np.testing.assert_allclose(found_points, points, rtol=1e-7)


def test_info_reports_the_fit():
  """Slope, curvature, optimum of the line at the rate that was probed."""
  fn = functools.partial(static("rosenbrock"), t=0)
  tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen_paper(1e-3))
  w = jnp.array(ROSENBROCK_START)
  _, state, _ = step(tx, fn, w, tx.init(w))
  info = gen_state(state).info
  assert_digits(info.slope, "59855.9370957")
  assert_digits(info.curvature, "82017697.3514")
  assert_digits(info.optimum, "7.29792947481e-4")
  assert info.accepted and not info.skipped and 0 <= info.quality <= 1
