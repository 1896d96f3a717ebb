"""The full-batch comparison: its problems, its counting, its references."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from scripts.elmo import digits, equal_cost, fosi, full_batch, top_eigenvalues
from scripts.elmo import full_batch_methods as methods


def small_logistic():
  return full_batch.logistic(features=12, examples=60)


# --- problems -----------------------------------------------------------------


def test_nothing_is_below_the_logistic_minimum(x64):
  problem = full_batch.logistic(features=12, examples=60, decades=1)
  params, data = problem.draw(3)
  lowest = problem.lowest(data)
  value = jax.jit(problem.loss)
  found = scipy.optimize.minimize(
    lambda w: float(value(w, data)), params / 10, method="BFGS"
  )
  assert -1e-15 < found.fun - lowest < 1e-6


def test_the_rotation_hides_the_scales(x64):
  rows = small_logistic().draw(0)[1]
  values = np.linalg.eigvalsh(rows.T @ rows)
  assert values[-1] / values[0] > 1e5
  spread = (rows**2).mean(0)
  assert spread.max() / spread.min() < 100


def test_the_residual_of_poisson_by_differences(x64):
  problem = full_batch.poisson(hidden=5, points=8)
  params, (x, f) = problem.draw(1)
  u = lambda x: np.asarray(full_batch.mlp(params, (1, 5, 5, 1), x[:, None]))
  x, h = np.asarray(x), 1e-4
  bend = (u(x + h) - 2 * u(x) + u(x - h))[:, 0] / h**2
  inside = np.mean((bend + f) ** 2) / np.mean(np.square(f))
  ends = u(np.array([0.0, 1.0]))
  expected = inside + 10 * np.sum(ends**2)
  np.testing.assert_allclose(problem.loss(params, (x, f)), expected, rtol=1e-5)


def test_the_right_side_of_poisson_belongs_to_its_solution(x64):
  _, (x, f) = full_batch.poisson().draw(0)
  u = lambda x: jnp.sin(jnp.pi * x) + jnp.sin(4 * jnp.pi * x) / 4
  np.testing.assert_allclose(-jax.vmap(jax.grad(jax.grad(u)))(x), f, atol=1e-9)


def test_networks_have_as_many_parameters_as_they_say():
  rng = np.random.default_rng(0)
  widths = (64, 60, 10)
  flat = full_batch.mlp_init(rng, widths)
  assert len(flat) == full_batch.mlp_size(widths) == 64 * 60 + 60 + 600 + 10
  first, bias = flat[: 64 * 60].reshape(64, 60), flat[64 * 60 : 65 * 60]
  second = flat[65 * 60 : 65 * 60 + 600].reshape(60, 10)
  x = rng.normal(size=(3, 64))
  expected = np.tanh(x @ first + bias) @ second + flat[-10:]
  np.testing.assert_allclose(
    full_batch.mlp(flat, widths, x), expected, rtol=1e-4, atol=1e-5
  )


def test_a_product_costs_more_than_a_gradient_and_that_more_than_a_loss():
  weights = full_batch.weights(full_batch.classifier(hidden=8, images=50))
  assert 0.2 < weights.value < 0.6
  assert 1 < weights.product < 4


# --- counting -----------------------------------------------------------------


def counted_families():
  return [
    methods.elmo([(3, 2, 7, 1.0)]),
    methods.fosi_family([(2, 1, 1.0, 3)]),
    methods.gradient_descent(),
    methods.lbfgs(),
    methods.gen(["momentum"]),
    methods.psgd([0.5]),
  ]


@pytest.mark.parametrize("family", counted_families(), ids=lambda f: f.name)
def test_work_is_what_the_loss_sees(family, x64):
  problem, calls = small_logistic(), []

  def loss(params, data):
    value = problem.loss(params, data)
    jax.debug.callback(lambda _: calls.append(1), value)
    return value

  setting = equal_cost.Setting(family.forms[0], family.numbers[0])
  record = equal_cost.run(
    problem._replace(loss=loss, lowest=None),
    *(family, setting, 0, full_batch.Weights(0.25, 2.0), 30.0),
  )
  jax.effects_barrier()
  # One evaluation is the judge's, after each part of the budget.
  steps, work = record["steps"], record["work"]
  judged = len(calls) - sum(work.values())
  chunks = equal_cost.PARTS + 2
  if family.name == "GeN":  # its first search is counted as the longest
    judged += methods.GEN_SEARCH - 1
  assert 0 < judged <= chunks + methods.GEN_SEARCH * (family.name == "GeN")
  cost = work["gradients"] + work["evaluations"] / 4 + 2 * work["products"]
  assert cost >= 30 and steps > 0


def test_a_run_is_judged_within_its_budget():
  points = np.array(
    [[0, 0, 0, 5], [1, 9, 1, 3], [2, 20, 2, np.nan], [3, 41, 3, 1]], float
  )
  record = equal_cost._record(points, 1.0, 40.0, methods.Work(3, 0, 0), 1e-16)
  assert record["loss"] == [2.0, 2.0, 2.0]
  np.testing.assert_array_equal(record["curve"]["loss"][:3], [4, 2, 2])


def test_a_best_setting_on_an_edge_takes_its_grid_further():
  family = methods.gradient_descent(forms=(0.0,), rates=(0.1, 0.3, 1.0))
  best, trials, on_edge = equal_cost.tune(family, lambda s: abs(s.number - 3.3))
  assert best.number == pytest.approx(3.33, rel=0.01)
  assert trials == 5 and not on_edge
  family = methods.elmo([(3, 0, 9, 1.0)], every=(3, 10, 30))
  best, trials, on_edge = equal_cost.tune(family, lambda s: s.number)
  assert best.number == 1 and trials == 4 and not on_edge
  _, trials, on_edge = equal_cost.tune(family, lambda s: -s.number)
  assert trials == 3 + equal_cost.MAX_EXTENSIONS and on_edge


def test_everybody_has_as_many_trials():
  for name in full_batch.PROBLEMS:
    counts = {
      len(family.forms) * len(family.numbers)
      for family in methods.families(name)
    }
    assert len(counts) == 1


# --- references ---------------------------------------------------------------


def test_fosi_is_newton_along_its_eigenvectors(x64):
  rng = np.random.default_rng(0)
  n, top, bottom, alpha, rate = 9, 2, 1, 0.7, 0.05
  basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
  values = np.array([50.0, 20, 5, 4, 3, 2, 1, 0.5, -6])
  hessian, w = (basis * values) @ basis.T, rng.normal(size=n)
  loss = lambda w: w @ jnp.asarray(hessian) @ w / 2
  tx = fosi.fosi(optax.sgd(rate), top=top, bottom=bottom, alpha=alpha, every=2)
  gradient = hessian @ w
  updates, state = jax.jit(lambda g, s, w: tx.update(g, s, w, value_fn=loss))(
    gradient, tx.init(jnp.asarray(w)), w
  )
  inside = basis[:, [0, 1, 8]]
  expected = -alpha * inside @ (inside.T @ gradient / np.abs(values[[0, 1, 8]]))
  expected -= rate * (gradient - inside @ (inside.T @ gradient))
  np.testing.assert_allclose(updates, expected, rtol=1e-9)
  np.testing.assert_allclose(state.values, [50, 20, -6], rtol=1e-9)


def test_the_dense_hessian_is_that_of_jax():
  """With more columns than one group has, and a last one that is not full."""
  scales = jnp.arange(1.0, 70.0)

  def loss(params, data):
    return jnp.sum(jnp.sin(scales * params)) * jnp.sum(params**2) + data

  problem = full_batch.classifier()._replace(loss=loss)
  params, data = jnp.linspace(-1, 1, 69), jnp.zeros(())
  found = top_eigenvalues.dense_hessian(problem, params, data)
  with jax.enable_x64(True):
    wide = jnp.asarray(np.float64(params))
    expected = jax.hessian(loss)(wide, 0.0)
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-7)


def errors_of_top_eigenvalues(hidden, images):
  record = top_eigenvalues.compare(hidden, images, seed=0)
  assert len(record["errors"]) == 10 and record["products"] == 40
  return record["parameters"], max(record["errors"])


def test_float32_lanczos_finds_the_top_eigenvalues_of_a_small_network():
  size, worst = errors_of_top_eigenvalues(12, 200)
  assert size > 800 and worst < 1e-6


@pytest.mark.slow
def test_float32_lanczos_finds_the_top_eigenvalues_of_4000_parameters():
  size, worst = errors_of_top_eigenvalues(60, 300)
  assert size >= 4000 and worst < 1e-6


# --- the script ---------------------------------------------------------------


def test_the_verdict_names_the_best_of_the_others(capsys):
  losses = {"ELMO": [3, 2, 1.0], "L-BFGS": [3, 2, 0.5], "GeN": [9, 9, 9.0]}
  digits.conclude([("one", losses), ("two", losses | {"ELMO": [1, 1, 0.1]})])
  printed = capsys.readouterr().out
  assert "one: ELMO loses, 1 against 0.5 of L-BFGS (place 2 of 3)" in printed
  assert "two: ELMO wins, 0.1 against 0.5 of L-BFGS (place 1 of 3)" in printed
