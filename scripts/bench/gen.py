"""What a GeN step costs beside its base: work, memory and time, as ratios.

Everything is measured against Adam on the same network, batch and machine.

Work is XLA's own count of floating-point operations in one compiled step, over
the base step's, in units of one forward pass F. XLA counts the body of a loop
once, whatever its number of trips. The loop that holds a fit makes one trip on
a fitting step, so the count is that of a fitting step; `lax.map` over k probes
makes k trips, so its count is short by k - 1 forward passes (marked *). What
GeN refreshes on every eighth step (`gen_optax.gen.trace`) counts for an
eighth: the step is compiled once more without it, and the difference divided.

Memory is XLA's temporary buffers over the base step's, in copies of the
parameters, with parameters and state donated. "Products on every step" are
matrix products of a fit that XLA moved in front of its loop, where lazy steps
pay for them: there should be none.

Time is taken on cycles of 8 steps compiled into one scan, after three cycles
that calibrate the rate and end the first looks, each from the same state. Base
and candidate run by turns in pairs, and the median ratio of the pairs is shown
with its quartiles. The ideal is (F + B) / (F + B + K F / every) with F and
F + B from the same run and K the forward passes of a fit; the paper's fit has
K = 2. Steps without a fit are shown apart, piece by piece.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import gen_optax
from gen_optax.gen import trace
from scripts.bench import gen_tables, gpt2
from scripts.bench.programs import (
  CYCLE,
  Cost,
  Problem,
  base_optimizer,
  forward_cost,
  gradient_cost,
  problem_of,
  step_cost,
  train_step,
)
from scripts.bench.timing import copy_of, paired_ratios, quartiles
from scripts.common import tasks
from scripts.gen import adapting

EVERY = (1, 4, 8)
WARM_CYCLES = -(-trace.FIRST_STEPS // CYCLE)  # until the first looks are over
PAPER_PASSES = 2  # forward passes of the paper's fit


class Candidate(NamedTuple):
  """One optimizer to measure.

  Attributes:
    name: what the tables call it.
    make: from `every`, and optionally `rule`, to an optimizer.
    passes: K, the forward passes of one fit in the ideal; exact estimators are
      held to the paper's fit, which they replace.
    note: a mark behind its flops.
  """

  name: str
  make: Callable[..., optax.GradientTransformation]
  passes: int
  note: str = ""


def lora() -> tasks.Task:
  """A fine-tuning of rank 4: the weights stay, and F is nearly all of B."""
  data, name = adapting.sentences(None)
  start = adapting.network().init(jax.random.key(0), data.train.x[:1])
  return adapting.adapt("LoRA", start, data, name, steps=1)


PROBLEMS = {
  "mlp": tasks.mlp,
  "cnn": tasks.cnn,
  "transformer": tasks.transformer,
  "lora": lora,
}


# Without the bound by the distance and without each line's own optimum nothing
# is left to refresh.
NOTHING_TO_REFRESH = gen_optax.GenRule(distance_share=0.0, max_lead=None)


def default_rule(estimator: str = "known_slope", **options):
  """Default rule without the dense start: lazy from the first step on."""
  return lambda every, **more: gen_optax.generalized_newton(
    optax.adam(1.0),
    every=every,
    estimator=estimator,
    dense_start=0,
    **(options | more),
  )


def paper_rule(evaluate: str):
  """The paper's rule, which refreshes nothing: it has no `rule`."""
  return lambda every, rule=None: optax.chain(
    optax.adam(1.0),
    gen_optax.scale_by_gen_paper(1e-3, every=every, evaluate=evaluate),
  )


# The default is the first. With one probe, vmap and map compile to the same
# program.
GEN = (
  Candidate("known_slope (default)", default_rule(), 1),
  Candidate("fit, vmap", default_rule("fit"), 2),
  Candidate("fit, map", default_rule("fit", evaluate="map"), 2, "*"),
  Candidate("forward", default_rule("forward"), PAPER_PASSES),
  Candidate("hvp", default_rule("hvp"), PAPER_PASSES),
  Candidate("paper rule, vmap", paper_rule("vmap"), 2),
  Candidate("paper rule, map", paper_rule("map"), 2, "*"),
)

# Cycles without a fit: the first fit is over before the clock starts.
NEVER = 2**30
LAZY = {
  "skip_implausible alone": gen_optax.skip_implausible(base_optimizer()),
  "default, never a fit": default_rule()(NEVER),
  "the same without fresh_slope": default_rule(fresh_slope=False)(NEVER),
}


def extra_cost(
  problem: Problem, optimizer, without_refresh, base: Cost, forward: Cost
) -> dict:
  """A step over the base's: flops in F, memory in copies of the parameters.

  `without_refresh` is the same optimizer with `NOTHING_TO_REFRESH`.
  """
  cost = step_cost(problem, optimizer)
  blind = step_cost(problem, without_refresh).flops
  looking = cost.flops - base.flops
  flops = looking - (1 - 1 / trace.REFRESH_EVERY) * (cost.flops - blind)
  copy = 4 * problem.size
  return {
    "flops_in_forward": flops / forward.flops,
    "flops_in_forward_looking": looking / forward.flops,
    "flops_per_parameter": (flops - forward.flops) / problem.size,
    "temporary_copies": (cost.temporary - base.temporary) / copy,
    "state_copies": (cost.arguments - base.arguments) / copy,
    "moved_products": cost.moved,
  }


def count_evaluations(optimizer) -> int:
  """Closure evaluations at run time in the second cycle of a compiled scan.

  On a quadratic: how often a closure is called does not depend on what it
  computes. The gradient's own forward pass is not counted.
  """
  calls = []

  def step(carry, target):
    params, state = carry

    def counted(p):
      # The callback reads the loss: a vmap over probes counts each of them.
      value = jnp.sum((p - target) ** 2)
      jax.debug.callback(lambda _: calls.append(1), value)
      return value

    value, grad = jax.value_and_grad(lambda p: jnp.sum((p - target) ** 2))(
      params
    )
    updates, state = optimizer.update(
      grad, state, params, value=value, grad=grad, value_fn=counted
    )
    return (optax.apply_updates(params, updates), state), value

  cycle = jax.jit(lambda carry, targets: jax.lax.scan(step, carry, targets)[0])
  targets = jax.random.normal(jax.random.key(0), (CYCLE, 10))
  params = 3.0 * jnp.ones(10)
  carry = cycle((params, optimizer.init(params)), targets)
  jax.effects_barrier()
  calls.clear()
  cycle(carry, targets)
  jax.effects_barrier()
  return len(calls)


def cycle_timer(step, carry, batches) -> Callable[[], float]:
  """Seconds of one cycle after `WARM_CYCLES` others, each time the same."""

  def run(carry, batches):
    carry, values = jax.lax.scan(step, carry, batches)
    return carry, values[-1]

  run = jax.jit(run, donate_argnums=0)
  warm = copy_of(carry)
  for _ in range(WARM_CYCLES):
    warm, _ = run(warm, batches)

  def timed():
    # The program eats its carry: the copy is made before the clock starts.
    start = jax.block_until_ready(copy_of(warm))
    began = time.perf_counter()
    jax.block_until_ready(run(start, batches))
    return time.perf_counter() - began

  timed()
  return timed


def optimizer_timer(problem: Problem, optimizer) -> Callable[[], float]:
  carry = (problem.params, optimizer.init(problem.params))
  step = train_step(optimizer, problem.loss)
  return cycle_timer(step, carry, problem.batches)


def forward_timer(problem: Problem) -> Callable[[], float]:
  def step(carry, batch):
    params, total = carry
    value = problem.loss(params, batch)
    return (params, total + value), value

  return cycle_timer(step, (problem.params, jnp.zeros(())), problem.batches)


def gradient_timer(problem: Problem) -> Callable[[], float]:
  def step(carry, batch):
    params, _ = carry
    value, grad = jax.value_and_grad(problem.loss)(params, batch)
    return (params, grad), value

  carry = (problem.params, optax.tree.zeros_like(problem.params))
  return cycle_timer(step, carry, problem.batches)


def ideal_speed(forward, gradient, passes, every) -> float:
  return gradient / (gradient + passes * forward / every)


def measure(problem: Problem, chosen, args, bar) -> dict:
  """All numbers of one network, as a record for the JSON file."""
  forward, gradient = forward_cost(problem), gradient_cost(problem)
  base = step_cost(problem, base_optimizer())
  copy = 4 * problem.size
  record = {
    "title": problem.title,
    "parameters": problem.size,
    "forward_flops": forward.flops,
    "gradient_flops_in_forward": gradient.flops / forward.flops,
    "base_flops_in_forward": base.flops / forward.flops,
    "forward_temporary_copies": forward.temporary / copy,
    "gradient_temporary_copies": gradient.temporary / copy,
    "base_temporary_copies": base.temporary / copy,
    "candidates": {},
    "times": [],
    "lazy": {},
  }
  base_time = optimizer_timer(problem, base_optimizer())
  record["base_seconds_per_step"] = base_time() / CYCLE
  for name, timer in (("forward", forward_timer), ("gradient", gradient_timer)):
    ratios = paired_ratios(timer(problem), base_time, args.seconds)
    record[f"{name}_over_base"] = quartiles(ratios)
    bar.update()
  for name, optimizer in LAZY.items():
    timer = optimizer_timer(problem, optimizer)
    ratios = paired_ratios(timer, base_time, args.seconds)
    record["lazy"][name] = quartiles(ratios)
    bar.update()
  f, g = record["forward_over_base"][1], record["gradient_over_base"][1]

  for candidate in chosen:
    bar.set_description(f"{problem.title.split()[0]}: {candidate.name}")
    record["candidates"][candidate.name] = {
      "note": candidate.note,
      **extra_cost(
        problem,
        candidate.make(1),
        candidate.make(1, rule=NOTHING_TO_REFRESH),
        base,
        forward,
      ),
    }
    for every in args.every:
      optimizer = candidate.make(every)
      timer = optimizer_timer(problem, optimizer)
      ratios = paired_ratios(timer, base_time, args.seconds)
      speed = 1 / float(np.median(ratios))
      ideal = ideal_speed(f, g, candidate.passes, every)
      record["times"].append(
        {
          "candidate": candidate.name,
          "every": every,
          "pairs": len(ratios),
          "over_base": quartiles(ratios),
          "relative_speed": speed,
          "ideal": ideal,
          "paper_ideal": ideal_speed(f, g, PAPER_PASSES, every),
          "of_ideal": speed / ideal,
          "evaluations": count_evaluations(optimizer),
        }
      )
      bar.update()
  return record


def add_options(parser):
  parser.add_argument(
    "--models",
    nargs="+",
    choices=[*PROBLEMS, "gpt2"],
    default=list(PROBLEMS),
  )
  parser.add_argument(
    "--candidates",
    nargs="+",
    default=[""],
    help="first letters of the names of those to measure",
  )
  parser.add_argument(
    "--profile", type=Path, help="gpt2: folder for traces of the device"
  )
  parser.add_argument("--every", nargs="+", type=int, default=EVERY)
  parser.add_argument(
    "--batch-size", type=int, help="default: 128, 128 and 8 texts of 64"
  )


def check_options(parser, args):
  if args.quick:
    args.models = ["mlp"]
  if any(CYCLE % every for every in args.every):
    parser.error(f"--every must divide {CYCLE}")


def run(args) -> dict:
  """Measures, prints and returns the records by network."""
  print(__doc__.split("\n\n", 1)[1])
  chosen = [c for c in GEN if c.name.startswith(tuple(args.candidates))]
  small = [model for model in args.models if model in PROBLEMS]
  records = {}
  pieces = 2 + len(LAZY) + len(chosen) * len(args.every)
  with tqdm(total=pieces * len(small)) as bar:
    for model in small:
      problem = problem_of(PROBLEMS[model](), args.batch_size)
      records[model] = measure(problem, chosen, args, bar)
      tqdm.write(gen_tables.describe(records[model], chosen[0].name))
  if "gpt2" in args.models:
    records["gpt2"] = gpt2.run(args)
  return records
