"""The default rule alone, and its constants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import fit_of, gen_state, step

import gen_optax
from gen_optax.gen import observe, rule, search, trace
from gen_optax.gen.state import Parabola, no_averages
from gen_optax.helpers import mean
from gen_optax.helpers.mean import Mean

in_float64 = pytest.mark.usefixtures("x64")
NO_TRACE = trace.no_trace(jnp.zeros(1), jnp.float32)


@in_float64
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
  found, averages, said = rule.learn(
    rule.GenRule(),
    fit_of(slope, curvature),
    no_averages(jnp.float64),
    NO_TRACE,
    jnp.asarray(0.1),
    False,
  )
  np.testing.assert_allclose(found, rate, rtol=1e-12)
  assert bool(said) == accepted
  expected = 0.1 * np.array([slope, curvature])
  np.testing.assert_allclose(averages.line.sum, expected, rtol=1e-12)


@in_float64
def test_the_averages_divide_and_not_the_quotients():
  """Fits (1, 1) and (1, 9): 2 / 10 of the averages, not (1 + 1 / 9) / 2."""
  rate, averages = jnp.asarray(0.3), no_averages(jnp.float64)
  for curvature in (1.0, 9.0):
    rate, averages, _ = rule.learn(
      rule.GenRule(smoothing=0.5),
      fit_of(1.0, curvature),
      averages,
      NO_TRACE,
      rate,
      False,
    )
  np.testing.assert_allclose(rate, 0.75 / (0.25 + 4.5), rtol=1e-12)


@in_float64
def test_a_wall_in_the_curvature_is_forgotten():
  """One fit counts for a thousand usual ones at most."""
  rate, averages = jnp.asarray(1.0), no_averages(jnp.float64)
  for curvature in [1.0] * 5 + [1e20] + [1.0] * 100:
    rate, averages, _ = rule.learn(
      rule.GenRule(smoothing=0.9),
      fit_of(1.0, curvature),
      averages,
      NO_TRACE,
      rate,
      False,
    )
    assert np.isfinite(rate) and rate > 0
  np.testing.assert_allclose(rate, 1.0, rtol=0.2)


def trial_of(fit):
  """A trial that ended with a fit, on a line like the others."""
  one, no = jnp.float32(1.0), jnp.zeros((), bool)
  return search.Trial(one, one, one, fit, 1, no, no, no, no)


# Each line's own optimum

HALF = rule.GenRule(smoothing=0.5)


def after_one(fresh, **more):
  """Averages over two, and the trace, after a fit of slope 1, curvature 1."""
  one = jnp.ones(())
  averages = no_averages(jnp.float64)._replace(
    line=Mean(Parabola(one / 2, one / 2), one / 2)
  )
  fresh = Mean(one * fresh, one)
  return averages, NO_TRACE._replace(fresh_slope=fresh, **more)


@in_float64
@pytest.mark.parametrize(
  "curvature, fresh, alone, rate",
  [
    (4.0, 1.0, True, 0.25),  # stands alone, without noise
    (4.0, 1.0, False, 1 / 3),  # serves more than one step
    (4.0, 0.9, True, 0.3),  # the slope is a tenth noise
    (-0.1, 1.0, True, 17 / 6),  # bends down, the averages up
    (-1.0, 1.0, True, 10.0),  # the averages do not either
  ],
)
def test_where_a_line_s_own_optimum_is_taken(curvature, fresh, alone, rate):
  found, _, _ = rule.learn(
    HALF, fit_of(1.0, curvature), *after_one(fresh), jnp.ones(()), alone
  )
  np.testing.assert_allclose(found, rate, rtol=1e-12)


@in_float64
def test_a_line_is_at_most_twice_as_long_as_the_averages_say():
  """They say 0.75 / 0.255, and its own fit 100."""
  found, _, _ = rule.learn(
    HALF, fit_of(1.0, 0.01), *after_one(fresh=1.0), jnp.array(20.0), True
  )
  np.testing.assert_allclose(found, 1.5 / 0.255, rtol=1e-12)


@in_float64
@pytest.mark.parametrize(
  "slope, sizes, said",
  [
    (1.0, 1.0, False),
    (0.9995, 1.0, False),  # rounding, a weak decay
    (0.99, 1.0, True),
    (-1.0, 1.0, True),
    (0.0, 0.0, False),
    (np.nan, np.nan, False),  # a faulty batch says nothing
    (1.0, np.inf, False),
  ],
)
def test_what_tells_of_memory(slope, sizes, said):
  assert trace.has_momentum(jnp.asarray(slope), jnp.asarray(sizes)) == said


# The constants


DEFAULTS = rule.GenRule()


@in_float64
@pytest.mark.parametrize(
  "constants, rate",
  [
    (dict(), 0.75 / 0.75),
    (dict(smoothing=0.75), (0.375 + 0.25) / 0.625),
    (dict(max_ratio=4.0), 0.8),
  ],
  ids=str,
)
def test_each_constant_of_the_average(constants, rate):
  """Averages 1/2 and 1/2 of weight 1/2, then a fit (1, 1) at rate 0.2."""
  half = rule.GenRule(**({"smoothing": 0.5} | constants))
  found, _, _ = rule.learn(
    half, fit_of(1.0, 1.0), *after_one(1.0), jnp.array(0.2), False
  )
  np.testing.assert_allclose(found, rate, rtol=1e-12)


@in_float64
@pytest.mark.parametrize("share, rate", [(0.15, 0.15), (0.3, 0.3), (0.0, 0.1)])
def test_the_distance_bounds_the_rate_from_below(share, rate):
  """Fresh data see a tenth of the slope, and updates have gone a long way."""
  one = jnp.ones(())
  memory = after_one(0.1, max_distance=2 * one, sum_sq_norms=4 * one)
  found, _, _ = rule.learn(
    rule.GenRule(smoothing=0.5, distance_share=share),
    *(fit_of(1.0, 1.0), *memory, one, False),
  )
  np.testing.assert_allclose(found, rate, rtol=1e-12)


@in_float64
@pytest.mark.parametrize(
  "lead, rate", [(2.0, 1.5 / 0.255), (1.0, 0.75 / 0.255), (None, 0.75 / 0.255)]
)
def test_how_far_a_line_leads(lead, rate):
  found, _, _ = rule.learn(
    rule.GenRule(smoothing=0.5, max_lead=lead),
    *(fit_of(1.0, 0.01), *after_one(1.0), jnp.array(20.0), True),
  )
  np.testing.assert_allclose(found, rate, rtol=1e-12)


def test_the_average_of_fresh_slopes():
  """Batches that see slopes 1 and 3 at the start of the step before them."""
  constants = rule.GenRule(fresh_smoothing=0.5)
  memory = NO_TRACE._replace(follows=jnp.ones((), bool))
  seen = observe.Observation(0, None, None, None, 0.0, 0.0, True, False)
  for slope in (1.0, 3.0):
    memory = constants.learn(
      (memory, jnp.float32(-slope)),
      no_averages(jnp.float32),
      seen,
      trial_of(fit_of(1.0, 1.0)),
      jnp.float32(1.0),
      False,
    ).memory
  found = mean.value(memory.fresh_slope)
  np.testing.assert_allclose(found, (0.25 * 1 + 0.5 * 3) / 0.75, rtol=1e-6)


@pytest.mark.parametrize(
  "name, wrong",
  [
    ("smoothing", 1.0),
    ("fresh_smoothing", -0.1),
    ("distance_share", np.nan),
    ("max_ratio", 0.5),
    ("max_ratio", 1),
    ("max_lead", 0.0),
    ("smoothing", None),
  ],
)
def test_a_constant_out_of_range_is_named(name, wrong):
  with pytest.raises(ValueError, match=name):
    gen_optax.scale_by_gen(rule=DEFAULTS._replace(**{name: wrong}))


def test_what_is_no_rule_is_refused():
  with pytest.raises(ValueError, match="GenRule"):
    gen_optax.scale_by_gen(rule=(0.9, 0.97))


def test_smoothing_is_the_rule_s_unless_given():
  def smoothing_of(**options):
    """The weight of the second of two fits in the averages."""
    tx = optax.chain(optax.sgd(0.1), gen_optax.scale_by_gen(**options))
    w = jnp.ones(2)
    _, state, _ = step(tx, lambda w: jnp.sum(w**2), w, tx.init(w))
    return 1 - float(gen_state(state).averages.line.weight)

  half = rule.GenRule(smoothing=0.5)
  assert smoothing_of() == pytest.approx(0.9)
  assert smoothing_of(rule=half) == pytest.approx(0.5)
  assert smoothing_of(rule=half, smoothing=0.7) == pytest.approx(0.7)


def test_lion_averages_over_its_memory_unless_told():
  def weight_of(**options):
    tx, w = gen_optax.gen_lion(**options), jnp.ones(2)
    _, state, _ = step(tx, lambda w: jnp.sum(w**2), w, tx.init(w))
    return float(gen_state(state).averages.line.weight)

  assert weight_of() == pytest.approx(1 - 0.99)
  assert weight_of(smoothing=0.5) == pytest.approx(0.5)
  given = rule.GenRule(smoothing=0.7)
  assert weight_of(rule=given) == pytest.approx(0.3)
  assert weight_of(rule=given, smoothing=0.5) == pytest.approx(0.5)


def test_a_small_ratio_leaves_the_first_search_alone():
  slow = rule.GenRule(max_ratio=1.1)
  tx, w = gen_optax.gen_sgd(1e-6, rule=slow), jnp.zeros(2)
  _, state, _ = step(tx, lambda w: jnp.sum((w - 3.0) ** 2), w, tx.init(w))
  assert gen_state(state).calibrated
  np.testing.assert_allclose(gen_state(state).learning_rate, 0.5, rtol=0.5)


def test_constants_may_be_traced():
  """One program for several rules, as `jax.vmap` over them runs it."""
  loss = lambda w: jnp.sum(jnp.array([1.0, 9.0]) * w**2)

  def end(smoothing, share):
    constants = rule.GenRule(smoothing=smoothing, distance_share=share)
    tx, w = gen_optax.gen_momentum(rule=constants), jnp.ones(2)
    state = tx.init(w)
    for _ in range(5):
      w, state, _ = step(tx, loss, w, state)
    return w

  values = jnp.array([0.9, 0.5]), jnp.array([0.15, 0.3])
  together = jax.jit(jax.vmap(end))(*values)
  for found, *one in zip(together, *values, strict=True):
    expected = end(*(float(x) for x in one))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_what_is_injected():
  make = optax.inject_hyperparams(
    gen_optax.scale_by_gen, static_args=("degree",)
  )
  tx = make(smoothing=0.5)
  state = tx.init(jnp.ones(2))
  assert state.hyperparams["smoothing"] == 0.5
  state.hyperparams["smoothing"] = jnp.float32(0.75)
  loss, w = lambda w: jnp.sum(w**2), jnp.ones(2)
  _, state = tx.update(-w, state, w, grad=2 * w, value_fn=loss)
  weight = gen_state(state).averages.line.weight
  assert float(weight) == pytest.approx(0.25)


def test_nothing_is_refreshed_that_the_rule_does_not_ask_for():
  """The sums over the parameters that no fit needs are not in the program."""
  w = {"w": jnp.ones((40, 40))}
  loss = lambda p: jnp.sum(p["w"] ** 2)

  def flops(**options):
    tx = optax.chain(optax.sgd(0.1), gen_optax.scale_by_gen(**options))
    go = jax.jit(lambda w, state: step(tx, loss, w, state))
    compiled = go.lower(w, tx.init(w)).compile()
    return compiled.cost_analysis()["flops"]

  nothing = rule.GenRule(distance_share=0.0, max_lead=None)
  saved = flops() - flops(rule=nothing)
  assert saved >= 3 * 1600  # a difference, a square and a sum at least
