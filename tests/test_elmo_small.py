"""The small problems' script: its reference, and ELMO against it."""

import pytest

from scripts.elmo import cubic, small


def test_the_references_step_is_the_cubic_models_minimum():
  assert cubic.check_cubic_step(10, seed=1) < 1e-9


def test_no_more_evaluations_than_cubic_regularisation(x64):
  methods, arrived = small.make_methods(1.0), {}
  for task in small.make_tasks():
    for name in ("ELMO", *small.REFERENCES):
      arrived[name] = small.follow(task, methods[name], 60)
      assert arrived[name].outcome == "arrives"
    spent = arrived["ELMO"].evaluations
    for name in small.REFERENCES:
      assert spent <= arrived[name].evaluations, (task.name, name)


@pytest.mark.parametrize("name", ["Beale (1, 1)", "ridge (1, 0)"])
def test_newton_is_stuck_where_elmo_arrives(x64, name):
  (task,) = (task for task in small.make_tasks() if task.name == name)
  assert small.follow(task, small.newton, 60).outcome == "stuck"
