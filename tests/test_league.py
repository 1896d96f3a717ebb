"""The league: the clock, runs, what is kept of them, the score."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gen_optax
from scripts.league import (
  campaign,
  meter,
  ours,
  ranges,
  runner,
  schedule_free_plus,
  scoring,
  store,
  trials,
)
from scripts.league.development.families import FAMILIES as DEVELOPMENT
from scripts.league.entrant import Entrant, Range
from scripts.league.families import FAMILIES
from scripts.league.field import ENTRANTS
from scripts.league.references import REFERENCES
from scripts.league.workload import (
  Family,
  Form,
  Losses,
  Parts,
  Workload,
)

# A workload of two numbers for everything that is not a network


def load(data_dir=None):
  del data_dir
  x = jnp.linspace(-1.0, 1.0, 8)
  return Parts(x, x, x)


def build(data, form):
  def loss(params, x):
    return jnp.mean((x * params[0] + params[1] - 3 * x) ** 2)

  return Workload(
    "line",
    form,
    data,
    init=lambda key: (jax.random.normal(key, (2,)), {}),
    sample=lambda data, key: data.train,
    loss=lambda params, state, x, key: (loss(params, x), state),
    evaluate=lambda data, params, state: Losses(
      loss(params, data.validation), loss(params, data.test)
    ),
  )


LINE = Family("line", "a line", Form(4, "tanh", 1.0, 8, 80), load, build, False)
SGD = Entrant("SGD", lambda s, steps: optax.sgd(s["rate"]), {}, {"rate": 0.3})


# The clock


def test_prices_are_those_of_xla():
  def loss(w, x):
    return jnp.sum(jnp.tanh(x @ w) ** 2)

  w, x = jnp.ones((16, 8)), jnp.ones((4, 16))
  lowered = jax.jit(jax.value_and_grad(loss)).lower(w, x)
  xla = lowered.cost_analysis()["flops"]
  assert meter.flops_of(jax.value_and_grad(loss), w, x) == pytest.approx(xla)


def test_loops_count_as_often_as_they_turn():
  w = jnp.eye(16)
  product = 2 * 16**3

  def thrice(x):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=3)[0]

  def until(n, x):
    body = lambda carry: (carry[0] + 1, carry[1] @ w)
    return jax.lax.while_loop(lambda carry: carry[0] < n, body, (0, x))[1]

  def maybe(flag, x):
    return jax.lax.cond(flag, lambda x: x @ w @ w, lambda x: x, x)

  def again_and_again(x):
    """Twice, with what is fixed, carried, scanned over and stacked."""
    step = lambda x, n: (until(n, x), n)
    return jax.lax.scan(step, x, jnp.array([1, 3]))

  counted = jax.jit(meter.metered(until))
  assert meter.flops_of(thrice, w) == pytest.approx(3 * product, rel=1e-3)
  for turns in (0, 1, 5):
    out, flops = counted(turns, w)
    assert flops == pytest.approx(turns * product, abs=20)
    np.testing.assert_array_equal(out, w)
  (out, stacked), flops = jax.jit(meter.metered(again_and_again))(w)
  assert flops == pytest.approx(4 * product, abs=40)
  np.testing.assert_array_equal(out, w)
  np.testing.assert_array_equal(stacked, [1, 3])
  branch = jax.jit(meter.metered(maybe))
  assert branch(True, w)[1] == pytest.approx(2 * product, abs=20)
  assert branch(False, w)[1] < 20


def test_what_nobody_reads_costs_nothing():
  w = jnp.eye(16)

  def wasteful(x):
    unread = x @ w @ w
    return unread.shape[0] * x[0, 0]

  assert meter.flops_of(wasteful, w) < 5


def test_the_clock_counts_gens_forward_pass():
  """On a network whose products are nearly all of the work."""
  w = [jnp.ones((32, 32)) / 32, jnp.ones((32, 32)) / 32]
  x = jax.random.normal(jax.random.key(0), (256, 32))
  loss = lambda w: jnp.mean(jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]) ** 2)
  forward = meter.flops_of(loss, w)
  unit = meter.flops_of(jax.value_and_grad(loss), w)

  def run(tx, steps):
    tx = optax.with_extra_args_support(tx)

    def update(w, state):
      value, grad = jax.value_and_grad(loss)(w)
      more = dict(value=value, grad=grad, value_fn=loss)
      updates, state = tx.update(grad, state, w, **more)
      return optax.apply_updates(w, updates), state

    def step(carry, _):
      return meter.metered(update)(*carry)

    start = w, tx.init(w)
    return jax.jit(lambda: jax.lax.scan(step, start, length=steps)[1])()

  plain = run(optax.adam(1e-3), 3)
  every = run(gen_optax.generalized_newton(optax.adam(1.0)), 3)
  lazy = run(
    gen_optax.generalized_newton(optax.adam(1.0), every=4, dense_start=0), 9
  )
  np.testing.assert_allclose(plain, unit, rtol=0.1)
  assert (every[0] - unit) / forward > 1.9  # a search
  assert 1.0 <= (every[2] - unit) / forward < 1.6
  passes = (np.asarray(lazy)[1:] - unit) / forward
  assert [round(float(x)) for x in passes // 1] == [0, 0, 0, 1, 0, 0, 0, 1]


# Runs


@pytest.fixture(scope="module")
def program():
  return runner.Program(runner.Ground(build(load(), LINE.form)), SGD)


def test_a_run_is_gradient_descent(program):
  record = program.run({"rate": 0.3}, seed=1, work=80 * program.static_cost)
  assert record["step"] == list(range(0, 82, 2))
  params, _ = program.ground.init(jax.random.key(1))
  w, average, found = np.asarray(params, float), np.asarray(params, float), []
  x = np.linspace(-1, 1, 8)
  for step in range(80):
    error = w[0] * x + w[1] - 3 * x
    w = w - 0.6 * np.array([(error * x).mean(), error.mean()])
    average = average + 9 / (step + 9) * (w - average)
    found.append([np.mean(((p[0] - 3) * x + p[1]) ** 2) for p in (w, average)])
  for at, where in enumerate(("iterate", "average")):
    ours = [losses[0] for losses in record[where]]
    theirs = [losses[at] for losses in found[1::2]]
    np.testing.assert_allclose(ours[1:], theirs, rtol=2e-3, atol=1e-6)


def test_statistics_are_averaged_as_parameters_are():
  """A state that counts steps; the average of k is that of parameters at k."""

  def counting(data, form):
    line = build(data, form)
    loss = lambda params, state, x, key: (
      line.loss(params, {}, x, key)[0],
      {"steps": state["steps"] + 1.0},
    )
    init = lambda key: (jnp.zeros(2), {"steps": jnp.zeros(())})
    evaluate = lambda data, params, state: Losses(state["steps"], 0.0)
    return line._replace(loss=loss, init=init, evaluate=evaluate)

  program = runner.Program(runner.Ground(counting(load(), LINE.form)), SGD)
  record = program.run({"rate": 0.3}, seed=1, work=20 * program.static_cost)
  average, found = 0.0, [0.0]
  for step in range(20):
    average += 9 / (step + 9) * (step + 1 - average)
    found.append(average)
  np.testing.assert_allclose(
    [x for x, _ in record["average"]], found[::2], rtol=1e-5
  )
  assert [x for x, _ in record["iterate"]] == record["step"]


def test_an_entrant_with_an_average_is_read_at_that_alone():
  own = SGD._replace(evaluate_at=lambda opt, params: jnp.array([3.0, 0.0]))
  program = runner.Program(runner.Ground(build(load(), LINE.form)), own)
  record = program.run({"rate": 0.3}, seed=1, work=4 * program.static_cost)
  assert record["iterate"] == [[0.0, 0.0]] * 3 and "average" not in record


def test_averaging_has_a_price(program):
  """Two numbers, a difference, a product and a sum each."""
  assert 4 <= program.averaging * program.ground.unit <= 40


def test_a_run_stops_when_its_work_is_done(program):
  record = program.run({"rate": 0.3}, seed=1, work=20 * program.static_cost)
  assert record["step"][-1] == 20
  assert record["clock"][-1] == pytest.approx(20 * program.static_cost)


def test_what_is_there_is_not_run_again(tmp_path, monkeypatch):
  wanted = [campaign.Wanted({"rate": rate}, 0, False) for rate in (0.1, 0.3)]
  where = {"line": LINE}, None, tmp_path / "runs.jsonl"
  monkeypatch.setattr(
    campaign.Campaign, "_key", lambda self, f, form, e, w: f"{f.name}{w}"
  )
  first = campaign.Campaign(*where).records(LINE, LINE.form, SGD, wanted[:1])
  lines = where[2].read_text().splitlines()
  # The last line of a run that was cut while it was written.
  where[2].write_text(lines[0] + '\n{"key": "line')

  made, make = [], campaign.Campaign._make
  monkeypatch.setattr(
    campaign.Campaign,
    "_make",
    lambda self, f, form, e, missing, label: (
      made.extend(missing),
      make(self, f, form, e, missing, label),
    ),
  )
  again = campaign.Campaign(*where).records(LINE, LINE.form, SGD, wanted)
  assert made == [f"line{wanted[1]}"]
  assert again[0] == first[0]
  assert len(store.Store(where[2]).records) == 2


def test_comments_and_docstrings_are_not_code(tmp_path):
  sources = (
    'def f():\n  """One."""\n  return 1  # why\n',
    'def f():\n  """Two."""\n\n  return 1\n',
    'def f():\n  """One."""\n  return 2\n',
  )
  paths = [tmp_path / f"{i}.py" for i in range(3)]
  for path, source in zip(paths, sources, strict=True):
    path.write_text(source)
  first, same, other = map(store._code, paths)
  assert first == same != other


def test_keys_follow_what_decides_a_run():
  form = FAMILIES["clicks"].form
  key = lambda **changed: store.key_of(
    **{
      "workload": "clicks",
      "form": form,
      "entrant": "AdamW",
      "setting": {"rate": 1e-3},
      "seed": 0,
      "work": "reference",
      "version": store.version_of(()),
    }
    | changed
  )
  assert key() == key() and json.loads(key())
  versions = store.version_of(()), store.version_of(ours.FILES)
  assert versions[0] != versions[1]
  others = [key(seed=1), key(setting={"rate": 2e-3}), key(version="x")]
  assert len({key(), *others}) == 4


# The score


def test_the_score_by_hand():
  """Three workloads; r is 1, 2 and infinite, against 2, 1 and 1."""
  times = {"a": [10.0, 20.0, np.inf], "b": [20.0, 10.0, 30.0]}
  ratios = scoring.ratios(times)
  assert ratios["a"].tolist() == [1.0, 2.0, np.inf]
  assert ratios["b"].tolist() == [2.0, 1.0, 1.0]
  # The integral over [1, 4] of each indicator r <= tau is 3, 2 and 0.
  assert scoring.score(ratios["a"]) == pytest.approx((3 + 2 + 0) / 3 / 3)
  assert scoring.score(ratios["b"]) == pytest.approx((2 + 3 + 3) / 3 / 3)
  assert scoring.speed(ratios["a"]) == pytest.approx((1 / 2 / 4) ** (1 / 3))
  taus = np.linspace(1, 4, 30_001)
  area = scoring.profile(ratios["a"], taus).mean()
  assert area == pytest.approx(scoring.score(ratios["a"]), abs=1e-3)


def test_a_target_that_nobody_reaches_counts_nothing():
  ratios = scoring.ratios({"a": [np.inf, 1.0], "b": [np.inf, 1.0]})
  assert scoring.score(ratios["a"]) == pytest.approx(0.5)


def test_time_is_the_first_evaluation_at_the_target():
  clock, losses = [0, 10, 20, 30], [4.0, 2.0, 1.0, 2.0]
  assert scoring.time_to(clock, losses, 2.0) == 10
  assert scoring.time_to(clock, losses, 0.5) == np.inf


def test_trials_lie_in_their_ranges():
  space = {"rate": ranges.RATE, "share": Range(0.5, 1.0, log=False)}
  found = trials.settings(space, 8)
  assert found == trials.settings(space, 8)
  for setting in found:
    for name, x in setting.items():
      assert space[name].low <= x <= space[name].high
  assert trials.at_edge({"rate": 1e-4, "share": 0.75}, space) == ["rate"]


def test_warm_up_and_cosine():
  setting = {"rate": 2.0, "warm_up": 0.1, "horizon": 0.5}
  rate = ranges.warm_up_cosine(setting, 200)
  assert rate(0) == pytest.approx(0.2) and rate(9) == pytest.approx(2.0)
  assert rate(55) == pytest.approx(1.0)  # half way from 10 to 100
  assert rate(100) == pytest.approx(0.0) and rate(150) == pytest.approx(0.0)


# ScheduleFree+


def test_schedule_free_plus_follows_its_formula(x64):
  steps, b1, b2, decay, power, eps = 6, 0.9, 0.999, 0.99, 2.0, 1e-8
  tx = schedule_free_plus.schedule_free_plus(
    steps, power=power, factor=0.5, warm_up=1 / 3
  )
  scales = np.array([1.0, 4.0, 0.2])
  loss = lambda w: jnp.sum(scales * w**2)
  y = jnp.array([1.0, -2.0, 0.5])
  state = tx.init(y)

  z = x = ours_y = np.array(y)
  m, v, e, largest, total = 0.0, 0.0, 0.0, 0.0, 0.0
  for t in range(1, steps + 1):
    value, grad = jax.value_and_grad(loss)(y)
    updates, state = tx.update(grad, state, y, value=value)
    y = optax.apply_updates(y, updates)

    g = 2 * scales * ours_y
    beta = 0.9 + (t - 1) / steps * 0.065
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    e = decay * e + (1 - decay) * np.sqrt(np.pi / 2) * np.abs(g).sum()
    model = np.sum(scales * ours_y**2) + beta * g @ (z - x)
    alpha = 0.5 * max(0.0, model) / (e / (1 - decay**t) + eps)
    alpha = alpha * min(t / 3, 1.0)
    z = z - alpha * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    largest = max(largest, alpha)
    weight = t**power * largest**2
    total = total + weight
    x = x + weight / total * (z - x)
    beta = 0.9 + t / steps * 0.065
    ours_y = (1 - beta) * z + beta * x
    np.testing.assert_allclose(y, ours_y, rtol=1e-6)
    at = schedule_free_plus.evaluate_at(state, y)
    np.testing.assert_allclose(at, x, rtol=1e-6)


# The field


@pytest.mark.parametrize("entrant", REFERENCES + tuple(ENTRANTS.values()))
def test_an_entrant_searches_what_it_has(entrant):
  assert set(entrant.default) == set(entrant.space)


def test_every_task_has_a_name_of_its_own():
  assert len(DEVELOPMENT) == len(FAMILIES) == 11
  assert not set(DEVELOPMENT) & set(FAMILIES)
