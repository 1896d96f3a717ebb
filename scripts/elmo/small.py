"""ELMO on small problems against Newton's method and cubic regularisation.

Five starts of three functions: Rosenbrock's in 2 and 10 dimensions, Beale's
from (1, 1), where the Hessian is indefinite, and x^2 - y^2 + y^4 on its ridge
and a thousandth beside it. A method has arrived at a second-order point:
|gradient| < 1e-8 and no eigenvalue below -1e-6. What counts is evaluations of
the loss; each step has one gradient and one Hessian besides, for all but
gradient descent.

    python -m scripts.elmo.small
    python -m scripts.elmo.small --random-starts 50

The cubic regularisation (`cubic.py`) shares no code with ELMO; it comes with
two rules for its parameter, which starts where ELMO's sigma starts.
`--random-starts` compares them from random points too.
"""

import functools
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import gen_optax
from gen_optax import plotting, problems
from scripts.common import cli, report
from scripts.elmo.cubic import check_cubic_step, cubic_regularisation

LEVEL, CONVEX = 1e-8, -1e-6


class Task(NamedTuple):
  """A compiled loss with its derivatives, and where to start."""

  name: str
  value: Callable
  gradient: Callable
  hessian: Callable
  start: np.ndarray
  box: np.ndarray
  loss: Callable


def make_task(name, loss, start, box) -> Task:
  value, gradient, hessian = (
    jax.jit(fn) for fn in (loss, jax.grad(loss), jax.hessian(loss))
  )
  as_numpy = lambda fn: lambda x: np.asarray(fn(x))
  return Task(
    *(name, lambda x: float(value(x)), as_numpy(gradient), as_numpy(hessian)),
    *(np.array(start), np.array(box), loss),
  )


def saddle(x):
  return x[0] ** 2 - x[1] ** 2 + x[1] ** 4


def make_tasks() -> list[Task]:
  valley, wide, beale = (
    problems.rosenbrock(2),
    problems.rosenbrock(10),
    problems.beale(),
  )
  square = ((-2.0, 2.0),) * 2
  return [
    make_task("Rosenbrock 2", valley.fn, valley.starts[0], valley.box),
    make_task("Rosenbrock 10", wide.fn, wide.starts[0], wide.box),
    make_task("Beale (1, 1)", beale.fn, (1.0, 1.0), beale.box),
    make_task("ridge (1, 0)", saddle, (1.0, 0.0), square),
    make_task("ridge (1, 1e-3)", saddle, (1.0, 1e-3), square),
  ]


class Run(NamedTuple):
  """How a method fared: losses after so many evaluations, and the outcome."""

  outcome: str
  steps: int
  evaluations: int
  loss: float
  curve: list


def follow(task: Task, stepper, limit: int) -> Run:
  """Runs `stepper`, a generator of (point, loss or None, evaluations)."""
  curve, steps, outcome = [], 0, f"> {limit}"
  x, f, evaluations = task.start, task.value(task.start), 1
  moves = stepper(task)
  while True:
    curve.append((evaluations, f))
    if not np.isfinite(f) or not np.all(np.isfinite(x)):
      outcome = "diverges"
      break
    level = np.linalg.norm(task.gradient(x)) < LEVEL
    if level and np.linalg.eigvalsh(task.hessian(x))[0] > CONVEX:
      outcome = "arrives"
      break
    if steps == limit:
      break
    last = x
    x, f, spent = next(moves)
    f = task.value(x) if f is None else f
    steps, evaluations = steps + 1, evaluations + spent
    if level and np.array_equal(x, last):
      outcome = "stuck"
      break
  return Run(outcome, steps, evaluations, f, curve)


# --- the others ---------------------------------------------------------------


def newton(task: Task, size=lambda values: values):
  """x - H^{-1} g, or with |H| for the saddle-free form; no look at the loss."""
  x = task.start
  while True:
    values, vectors = np.linalg.eigh(task.hessian(x))
    with np.errstate(all="ignore"):
      x = x - vectors @ ((vectors.T @ task.gradient(x)) / size(values))
    yield x, None, 0


def gradient_descent(task: Task):
  """Backtracking by halves to a sufficient decrease, from twice the last."""
  x, f, rate = task.start, task.value(task.start), 0.5
  while True:
    g, rate, spent = task.gradient(x), 2 * rate, 0
    while True:
      trial = task.value(x - rate * g)
      spent += 1
      if trial <= f - 1e-4 * rate * g @ g or rate < 1e-20:
        break
      rate /= 2
    x, f = x - rate * g, trial
    yield x, f, spent


# --- ELMO ---------------------------------------------------------------------


@functools.cache
def elmo_step(loss, **options):
  """The chain and its compiled step, kept for other starts."""
  tx = gen_optax.elmo_dense(**options)

  @jax.jit
  def step(x, state, value):
    updates, state = tx.update(
      jax.grad(loss)(x), state, x, value=value, value_fn=loss
    )
    x = x + updates
    return x, state, loss(x)

  return tx, step


def elmo(task: Task, **options):
  tx, step = elmo_step(task.loss, **options)
  x = jnp.asarray(task.start)
  state, f = tx.init(x), jnp.asarray(task.value(x))
  while True:
    x, state, f = step(x, state, f)
    yield np.asarray(x), float(f), int(state[0].info.evaluations)


REFERENCES = ("cubic regularisation", "cubic regularisation, CGT's rule")


def make_methods(initial: float) -> dict:
  """All of them, with the same first parameter where one is adapted."""
  guarded = partial(elmo, initial_sigma=initial)
  raw = partial(elmo, safeguarded=False)
  # Without a safeguard an estimator's L is used as it is, or nearly.
  nearly = partial(raw, initial_sigma=1e-8)
  halves, gradients = REFERENCES
  return {
    "Newton": newton,
    "saddle-free Newton": partial(newton, size=np.abs),
    "gradient descent": gradient_descent,
    halves: partial(cubic_regularisation, initial=initial),
    gradients: partial(cubic_regularisation, initial=initial, relax="gradient"),
    "ELMO": guarded,
    "ELMO, drift": partial(guarded, lipschitz="drift"),
    "ELMO, third derivative": partial(guarded, lipschitz="third"),
    "ELMO, gradient of eigenvalue": partial(guarded, lipschitz="gradient"),
    "ELMO, EigenARC": partial(guarded, lipschitz="eigen_arc"),
    "Algorithm 1, L = 1": partial(raw, lipschitz=1.0),
    "Algorithm 1, L = 100": partial(raw, lipschitz=100.0),
    "Algorithm 1, L = 1e4": partial(raw, lipschitz=1e4),
    "Algorithm 1, drift": partial(nearly, lipschitz="drift"),
    "Algorithm 1, third derivative": partial(nearly, lipschitz="third"),
    "Algorithm 1, gradient of eigenvalue": partial(
      nearly, lipschitz="gradient"
    ),
  }


def cell(run: Run) -> str:
  if run.outcome != "arrives":
    return f"{run.outcome} ({report.number(run.loss)})"
  return f"{run.steps} / {run.evaluations}"


def draw(tasks, methods, runs, path):
  """Loss above the lowest found, against evaluations of the loss."""
  import matplotlib.pyplot as plt

  shown = ["gradient descent", *REFERENCES]
  shown += [name for name in methods if name.startswith("ELMO")]
  figure, panels = plt.subplots(
    1, len(tasks), figsize=(4 * len(tasks), 3.6), layout="constrained"
  )
  for task, axes in zip(tasks, panels, strict=True):
    ends = {name: runs[task.name, name] for name in shown}
    lowest = min(run.loss for run in ends.values() if run.outcome == "arrives")
    for k, (name, run) in enumerate(ends.items()):
      count, loss = np.transpose(run.curve)
      above = np.maximum(loss - lowest, 1e-17)
      colour = [*plotting.COLOURS, "0.5"][k % (len(plotting.COLOURS) + 1)]
      axes.plot(count, above, label=name, c=colour)
    axes.set(yscale="log", xscale="log", title=task.name, xlim=(1, 1e3))
    axes.set_xlabel("evaluations of the loss")
  panels[0].set_ylabel("loss above the lowest found")
  lines, labels = panels[0].get_legend_handles_labels()
  figure.legend(lines, labels, loc="outside lower center", ncols=4)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=130)
  plt.close(figure)


def random_starts(tasks, methods, count, seed, limit):
  """ELMO against cubic regularisation from random points of each box."""
  rows, records = [], []
  names = ("ELMO", *REFERENCES)
  for task in {task.loss: task for task in tasks}.values():
    rng = np.random.default_rng(seed)
    low, high = task.box.T
    spent = []
    for _ in tqdm(range(count), desc=f"{task.name}, random starts"):
      there = task._replace(start=rng.uniform(low, high))
      runs = [follow(there, methods[name], limit) for name in names]
      if all(run.outcome == "arrives" for run in runs):
        spent.append([run.evaluations for run in runs])
    spent = np.array(spent).reshape(-1, len(names))
    fewer = int((spent[:, :1] <= spent[:, 1:]).all(1).sum())
    record = {
      "problem": task.name,
      "starts": count,
      "all_arrive": len(spent),
      "elmo_needs_no_more_than_either": fewer,
      "mean_evaluations": dict(zip(names, spent.mean(0), strict=True)),
    }
    records.append(record)
    means = record["mean_evaluations"].values()
    rows.append([task.name, f"{len(spent)} of {count}", str(fewer), *means])
  headers = ["function", "all arrive", "ELMO no more than either"]
  print(f"\nRandom starts of seed {seed}: mean evaluations of the loss")
  print(report.table([*headers, "ELMO", "cubic", "cubic, CGT"], rows))
  return records


def against_references(tasks, methods, runs) -> dict:
  """Evaluations of each safeguarded form beside the better reference's."""
  verdict = {}
  for name in methods:
    if not name.startswith("ELMO"):
      continue
    verdict[name] = {}
    for task in tasks:
      run = runs[task.name, name]
      best = min(runs[task.name, other].evaluations for other in REFERENCES)
      verdict[name][task.name] = (run.outcome, run.evaluations, best)
    kept = sum(o == "arrives" and a <= b for o, a, b in verdict[name].values())
    print(
      f"{name}: no more evaluations than the better cubic regularisation on "
      f"{kept} of {len(tasks)}"
    )
  return verdict


def parse_args():
  parser = cli.parser(
    "ELMO on small problems, against Newton and cubic regularisation.", "out"
  )
  parser.add_argument(
    "--random-starts", type=int, default=0, help="how many for each function"
  )
  parser.add_argument("--seed", type=int, default=0, help="of random numbers")
  parser.add_argument(
    "--initial",
    type=float,
    default=1.0,
    help="where sigma and the reference's parameter start",
  )
  args = parser.parse_args()
  args.steps = args.steps or (100 if args.quick else 400)
  return args


def main():
  args = parse_args()
  jax.config.update("jax_enable_x64", True)
  began = time.perf_counter()
  excess = check_cubic_step(20 if args.quick else 100, args.seed)
  print(f"cubic step: its model is at most {excess:.1e} above the best of 8")
  print("runs of a generic minimiser, relative (negative: always below)")
  tasks, methods = make_tasks(), make_methods(args.initial)
  runs, rows = {}, []
  for name, method in tqdm(methods.items()):
    # Gradient descent is slow and cheap.
    limit = args.steps * (4 if method is gradient_descent else 1)
    for task in tasks:
      runs[task.name, name] = follow(task, method, limit)
    rows.append([name, *(cell(runs[task.name, name]) for task in tasks)])
  print("\nSteps / evaluations of the loss to a second-order point, or what")
  print("became of it, and the loss there")
  print(report.table(["method", *(task.name for task in tasks)], rows))
  verdict = against_references(tasks, methods, runs)
  records = []
  if args.random_starts:
    records = random_starts(
      tasks, methods, args.random_starts, args.seed, args.steps
    )
  figure = args.out / "elmo_small.png"
  draw(tasks, methods, runs, figure)
  path = report.write_json(
    args.out / "elmo_small.json",
    {
      "cubic_step_excess": excess,
      "against_references": verdict,
      "random_starts": records,
      "runs": [
        {"problem": task, "method": method, **run._asdict()}
        for (task, method), run in runs.items()
      ],
    },
    settings=vars(args),
    seeds=[args.seed],
  )
  seconds = time.perf_counter() - began
  print(f"{seconds:.0f} s; figure: {figure}; records: {path}")


if __name__ == "__main__":
  main()
