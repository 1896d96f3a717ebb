"""What a GeN step costs beside its base: work, memory and time, as ratios.

Everything is measured against Adam on the same network, batch and machine.

Work is XLA's own count of floating-point operations in one compiled step, over
the base step's, in units of one forward pass F. XLA counts the body of a loop
once, whatever its number of trips. The loop that holds a fit makes one trip on
a fitting step, so the count is that of a fitting step; `lax.map` over k probes
makes k trips, so its count is short by k - 1 forward passes (marked *).

Memory is XLA's temporary buffers over the base step's, in copies of the
parameters, with parameters and state donated. "Products on every step" are
matrix products of a fit that XLA moved in front of its loop, where lazy steps
pay for them: there should be none.

Time is taken on cycles of 8 steps compiled into one scan, after a first cycle
that calibrates the rate, each cycle from the same state. Base and candidate run
by turns in pairs, and the median ratio of the pairs is shown with its
quartiles. The ideal is (F + B) / (F + B + K F / every) with F and F + B from
the same run and K the forward passes of a fit; the paper's fit has K = 2.
"""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import report, tasks
from common.timing import copy_of, paired_ratios, quartiles
from tqdm import tqdm

import gen_optax

CYCLE = 8  # steps that are timed together: a multiple of every `every`
EVERY = (1, 4, 8)
PAPER_PASSES = 2  # forward passes of the paper's fit


class Candidate(NamedTuple):
  """One optimizer to measure.

  Attributes:
    name: what the tables call it.
    make: every -> optimizer.
    passes: K, the forward passes of one fit in the ideal; exact estimators are
      held to the paper's fit, which they replace.
    note: a mark behind its flops.
  """

  name: str
  make: Callable[[int], optax.GradientTransformation]
  passes: int
  note: str = ""


def base_optimizer() -> optax.GradientTransformation:
  return optax.adam(1e-3)


def default_rule(estimator: str, evaluate: str = "vmap"):
  """Default rule without the dense start: lazy from the first step on."""
  return lambda every: gen_optax.generalized_newton(
    optax.adam(1.0),
    every=every,
    estimator=estimator,
    evaluate=evaluate,
    dense_start=0,
  )


def paper_rule(evaluate: str):
  return lambda every: optax.chain(
    optax.adam(1.0),
    gen_optax.scale_by_gen_paper(1e-3, every=every, evaluate=evaluate),
  )


# The default is the first. With one probe, vmap and map compile to the same
# program.
GEN = (
  Candidate("known_slope (default)", default_rule("known_slope"), 1),
  Candidate("fit, vmap", default_rule("fit"), 2),
  Candidate("fit, map", default_rule("fit", "map"), 2, "*"),
  Candidate("forward", default_rule("forward"), PAPER_PASSES),
  Candidate("hvp", default_rule("hvp"), PAPER_PASSES),
  Candidate("paper rule, vmap", paper_rule("vmap"), 2),
  Candidate("paper rule, map", paper_rule("map"), 2, "*"),
)


class Problem(NamedTuple):
  """A network with batches: `loss(params, batch)`, batch = (x, y)."""

  title: str
  loss: Callable
  params: optax.Params
  batches: Any  # each leaf of shape (CYCLE, batch_size, ...)

  @property
  def batch(self):
    return jax.tree.map(lambda leaf: leaf[0], self.batches)

  @property
  def size(self) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def problem_of(task: tasks.Task, batch_size: int | None = None) -> Problem:
  batch_size = batch_size or task.batch_size
  rows = np.random.default_rng(0).permutation(len(task.data.train.y))
  rows = np.resize(rows, (CYCLE, batch_size))
  return Problem(
    title=f"{task.title.split(',')[0]}, batches of {batch_size}",
    loss=lambda params, batch: task.losses(params, *batch)[0].mean(),
    params=task.init(jax.random.key(0)),
    batches=jax.tree.map(
      lambda a: jnp.asarray(a[rows]), tuple(task.data.train)
    ),
  )


def train_step(optimizer, loss) -> Callable:
  """`step(carry, batch) -> (carry, loss)` with carry (params, state)."""
  optimizer = optax.with_extra_args_support(optimizer)

  def step(carry, batch):
    params, state = carry
    value_fn = lambda p: loss(p, batch)
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = optimizer.update(
      grad, state, params, value=value, grad=grad, value_fn=value_fn
    )
    return (optax.apply_updates(params, updates), state), value

  return step


class Cost(NamedTuple):
  """What XLA says of one compiled program.

  Attributes:
    flops: of all instructions, bodies of loops once.
    temporary: bytes of temporary buffers.
    arguments: bytes of arguments.
    moved: matrix products of a loop's body that XLA moved in front of the loop,
      where they run on every step, lazy or not.
  """

  flops: float
  temporary: int
  arguments: int
  moved: int


def cost_of(compiled) -> Cost:
  memory = compiled.memory_analysis()
  return Cost(
    flops=compiled.cost_analysis()["flops"],
    temporary=memory.temp_size_in_bytes,
    arguments=memory.argument_size_in_bytes,
    moved=moved_products(compiled.as_text()),
  )


def moved_products(text: str) -> int:
  """Products that were traced in a loop's body and run outside of any loop."""
  computations, name = {}, None
  for line in text.splitlines():
    if opening := re.match(r"(ENTRY )?%?([\w.-]+) \(.*{$", line):
      name = "ENTRY" if opening[1] else opening[2]
      computations[name] = []
    elif name is not None:
      computations[name].append(line)
  # What is reached from the entry without going through a loop's body.
  waiting, outside = ["ENTRY"], set()
  while waiting:
    name = waiting.pop()
    outside.add(name)
    called = re.findall(
      r"(?:calls|to_apply)=%?([\w.-]+)", "\n".join(computations[name])
    )
    waiting += [other for other in called if other not in outside]
  product = re.compile(r" (dot|convolution|custom-call)\(.*/while/body/")
  lines = [line for name in outside for line in computations[name]]
  return sum(bool(product.search(line)) for line in lines)


def forward_cost(problem: Problem) -> Cost:
  lowered = jax.jit(problem.loss).lower(problem.params, problem.batch)
  return cost_of(lowered.compile())


def gradient_cost(problem: Problem) -> Cost:
  gradient = jax.jit(jax.value_and_grad(problem.loss))
  return cost_of(gradient.lower(problem.params, problem.batch).compile())


def step_cost(problem: Problem, optimizer) -> Cost:
  """Work and memory of one training step whose carry is donated."""
  step = jax.jit(train_step(optimizer, problem.loss), donate_argnums=0)
  state = jax.eval_shape(optimizer.init, problem.params)
  return cost_of(step.lower((problem.params, state), problem.batch).compile())


def extra_cost(problem: Problem, optimizer, base: Cost, forward: Cost) -> dict:
  """A step over the base's: flops in F, memory in copies of the parameters."""
  cost = step_cost(problem, optimizer)
  copy = 4 * problem.size
  return {
    "flops_in_forward": (cost.flops - base.flops) / forward.flops,
    "flops_per_parameter": (cost.flops - base.flops - forward.flops)
    / problem.size,
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
  """Seconds of one cycle from the same state; two cycles run before."""

  def run(carry, batches):
    carry, values = jax.lax.scan(step, carry, batches)
    return carry, values[-1]

  run = jax.jit(run, donate_argnums=0)
  warm, _ = run(copy_of(carry), batches)

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


def measure(problem: Problem, args, bar) -> dict:
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
  }
  base_time = optimizer_timer(problem, base_optimizer())
  record["base_seconds_per_step"] = base_time() / CYCLE
  for name, timer in (("forward", forward_timer), ("gradient", gradient_timer)):
    ratios = paired_ratios(timer(problem), base_time, args.seconds)
    record[f"{name}_over_base"] = quartiles(ratios)
    bar.update()
  f, g = record["forward_over_base"][1], record["gradient_over_base"][1]

  for candidate in GEN:
    bar.set_description(f"{problem.title.split()[0]}: {candidate.name}")
    record["candidates"][candidate.name] = {
      "note": candidate.note,
      **extra_cost(problem, candidate.make(1), base, forward),
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


def ratio(x: float) -> str:
  return f"{x:.3f}"


def cost_table(record: dict) -> str:
  rows = [
    [
      name,
      ratio(row["flops_in_forward"]) + row["note"],
      f"{row['flops_per_parameter']:.1f}" if not row["note"] else "-",
      f"{row['temporary_copies']:+.2f}",
      f"{row['state_copies']:+.2f}",
      row["moved_products"],
    ]
    for name, row in record["candidates"].items()
  ]
  headers = [
    "one compiled fitting step, over base",
    "flops / F",
    "beyond 1 F, per parameter",
    "temporary copies",
    "state copies",
    "products on every step",
  ]
  return report.table(headers, rows)


def time_table(record: dict) -> str:
  rows = [
    [
      row["candidate"],
      row["every"],
      row["evaluations"],
      ratio(row["over_base"][1]),
      f"{row['over_base'][0]:.3f}-{row['over_base'][2]:.3f}",
      row["pairs"],
      ratio(row["relative_speed"]),
      ratio(row["ideal"]),
      ratio(row["of_ideal"]),
      ratio(row["paper_ideal"]),
    ]
    for row in record["times"]
  ]
  headers = [
    "cycles of 8 steps",
    "every",
    "losses",
    "time / base",
    "quartiles",
    "pairs",
    "speed",
    "ideal",
    "of ideal",
    "paper's ideal",
  ]
  return report.table(headers, rows)


def best_lines(record: dict, default: str) -> str:
  """The fastest candidate at each `every` beside the default."""
  lines = []
  for every in sorted({row["every"] for row in record["times"]}):
    speeds = {
      row["candidate"]: row["relative_speed"]
      for row in record["times"]
      if row["every"] == every
    }
    best = max(speeds, key=speeds.get)
    lines.append(
      f"every {every}: fastest is {best} at {speeds[best]:.3f} of the base's "
      f"speed; {default} has {speeds[default]:.3f}"
    )
  return "\n".join(lines)


def describe(record: dict, default: str) -> str:
  def spread(name):
    low, middle, high = record[f"{name}_over_base"]
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"

  return "\n".join(
    [
      f"\n## {record['title']}: {record['parameters']:,} parameters",
      f"flops: F = {record['forward_flops']:.3g}, "
      f"F + B = {record['gradient_flops_in_forward']:.2f} F, "
      f"base step = {record['base_flops_in_forward']:.2f} F",
      f"temporary memory in parameter copies: "
      f"F {record['forward_temporary_copies']:.1f}, "
      f"F + B {record['gradient_temporary_copies']:.1f}, "
      f"base step {record['base_temporary_copies']:.1f}",
      f"time over the base step ({1e3 * record['base_seconds_per_step']:.2f} "
      f"ms): F {spread('forward')}, F + B {spread('gradient')}\n",
      cost_table(record),
      "* lax.map over two probes, its body counted once: add one F\n",
      time_table(record),
      "losses: closure evaluations at run time in a cycle of 8 steps\n",
      best_lines(record, default),
    ]
  )


def add_options(parser):
  parser.add_argument(
    "--models",
    nargs="+",
    choices=["mlp", "cnn", "transformer"],
    default=["mlp", "cnn", "transformer"],
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
  records = {}
  with tqdm(total=(2 + len(GEN) * len(args.every)) * len(args.models)) as bar:
    for model in args.models:
      problem = problem_of(getattr(tasks, model)(None), args.batch_size)
      records[model] = measure(problem, args, bar)
      tqdm.write(describe(records[model], GEN[0].name))
  return records
