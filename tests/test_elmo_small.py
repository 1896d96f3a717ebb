"""The small problems' script: its reference, and ELMO against it."""

import pytest

from scripts.elmo import small as lab


def test_the_references_step_is_the_cubic_models_minimum():
  assert lab.check_cubic_step(10, seed=1) < 1e-9


def test_no_more_evaluations_than_cubic_regularisation(x64):
  methods, arrived = lab.make_methods(1.0), {}
  for task in lab.make_tasks():
    for name in ("ELMO", *lab.REFERENCES):
      arrived[name] = lab.follow(task, methods[name], 60)
      assert arrived[name].outcome == "arrives"
    spent = arrived["ELMO"].evaluations
    for name in lab.REFERENCES:
      assert spent <= arrived[name].evaluations, (task.name, name)


@pytest.mark.parametrize("name", ["Beale (1, 1)", "ridge (1, 0)"])
def test_newton_is_stuck_where_elmo_arrives(x64, name):
  (task,) = (task for task in lab.make_tasks() if task.name == name)
  assert lab.follow(task, lab.newton, 60).outcome == "stuck"
