"""Training under trouble: what goes wrong does so when it should."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scripts.league import troubles
from scripts.league.development import rare
from scripts.league.troubles import EVALUATIONS, Trouble

ROWS = jnp.zeros((3, 2)), jnp.array([1, 2, 3])


def test_wrong_labels_come_and_go():
  batch = troubles.during(5, 2, troubles.new_labels)
  key = jax.random.key(0)
  labels = [batch(ROWS, count, key)[1].tolist() for count in (4, 5, 6, 7)]
  wrong = [1, 4, 0]
  assert labels == [[1, 2, 3], wrong, wrong, [1, 2, 3]]


def test_a_loss_grows_and_comes_back():
  factor = troubles.up_and_down(10, 3, 2.0)
  found = [float(factor(jnp.asarray(t))) for t in range(9, 18)]
  assert found == [1, 1, 2, 4, 8, 4, 2, 1, 1]
  assert float(troubles.from_step(3, 5.0)(2)) == 1
  assert float(troubles.from_step(3, 5.0)(3)) == 5
  at = troubles.at_every(5, 2.0)
  assert [float(at(t)) for t in (4, 5, 6)] == [1, 2, 1]


def test_every_run_is_cut_into_equal_parts():
  for case in troubles.troubles().values():
    assert 0 <= case.begins < case.steps and case.steps % EVALUATIONS == 0


def test_a_gradient_at_another_scale_is_not_the_closure_s():
  """SGD at no rate but where the gradient is a million times as long."""
  family = troubles.troubles()["a new task"].family
  quiet = Trouble(family, 40)
  loud = quiet._replace(gradient=troubles.at_every(20, 1e6))
  tx = optax.sgd(1e-9)
  still = np.array(troubles.train(quiet, tx, [1])["iterate"])
  moved = np.array(troubles.train(loud, tx, [1])["iterate"])
  np.testing.assert_allclose(still, still[0, 0], rtol=1e-4)
  change = np.abs(np.diff(moved[0]))
  assert change[19] > 100 * np.delete(change, 19).max()


def test_a_loss_that_is_scaled_is_scaled_for_the_gradient_too():
  family = troubles.troubles()["a new task"].family
  tx = optax.sgd(0.1)
  doubled = Trouble(family, 40, loss=lambda count: 2.0)
  found = troubles.train(doubled, tx, [1])["iterate"]
  expected = troubles.train(Trouble(family, 40), optax.sgd(0.2), [1])["iterate"]
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_batches_are_those_of_the_trouble():
  """What is learned are the wrong labels, and one example says less than 32."""
  family = troubles.troubles()["a new task"].family
  batch = troubles.during(0, 200, troubles.new_labels)
  task = Trouble(family, 200, batch=batch, held=troubles.new_labels)
  ends = lambda task: np.array(
    troubles.train(task, optax.adam(1e-2), [1])["iterate"]
  )[0, -4:].mean()
  learned = ends(task)
  assert learned < 0.5 and ends(task._replace(batch_size=1)) > 2 * learned


def test_a_new_task_is_judged_by_its_own_labels():
  """From the step at which it begins, by a network that stands still."""
  family = troubles.troubles()["a new task"].family
  task = Trouble(family, 80, begins=40, held=troubles.new_labels)
  record = troubles.train(task, optax.set_to_zero(), [1])
  for where in ("iterate", "average"):
    (curve,) = np.array(record[where])
    np.testing.assert_allclose(curve[:20], record["start"][0], rtol=1e-5)
    np.testing.assert_allclose(curve[20:], curve[-1], rtol=1e-5)
    assert abs(curve[-1] - curve[0]) > 1e-3


@pytest.mark.parametrize("family", [rare.BAG, rare.MIXTURE])
def test_rare_rows_are_learned(family):
  record = troubles.train(Trouble(family, 200), optax.adam(1e-2), [1, 2])
  ends = np.array(record["iterate"])[:, -4:].mean(1)
  assert np.all(ends < 0.95 * np.array(record["start"]))


def touched(family, leaf):
  """The share of a leaf's rows that a batch has a gradient for."""
  workload = family.build(family.load(None), family.form)
  params, _ = workload.init(jax.random.key(0))
  rows = workload.sample(workload.data, jax.random.key(1))
  grad = jax.grad(lambda p: workload.loss(p, {}, rows, None)[0])(params)[leaf]
  return float(jnp.mean(jnp.any(grad != 0, axis=tuple(range(1, grad.ndim)))))


def test_rows_are_rare():
  assert touched(rare.BAG, "table") < 0.1
  assert touched(rare.MIXTURE, "in") < 0.65


def test_what_a_table_says():
  trouble = Trouble(rare.BAG, 40)
  curve = np.concatenate([np.full(10, 9.0), np.full(26, 2.0), np.full(4, 1.0)])
  record = {"start": [3.0], "iterate": [curve.tolist()]}
  assert troubles.figures(record, trouble, "iterate") == (1.0, 2.0, False)
  late = trouble._replace(begins=36)
  assert troubles.figures(record, late, "iterate") == (1.0, 1.0, False)
  record["start"] = [0.5]
  assert troubles.figures(record, trouble, "iterate")[2]
  curve[-1] = np.nan
  record["iterate"] = [curve.tolist()]
  assert troubles.figures(record, trouble, "iterate") == (np.inf, np.inf, True)


def test_a_table_counts_wins_and_failures():
  record = lambda end: {"start": [3.0], "iterate": [[end] * EVALUATIONS]}
  records = {f"x, {name}": record(2.0) for name in troubles.OTHERS}
  records |= {f"x, {name}": record(7.0) for name in troubles.OURS}
  records["x, gen_adamw"] = record(1.0)
  cases = {"x": Trouble(rare.BAG, 40)}
  shown = troubles.show(cases, records, "iterate").splitlines()
  assert "0.50/0.50 " in shown[2] and "3.50/3.50*" in shown[2]
  assert shown[3].count("1 of 1") == 1 and shown[4].count("1 of 1") == 4
