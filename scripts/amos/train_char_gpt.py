"""A nanoGPT on characters: AMOS of SGD and Sophia against both and others.

Section 4 and appendix K of the AMOS paper. Every method gets as many trials on
the numbers that it has; the table comes from seeds that no search has seen. A
control routes at random, at each Hessian time as much as AMOS did there: what
AMOS gains over it is due to its rule.

  python -m scripts.amos.train_char_gpt --quick          a minute
  python -m scripts.amos.train_char_gpt --data-dir DATA

`--study ema` is the paper's Table 2. The network has 0.1 million parameters,
with `--size paper` the paper's, for a GPU. Without `--data-dir` the text is the
language reference that Python ships. Records are kept in a file under `--out`,
and a run that was cut short goes on where it stopped.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from gen_optax import plotting
from scripts.amos import gpt_lab
from scripts.common import cli
from scripts.common.report import WINDOW, number, smooth, table

QUICK = ("sgd", "adamw", "amos")
# Table 2 of the paper.
EMAS = (0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999)


def main():
  args = parse_arguments()
  began = time.perf_counter()
  task = gpt_lab.gpt_task(args.size, args.data_dir)
  steps = args.steps or task.steps
  results = cli.Results(
    args.out / f"{args.size}.json",
    {
      "text": task.title,
      "steps": steps,
      **{k: getattr(args, k) for k in ("seeds", "trials", "schedule")},
    },
  )
  lab = gpt_lab.Lab(
    task,
    results,
    bar,
    steps,
    args.trials,
    args.search_seeds,
    args.report_seeds,
    args.schedule,
  )
  print(f"\n{task.title}: {lab.sizes.sum()} parameters, batches of ", end="")
  print(f"{task.batch_size}, {steps} steps, {args.schedule} rates.")
  print(f"Settings: best of {args.trials} by training loss on seeds ", end="")
  print(f"{args.search_seeds}; results on seeds {args.report_seeds}.\n")
  if args.study == "ema":
    ema_study(lab, args.methods)
  else:
    comparison(lab, args)
  print(f"results: {results.path}")
  print(f"time: {time.perf_counter() - began:.0f} s")


def parse_arguments():
  parser = cli.parser(__doc__.splitlines()[0], out="out/train_char_gpt")
  parser.add_argument("--size", choices=gpt_lab.SIZES, default="tiny")
  parser.add_argument("--methods", nargs="+", choices=gpt_lab.ENTRIES)
  parser.add_argument("--study", choices=["ema"])
  parser.add_argument(
    "--trials", type=int, default=9, help="settings that each may try"
  )
  parser.add_argument(
    "--schedule", choices=["constant", "cosine"], default="cosine"
  )
  parser.set_defaults(seeds=5)
  args = parser.parse_args()
  if args.quick:
    args.size, args.trials, args.seeds = "quick", 2, 1
  args.methods = args.methods or (QUICK if args.quick else [*gpt_lab.ENTRIES])
  args.search_seeds = [0]
  args.report_seeds = list(range(1, 1 + args.seeds))
  return args


def bar(label, total):
  return tqdm(total=total, desc=label, unit="step", mininterval=0.5)


def is_routed(name):
  return gpt_lab.ENTRIES[name].options is not None


# The comparison

HEADERS = (
  "optimizer",
  "setting",
  "train loss",
  "test loss",
  "at average",
  "with SGD, %",
  "at most, %",
)


def comparison(lab, args):
  rows, curves = [], {}
  for name in args.methods:
    entry, runs = gpt_lab.ENTRIES[name], lab.confirm(name)
    rows.append([entry.label, chosen(lab.search(name)), *cells(runs)])
    curves[entry.label] = smooth([run["curve"] for run in runs])
    if is_routed(name):
      runs = lab.control(name)
      rows.append([f"{entry.label}: at random", "the same", *cells(runs)])
  print(table(HEADERS, rows))
  print(
    "\nMean and standard deviation over seeds; with SGD: of the parameters,"
  )
  print("at Hessian times, on average and the most.")
  print(f"\npicture: {draw(lab, args, curves)}")


def chosen(search):
  numbers = [f"{k} {number(x, 2)}" for k, x in search["best"].items()]
  return ", ".join(numbers) + ("" if search["bracketed"] else " (open)")


def cells(runs):
  shares = [np.asarray(run["shares"], float) for run in runs]
  routed = all(len(share) for share in shares)
  return [
    *(spread([run[k] for run in runs]) for k in JUDGED),
    number(100 * np.mean(shares)) if routed else "-",
    number(100 * np.max(shares)) if routed else "-",
  ]


JUDGED = ("train", "test", "test_at_average")


def spread(losses):
  losses = np.asarray(losses, float)
  return f"{losses.mean():.4f} ± {losses.std():.4f}"


def draw(lab, args, curves):
  """Loss over time, and for each router which leaf was with SGD, and when."""
  path = args.out / f"{args.size}.png"
  path.parent.mkdir(parents=True, exist_ok=True)
  routed = [name for name in args.methods if is_routed(name)]
  rows = 1 + (len(routed) + 1) // 2
  figure = plt.figure(figsize=(11, 3.8 * rows), layout="constrained")
  grid = figure.add_gridspec(rows, 2)
  panel = figure.add_subplot(grid[0, :])
  plotting.plot_history(curves, loss_label="training loss", axes=[panel])
  panel.set_ylim(top=1.02 * max(np.median(x[:, 0]) for x in curves.values()))
  panel.set_title(
    f"Mean of {WINDOW} batches; bands: from the best to the worst seed"
  )
  names = [
    name.removeprefix("params/").replace("MultiHeadDotProduct", "")
    for name in plotting.leaf_names(lab.params)
  ]
  for k, name in enumerate(routed):
    panel = figure.add_subplot(grid[1 + k // 2, k % 2])
    first = np.asarray(lab.confirm(name)[0]["leaves"], float)
    plotting.plot_routing(
      *(first[..., None], names),
      steps=gpt_lab.EVERY * np.arange(len(first)),
      axes=panel,
    )
    panel.set_title(gpt_lab.ENTRIES[name].label, fontsize="medium")
    figure.axes[-1].set_ylabel("part with SGD")
  figure.savefig(path, dpi=110)
  plt.close(figure)
  return path


# Table 2


def ema_study(lab, methods):
  """The running average's constant, at the setting found for the default."""
  rows = []
  for name in filter(is_routed, methods):
    for ema in EMAS:
      runs = lab.confirm(name, ema=ema)
      rows.append([gpt_lab.ENTRIES[name].label, ema, *cells(runs)])
  print(table(("optimizer", "ema", *HEADERS[2:]), rows))


if __name__ == "__main__":
  main()
