"""What XLA says a GeN step costs: work, memory, and nothing on lazy steps.

Counts of compiled programs, no wall times. What GeN does with each parameter
does not grow with the batch, so the batch here is large enough for the forward
pass to dominate: 512 examples. The default's work is counted with 128, those of
`scripts.bench gen`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gen_optax
from scripts.bench import gen as bench
from scripts.bench import gen_tables, programs


def mlp_loss(params, batch):
  x, y = batch
  *hidden, last = params
  for weights, bias in hidden:
    x = jax.nn.relu(x @ weights + bias)
  logits = x @ last[0] + last[1]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  return losses.mean()


@pytest.fixture(scope="module")
def problem():
  rng = np.random.default_rng(0)
  widths = [64, 128, 128, 10]
  params = [
    (
      jnp.asarray(rng.normal(size=(n, m)) / np.sqrt(n), jnp.float32),
      jnp.zeros(m, jnp.float32),
    )
    for n, m in zip(widths[:-1], widths[1:], strict=True)
  ]
  x = rng.normal(size=(programs.CYCLE, 512, 64)).astype(np.float32)
  y = rng.integers(10, size=(programs.CYCLE, 512)).astype(np.int32)
  return programs.Problem("MLP", mlp_loss, params, (jnp.asarray(x), y))


@pytest.fixture(scope="module")
def extra(problem):
  """Costs over the base step, each optimizer compiled once."""
  forward = programs.forward_cost(problem)
  base = programs.step_cost(problem, programs.base_optimizer())
  known = {}

  def look_up(name, make):
    if name not in known:
      blind = make(rule=bench.NOTHING_TO_REFRESH)
      known[name] = bench.extra_cost(problem, make(), blind, base, forward)
    return known[name]

  return look_up


DEFAULTS = {
  "gen_adam": gen_optax.gen_adam,
  "scale_by_gen": lambda **options: optax.chain(
    optax.adam(1.0), gen_optax.scale_by_gen(**options)
  ),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_default_is_one_forward_pass(problem, name):
  cut = jax.tree.map(lambda x: x[:, :128], problem.batches)
  small = problem._replace(batches=cut)
  cost = bench.extra_cost(
    small,
    DEFAULTS[name](),
    DEFAULTS[name](rule=bench.NOTHING_TO_REFRESH),
    programs.step_cost(small, programs.base_optimizer()),
    programs.forward_cost(small),
  )
  assert 1.0 <= cost["flops_in_forward"] <= gen_tables.MOST_WORK


@pytest.mark.parametrize("name", DEFAULTS)
def test_so_is_a_step_that_looks(extra, name):
  """By XLA's plain count of the compiled step, with 512 examples."""
  work = extra(name, DEFAULTS[name])["flops_in_forward_looking"]
  assert 1.0 <= work <= gen_tables.MOST_WORK


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_default_holds_one_perturbed_copy(extra, name):
  cost = extra(name, DEFAULTS[name])
  assert cost["temporary_copies"] <= 1.0
  assert cost["state_copies"] == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize(
  "rule, state_copies", [("default", 2.0), ("paper", 0.0)]
)
def test_map_holds_one_perturbed_copy(extra, rule, state_copies):
  if rule == "paper":
    make = bench.paper_rule("map")
  else:
    make = bench.default_rule("fit", evaluate="map")
  cost = extra(f"{rule}, map", functools.partial(make, 1))
  assert cost["temporary_copies"] <= 1.0
  assert cost["state_copies"] == pytest.approx(state_copies, abs=0.01)


def test_vmap_is_one_forward_pass_a_probe(extra):
  cost = extra("fit, vmap", functools.partial(bench.default_rule("fit"), 1))
  assert 2.0 <= cost["flops_in_forward"] <= 2.05


@pytest.mark.parametrize("estimator", ["known_slope", "fit", "forward", "hvp"])
def test_no_product_leaves_the_loop(extra, estimator):
  """XLA moves what does not depend on a loop's carry in front of the loop.

  A run-time count of closure evaluations cannot see this: the callback that
  counts stays inside.
  """
  cost = extra(estimator, functools.partial(bench.default_rule(estimator), 8))
  assert cost["moved_products"] == 0


@pytest.mark.parametrize("estimator", ["known_slope", "fit", "hvp"])
def test_no_product_of_the_paper_rule_leaves_the_loop(extra, estimator):
  stage = gen_optax.scale_by_gen_paper(
    1e-3, every=8, estimator=estimator, probes=(1.0, 2.0)
  )
  chain = optax.chain(optax.adam(1.0), stage)
  cost = extra(f"paper {estimator}", lambda rule=None: chain)
  assert cost["moved_products"] == 0


@pytest.mark.parametrize("every", [1, 8])
@pytest.mark.parametrize(
  "candidate", bench.GEN, ids=[candidate.name for candidate in bench.GEN]
)
def test_a_cycle_evaluates_the_closure_once_a_probe(candidate, every):
  exact = candidate.name in ("forward", "hvp")
  probes = 1 if exact else candidate.passes
  counted = bench.count_evaluations(candidate.make(every))
  assert counted == probes * programs.CYCLE // every


def test_moved_products_are_seen():
  def program(w, n):
    def body(carry):
      i, total = carry
      return i + 1, total + jnp.sum(w @ w)

    return jax.lax.while_loop(lambda c: c[0] < n, body, (0, jnp.zeros(())))

  lowered = jax.jit(program).lower(jnp.ones((64, 64)), 3)
  assert programs.cost_of(lowered.compile()).moved == 1
