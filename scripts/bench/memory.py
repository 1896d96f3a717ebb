"""What a training step holds in memory beside Adam's, by XLA's own account.

In copies of the parameters in float32, parameters and state donated:

    state        arguments that stay from step to step, over the base step's
    temporaries  buffers that live within a step, over the base step's
    aliased      outputs that are written where an argument was

The networks are compiled and not run; the GPT exists as shapes alone. GeN by
map holds one point of the line at a time: its temporaries are at most one copy
over the base. By vmap it holds K points and K forward passes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from tqdm import tqdm

import gen_optax
from gen_optax import amos
from scripts.bench import programs
from scripts.common import report, tasks


class Candidate(NamedTuple):
  """One optimizer; `points` of the line are held at once, if it is GeN."""

  name: str
  make: Callable[[], optax.GradientTransformation]
  points: int | None = None


def routed(states: str) -> optax.GradientTransformation:
  return gen_optax.amos_router(
    [optax.sgd(0.1), amos.sophia(1e-3)], states=states
  )


GEN = (
  Candidate("GeN", gen_optax.gen_adam, 1),
  Candidate(
    "GeN, no fresh slope", lambda: gen_optax.gen_adam(fresh_slope=False), 1
  ),
  Candidate(
    "GeN, 2 probes, map",
    lambda: gen_optax.gen_adam(estimator="fit", evaluate="map"),
    1,
  ),
  Candidate(
    "GeN, 2 probes, vmap", lambda: gen_optax.gen_adam(estimator="fit"), 2
  ),
  Candidate("GeN, forward", lambda: gen_optax.gen_adam(estimator="forward")),
  Candidate("GeN, hvp", lambda: gen_optax.gen_adam(estimator="hvp")),
)
OTHERS = (
  Candidate("PSGD diagonal", lambda: gen_optax.psgd_diagonal(0.1)),
  Candidate("PSGD xmat", lambda: gen_optax.psgd_xmat(0.1)),
  Candidate("PSGD low rank 10", lambda: gen_optax.psgd_lra(0.1, rank=10)),
  Candidate("PSGD kron", lambda: gen_optax.psgd_kron(0.1)),
  Candidate(
    "ELMO Lanczos 4+2", lambda: gen_optax.elmo_lanczos(top=4, bottom=2)
  ),
  Candidate("AMOS frozen", lambda: routed("frozen")),
  Candidate("AMOS run_all", lambda: routed("run_all")),
)
BASE = Candidate("Adam", programs.base_optimizer)

PROBLEMS = {
  "mlp": lambda: programs.problem_of(tasks.mlp()),
  "cnn": lambda: programs.problem_of(tasks.cnn()),
  "gpt": lambda: programs.gpt(width=512, blocks=3, length=128, batch_size=8),
}
# Code is not run: LLVM need not improve it. Buffers are assigned before.
UNOPTIMIZED = {"xla_backend_optimization_level": 0}


class Memory(NamedTuple):
  """Bytes of one compiled training step over those of a parameter copy."""

  arguments: float
  outputs: float
  temporaries: float
  aliased: float


def in_copies(lowered, size: int) -> Memory:
  found = lowered.compile(UNOPTIMIZED).memory_analysis()
  return Memory(
    *(
      getattr(found, f"{kind}_size_in_bytes") / (4 * size)
      for kind in ("argument", "output", "temp", "alias")
    )
  )


def step_memory(problem: programs.Problem, optimizer, donate=(0, 1)) -> Memory:
  """Of `step(params, state, batch)`; `donate` names what may be overwritten."""
  inner = programs.train_step(optimizer, problem.loss)

  def step(params, state, batch):
    (params, state), value = inner((params, state), batch)
    return params, state, value

  state = jax.eval_shape(optimizer.init, problem.params)
  lowered = jax.jit(step, donate_argnums=donate).lower(
    problem.params, state, problem.batch
  )
  return in_copies(lowered, problem.size)


def forward_memory(problem: programs.Problem) -> Memory:
  lowered = jax.jit(problem.loss).lower(problem.params, problem.batch)
  return in_copies(lowered, problem.size)


def bound(candidate: Candidate, forward: Memory) -> float | None:
  """The temporaries that GeN may hold over the base step's."""
  if candidate.points is None:
    return None
  if candidate.points == 1:
    return 1.0
  return candidate.points * (1 + forward.temporaries)


def measure(problem: programs.Problem, bar) -> dict:
  forward = forward_memory(problem)
  record = {
    "title": problem.title,
    "parameters": problem.size,
    "forward_temporaries": forward.temporaries,
    "candidates": [],
  }
  base = step_memory(problem, BASE.make())
  for candidate in (BASE, *GEN, *OTHERS):
    bar.set_description(f"{problem.title.split()[0]}: {candidate.name}")
    held = step_memory(problem, candidate.make())
    record["candidates"].append(
      {
        "name": candidate.name,
        **held._asdict(),
        "state_over_base": held.arguments - base.arguments,
        "temporaries_over_base": held.temporaries - base.temporaries,
        "bound": bound(candidate, forward),
      }
    )
    bar.update()
  return record


def describe(record: dict) -> str:
  rows = [
    [
      row["name"],
      *(f"{row[key]:.2f}" for key in Memory._fields),
      f"{row['state_over_base']:+.2f}",
      f"{row['temporaries_over_base']:+.2f}",
      "-" if row["bound"] is None else f"{row['bound']:.2f}",
    ]
    for row in record["candidates"]
  ]
  headers = [
    "parameter copies",
    *Memory._fields,
    "state / base",
    "temporaries / base",
    "at most",
  ]
  missed = [
    row["name"]
    for row in record["candidates"]
    if row["bound"] and row["temporaries_over_base"] > row["bound"]
  ]
  return "\n".join(
    [
      f"\n## {record['title']}: {record['parameters']:,} parameters; a forward "
      f"pass holds {record['forward_temporaries']:.2f} copies\n",
      report.table(headers, rows),
      f"\n{'MISSED ' + ', '.join(missed) if missed else 'met'}: GeN's bounds",
    ]
  )


def add_options(parser):
  parser.add_argument(
    "--memory-models", nargs="+", choices=PROBLEMS, default=list(PROBLEMS)
  )


def check_options(parser, args):
  del parser
  if args.quick:
    args.memory_models = ["mlp"]


def run(args) -> dict:
  """Measures, prints and returns the records by network."""
  print(__doc__.split("\n\n", 1)[1])
  records = {}
  count = 1 + len(GEN) + len(OTHERS)
  with tqdm(total=count * len(args.memory_models)) as bar:
    for name in args.memory_models:
      records[name] = measure(PROBLEMS[name](), bar)
      tqdm.write(describe(records[name]))
  return records
