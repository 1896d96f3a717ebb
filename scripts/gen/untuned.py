"""GeN without a learning rate against tuned bases, on six small networks.

Every cell is one task, base optimizer, fitting interval and initial rate. GeN
runs are compared with the same base whose rate was tuned under a cosine
schedule over at least eight rates. The search uses its own seeds; every number
printed comes from other seeds, with other initial weights and data order.

  python -m scripts.gen.untuned --data-dir DATA  the campaign, about an hour
  python -m scripts.gen.untuned --report         its tables once more
  python -m scripts.gen.untuned --quick          two tasks, 100 steps, one seed
"""

import sys

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from scripts.common import cli, methods, tasks, tuning
from scripts.common.report import number, table

TASKS = {
  "mlp": tasks.mlp,
  "autoencoder": tasks.autoencoder,
  "logistic": tasks.logistic,
  "cnn": tasks.cnn,
  "lenet": tasks.lenet,
  "transformer": tasks.transformer,
}
# Without momentum GeN is known to lag; those bases are counted apart.
WITH_MOMENTUM = ("momentum", "adamw", "lion")
WITHOUT_MOMENTUM = ("sgd", "rmsprop")
EVERY = (1, 8)
INITIAL_RATES = (1e-6, 1e-3, 1.0)
SCHEDULES = ("cosine", "constant")
# Seeds 3 to 16 served to develop GeN's rule.
FIRST_REPORT_SEED = 17


def main():
  args = parse_arguments()
  results = cli.Results(
    args.out / ("quick.json" if args.quick else "results.json"),
    {"steps": args.steps, "seeds": args.seeds},
  )
  if not args.report:
    for base in args.bases:
      for name in args.tasks:
        run_cells(results, TASKS[name](args.data_dir), base, args)
  report(results, args)


def parse_arguments():
  parser = cli.parser(__doc__.splitlines()[0], out="out/untuned")
  parser.add_argument("--tasks", nargs="+", choices=TASKS, default=None)
  parser.add_argument(
    "--bases",
    nargs="+",
    choices=methods.BASES,
    default=WITH_MOMENTUM + WITHOUT_MOMENTUM,
  )
  parser.add_argument(
    "--report", action="store_true", help="only print the tables"
  )
  args = parser.parse_args()
  if args.quick:
    args.steps, args.seeds = args.steps or 100, 1
    args.tasks = args.tasks or ["mlp", "logistic"]
    args.bases = args.bases[:1]
  if args.tasks is None:
    args.tasks = list(TASKS)
    if args.data_dir is None and not args.report:
      print("lenet is left out: MNIST needs --data-dir", file=sys.stderr)
      args.tasks.remove("lenet")
  args.search_seeds = list(range(args.seeds))
  first = FIRST_REPORT_SEED
  args.report_seeds = list(range(first, first + args.seeds))
  return args


def run_cells(results, task, base, args):
  """Trains what the results file lacks for one task and one base."""
  steps = args.steps or task.steps
  key = f"{task.name}/{base}"

  def bar(runs):
    return tqdm(total=runs * steps, desc=key, mininterval=1, smoothing=0.1)

  def tuned():
    rates = methods.BASES[base].rates
    with bar(len(SCHEDULES) * len(rates) + 3) as progress:
      return run_tuned(task, base, args, steps, progress)

  def untuned(every):
    with bar(len(INITIAL_RATES)) as progress:
      return run_untuned(task, base, every, args, steps, progress)

  results.get(f"{key}/tuned", tuned)
  for every in EVERY:
    results.get(f"{key}/every{every}", lambda every=every: untuned(every))


def run_tuned(task, base, args, steps, progress):
  """Tunes each schedule, then trains at the best rates on unseen seeds."""
  method = methods.scheduled(methods.BASES[base].make)
  rates = methods.BASES[base].rates
  found = {"title": task.title, "steps": steps, "judged_by": task.judged_by}

  def confirm(schedule, rate):
    setting = {
      "rate": jnp.float32(rate),
      "shape": methods.schedule_shape(schedule, steps),
    }
    runs = tuning.run(task, method, setting, args.report_seeds, steps, progress)
    return tuning.record(runs, curves=False)

  for schedule in SCHEDULES:
    search = tuning.tune(
      task, method, schedule, rates, args.search_seeds, steps, progress
    )
    found[f"{schedule}_search"] = search
    found[schedule] = confirm(schedule, search["best_rate"])
  best_of_average = found["constant_search"]["best_rate_average"]
  found["constant_averaged"] = confirm("constant", best_of_average)
  return found


def run_untuned(task, base, every, args, steps, progress):
  """GeN from each initial rate, on the seeds that the search did not see."""
  method = methods.untuned_gen(methods.BASES[base], every)
  found = {}
  for rate in INITIAL_RATES:
    setting = {"rate": jnp.float32(rate)}
    runs = tuning.run(task, method, setting, args.report_seeds, steps, progress)
    found[str(rate)] = tuning.record(runs, curves=False)
  return found


# Reading the results back


def mean(record, where: str, score: str) -> float:
  return float(np.mean(np.asarray(record[where][score], float)))


def is_close(record, where: str, cosine, judged_by: str) -> bool:
  """Within 0.5 accuracy point, or 5 % of the test loss, of tuned cosine."""
  if judged_by == "accuracy":
    ours = mean(record, where, "test_accuracy")
    return ours >= mean(cosine, "last", "test_accuracy") - 0.005
  ours = mean(record, where, "test_loss")
  return ours <= 1.05 * mean(cosine, "last", "test_loss")


def groups(results, args):
  """Every task and base with a complete set of results."""
  for base in args.bases:
    for name in args.tasks:
      keys = [f"{name}/{base}/{part}" for part in ("tuned", "every1", "every8")]
      if all(key in results.records for key in keys):
        yield name, base, *(results.records[key] for key in keys)


def report(results, args):
  complete = list(groups(results, args))
  if not complete:
    sys.exit(f"no complete task and base in {results.path}")
  print(
    f"Rates were searched on seeds {args.search_seeds}; every number below is "
    f"of seeds {args.report_seeds}.\n"
    "GeN: nothing tuned; mean over initial rates "
    f"{', '.join(f'{rate:g}' for rate in INITIAL_RATES)}.\n"
  )
  titles = {group[0]: group[2] for group in complete}
  for name, tuned in titles.items():
    print(f"{name}: {tuned['title']}, {tuned['steps']} steps")
  for judged_by, what in (
    ("accuracy", "Test accuracy in %"),
    ("loss", "Test loss"),
  ):
    chosen = [g for g in complete if g[2]["judged_by"] == judged_by]
    if chosen:
      print(f"\n{what} (* outside the tolerance):\n")
      print(score_table(chosen, judged_by))
  print("\nTraining loss:\n")
  print(train_table(complete))
  print("\nShare of cells within 0.5 accuracy point (mlp, cnn, lenet) or 5 %")
  print("of the test loss (the others) of tuned cosine. Cells that differ by")
  print("the initial rate alone are nearly the same run:\n")
  print(share_table(complete))
  print("\nGeN cells outside the tolerance at the average:\n")
  print(failures_table(complete))


COLUMNS = (
  "cosine",
  "constant",
  "constant, avg",
  "GeN/1",
  "GeN/1, avg",
  "GeN/8",
  "GeN/8, avg",
)


def columns(tuned, every1, every8):
  """(records, where) for each of COLUMNS."""
  gen1, gen8 = list(every1.values()), list(every8.values())
  return (
    ([tuned["cosine"]], "last"),
    ([tuned["constant"]], "last"),
    ([tuned["constant_averaged"]], "average"),
    (gen1, "last"),
    (gen1, "average"),
    (gen8, "last"),
    (gen8, "average"),
  )


def score_table(chosen, judged_by):
  score, scale = ("test_loss", 1.0)
  if judged_by == "accuracy":
    score, scale = ("test_accuracy", 100.0)
  rows = []
  for name, base, tuned, every1, every8 in chosen:
    row = [f"{name} {base}"]
    for records, where in columns(tuned, every1, every8):
      value = scale * np.mean([mean(r, where, score) for r in records])
      close = all(
        is_close(r, where, tuned["cosine"], judged_by) for r in records
      )
      digits = f"{value:.1f}" if judged_by == "accuracy" else number(value)
      row.append(digits + ("" if close else " *"))
    rows.append(row)
  return table(["task and base", *COLUMNS], rows)


def train_table(complete):
  rows = []
  for name, base, tuned, every1, every8 in complete:
    row = [f"{name} {base}"]
    for records, where in columns(tuned, every1, every8):
      row.append(
        float(np.mean([mean(r, where, "train_loss") for r in records]))
      )
    rows.append(row)
  return table(["task and base", *COLUMNS], rows)


def share_table(complete):
  def tally(label, bases, intervals):
    chosen = [g for g in complete if g[1] in bases]
    if not chosen:
      return None
    close = {"last": [], "average": []}
    diverged, runs = 0, 0
    for _, _, tuned, *gen in chosen:
      by_interval = dict(zip(EVERY, gen, strict=True))
      last = [c for n in intervals for c in by_interval[n].values()]
      average = last
      if not intervals:
        last, average = [tuned["constant"]], [tuned["constant_averaged"]]
      for where, cells in (("last", last), ("average", average)):
        close[where] += [
          is_close(cell, where, tuned["cosine"], tuned["judged_by"])
          for cell in cells
        ]
      for cell in last:
        diverged += int(np.sum(cell["diverged"]))
        runs += len(cell["diverged"])
    return [
      label,
      len(close["average"]),
      f"{np.mean(close['average']):.0%}",
      f"{np.mean(close['last']):.0%}",
      f"{diverged} of {runs}",
    ]

  rows = []
  for bases in (WITH_MOMENTUM, WITHOUT_MOMENTUM):
    names = ", ".join(
      base for base in bases if base in {g[1] for g in complete}
    )
    for every in EVERY:
      rows.append(tally(f"GeN every {every}: {names}", bases, (every,)))
    rows.append(tally(f"GeN, all cells: {names}", bases, EVERY))
    rows.append(tally(f"tuned constant: {names}", bases, ()))
  headers = ["method", "cells", "at average", "at last iterate", "diverged"]
  return table(headers, [row for row in rows if row])


def failures_table(complete):
  rows = []
  for name, base, tuned, every1, every8 in complete:
    judged_by, cosine = tuned["judged_by"], tuned["cosine"]
    score = f"test_{judged_by}"
    for every, cells in ((1, every1), (8, every8)):
      for rate, cell in cells.items():
        if not is_close(cell, "average", cosine, judged_by):
          rows.append(
            [
              f"{name} {base}",
              every,
              f"{float(rate):g}",
              mean(cell, "average", score),
              mean(cell, "last", score),
              mean(cosine, "last", score),
              score,
            ]
          )
  headers = ["task and base", "every", "initial rate", "average", "last"]
  return table([*headers, "cosine", "score"], rows) if rows else "none"


if __name__ == "__main__":
  main()
