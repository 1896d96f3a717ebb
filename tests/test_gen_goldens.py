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
  LOSSES,
  assert_digits,
  fit_of,
  gen_state,
  run,
  static,
  step,
)

import gen_optax
from gen_optax.gen import rule
from gen_optax.gen.fit import check_probes, fit_losses
from gen_optax.oracle import hessian, line

pytestmark = pytest.mark.usefixtures("x64")

SETTINGS = hypothesis.settings(
  deadline=None,
  max_examples=40,
  derandomize=True,
  suppress_health_check=list(hypothesis.HealthCheck),
)

BASES = {
  "sgd": lambda: optax.sgd(1.0),
  "momentum": lambda: optax.sgd(1.0, momentum=0.9),
  "adam": lambda: optax.adam(1.0),
}


def fit_at(fn, w, direction, rate, probes, **options):
  """A fit to the losses of `fn`, as the transform makes it."""
  rate = jnp.asarray(rate, jnp.float64)
  losses = line.losses(fn, w, direction, rate * jnp.array(probes))
  return fit_losses(probes, losses, fn(w), rate, **options)


def quartic(s):
  """The line of note T1: optimum 2 / 1.4 of the second-order model."""
  return 3 - 2 * s + 0.7 * s**2 + 0.9 * s**3 - 0.4 * s**4


def fit_quartic(rate, probes, **options):
  return fit_at(quartic, jnp.zeros(()), jnp.ones(()), rate, probes, **options)


# Fits


@pytest.mark.parametrize(
  "probes, degree, printed",
  [
    ((-1.0, 1.0), 2, "1.4450301205"),
    ((-2.0, -1.0, 1.0, 2.0), 2, "1.5333786611"),
    ((-2.0, -1.0, 1.0, 2.0), 4, "1.4285714286"),
    ((1.0, 2.0), 2, ".8335"),
  ],
)
def test_fit_of_the_quartic_line(probes, degree, printed):
  assert_digits(fit_quartic(0.3, probes, degree=degree).optimum, printed)


def test_degree_three_is_exact_on_a_cubic():
  cubic = lambda s: 3 - 2 * s + 0.7 * s**2 + 0.9 * s**3
  fit = fit_at(
    cubic, jnp.zeros(()), jnp.ones(()), 0.3, (-1.0, 1.0, 2.0), degree=3
  )
  np.testing.assert_allclose(fit.slope, 2.0, rtol=1e-12)
  np.testing.assert_allclose(fit.curvature, 1.4, rtol=1e-12)


ROSENBROCK_START = np.array([-1.2, 1.0])


@pytest.mark.parametrize(
  "probes, degree, slope, curvature, optimum",
  [
    (
      (-1.0, 1.0),
      2,
      "59855.9370957",
      "82017697.3514",
      "7.29792947481e-4",
    ),
    (
      (-2.0, -1.0, 1.0, 2.0),
      2,
      "73364.5221253",
      "83237858.9082",
      "8.81384061142e-4",
    ),
    ((1.0, 2.0), 2, "44266.6274628", "50839078.0856", "8.7072049946e-4"),
    (
      (-2.0, -1.0, 1.0, 2.0),
      4,
      "54227.36",
      "81585556.8",
      "6.646686267391e-4",
    ),
  ],
)
def test_fit_at_rosenbrock(probes, degree, slope, curvature, optimum):
  fn, w = static("rosenbrock"), jnp.array(ROSENBROCK_START)
  fn = functools.partial(fn, t=0)
  gradient = jax.grad(fn)(w)
  np.testing.assert_allclose(gradient, [-215.6, -88.0], rtol=1e-12)
  fit = fit_at(fn, w, -gradient, 1e-3, probes, degree=degree)
  assert_digits(fit.slope, slope)
  assert_digits(fit.curvature, curvature)
  assert_digits(fit.optimum, optimum)
  assert fit.finite


@pytest.mark.parametrize(
  "exact", [line.exact_by_forward_mode, hessian.exact_by_hvp]
)
def test_exact_derivatives_at_rosenbrock(exact):
  fn = functools.partial(static("rosenbrock"), t=0)
  w = jnp.array(ROSENBROCK_START)
  found = exact(fn, w, -jax.grad(fn)(w))
  assert_digits(-found.first, "54227.36")
  assert_digits(found.second, "81585556.8")
  assert_digits(-found.first / found.second, "6.646686267391e-4")


coefficients = st.floats(-5, 5).map(lambda x: round(x, 3))


@SETTINGS
@hypothesis.given(
  st.tuples(coefficients, coefficients, coefficients, coefficients),
  st.floats(1e-3, 2.0),
)
def test_three_points_are_lqa(c, rate):
  """Equation 3.5, whatever the line."""
  phi = lambda s: 1 + c[0] * s + c[1] * s**2 + c[2] * s**3 + c[3] * s**4
  down, zero, up = phi(rate), phi(0.0), phi(-rate)
  bend = up - 2 * zero + down
  # Below, the bend is rounding and the two orders of summation differ.
  hypothesis.assume(abs(bend) > 1e-5 * max(abs(down), abs(zero), abs(up)))
  fit = fit_losses(
    (-1.0, 1.0), jnp.array([up, down]), jnp.array(zero), jnp.array(rate)
  )
  lqa = rate / 2 * (up - down) / bend
  np.testing.assert_allclose(fit.optimum, lqa, rtol=1e-9, atol=1e-12)


def five_point_formula(phi, h):
  """Equation A.2; w - eta g is downhill, so L_{+k} lies at s = -k h."""
  up2, up, zero, down, down2 = (phi(-x * h) for x in (2, 1, 0, -1, -2))
  slope = (-up2 / 12 + 2 / 3 * up - 2 / 3 * down + down2 / 12) / h
  bend = -up2 / 12 + 4 / 3 * up - 5 / 2 * zero + 4 / 3 * down - down2 / 12
  return slope, bend / h**2


def test_degree_four_is_the_five_point_formula_and_least_squares_is_not():
  phi = lambda s: jnp.exp(-s) + 0.3 * s**2
  probes = (-2.0, -1.0, 1.0, 2.0)
  for rate in (0.05, 0.3, 1.0):
    slope, curvature = five_point_formula(phi, rate)
    fit = fit_at(phi, jnp.zeros(()), jnp.ones(()), rate, probes, degree=4)
    np.testing.assert_allclose(fit.slope, slope, rtol=1e-10)
    np.testing.assert_allclose(fit.curvature, curvature, rtol=1e-10)
    fit = fit_at(phi, jnp.zeros(()), jnp.ones(()), rate, probes, degree=2)
    assert abs(fit.optimum / (slope / curvature) - 1) > 0.1 * rate**2


def test_least_squares_on_five_points_has_its_closed_form():
  h, phi = 0.3, quartic
  fit = fit_quartic(h, (-2.0, -1.0, 1.0, 2.0))
  # s > 0 is downhill here; the note writes L+ for uphill.
  slope = (phi(-h) - phi(h) + 2 * (phi(-2 * h) - phi(2 * h))) / (10 * h)
  curvature = (
    (phi(h) + phi(-h) - 2 * phi(0.0))
    + 4 * (phi(2 * h) + phi(-2 * h) - 2 * phi(0.0))
  ) / (17 * h**2)
  np.testing.assert_allclose(fit.slope, slope, rtol=1e-12)
  np.testing.assert_allclose(fit.curvature, curvature, rtol=1e-12)


def test_the_loss_at_zero_is_pinned():
  """A free intercept would give 1.5952 on five points."""
  optimum = fit_quartic(0.3, (-2.0, -1.0, 1.0, 2.0)).optimum
  s = 0.3 * np.array([-2, -1, 0, 1, 2])
  free = np.polyfit(s, quartic(s), 2)
  assert_digits(-free[1] / (2 * free[0]), "1.5952")
  assert abs(optimum - 1.5952) > 0.05
  pinned = np.linalg.lstsq(
    np.stack([-s, s**2 / 2], 1), quartic(s) - quartic(0.0), rcond=None
  )[0]
  np.testing.assert_allclose(optimum, pinned[0] / pinned[1], rtol=1e-12)


def test_known_slope_leaves_one_unknown():
  """QLABGrad: eta^2 |g|^2 / 2 / (L(w - eta g) - L(w) + eta |g|^2)."""
  fit = fit_quartic(0.3, (1.0,), slope=jnp.array(2.0))
  bend = quartic(0.3) - quartic(0.0) + 0.3 * 2.0
  np.testing.assert_allclose(fit.slope, 2.0, rtol=1e-15)
  np.testing.assert_allclose(fit.optimum, 0.3**2 * 2.0 / 2 / bend, rtol=1e-12)
  # Two probes and a known slope determine the cubic too.
  fit = fit_at(
    lambda s: 3 - 2 * s + 0.7 * s**2 + 0.9 * s**3,
    jnp.zeros(()),
    jnp.ones(()),
    0.3,
    (1.0, 2.0),
    degree=3,
    slope=jnp.array(2.0),
  )
  np.testing.assert_allclose(fit.curvature, 1.4, rtol=1e-12)


PROBE_SETS = [
  ((-1.0, 1.0), 2),
  ((1.0, 2.0), 2),
  ((-2.0, -1.0, 1.0, 2.0), 2),
  ((-2.0, -1.0, 1.0, 2.0), 4),
  ((-0.5, 0.25, 1.0), 3),
]


@SETTINGS
@hypothesis.given(
  st.sampled_from(PROBE_SETS), st.randoms(use_true_random=False)
)
def test_the_order_of_the_probes_is_irrelevant(probe_set, random):
  probes, degree = probe_set
  shuffled = list(probes)
  random.shuffle(shuffled)
  fit = fit_quartic(0.3, probes, degree=degree)
  other = fit_quartic(0.3, tuple(shuffled), degree=degree)
  np.testing.assert_allclose(other.slope, fit.slope, rtol=1e-12)
  np.testing.assert_allclose(other.curvature, fit.curvature, rtol=1e-12)


@SETTINGS
@hypothesis.given(st.sampled_from(PROBE_SETS), st.integers(0, 4))
def test_a_zero_among_the_probes_is_ignored(probe_set, place):
  probes, degree = probe_set
  listed = list(probes)
  listed.insert(min(place, len(listed)), 0.0)
  kept = check_probes(tuple(listed), degree, False)
  assert tuple(float(x) for x in kept) == probes


def test_the_stage_ignores_a_zero_and_the_order():
  beale = functools.partial(static("beale"), t=0)
  rates = []
  for probes in ((-1.0, 1.0), (-1.0, 0.0, 1.0), (0.0, 1.0, -1.0)):
    tx = optax.chain(
      optax.sgd(1.0), gen_optax.scale_by_gen_paper(0.01, probes=probes)
    )
    w = jnp.ones(2)
    _, state, _ = step(tx, beale, w, tx.init(w))
    rates.append(gen_state(state).learning_rate)
  np.testing.assert_allclose(rates[1:], rates[0], rtol=1e-14)
  assert_digits(rates[0], "0.0105172734373")


def test_a_tiny_rate_does_not_underflow_float32():
  """eta^4 = 1e-40 is zero in float32; the fit works in multiples."""
  rate = jnp.float32(1e-10)
  scaled = lambda x: -2 * x + 0.7 * x**2  # in multiples of the rate
  fit = fit_losses(
    (-1.0, 1.0),
    jnp.array([scaled(-1.0), scaled(1.0)], jnp.float32),
    jnp.float32(0.0),
    rate,
  )
  assert fit.optimum.dtype == jnp.float32
  np.testing.assert_allclose(fit.optimum / rate, 2 / 1.4, rtol=1e-5)


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
  tenth = lambda averages: 0.1 * averages.slope / averages.curvature
  monkeypatch.setattr(rule, "distance_rate", tenth)
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
  """Its momentum's decay is GeN's averaging constant, unless one is given."""
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


# The rule alone


@pytest.mark.parametrize(
  "slope, curvature, rate, accepted",
  [
    (2.0, 5.0, 0.4, True),  # b / A
    (2.0, 0.5, 1.0, True),  # 4, more than ten times the rate
    (2.0, 500.0, 0.01, True),  # less than a tenth of it
    (2.0, -5.0, 1.0, True),  # concave downhill: ten times the rate
    (2.0, 0.0, 1.0, True),  # straight downhill: the same
    (-2.0, 5.0, 0.1, False),  # uphill: hold
    (-2.0, -5.0, 0.1, False),
    (0.0, 0.0, 0.1, False),
  ],
)
def test_the_first_fit_divides_grows_or_holds(slope, curvature, rate, accepted):
  found, averages, said = rule.average_and_divide(
    fit_of(slope, curvature),
    rule.no_averages(jnp.float64),
    jnp.asarray(0.1),
    0.9,
    False,
  )
  np.testing.assert_allclose(found, rate, rtol=1e-12)
  assert bool(said) == accepted
  np.testing.assert_allclose(averages.slope, 0.1 * slope, rtol=1e-12)
  np.testing.assert_allclose(averages.curvature, 0.1 * curvature, rtol=1e-12)


def test_the_averages_divide_and_not_the_quotients():
  """Fits (1, 1) and (1, 9): 2 / 10 of the averages, not (1 + 1 / 9) / 2."""
  rate, averages = jnp.asarray(0.3), rule.no_averages(jnp.float64)
  for curvature in (1.0, 9.0):
    rate, averages, _ = rule.average_and_divide(
      fit_of(1.0, curvature), averages, rate, 0.5, False
    )
  np.testing.assert_allclose(rate, 0.75 / (0.25 + 4.5), rtol=1e-12)


def test_a_wall_in_the_curvature_is_forgotten():
  """One fit counts for a thousand usual ones at most."""
  rate, averages = jnp.asarray(1.0), rule.no_averages(jnp.float64)
  for curvature in [1.0] * 5 + [1e20] + [1.0] * 100:
    rate, averages, _ = rule.average_and_divide(
      fit_of(1.0, curvature), averages, rate, 0.9, False
    )
    assert np.isfinite(rate) and rate > 0
  np.testing.assert_allclose(rate, 1.0, rtol=0.2)


@pytest.mark.parametrize(
  "slope, curvature, rate",
  [(2.0, 4.0, 0.14), (-2.0, 4.0, 0.1), (2.0, -4.0, 0.1), (2.0, 0.0, 0.1)],
)
def test_the_paper_smooths_or_holds(slope, curvature, rate):
  found, accepted = rule.paper_rule(
    fit_of(slope, curvature), jnp.asarray(0.1), 0.9
  )
  np.testing.assert_allclose(found, rate, rtol=1e-12)
  assert bool(accepted) == (slope > 0 and curvature > 0)


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
    expected = reference.DefaultRule(
      10.0**exponent, **{RENAMED.get(k, k): v for k, v in options.items()}
    )
    rates, points = reference.run(
      expected, reference.BASES[base](), reference.NOISY[loss], start, 60
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
    expected = reference.PaperRule(10.0**exponent, every=every)
    rates, _ = reference.run(
      expected, reference.BASES[base](), reference.alternating, start, 30
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
