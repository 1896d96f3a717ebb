"""Wrong numbers reach no parameter and no average."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import assert_finite, gen_state, run, step

import gen_optax
from gen_optax.gen import rule
from gen_optax.gen.fit import LineFit, unknown_fit
from gen_optax.gen.search import fit_or_search

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
    weights.append(float(gen_state(state).averages.fresh_weight))
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
    before, weight = w, gen_state(state).averages.fresh_weight
    w, state, _ = step(tx, loss, w, state)
    moved.append(bool(jnp.any(w != before)))
    grew.append(bool(gen_state(state).averages.fresh_weight > weight))
  assert any(moved) and not all(moved)
  assert grew[1:] == moved[:-1]


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
    rule.no_averages(jnp.float32),
    pending=yes,
    searching=yes,
    wild=no,
    exact=False,
  )
  assert trial.found and 0.01 < trial.rate < 0.04


@pytest.mark.parametrize("curvature", [1e3, 1e20])
def test_an_absurd_fit_weighs_less_than_a_steep_one(curvature):
  """A steep batch counts in full; what no loss can have does not."""
  fit = lambda a: LineFit(*(jnp.float32(x) for x in (1, a, 1 / a, 1)), True)
  rate, averages = jnp.float32(1.0), rule.no_averages(jnp.float32)
  after = []
  for a in [1.0] * 60 + [curvature] + [1.0] * 40:
    rate, averages, _ = rule.average_and_divide(
      fit(a), averages, rate, 0.9, False
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
  rate, averages = jnp.float32(1.0), rule.no_averages(jnp.float32)
  wild = []
  for x in [1.0] * 60 + [1e8] * 40:
    wild.append(bool(rule.is_wild(fit(x), averages, rate)))
    rate, averages, _ = rule.average_and_divide(
      fit(x), averages, rate, 0.9, False
    )
  assert not any(wild[:60]) and wild[60] and not any(wild[90:])


def test_updates_that_grow_for_good_are_fitted_lazily_again():
  """3000 times as long from step 40 on: suspect, and then the usual ones."""
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
    wild.append(not bool(inner.follows))
  size = float(inner.averages.size)
  assert any(wild[40:60]) and not any(wild[100:])
  np.testing.assert_allclose(size, 2 * 3000.0**2, rtol=0.5)


def test_a_wild_update_counts_ten_in_the_size_and_nothing_in_the_path():
  averages = rule.no_averages(jnp.float32)
  usual = averages._replace(size=jnp.float32(2.0), path=jnp.float32(7.0))
  wild, tame = (
    rule.average_size(usual, jnp.float32(1e20), jnp.asarray(is_wild), 0.9)
    for is_wild in (True, False)
  )
  np.testing.assert_allclose(wild.size, 0.9 * 2 + 0.1 * 20, rtol=1e-6)
  assert wild.path == 7 and tame.path > 1e19


@pytest.mark.parametrize("halve", [False, True])
def test_what_a_late_search_finds_it_goes_to(halve):
  yes, one = jnp.ones((), bool), jnp.ones(())
  fit = LineFit(one, one / 1.5, 1.5 * one, one, yes)
  rate, *_, found, _ = rule.search_step(fit, one, 0.1, 100.0, halve)
  assert found and rate == 1.5
  fit = fit._replace(curvature=one / 9, optimum=9 * one)
  rate, *_, found, _ = rule.search_step(fit, one, 0.1, 100.0, halve)
  assert not found and rate == (10.0 if halve else 9.0)


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
  averages = rule.no_averages(jnp.float32)
  for _ in range(fits):
    _, averages, _ = rule.average_and_divide(
      fit(1.0), averages, 1.0, 0.9, False
    )
  assert rule.is_first_absurd(fit(optimum), averages, 1.0, 0.9) == absurd
  kept = rule.forget_fits(averages._replace(path=jnp.float32(7.0)), True)
  assert kept.weight == kept.slope == kept.curvature == 0 and kept.path == 7


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


# One wild step

BASES = {
  "sgd": lambda: optax.sgd(1.0),
  "momentum": lambda: optax.sgd(1.0, momentum=0.9),
  "adam": lambda: optax.adam(1.0),
  "adamw": lambda: optax.adamw(1.0),
  "lion": lambda: optax.lion(1.0),
  "rmsprop": lambda: optax.rmsprop(1.0),
}
ROWS, WIDTH, BATCH = 512, 12, 128
WHEN = {"first": 0, "dense": 10, "later": 24, "lazy": 27}  # lazy: every = 8
AFTER = 60
STEPS = max(WHEN.values()) + AFTER + 2
# What a fault multiplies the gradient and the loss by; or, with a third
# number, the norm of the random direction that replaces the gradient.
FAULTS = {
  "none": (1.0, 1.0, 0.0),
  "gradient": (1e20, 1.0, 0.0),
  "loss": (1.0, 1e20, 0.0),
  "both": (1e20, 1e20, 0.0),
  "flipped": (-1.0, 1.0, 0.0),
  "random 10": (1.0, 1.0, 10.0),
  "random 1e3": (1.0, 1.0, 1e3),
  "random 1e6": (1.0, 1.0, 1e6),
}
# What is promised. Behind a bare chain a faulty gradient stays in the
# optimizer's moments, and the loss may rise along what they remember: that is
# what the gate of `generalized_newton` is for. It passes what is not twenty
# times the running size, and has nothing to compare a first gradient with,
# unless the next two are a million times shorter.
NO_MEMORY = {"sgd"}
ALWAYS = {"none", "loss", "flipped"}
SURVIVED = {
  ("chain", False): ALWAYS,
  ("chain", True): ALWAYS,
  ("generalized_newton", False): set(FAULTS) - {"random 10"},
  ("generalized_newton", True): ALWAYS | {"gradient", "both"},
}


def wild_data():
  """Separable, ill-conditioned: a clean run descends all the way."""
  rng = np.random.default_rng(0)
  scales = np.geomspace(1, 0.02, WIDTH)
  x = rng.normal(size=(ROWS, WIDTH)) * scales
  return x, np.sign(x @ (rng.normal(size=WIDTH) / scales))


def wild_cases():
  """(name, batches, rows measured, step of the fault, fault, seed)."""
  for noisy, when, fault in itertools.product((False, True), WHEN, FAULTS):
    for seed in range(3 if noisy or fault.startswith("random") else 1):
      if noisy:
        batches = np.random.default_rng(100 + seed).integers(
          ROWS, size=(STEPS, BATCH)
        )
        measured = np.arange(ROWS)
      else:
        batches = np.broadcast_to(np.arange(BATCH), (STEPS, BATCH))
        measured = np.resize(np.arange(BATCH), ROWS)
      name = ("noisy" if noisy else "fixed", when, fault, seed)
      yield name, batches, measured, WHEN[when], FAULTS[fault], seed


def wild_runs(tx, dtype):
  """Every case at once: loss before each step, and whether all was finite."""
  x, y = (jnp.asarray(a, dtype) for a in wild_data())

  def one(batches, measured, when, fault, seed):
    times_grad, times_loss, times_norm = fault
    direction = jax.random.normal(jax.random.key(seed), (WIDTH,), dtype)
    direction /= jnp.linalg.norm(direction)

    def loss(w, rows):
      return jnp.mean(jax.nn.softplus(-y[rows] * (x[rows] @ w)))

    def body(carry, t):
      w, state = carry
      clean = lambda p: loss(p, batches[t])
      value, grad = jax.value_and_grad(clean)(w)
      random = direction * jnp.linalg.norm(grad) * times_norm
      wild = jnp.where(times_norm > 0, random, grad * times_grad)
      grad = jnp.where(t == when, wild.astype(dtype), grad)
      factor = jnp.where(t == when, times_loss, 1.0).astype(dtype)
      measure = loss(w, measured)
      updates, state = tx.update(
        grad,
        state,
        w,
        value=value * factor,
        grad=grad,
        value_fn=lambda p: clean(p) * factor,
      )
      w = optax.apply_updates(w, updates)
      return (w, state), (measure, jnp.all(jnp.isfinite(w)))

    start = jnp.zeros(WIDTH, dtype)
    return jax.lax.scan(body, (start, tx.init(start)), jnp.arange(STEPS))[1]

  names, *columns = zip(*wild_cases(), strict=True)
  columns = [jnp.asarray(np.array(c)) for c in columns]
  losses, finite = jax.jit(jax.vmap(one))(*columns)
  return names, np.asarray(losses), np.all(finite, axis=1)


def wild_outcome(wrapped, base, dtype, every):
  """Name, loss before the fault, loss after it, all finite: of every case."""
  with jax.enable_x64(dtype == "float64"):
    if wrapped == "generalized_newton":
      tx = gen_optax.generalized_newton(BASES[base](), every=every)
    else:
      tx = optax.chain(BASES[base](), gen_optax.scale_by_gen(every=every))
    names, losses, finite = wild_runs(tx, jnp.dtype(dtype))
  t = np.array([WHEN[when] for _, when, _, _ in names])
  rows = np.arange(len(names))
  return list(
    zip(
      names, losses[rows, t], losses[rows, t + AFTER + 1], finite, strict=True
    )
  )


@pytest.mark.parametrize("dtype, every", [("float32", 8), ("float64", 1)])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("wrapped", ["generalized_newton", "chain"])
def test_one_wild_step(wrapped, base, dtype, every):
  """Nothing is lost, and 60 clean steps later the loss is below."""
  wrong, cases = [], wild_outcome(wrapped, base, dtype, every)
  for name, before, after, finite in cases:
    _, when, fault, _ = name
    promised = base in NO_MEMORY or fault in SURVIVED[wrapped, when == "first"]
    if not finite or (promised and not after < before):
      wrong.append((*name, f"{before:.4g} -> {after:.4g}", bool(finite)))
  lines = "\n".join(map(str, wrong))
  assert len(cases) == 152
  assert not wrong, f"{len(wrong)} of {len(cases)}:\n{lines}"
