"""PSGD on bad numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import assert_finite

import gen_optax
from gen_optax import psgd
from gen_optax.helpers import mean

STRUCTURES = {
  "diagonal": psgd.diagonal,
  "xmat": psgd.xmat,
  "neighbours": lambda: psgd.blocks(psgd.neighbours(3)),
  "cyclic of five": lambda: psgd.blocks(psgd.cyclic(5)),
  "low rank": lambda: psgd.low_rank(2),
  "dense": psgd.dense,
  "triangular": lambda: psgd.dense(triangular=True),
  "kron": psgd.kron,
}
structures = pytest.mark.parametrize("name", STRUCTURES)
START = {"a": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(4)}


def quadratic(params, scale=1.0):
  weights = {"a": jnp.arange(1.0, 7.0).reshape(2, 3), "b": jnp.ones(4)}
  return scale * sum(jnp.sum(weights[k] * params[k] ** 2) / 2 for k in params)


def assert_same(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


def size_of_p(tx_state, preconditioner):
  ones = jax.tree.map(jnp.ones_like, START)
  return float(
    optax.tree.norm(preconditioner.apply(tx_state.preconditioner, ones))
    / optax.tree.norm(ones)
  )


@functools.cache
def stage(name, **options):
  """A stage and its compiled update; `scale` multiplies the loss."""
  tx = gen_optax.scale_by_psgd(STRUCTURES[name](), **options)

  @jax.jit
  def update(grad, state, scale):
    value_fn = lambda p: quadratic(p, scale)
    return tx.update(grad, state, START, grad=grad, value_fn=value_fn)

  return tx, update


def run(name, factors, scale=1.0, state=None, **options):
  """Updates and states after each gradient, multiples of START."""
  tx, update = stage(name, **options)
  state = tx.init(START) if state is None else state
  history = []
  for factor in factors:
    updates, state = update(times(factor), state, scale)
    history.append((updates, state))
  return history


def times(factor):
  return jax.tree.map(lambda x: factor * x, START)


@structures
@pytest.mark.parametrize("pairs", ["hvp", "whitening"])
def test_a_bad_first_gradient_poisons_nothing(name, pairs):
  for bad in (0.0, jnp.nan, jnp.inf, 1e20, -1e30, 1e-20):
    history = run(name, [bad] + [1.0] * 10, pairs=pairs, momentum=0.9)
    for updates, state in history:
      assert_finite((updates, state), bad)
    updates, state = history[-1]
    assert state.scaled and not state.info.skipped
    assert optax.tree.norm(updates) > 0.1, bad


def test_momentum_starts_anew_where_gradients_of_another_size_stay():
  for far in (1e10, 1e-10):
    history = run("diagonal", [1.0, 1.0, far, far, far], momentum=0.9)
    states = [state for _, state in history]
    skipped = [bool(state.info.skipped) for state in states]
    assert skipped == [False, False, True, False, False]
    assert_same(states[2].momentum, states[1].momentum)
    for state, weight in ((states[3], 0.1), (states[4], 0.19)):
      expected = mean.Mean(times(weight * far), weight)
      jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5),
        state.momentum,
        expected,
      )
  _, state = run("diagonal", [1.0], momentum=0.0)[-1]
  assert state.momentum is None


@structures
@pytest.mark.parametrize("pairs", ["hvp", "whitening"])
def test_a_bad_later_gradient_is_withheld(name, pairs):
  for bad in (jnp.nan, jnp.inf, 1e30):
    factors = [1.0] * 5 + [bad, 1.0]
    history = run(name, factors, pairs=pairs, momentum=0.9)
    before, at, after = (history[k] for k in (4, 5, 6))
    assert at[1].info.skipped and optax.tree.norm(at[0]) == 0
    assert_finite((at, after), bad)
    if not np.isfinite(bad):
      assert_same(at[1].momentum, before[1].momentum)
      assert not after[1].info.skipped and optax.tree.norm(after[0]) > 0.1


@structures
def test_a_bad_product_leaves_the_preconditioner(name):
  """The closure's Hessian turns bad while the gradient is sound."""
  sound = run(name, [1.0] * 3)[-1][1]
  for bad in (jnp.nan, jnp.inf, 0.0):
    ((updates, state),) = run(name, [1.0], bad, sound)
    assert state.info.rejected and not state.info.updated
    assert_same(state.preconditioner, sound.preconditioner)
    assert not state.info.skipped and optax.tree.norm(updates) > 0.1


def two_late(count):
  return jnp.where(count < 2, 0.0, 1.0)


@structures
def test_a_late_first_pair_still_sets_the_scale(name):
  """Counted from the first call, the automatic scale would be lost here."""
  preconditioner = STRUCTURES[name]()
  history = run(name, [1.0] * 3, 1e4, probability=two_late)
  assert [bool(state.scaled) for _, state in history] == [False, False, True]
  assert size_of_p(history[1][1], preconditioner) == pytest.approx(1, abs=0.2)
  # |H| is 1e4 to 6e4.
  assert 1e-6 < size_of_p(history[2][1], preconditioner) < 1e-3


@structures
def test_the_scale_of_the_loss_does_not_matter(name):
  """P of the scaled loss is P over the scale: the first steps agree."""
  plain = run(name, [1.0] * 4)
  for scale in (1e-20, 1e-12, 1e12, 1e18):
    scaled = run(name, [scale] * 4, scale)
    for (left, _), (right, _) in zip(plain, scaled, strict=True):
      jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-2, atol=2e-3),
        left,
        right,
      )


@structures
def test_a_huge_product_poisons_nothing(name):
  sound = run(name, [1.0] * 3)[-1][1]
  after = run(name, [1.0] * 5, 1e25, sound)
  assert_finite(after)


@structures
@pytest.mark.parametrize("pairs", ["hvp", "whitening"])
def test_entries_that_the_loss_ignores_stay_finite(name, pairs):
  """A dead unit has h = 0 for ever; without a floor its Q overflows."""
  loss = lambda p: quadratic({"a": p["a"]})
  tx = gen_optax.scale_by_psgd(STRUCTURES[name](), pairs=pairs)
  grad = times(1.0) | {"b": jnp.zeros(4)}

  def step(state, _):
    updates, state = tx.update(grad, state, START, value_fn=loss)
    return state, (optax.tree.norm(updates), state.info.updated)

  state, (norms, updated) = jax.jit(
    lambda s: jax.lax.scan(step, s, length=4000)
  )(tx.init(START))
  assert_finite((state, norms))
  assert updated.all() and norms[-1] > 0.1


def test_clipping():
  def norm(clip, pairs="hvp"):
    ((updates, state),) = run(
      "xmat", [100.0], clip_norm=clip, pairs=pairs, momentum=0.0
    )
    return float(optax.tree.norm(updates)), float(state.info.norm)

  free, reported = norm(None)
  assert free > 1 and reported == pytest.approx(free, rel=1e-5)
  assert norm(0.5)[0] == pytest.approx(0.5, rel=1e-5)
  assert norm(2 * free)[0] == pytest.approx(free, rel=1e-5)
  # Ten entries: a root mean square of 0.01.
  assert norm(0.01, "whitening")[0] == pytest.approx(0.01 * 10**0.5, rel=1e-5)


def test_momentum_is_bias_corrected_and_comes_first():
  factors = (1.0, -2.0, 3.0)
  history = run(
    "diagonal",
    factors,
    momentum=0.9,
    probability=0.0,
    init_scale=2.0,
    clip_norm=None,
  )
  average = 0.0
  for t, (x, (updates, _)) in enumerate(zip(factors, history, strict=True)):
    average = 0.9 * average + 0.1 * x
    expected = 4.0 * average / (1 - 0.9 ** (t + 1))
    np.testing.assert_allclose(updates["b"], expected, rtol=1e-5)
