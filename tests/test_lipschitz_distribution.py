"""The study of Lipschitz parameters: its measurements and its statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from scripts.elmo.lipschitz import cases, claims, lab, stats


@pytest.mark.parametrize("h", [2.0, -0.7])
@pytest.mark.parametrize("true", [0.3, 40.0])
def test_validated_is_the_first_power_of_two_that_keeps_half(x64, h, true):
  """Against the definition, written out in scalars, on a cubic."""
  c = 0.6
  f = lambda x: c * x + h * x**2 / 2 + true / 6 * abs(x) ** 3

  def keeps(lip):
    s = (np.sqrt(h**2 + 2 * lip * c) - h) / lip
    return -f(-s) >= 0.5 * (c * s - h * s**2 / 2 - lip * s**3 / 6)

  expected = next(2.0**k for k in range(-20, 21) if keeps(2.0**k))
  loss = lambda x: c * x[0] + h * x[0] ** 2 / 2 + true / 6 * abs(x[0]) ** 3
  found = lab.validated(loss, jnp.zeros(1), 0.0, c, h, jnp.ones(1))
  assert found == expected


@pytest.mark.parametrize("h", [2.0, -0.7])
def test_remainder_of_a_cubic_is_its_parameter(x64, h):
  loss = lambda x: 0.6 * x[0] + h * x[0] ** 2 / 2 - 3 / 6 * x[0] ** 3
  found = lab.remainder(loss, jnp.zeros(1), 0.0, 0.6, h, jnp.ones(1))
  assert found == pytest.approx(3)


def test_trial_steps_cannot_see_the_convex_parameter(x64):
  """Both true parameters are 1; L+ << L- is the ratio test's doing."""
  found = lab.control()
  assert found["validated"][0] == 2.0 ** lab.EXPONENTS[0]
  assert 0.25 <= found["validated"][1] <= 2
  assert found["eigen_arc"][0] < 1e-2 < 0.1 < found["eigen_arc"][1] < 10


def test_best_length_on_a_quadratic(x64):
  c, h = jnp.array([0.3, -0.2]), jnp.array([4.0, 2.0])
  loss = lambda x: c @ x + h @ x**2 / 2
  for slope, curve, axis in zip(c, h, jnp.eye(2), strict=True):
    best = lab.best_length(loss, jnp.zeros(2), 0.0, slope, curve, axis)
    assert abs(np.log2(best * curve / abs(slope))) < 0.2


def test_moves_that_are_compared(x64):
  """In the basis of the eigenvectors, entry by entry."""
  n, rate = lab.TOP + 3, 0.1
  rng = np.random.default_rng(0)
  gradient, values = rng.normal(size=n), np.arange(1.0, n + 1)
  found = lab.moves_of(gradient, gradient, values, np.eye(n), rate)
  newton, descent = -gradient / values, -rate * gradient
  inside = np.arange(n) < lab.TOP
  first = np.arange(n) < 1
  for name, sides in {
    "saved": (first * newton, first * descent),
    "saved_top": (inside * newton, inside * descent),
    "saved_step": (np.where(inside, newton, descent), descent),
  }.items():
    np.testing.assert_allclose(found[name], np.stack(sides), atol=1e-12)


def test_a_look_agrees_with_the_dense_hessian(x64):
  problem = cases.make_problem("residual", 5, 4, 2)
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(30, 5)), rng.integers(0, 10, 30)
  loss = lambda p: problem.loss(p, x, y)
  params = problem.init(3)
  seen, _ = jax.jit(lambda p, s: lab.look(loss, p, s, 0.1))(
    params, lab.start_arcs(params)
  )
  hessian = jax.jit(jax.hessian(loss))
  values, vectors = np.linalg.eigh(hessian(params))
  ends = [*range(-1, -1 - lab.TOP, -1), 0]
  np.testing.assert_allclose(seen["values"], values[ends], rtol=1e-3)
  assert np.all(seen["residuals"] < 1e-2 * abs(values[ends]))
  # The change of the curvature along v, by differences of the Hessian.
  h, axes = 1e-4, np.eye(problem.size)
  rise = [hessian(params + h * e) - hessian(params - h * e) for e in axes]
  for at, end in ((0, -1), (-1, 0)):
    v = vectors[:, end]
    change = np.array([v @ r @ v for r in rise]) / (2 * h)
    np.testing.assert_allclose(seen["third"][at], abs(change @ v), rtol=0.05)
    across = np.linalg.norm(change)
    np.testing.assert_allclose(seen["gradient"][at], across, rtol=0.05)


def test_cases_have_the_data_they_say():
  split, _ = cases.images(None)
  noisy = cases.noise(split, 1)
  assert noisy.x.shape == split.x.shape
  np.testing.assert_allclose(noisy.x.std(), split.x.std(), rtol=0.01)
  shuffled = cases.random_labels(split, 1)
  assert 0.05 < np.mean(shuffled.y == split.y) < 0.15
  assert np.any(cases.random_labels(split, 2).y != shuffled.y)


def test_the_search_leaves_the_edge():
  score = lambda rates: [(np.log10(rate) - 1) ** 2 for rate in rates]
  found = lab.search(score, (-1.0, -0.5, 0.0), 4)
  assert found.rate == pytest.approx(10.0)
  assert len(found.rates) == len(found.scores) == 6


def fake_record(seed, seeds=4, looks=80):
  """L+ falls tenfold and is 100 times below L-; saved follows the slope."""
  rng = np.random.default_rng(seed)
  shape = (seeds, looks)
  trend = np.linspace(0, -1, looks)
  plus = 10 ** (trend + 0.05 * rng.normal(size=shape))
  values = np.repeat(10 ** rng.normal(size=shape)[..., None], lab.TOP + 1, -1)
  values[..., -1] *= -0.1
  slopes = 10 ** rng.normal(size=values.shape)
  spaces = np.repeat(plus[..., None], lab.TOP + 1, -1)
  spaces[..., -1] = 1e2
  newton = slopes[..., 0] ** 2 / values[..., 0]
  return {
    "third": spaces,
    "values": values,
    "slopes": slopes,
    "residuals": np.zeros(values.shape),
    "saved": np.stack([newton, 0 * newton], -1),
    "rate": 0.0,
  }


def test_gap_and_its_growth():
  record = fake_record(0)
  assert stats.gap(record, "third").mean == pytest.approx(2.5, abs=0.05)
  grown = stats.gap_growth(record, "third")
  assert grown.mean == pytest.approx(1, abs=0.05) and grown.holds(1)
  assert not grown.holds(-1)
  plus, _ = stats.ends(record, "third")
  assert stats.spread(plus) == pytest.approx(0.9, abs=0.15)


def test_the_test_over_seeds_is_students():
  x = np.array([0.3, 0.5, 0.1, 0.4])
  t = x.mean() / (x.std(ddof=1) / 2)
  expected = 2 * scipy.stats.t.sf(abs(t), 3)
  assert stats.over_seeds(x).p == pytest.approx(expected)
  assert np.isnan(stats.over_seeds([1.0]).p)


def test_a_correlation_by_the_slope_is_gone_once_it_is_given():
  record = fake_record(1)
  slopes = np.log10(record["slopes"][..., 0])
  noise = np.random.default_rng(2).normal(size=slopes.shape)
  record["third"][..., 0] = 10 ** (-slopes + 0.1 * noise)
  found = stats.correlate(record, "third")
  assert found.spearman.mean < -0.5 and found.spearman.holds(-1)
  assert abs(found.partial.mean) < 0.2
  assert found.negative[1] == 4 and found.positive == 1


def test_shares_sent_to_first_order_follow_the_threshold():
  record = fake_record(3)
  convex = record["values"] > 0
  raised = record["third"] * record["slopes"] > 3 * record["values"] ** 2
  expected = np.mean(raised[convex])
  found = stats.first_order_share(record, "third")
  assert found.mean == pytest.approx(expected, abs=0.01)
  # In logs: the part of L+ above the threshold is the part above 0.
  over = stats.threshold_ratio(record, "third") > 0
  assert np.mean(over) == pytest.approx(np.mean(raised[..., 0]), abs=0.01)


def test_pairs_that_are_not_what_they_should_be_are_left_out():
  record = fake_record(4)
  record["residuals"][0, :10, 0] = np.inf
  record["values"][1, :5, -1] = 1.0
  plus, minus = stats.ends(record, "third")
  assert np.isnan(plus).sum() == 10 and np.isnan(minus).sum() == 5


def test_verdicts():
  yes, no = ("1", True), ("2", False)
  judge = lambda **found: claims.judge("text", "criterion", found).verdict
  assert judge(a=yes, b=yes) == "HELD"
  assert judge(a=no, b=no) == "DID NOT HOLD"
  assert judge(a=yes, b=no) == "depends on the estimate"
