"""LeNet-5 on MNIST: PSGD's structures against SGD and Adam on equal terms.

Table 1 and Figure 3 of the PSGD paper: test accuracy, training loss and time of
each structure, and of low rank by its order. Rates are searched with as many
trials for everybody, on seeds and validation images of their own. `--study`
gives Table 9 (robustness) and what the paper asks beyond accuracy; studies use
the rates found for the table and search what is missing.

  python -m scripts.psgd.mnist_lenet --quick          digits, about a minute
  python -m scripts.psgd.mnist_lenet --data-dir DATA  MNIST at 14x14, the table
  python -m scripts.psgd.mnist_lenet --data-dir DATA --study noisy-labels
  python -m scripts.psgd.mnist_lenet --data-dir DATA --study logistic

Studies: robustness, noisy-labels, imbalance, blur, switch, statistics, and
logistic, a regression of its own. All keep their records in `results.json`
under `--out`, and go on where they stopped. The paper's size is
`--size 28 --examples 55000 --steps 8600 --seeds 50`.
"""

import time

import numpy as np
from tqdm import tqdm

from scripts.common import cli
from scripts.common.report import number, table
from scripts.psgd import lenet_lab, lenet_studies, outer_logistic
from scripts.psgd.annealed import RECIPES
from scripts.psgd.lenet_pictures import canvas, draw
from scripts.psgd.lenet_studies import spread

QUICK = ("momentum", "adam", "diagonal", "lra5")
# Table 9: rates around the best, and decays, for these.
VARIED = ("momentum", "adam", "xmat", "lra5")
RATE_FACTORS = (10**-0.5, 1.0, 10**0.5)
DECAYS = (0.0, 0.01)


def main():
  args = parse_arguments()
  began = time.perf_counter()
  results = cli.Results(
    args.out / ("quick.json" if args.quick else "results.json"),
    {
      name: getattr(args, name)
      for name in ("steps", "seeds", "trials", "size", "examples")
    }
    | {"data": "digits" if args.data_dir is None else "mnist"},
  )
  if args.study == "logistic":
    logistic(args, results)
  else:
    task, validation = lenet_lab.lenet_task(
      args.data_dir, args.size, args.examples
    )
    lab = lenet_lab.Lab(task, validation, args, results, bar)
    print(
      f"\n{task.title}, {lab.steps} steps, seeds {lab.seeds}.\n"
      f"Rates: best of {args.trials} on seeds {lab.search_seeds} and "
      f"{len(validation.y)} validation images.\n"
    )
    if args.study == "robustness":
      robustness(lab, args)
    elif args.study:
      study(lab, args)
    else:
      comparison(lab, args)
  print(f"results: {results.path}")
  print(f"time: {time.perf_counter() - began:.0f} s")


def parse_arguments():
  parser = cli.parser(__doc__.splitlines()[0], out="out/mnist_lenet")
  studies = [*lenet_studies.STUDIES, "robustness", "logistic"]
  parser.add_argument("--study", choices=studies)
  parser.add_argument("--methods", nargs="+", choices=RECIPES)
  parser.add_argument(
    "--trials", type=int, default=6, help="learning rates that each may try"
  )
  parser.add_argument(
    "--size", type=int, choices=[14, 28], default=14, help="pixels of MNIST"
  )
  parser.add_argument(
    "--examples", type=int, default=10_000, help="training images of MNIST"
  )
  args = parser.parse_args()
  searching = 2
  if args.quick:
    args.steps = args.steps or 100
    args.seeds, args.trials, searching = 1, 2, 1
  args.methods = args.methods or (QUICK if args.quick else tuple(RECIPES))
  args.search_seeds = list(range(searching))
  args.report_seeds = list(range(searching, searching + args.seeds))
  return args


def bar(label, total, unit="step"):
  return tqdm(total=total, desc=label, unit=unit, mininterval=0.5)


# Table 1 and Figure 3, Table 9


def comparison(lab, args):
  records = {}
  for name in args.methods:
    runs = lab.plain(name)
    records[name] = runs, lab.tuned(name), lab.relative_time(name)
  print(table(HEADERS, [row(name, *found) for name, found in records.items()]))
  print("\nTime / SGD: a step over one of SGD with momentum, side by side, ")
  print("with quartiles. One step: one on the group for all blocks, not each ")
  print("its own. Lazy: the chance of an update falls from 1 to 0.1.")
  path = args.out / ("quick.png" if args.quick else "table.png")
  with canvas(path, 3) as axes:
    draw(axes, records)
  print(f"\npicture: {path}")


HEADERS = (
  "optimizer",
  "rate",
  "test acc. %",
  "train loss",
  "train acc. %",
  "time / SGD",
  "seconds",
)


def row(name, runs, search, times):
  low, middle, high = map(float, times)
  inside = "" if search["bracketed"] else " (edge)"
  return [
    RECIPES[name].label,
    f"{search['best_rate']:.2g}, best of {len(search['rates'])}{inside}",
    spread(runs, lambda run: run["test"]["accuracy"], 2),
    number(np.mean([float(run["train"]["loss"]) for run in runs])),
    spread(runs, lambda run: run["train"]["accuracy"], 2),
    f"{middle:.2f} ({low:.2f}-{high:.2f})",
    f"{np.median([run['seconds'] for run in runs]):.1f}",
  ]


def robustness(lab, args):
  """Table 9: test accuracy at rates around the best, and with weight decay."""
  cells = [(factor, decay) for decay in DECAYS for factor in RATE_FACTORS]
  rows = []
  for name in VARIED:
    best = lab.tuned(name)["best_rate"]
    row = [RECIPES[name].label]
    for factor, decay in cells:
      runs = lab.runs(
        f"robustness/{name}/{factor:.2g}/{decay:g}",
        [name],
        lambda seed, name=name, rate=factor * best, decay=decay: [
          lab.part(name, seed, rate=rate, decay=decay)
        ],
      )
      row.append(spread(runs, lambda run: run["test"]["accuracy"]))
    rows.append(row)
  print("Test accuracy in % at the best rate times a factor, and with weight")
  print("decay, which is not preconditioned.\n")
  headers = ["optimizer"]
  headers += [f"{f:.2g}x, decay {d:g}" for f, d in cells]
  print(table(headers, rows))


# Studies


def study(lab, args):
  run, panels = lenet_studies.STUDIES[args.study]
  title, headers, rows, draw_on = run(lab)
  print(f"{title}\n")
  print(table(headers, rows))
  suffix = "_quick" if args.quick else ""
  path = args.out / f"{args.study}{suffix}.png"
  with canvas(path, panels) as axes:
    axes[0].figure.suptitle(title, fontsize="medium")
    draw_on(axes)
  print(f"\npicture: {path}")


def logistic(args, results):
  found = outer_logistic.study(args, results, bar)
  print(f"Training seeds {args.report_seeds}; rates searched on seeds ", end="")
  print(f"{args.search_seeds} by the training loss.")
  for title, records in found:
    print(f"\n{title}\n")
    print(table(outer_logistic.HEADERS, outer_logistic.rows(records)))
  suffix = "_quick" if args.quick else ""
  path = args.out / f"logistic{suffix}.png"
  with canvas(path, 2) as axes:
    outer_logistic.draw(axes, found)
  print(f"\npicture: {path}")


if __name__ == "__main__":
  main()
