"""How long a training step takes to trace and compile, beside Adam's.

Each round traces, lowers and compiles every step once, by turns, with the
compilation cache off; a ratio is the median over the rounds of the ratio within
a round, with its quartiles. "Under scan" is the same step as the body of a
`lax.scan`. Instructions are those of the lowered and of the compiled program:
where a step is slow to compile, they say which part of it is.
"""

import statistics
import time

import jax
from tqdm import tqdm

from scripts.bench import programs, timing
from scripts.bench.memory import GEN, OTHERS
from scripts.common import report, tasks

BOUND = 1.6  # of a GeN step over the base step
CANDIDATES = {
  candidate.name: candidate.make
  for candidate in (*GEN, *OTHERS)
  if "map" not in candidate.name
}
PROBLEMS = {"mlp": tasks.mlp, "transformer": tasks.transformer}


def program(problem: programs.Problem, optimizer, scan: bool):
  """A new function each time: jit knows the old ones."""
  step = programs.train_step(optimizer, problem.loss)
  carry = (problem.params, jax.eval_shape(optimizer.init, problem.params))
  if not scan:
    return lambda carry, batch: step(carry, batch), (carry, problem.batch)
  scanned = lambda carry, batches: jax.lax.scan(step, carry, batches)
  return scanned, (carry, problem.batches)


def build(problem: programs.Problem, optimizer, scan: bool) -> dict:
  """Seconds to lower and to compile, and the sizes of both programs."""
  fn, arguments = program(problem, optimizer, scan)
  began = time.perf_counter()
  lowered = jax.jit(fn, donate_argnums=0).lower(*arguments)
  middle = time.perf_counter()
  compiled = lowered.compile()
  end = time.perf_counter()
  return {
    "lower": middle - began,
    "compile": end - middle,
    "all": end - began,
    "lowered": lowered.as_text().count(" = "),
    "compiled": compiled.as_text().count(" = "),
  }


def measure(problem: programs.Problem, names, rounds: int, scan, bar) -> dict:
  makes = {"Adam": programs.base_optimizer}
  makes |= {name: CANDIDATES[name] for name in names}
  builds = {name: [] for name in makes}
  for done in range(rounds):
    for name in list(makes)[:: -1 if done % 2 else 1]:
      bar.set_description(f"{problem.title.split()[0]}: {name}")
      builds[name].append(build(problem, makes[name](), scan))
      bar.update()
  return {
    "title": problem.title + (", under scan" if scan else ""),
    "rounds": rounds,
    "rows": {name: summary(builds[name], builds["Adam"]) for name in makes},
  }


def summary(ours: list[dict], base: list[dict]) -> dict:
  median = lambda key: statistics.median(build[key] for build in ours)
  ratios = [a["all"] / b["all"] for a, b in zip(ours, base, strict=True)]
  return {
    "lower": median("lower"),
    "compile": median("compile"),
    "over_base": timing.quartiles(ratios),
    "lowered": ours[0]["lowered"],
    "compiled": ours[0]["compiled"],
    "instructions_over_base": ours[0]["compiled"] / base[0]["compiled"],
  }


def describe(record: dict) -> str:
  rows = [
    [
      name,
      row["lower"],
      row["compile"],
      report.spread(row["over_base"]),
      row["lowered"],
      row["compiled"],
      f"{row['instructions_over_base']:.2f}",
    ]
    for name, row in record["rows"].items()
  ]
  headers = [
    record["title"],
    "lower, s",
    "compile, s",
    "all / base",
    "lowered",
    "compiled",
    "compiled / base",
  ]
  lines = [report.table(headers, rows), f"{record['rounds']} rounds"]
  if "GeN" in record["rows"]:
    low, middle, _ = record["rows"]["GeN"]["over_base"]
    word = "met" if middle <= BOUND else "near" if low <= BOUND else "MISSED"
    lines.append(f"{word}: GeN over base {middle:.2f}, at most {BOUND}")
  return "\n".join(lines) + "\n"


def add_options(parser):
  parser.add_argument(
    "--compile-models", nargs="+", choices=PROBLEMS, default=["transformer"]
  )
  parser.add_argument(
    "--compiled", nargs="+", choices=CANDIDATES, default=list(CANDIDATES)
  )
  parser.add_argument(
    "--rounds", type=int, default=3, help="compilations of each step"
  )
  parser.add_argument("--scan", action="store_true", help="under scan too")


def check_options(parser, args):
  del parser
  if args.quick:
    args.compile_models, args.rounds = ["mlp"], 1
    args.compiled = ["GeN"]


def run(args) -> dict:
  """Measures, prints and returns the records."""
  print(__doc__.split("\n\n", 1)[1])
  jax.config.update("jax_enable_compilation_cache", False)
  records = []
  forms = (False, True) if args.scan else (False,)
  count = (1 + len(args.compiled)) * args.rounds * len(forms)
  with tqdm(total=count * len(args.compile_models)) as bar:
    for name in args.compile_models:
      problem = programs.problem_of(PROBLEMS[name]())
      for scan in forms:
        record = measure(problem, args.compiled, args.rounds, scan, bar)
        tqdm.write(describe(record))
        records.append(record)
  return {"compilation": records}
