"""What an ELMO step takes beside the passes that it counts.

On every step the gradient and a loss for each trial, where eigenpairs are due
`order` Hessian-vector products one after the other. Products and losses are
counted at run time on the network itself, in the second cycle of 8 steps. The
last column is the measured time over that of as many gradients, products and
losses alone, timed in the same run: what is above 1 is Lanczos'
orthogonalisation, and what a loop costs that holds its passes apart.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import gen_optax
from scripts.bench import gen
from scripts.bench.programs import CYCLE, Problem, problem_of, train_step
from scripts.bench.timing import paired_ratios, quartiles
from scripts.common import report

PROBLEMS = {k: v for k, v in gen.PROBLEMS.items() if k != "lora"}
TOP, BOTTOM, ORDER = 4, 2, 12
EVERY = (1, 8)


def make(every: int) -> optax.GradientTransformation:
  return gen_optax.elmo_lanczos(
    top=TOP, bottom=BOTTOM, order=ORDER, every=every
  )


class Passes(NamedTuple):
  """What one cycle evaluates beside its gradients."""

  products: int
  losses: int


def count_passes(problem: Problem, optimizer) -> Passes:
  """Of the second cycle, at run time."""
  calls = []

  def loss(params, batch):
    value = problem.loss(params, batch)
    jax.debug.callback(lambda _: calls.append(1), value)
    return value

  take = train_step(optimizer, loss)

  def step(carry, batch):
    carry, _ = take(carry, batch)
    return carry, optax.tree.get(carry[1], "info").evaluations

  cycle = jax.jit(lambda carry: jax.lax.scan(step, carry, problem.batches))
  carry, _ = cycle((problem.params, optimizer.init(problem.params)))
  jax.effects_barrier()
  calls.clear()
  _, losses = cycle(carry)
  jax.effects_barrier()
  losses = int(losses.sum())
  return Passes(len(calls) - CYCLE - losses, losses)


def product_timer(problem: Problem) -> Callable[[], float]:
  def step(carry, batch):
    params, vector, _ = carry
    value_fn = lambda p: problem.loss(p, batch)
    product = gen_optax.hvp(value_fn, params, vector)[1]
    return (params, vector, product), jnp.zeros(())

  vector = gen_optax.helpers.trees.noise_like(problem.params, 0)
  zeros = optax.tree.zeros_like(vector)
  carry = (problem.params, vector, zeros)
  return gen.cycle_timer(step, carry, problem.batches)


def measure(problem: Problem, args, bar) -> dict:
  gradient = gen.gradient_timer(problem)
  over_gradient = {}
  for name, timer in (
    ("loss", gen.forward_timer(problem)),
    ("product", product_timer(problem)),
  ):
    ratios = paired_ratios(timer, gradient, args.seconds)
    over_gradient[name] = quartiles(ratios)
    bar.update()
  rows = []
  for every in EVERY:
    optimizer = make(every)
    passes = count_passes(problem, optimizer)
    ratios = paired_ratios(
      gen.optimizer_timer(problem, optimizer), gradient, args.seconds
    )
    counted = (
      CYCLE
      + passes.products * over_gradient["product"][1]
      + passes.losses * over_gradient["loss"][1]
    ) / CYCLE
    rows.append(
      {
        "every": every,
        **passes._asdict(),
        "over_gradient": quartiles(ratios),
        "counted_over_gradient": counted,
        "over_counted": quartiles(ratios / counted),
      }
    )
    bar.update()
  return {"title": problem.title, "over_gradient": over_gradient, "rows": rows}


def describe(record: dict) -> str:
  rows = [
    [
      row["every"],
      row["products"],
      row["losses"],
      report.spread(row["over_gradient"]),
      f"{row['counted_over_gradient']:.2f}",
      report.spread(row["over_counted"]),
    ]
    for row in record["rows"]
  ]
  headers = ["every", "products", "losses", "time / gradient", "counted"]
  times = record["over_gradient"]
  return "\n".join(
    [
      f"\n## {record['title']}; {TOP} + {BOTTOM} pairs from {ORDER} products",
      f"over a gradient: a loss {report.spread(times['loss'])}, a product "
      f"{report.spread(times['product'])}\n",
      report.table([*headers, "time / counted"], rows),
    ]
  )


def add_options(parser):
  parser.add_argument(
    "--elmo-models", nargs="+", choices=PROBLEMS, default=list(PROBLEMS)
  )


def check_options(parser, args):
  del parser
  if args.quick:
    args.elmo_models = ["mlp"]


def run(args) -> dict:
  """Measures, prints and returns the records by network."""
  print(__doc__.split("\n\n", 1)[1])
  records = {}
  with tqdm(total=(2 + len(EVERY)) * len(args.elmo_models)) as bar:
    for name in args.elmo_models:
      bar.set_description(f"elmo: {name}")
      problem = problem_of(PROBLEMS[name]())
      records[name] = measure(problem, args, bar)
      tqdm.write(describe(records[name]))
  return records
