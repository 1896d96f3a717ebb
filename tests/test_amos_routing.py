"""AMOS's running average, groups and thresholds against plain numpy."""

import functools
from typing import Any, NamedTuple

import amos_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gen_optax
from gen_optax import amos, elmo
from gen_optax.amos import thresholds
from gen_optax.amos.granularity import make_granularity

SHAPES = {"a": (3, 4), "b": (7,), "c": ()}
LABELS = {"a": "x", "b": "y", "c": "x"}
GRANULARITIES = {
  "tensor_mean": "tensor_mean",
  "tensor_max": "tensor_max",
  "chunk": ("chunk", 5),
  "element": "element",
  "labels": LABELS,
}
TENSORS = make_granularity("tensor_mean")
granularities = pytest.mark.parametrize("name", GRANULARITIES)
START = {k: jnp.full(shape, 0.1) for k, shape in SHAPES.items()}
EVERY, STEPS = 3, 13
TIMES = range(0, STEPS, EVERY)


def flat(tree):
  parts = [np.ravel(np.asarray(x, float)) for x in jax.tree.leaves(tree)]
  return np.concatenate(parts)


def tree_of(vector):
  return jax.tree.map(lambda rows: rows[0], tree_of_rows([vector]))


def tree_of_rows(rows):
  """A tree of tables: a leaf has its entries of each row."""
  sizes = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])
  parts = np.split(np.asarray(rows), sizes[:-1], axis=1)
  return {
    k: jnp.asarray(part.reshape(-1, *shape))
    for (k, shape), part in zip(SHAPES.items(), parts, strict=True)
  }


def groups_of(name):
  label = LABELS.values() if name == "labels" else None
  granularity = ("chunk", 5) if name == "chunk" else name
  return reference.groups_of(granularity, SHAPES.values(), label)


class Script(NamedTuple):
  """State of an optimizer whose curvature and steps are given."""

  nu: Any


def update_by_script(updates, state, params=None, *, script, **extra_args):
  """`script` holds the step to take and the curvature to show at the next."""
  del updates, state, params, extra_args
  step, nu = script
  return step, Script(nu)


SCRIPTED = optax.GradientTransformationExtraArgs(
  lambda params: Script(tree_of(script()[0][0])), update_by_script
)


@functools.cache
def script():
  """Curvatures, steps and gradients of every call, one in a row."""
  rng = np.random.default_rng(0)
  size = sum(int(np.prod(shape)) for shape in SHAPES.values())
  diagonals = rng.normal(size=(STEPS + 1, size)) * rng.exponential(size=size)
  steps = rng.normal(size=(STEPS, size)) / 10
  gradients = rng.normal(size=(STEPS, size)) * 10
  return diagonals, steps, gradients


def play(count=2, **options):
  """The router on the script: the states after each call, as numpy arrays."""
  diagonals, steps, gradients = map(tree_of_rows, script())
  tx = gen_optax.amos_router(
    [SCRIPTED] * count, curvature=("state", "nu"), every=EVERY, **options
  )

  def body(carry, row):
    params, state = carry
    gradient, *row = row
    updates, state = tx.update(gradient, state, params, script=row)
    return (optax.apply_updates(params, updates), state), state

  start = tree_of(flat(START))
  following = jax.tree.map(lambda rows: rows[1:], diagonals)
  rows = (gradients, steps, following)
  states = jax.jit(lambda: jax.lax.scan(body, (start, tx.init(start)), rows)[1])
  states = jax.tree.map(np.asarray, states())
  return [jax.tree.map(lambda rows, t=t: rows[t], states) for t in range(STEPS)]


def given_average(ema, corrected, eps=0.0):
  """The reference's L at each Hessian time of the script."""
  diagonals, steps, _ = script()
  points = np.concatenate([np.zeros((1, steps.shape[1])), np.cumsum(steps, 0)])
  points = flat(START) + points
  times = list(TIMES)
  return reference.average_drift(
    points[times], diagonals[times], ema, corrected, eps
  )


def spread_choice(groups, choice):
  """The optimizer of each parameter, as a flat vector."""
  full = jax.tree.map(
    lambda c, p: jnp.broadcast_to(groups.spread(c, p), p.shape), choice, START
  )
  return flat(full)


@pytest.mark.parametrize(
  "name, corrected",
  [(name, True) for name in GRANULARITIES if name != "tensor_mean"]
  + [("tensor_mean", False), ("element", False)],
)
def test_average_and_routing_equal_numpy(x64, name, corrected):
  """Three optimizers and two cuts, a Hessian on every third call."""
  ema, eps, cuts = 0.7, 0.01, (0.9, 2.0)
  if not corrected:
    cuts = (0.4, 1.0)
  states = play(
    count=3,
    granularity=GRANULARITIES[name],
    ema=ema,
    eps=eps,
    bias_correction=corrected,
    threshold=cuts,
  )
  expected = given_average(ema, corrected, eps)
  groups = make_granularity(GRANULARITIES[name])
  seen = set()
  for t, state in enumerate(states):
    k = t // EVERY
    found = flat(state.drift.lipschitz(corrected))
    np.testing.assert_allclose(found, expected[k], rtol=1e-12)
    by_maximum = name == "tensor_max"
    choice = reference.route(expected[k], groups_of(name), by_maximum, cuts)
    found = spread_choice(groups, state.choice)
    np.testing.assert_array_equal(found, choice)
    shares = [np.mean(found == i) for i in range(3)]
    np.testing.assert_allclose(state.info.fractions, shares, rtol=1e-12)
    wanted = [
      reference.quantile(expected[k], groups_of(name), by_maximum, q)
      for q in (0.1, 0.5, 0.9, 0.99)
    ]
    np.testing.assert_allclose(
      state.info.lipschitz_quantiles, wanted, rtol=1e-9
    )
    assert bool(state.info.refreshed) == (t % EVERY == 0)
    seen |= set(found)
  assert seen == {0, 1, 2} or name == "labels"


def evidence_of(name, move=lambda tree: tree, seed=1, labels=None):
  """Random L, g and h, and their flat vectors."""
  rng = np.random.default_rng(seed)
  vectors = rng.exponential(
    size=(3, sum(len(flat({k: v})) for k, v in START.items()))
  )
  vectors[1] *= rng.choice([-5, 5], len(vectors[1]))
  trees = [move(tree_of(vector)) for vector in vectors]
  groups = make_granularity(labels or GRANULARITIES[name])
  by_group, sizes = groups.lipschitz(trees[0]), groups.sizes(trees[0])
  evidence = thresholds.Evidence(*trees, by_group, sizes, None, None)
  return groups, evidence, vectors


@granularities
def test_newtons_threshold_equals_numpy(x64, name):
  seen = []
  for rate in (1.0, 0.6):
    for seed in range(3):
      groups, evidence, vectors = evidence_of(name, seed=seed)
      found = thresholds.newton(evidence, groups, rate)
      expected = reference.newton_route(
        *vectors, groups_of(name), name == "tensor_max", rate
      )
      np.testing.assert_array_equal(spread_choice(groups, found), expected)
      seen += list(expected)
  assert 0.05 < np.mean(seen) < 0.95, "both get some"


@granularities
def test_quantiles_equal_numpy(x64, name):
  shares = (0.0, 0.25, 0.6, 1.0)
  groups, evidence, (lip, *_) = evidence_of(name)
  found = thresholds.quantiles(evidence.groups, evidence.sizes, shares)
  expected = [
    reference.quantile(lip, groups_of(name), name == "tensor_max", share)
    for share in shares
  ]
  expected[0] = 0.0
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  choose = thresholds.make_threshold(("quantile", shares[1:3]), 3)
  cuts = np.array(expected[1:3]) * (1 + 1e-9)  # sums differ by rounding
  choice = reference.route(lip, groups_of(name), name == "tensor_max", cuts)
  np.testing.assert_array_equal(
    spread_choice(groups, choose(evidence, groups)), choice
  )


def test_the_papers_keywords_are_the_papers_algorithm(x64):
  """Appendix K, with its constants, and its second experiment."""
  assert dict(amos.PAPER) == dict(
    granularity="tensor_mean",
    threshold=2e-10,
    ema=0.99,
    bias_correction=False,
    eps=1e-12,
  )
  cut = 0.015
  states = play(**dict(amos.PAPER, threshold=cut))
  expected = given_average(0.99, False, 1e-12)
  groups = groups_of("tensor_mean")
  seen = set()
  for k, t in enumerate(TIMES):
    choice = reference.route(expected[k], groups, False, (cut,))
    found = spread_choice(TENSORS, states[t].choice)
    np.testing.assert_array_equal(found, choice)
    seen |= set(found)
  assert seen == {0, 1}
  diagonals, _, gradients = script()
  states = play(**amos.PAPER_NEWTON)
  expected = given_average(0.7, False, 1e-15)
  for k, t in enumerate(TIMES):
    choice = reference.newton_route(
      expected[k], gradients[t], diagonals[t], groups, True
    )
    found = spread_choice(TENSORS, states[t].choice)
    np.testing.assert_array_equal(found, choice)


@granularities
def test_permuted_leaves_permute_the_routing(name):
  """For given curvature and gradients; labels move with their leaves."""
  rename = {"a": "c", "b": "a", "c": "b"}
  renamed = lambda tree: {rename[k]: tree[k] for k in tree}
  seen = set()
  for threshold in ("newton", 1.2, ("quantile", 0.5)):
    choose, found = thresholds.make_threshold(threshold, 2), []
    for move in (lambda tree: tree, renamed):
      labels = move(LABELS) if name == "labels" else None
      groups, evidence, _ = evidence_of(name, move, labels=labels)
      found.append(choose(evidence, groups))
    jax.tree.map(np.testing.assert_array_equal, renamed(found[0]), found[1])
    seen |= set(flat(found[0]))
  assert seen == {0, 1}


def test_eq_8_is_where_newtons_step_stops_to_pay():
  """M(g / h) = 0 at L |g| = 3 h^2, of the damped step likewise."""
  h, g = 1.7, -0.4
  for rate in (1.0, 0.4, 1.6):
    edge = 3 * (2 - rate) * h**2 / (rate**2 * abs(g))
    np.testing.assert_allclose(
      elmo.newton_threshold(g, h, rate), edge, rtol=1e-6
    )
    step = rate * abs(g) / h
    bound = -abs(g) * step + h * step**2 / 2 + edge * step**3 / 6
    np.testing.assert_allclose(bound, 0, atol=1e-6)
    groups = make_granularity("element")
    for factor, first in ((0.999, 1), (1.001, 0)):
      lip = {"x": jnp.array([factor * edge])}
      evidence = thresholds.Evidence(
        lip, {"x": jnp.array([g])}, {"x": jnp.array([h])}, *[None] * 4
      )
      choice = thresholds.newton(evidence, groups, rate)
      assert choice["x"] == first, (rate, factor)


def test_eq_8_has_no_division():
  groups = make_granularity("element")

  def choose(lip, gradient, diagonal, scale=1.0):
    trees = [{"x": jnp.array(x) * scale} for x in (lip, gradient, diagonal)]
    evidence = thresholds.Evidence(*trees, *[None] * 4)
    return list(map(int, thresholds.newton(evidence, groups, 1.0)["x"]))

  # No gradient: Newton. No curvature: first order. Neither: Newton.
  assert choose([1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]) == [1, 0, 1]
  assert choose([1.0], [1.0], [0.0]) == [0]
  # The scale of the loss does not matter, though squares would overflow.
  for scale in (1e-30, 1e-20, 1.0, 1e20, 1e30):
    assert choose([1.0, 4.0], [1.0, 1.0], [1.0, 1.0], scale) == [1, 0]


def test_the_quantile_counts_ties_and_weighs_groups():
  groups = {"x": jnp.array(3.0), "y": jnp.array([1.0, 1.0, 2.0])}
  sizes = {"x": jnp.array(6), "y": jnp.array([1, 1, 2])}
  found = thresholds.quantiles(
    groups, sizes, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
  )
  np.testing.assert_array_equal(found, [0, 1, 1, 2, 2, 3, 3])


def test_labels_may_be_a_function_or_a_prefix(x64):
  nested = {"p": tree_of(np.arange(20.0)), "q": jnp.ones(3)}
  full = {"p": {"a": 1, "b": 1, "c": 1}, "q": 2}
  ways = (full, {"p": 1, "q": 2}, lambda params: {"p": 1, "q": 2})
  means = [make_granularity(way).mean(nested) for way in ways]
  assert means[0]["p"]["a"] == means[0]["p"]["c"] == 9.5
  for other in means[1:]:
    jax.tree.map(np.testing.assert_array_equal, means[0], other)


STILL = [optax.set_to_zero()] * 2
COUPLED = jnp.array([[2.0, 1.0], [1.0, 3.0]])


def coupled(w):
  return w @ COUPLED @ w / 2 + jnp.sum(w**4)


def look_twice(move, seed=0, **options):
  """The router's state after each of two Hessian times, `move` apart."""
  tx = gen_optax.amos_router(STILL, every=1, seed=seed, **options)
  w, states = jnp.ones(2), []
  state = tx.init(w)
  look = jax.jit(
    lambda w, state: tx.update(jax.grad(coupled)(w), state, w, value_fn=coupled)
  )
  for _ in range(2):
    _, state = look(w, state)
    states.append(state)
    w = w + move
  return states


def test_probes_are_common_to_two_points_and_fresh_at_each_time():
  diagonals = [
    [state.drift.curvature for state in look_twice(0.0, seed)]
    for seed in range(6)
  ]
  assert any(bool(jnp.any(a != b)) for a, b in diagonals), "fresh each time"
  # H(w) - H(w') is diagonal: with a common probe the difference is exact.
  for seed in range(6):
    _, state = look_twice(0.5, seed)
    exact = 12 * (1.5**2 - 1.0) / (0.5 * 2**0.5)
    found = state.drift.lipschitz()
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_until_there_is_an_observation_the_last_has_all():
  """Whatever the threshold says."""
  first = lambda seen: jax.tree.map(jnp.zeros_like, seen.groups)
  before, after = look_twice(0.5, threshold=first)
  assert before.choice == 1 and after.choice == 0
