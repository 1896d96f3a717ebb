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


def test_every_trouble_is_one_of_the_issue_s_kinds():
  cases = troubles.troubles()
  assert len(cases) == 19
  for case in cases.values():
    assert 0 <= case.begins < case.steps and case.steps % EVALUATIONS == 0


def test_a_gradient_at_another_scale_is_not_the_closure_s():
  """SGD at no rate but where the gradient is a million times as long."""
  family = troubles.troubles()["a new task"].family
  quiet = Trouble(family, 40)
  loud = quiet._replace(gradient=troubles.at_every(20, 1e6))
  tx = optax.sgd(1e-9)
  still = np.array(troubles.train(quiet, tx, 40, [1])["iterate"])
  moved = np.array(troubles.train(loud, tx, 40, [1])["iterate"])
  np.testing.assert_allclose(still, still[0, 0], rtol=1e-4)
  change = np.abs(np.diff(moved[0]))
  assert change[19] > 100 * np.delete(change, 19).max()


@pytest.mark.parametrize("family", [rare.BAG, rare.MIXTURE])
def test_rare_rows_are_learned(family):
  record = troubles.train(Trouble(family, 200), optax.adam(1e-2), 200, [1, 2])
  ends = np.array(record["iterate"])[:, -4:].mean(1)
  assert np.all(ends < 0.95 * np.array(record["start"]))
  # Most of a row's neighbours are not in a batch.
  parts = family.load(None)
  first = np.asarray(parts.train[0])
  assert len(first) == rare.TRAIN


def test_what_a_table_says():
  trouble = Trouble(rare.BAG, 40)
  curve = np.concatenate([np.full(10, 9.0), np.full(26, 2.0), np.full(4, 1.0)])
  record = {"start": [3.0], "iterate": [curve.tolist()]}
  assert troubles.figures(record, trouble) == (1.0, 2.0, False)
  late = trouble._replace(begins=36)
  assert troubles.figures(record, late) == (1.0, 1.0, False)
  record["start"] = [0.5]
  assert troubles.figures(record, trouble)[2]
  curve[-1] = np.nan
  record["iterate"] = [curve.tolist()]
  assert troubles.figures(record, trouble) == (np.inf, np.inf, True)


def test_a_table_counts_wins_and_failures():
  record = lambda end: {"start": [3.0], "iterate": [[end] * EVALUATIONS]}
  records = {f"x, {name}": record(2.0) for name in troubles.OTHERS}
  records |= {f"x, {name}": record(7.0) for name in troubles.OURS}
  records["x, gen_adamw"] = record(1.0)
  shown = troubles.show({"x": Trouble(rare.BAG, 40)}, records).splitlines()
  assert "0.50/0.50 " in shown[2] and "3.50/3.50*" in shown[2]
  assert shown[3].count("1 of 1") == 1 and shown[4].count("1 of 1") == 4
