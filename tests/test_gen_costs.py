"""What a step costs, counted at run time inside the compiled scan."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network import initial_params, loss_fn
from running import gen_state, left_loops, run, step

import gen_optax
from gen_optax.helpers import trees

CURVATURE = jnp.array([1.0, 4.0, 9.0])
SEARCH = 25  # forward passes that the first step may spend, by the docstring


def quadratic(w, t):
  """Its centre moves, so that fits never become trivial."""
  centre = jnp.where(t % 2 == 0, 1.0, 0.7)
  return 0.5 * jnp.sum(CURVATURE * (w - centre) ** 2)


class Counter:
  """Counts evaluations by replica and step while the program runs."""

  def __init__(self):
    self.calls = collections.Counter()

  def watch(self, loss, t, replica):
    """The loss, counted. The callback reads the loss itself, so that a vmap
    over probes is counted once for each probe, not once in all."""

    def watched(w):
      value = loss(w, t)
      jax.debug.callback(self._record, value, t, replica)
      return value

    return watched

  def _record(self, value, t, replica):
    del value
    self.calls[int(replica), int(t)] += 1

  def table(self, replicas, steps):
    jax.effects_barrier()
    return np.array(
      [[self.calls[r, t] for t in range(steps)] for r in range(replicas)]
    )


def count(tx, steps, replicas=None, loss=quadratic, with_value=True):
  """Evaluations in each step, without those of the gradient."""
  counter = Counter()

  def train(start, state, replica):
    def body(carry, t):
      w, state = carry
      value, grad = jax.value_and_grad(loss)(w, t)  # not counted
      updates, state = tx.update(
        grad,
        state,
        w,
        value_fn=counter.watch(loss, t, replica),
        grad=grad,
        **({"value": value} if with_value else {}),
      )
      return (optax.apply_updates(w, updates), state), None

    (w, _), _ = jax.lax.scan(body, (start, state), jnp.arange(steps))
    return w

  starts = jnp.array([[3.0, -1.0, 2.0], [1.0, 5.0, -2.0], [-30.0, 0.1, 7.0]])
  if replicas is None:
    w = jax.jit(train)(starts[0], tx.init(starts[0]), 0)
  else:
    # States of their own, the counts too: nothing tells the compiler that all
    # replicas fit at once, so a `lax.cond` would become a select.
    starts = starts[:replicas]
    states = jax.vmap(tx.init)(starts)
    w = jax.jit(jax.vmap(train))(starts, states, jnp.arange(replicas))
  assert np.all(np.isfinite(w))
  return counter.table(replicas or 1, steps)


def momentum(**options):
  return optax.chain(
    optax.sgd(1.0, momentum=0.9), gen_optax.scale_by_gen(**options)
  )


def test_the_counter_counts():
  counter = Counter()

  @jax.jit
  def probe(w):
    fn = counter.watch(quadratic, 0, 0)
    return jax.vmap(lambda s: fn(w + s))(jnp.arange(4.0)) + fn(w)

  probe(jnp.ones(3))
  assert counter.table(1, 1)[0, 0] == 5


@pytest.mark.parametrize("replicas", [None, 3])
@pytest.mark.parametrize(
  "options, passes",
  [
    (dict(), 1),
    (dict(estimator="fit"), 2),
    (dict(estimator="fit", evaluate="map"), 2),
    (dict(estimator="fit", fresh_slope=False), 2),
    (dict(estimator="fit", probes=(-2, -1, 0, 1, 2), degree=4), 4),
  ],
)
def test_every_step_fits(options, passes, replicas):
  """One pass for each probe, from the second step on."""
  calls = count(momentum(**options), 40, replicas)
  np.testing.assert_array_equal(calls[:, 1:], passes)
  assert np.all(calls[:, 0] >= 1)
  assert np.all(calls[:, 0] <= passes * SEARCH)


@pytest.mark.parametrize("replicas", [None, 3])
@pytest.mark.parametrize(
  "options, passes",
  [
    (dict(every=8), 1),
    (dict(every=8, estimator="fit"), 2),
    (dict(every=8, dense_start=0), 1),
    (dict(every=3, dense_start=5, evaluate="map"), 1),
  ],
)
def test_other_steps_cost_nothing(options, passes, replicas):
  calls = count(momentum(**options), 42, replicas)
  t = np.arange(42)
  fits = (t < options.get("dense_start", 20)) | (t % options["every"] == 0)
  expected = np.where(fits, passes, 0)
  np.testing.assert_array_equal(
    calls[:, 1:], np.broadcast_to(expected[1:], calls[:, 1:].shape)
  )


@pytest.mark.parametrize("replicas", [None, 3])
@pytest.mark.parametrize("estimator", ["forward", "hvp"])
def test_lazy_steps_of_the_exact_estimators_cost_nothing(estimator, replicas):
  tx = momentum(every=8, dense_start=0, estimator=estimator)
  calls = count(tx, 20, replicas)
  t = np.arange(20)
  assert np.all(calls[:, t % 8 != 0] == 0)
  assert np.all(calls[:, t % 8 == 0] >= 1)


@pytest.mark.parametrize("replicas", [None, 3])
def test_without_value_the_loss_at_zero_is_one_pass_more(replicas):
  calls = count(momentum(every=8), 42, replicas, with_value=False)
  t = np.arange(42)
  expected = np.where((t < 20) | (t % 8 == 0), 2, 0)
  np.testing.assert_array_equal(
    calls[:, 1:], np.broadcast_to(expected[1:], calls[:, 1:].shape)
  )


@pytest.mark.parametrize("replicas", [None, 3])
@pytest.mark.parametrize("every", [1, 4])
def test_paper_rule_fits_on_every_phith_step_from_step_phi(every, replicas):
  tx = optax.chain(
    optax.sgd(1.0), gen_optax.scale_by_gen_paper(1e-2, every=every)
  )
  calls = count(tx, 13, replicas)
  expected = np.where((np.arange(13) + 1) % every == 0, 2, 0)
  np.testing.assert_array_equal(calls, np.broadcast_to(expected, calls.shape))


@pytest.mark.parametrize("rate", [1e-6, 1.0])
def test_the_ready_made_chain_costs_the_same(rate):
  calls = count(gen_optax.gen_adam(rate), 30)
  np.testing.assert_array_equal(calls[:, 1:], 1)
  assert calls[0, 0] <= SEARCH


@pytest.mark.parametrize(
  "line",
  [
    lambda w, t: jnp.sum(w),  # straight: no curvature ever
    lambda w, t: 1.0 + 0.0 * jnp.sum(w),  # flat
    lambda w, t: -jnp.sum(w**2),  # concave
    lambda w, t: (
      jnp.where(jnp.all(w == jnp.array([3.0, -1.0, 2.0])), 1.0, jnp.nan)
      + 0.0 * jnp.sum(w)
    ),  # every probe fails
  ],
)
def test_the_first_search_is_bounded(line):
  """The worst lines there are, from the rate that is furthest off."""
  for rate in (1e-6, 1.0):
    calls = count(
      gen_optax.generalized_newton(optax.sgd(1.0), rate), 1, loss=line
    )
    assert calls[0, 0] <= SEARCH


@pytest.mark.parametrize("replicas", [1, 3])
def test_sums_that_no_fit_needs_cost_nothing_on_most_steps(
  replicas, monkeypatch
):
  """While the parameters leave their start they are taken each time, later on
  few steps; on the others not at all, under vmap too."""
  taken = collections.Counter()
  names = ("distance", "vdot_of_sizes")

  def watch(name):
    pure = getattr(trees, name)

    def watched(*args):
      out = pure(*args)
      jax.debug.callback(lambda _: taken.update([name]), out)
      return out

    monkeypatch.setattr(trees, name, watched)

  for name in names:
    watch(name)
  tx = momentum()
  one = lambda w, state, t: step(tx, lambda p: quadratic(p, t), w, state)[:2]
  train_step = jax.jit(jax.vmap(one, in_axes=(0, 0, None)))
  w = jnp.arange(3.0 * replicas).reshape(replicas, 3)
  state = jax.vmap(tx.init)(w)
  history = []
  for t in range(60):
    taken.clear()
    w, state = train_step(w, state, t)
    jax.effects_barrier()
    assert taken in ({}, dict.fromkeys(names, replicas)), t
    history.append(bool(taken))
  early, late = history[:10], history[30:]
  assert all(early)
  assert 0 < sum(late) < len(late) / 4


@pytest.mark.parametrize("every", [1, 8])
@pytest.mark.parametrize("estimator", ["known_slope", "fit", "forward", "hvp"])
def test_nothing_of_a_fit_leaves_its_loop(estimator, every):
  stage = gen_optax.scale_by_gen(estimator=estimator, every=every)
  tx = optax.chain(optax.sgd(1.0), stage)
  params = initial_params()

  def one_step(params, state):
    return step(tx, loss_fn, params, state)

  assert left_loops(one_step, params, tx.init(params)) == []


def test_many_steps_are_one_trace():
  traces = []
  tx = gen_optax.gen_adam(every=3, dense_start=2)

  @jax.jit
  def train_step(w, state, t):
    traces.append(t)
    w, state, _ = step(tx, lambda p: quadratic(p, t), w, state)
    return w, state

  w = jnp.ones(3) * 4
  state = tx.init(w)
  for t in range(12):
    w, state = train_step(w, state, t)
  assert len(traces) == 1


@pytest.mark.parametrize(
  "base",
  [lambda: optax.sgd(1.0, momentum=0.9), lambda: optax.adam(1.0)],
  ids=["momentum", "adam"],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_moments_advance_once_a_step(base, wrapped):
  """The moments are those of the base fed the same gradients."""
  tx = (
    gen_optax.generalized_newton(base())
    if wrapped
    else optax.chain(base(), gen_optax.scale_by_gen())
  )
  w = jnp.array([3.0, -1.0, 2.0])
  found = run(tx, quadratic, w, 15)
  visited = jnp.concatenate([w[None], found.params[:-1]])
  state = base().init(w)
  for t in range(15):
    grad = jax.grad(quadratic)(visited[t], t)
    _, state = base().update(grad, state, visited[t])
  for name in ("trace", "mu", "nu"):
    expected = optax.tree.get(state, name)
    if expected is not None:
      np.testing.assert_allclose(
        optax.tree.get(found.state, name), expected, rtol=1e-4, atol=1e-7
      )
  adam = optax.tree.get(found.state, "ScaleByAdamState")
  if adam is not None:
    assert adam.count == 15
  assert gen_state(found.state).count == 15


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  "options",
  [
    dict(),
    dict(estimator="fit"),
    dict(estimator="fit", probes=(-2, -1, 1, 2), degree=4, every=3),
  ],
)
def test_vmap_and_map_agree(options):
  """A small network, 30 steps: the path to 1e-10."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 2))
  start = {
    "in": jnp.asarray(rng.normal(size=(6, 5))),
    "out": jnp.asarray(rng.normal(size=(5, 2))),
  }

  def loss(p, t):
    rows = (jnp.arange(20) + 7 * t) % 40
    hidden = jnp.tanh(jnp.asarray(x)[rows] @ p["in"])
    return jnp.mean((hidden @ p["out"] - jnp.asarray(y)[rows]) ** 2)

  def path(evaluate):
    return run(momentum(evaluate=evaluate, **options), loss, start, 30)[:3]

  found = [jax.jit(path, static_argnums=0)(mode) for mode in ("vmap", "map")]
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
