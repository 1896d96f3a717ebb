"""The race of `scripts.gen.synthetic`: who runs, and what a record says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import gen_state, step

import gen_optax
from scripts.gen import race

pytestmark = pytest.mark.usefixtures("x64")

ENTRANTS = {entrant.name: entrant for entrant in race.ENTRANTS}
START = jnp.array([-1.2, 1.0])


def rosenbrock(w):
  return 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2


def after(tx, steps=4):
  tx, w = optax.with_extra_args_support(tx), START
  state = tx.init(w)
  for _ in range(steps):
    w, state, _ = step(tx, rosenbrock, w, state)
  return w, state


@pytest.mark.parametrize("name", race.BASES)
def test_the_untuned_forms_of_an_optimizer(name):
  base = race.BASES[name](1.0)
  plain = lambda **options: gen_optax.generalized_newton(base, 0.01, **options)
  if name == "lion":
    plain = lambda **options: gen_optax.gen_lion(
      0.01, weight_decay=0.0, **options
    )
  greedy = dict(rule=gen_optax.greedy(), estimator="hvp", probes=(1.0,))
  paper = lambda **options: optax.chain(
    base, gen_optax.scale_by_gen_paper(0.01, **options)
  )
  forms = {
    "gen": plain(),
    "greedy": plain(**greedy),
    "paper": paper(),
    "eq. 3.2": paper(smoothing=0.0),
    "GeN-HOD": paper(smoothing=0.0, estimator="hvp"),
  }
  ends = []
  for form, expected in forms.items():
    entrant = ENTRANTS[f"{form} {name}"]
    assert entrant.against == name and not entrant.tuned
    w, state = after(entrant.build(0.01))
    np.testing.assert_allclose(w, after(expected)[0], rtol=1e-9)
    ends.append(float(gen_state(state).learning_rate))
  # Where two forms are one rule, one of them is not run.
  assert len(set(ends)) == len(ends)


def test_a_race_is_a_loop():
  """Losses before each step and after the last, over starts and rates."""
  starts = np.array([[-1.2, 1.0], [0.5, 0.5]])
  entrant = ENTRANTS["momentum"]._replace(rates=(1e-4, 1e-3))
  found = race.race(entrant, rosenbrock, starts, 3)
  for i, start in enumerate(starts):
    for j, rate in enumerate(entrant.rates):
      tx, w = entrant.build(rate), jnp.asarray(start)
      state, losses = tx.init(w), []
      for _ in range(3):
        losses.append(rosenbrock(w))
        updates, state = tx.update(jax.grad(rosenbrock)(w), state, w)
        w = optax.apply_updates(w, updates)
      losses.append(rosenbrock(w))
      np.testing.assert_allclose(found.losses[i, j], losses, rtol=1e-12)
      np.testing.assert_allclose(found.points[i, j, -1], w, rtol=1e-12)


def test_what_a_record_says_of_untuned_runs():
  losses = np.array([[4.0, 1e-7, 1e-3], [4.0, 9.0, 5.0], [4.0, 1.0, np.nan]])
  record = race.judge(ENTRANTS["gen adam"], START, losses)
  assert record["lost_runs"] == 2 and record["final"] == 5.0
  assert record["worst"] == np.inf
  assert record["steps_to_1e-6"] == [1, None, None]


def test_a_tuned_run_is_the_best_of_its_grid():
  """The paper's grid, and one that is wider on both sides."""
  rates = (1e-6, 1e-4, 1e-2, 10.0)
  entrant = ENTRANTS["adam"]._replace(rates=rates)
  losses = np.array([[4.0, 3.0], [4.0, 2.0], [4.0, np.inf], [4.0, 1.0]])
  record = race.judge(entrant, START, losses)
  assert (record["final"], record["rate"]) == (2.0, 1e-4)
  assert (record["wide_final"], record["wide_rate"]) == (1.0, 10.0)
  assert not record["at_edge"]


def test_rounding_is_a_tie():
  assert race.as_good(3e-21, 1e-31) and not race.as_good(3e-19, 1e-31)
  assert race.as_good(1.0, 1.0) and not race.as_good(1.1, 1.0)
  assert not race.as_good(np.inf, 1.0)
