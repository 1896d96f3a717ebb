"""Delayed XOR with recurrent networks: PSGD and others (Table 8, App. E.5).

Two marked signs of a random sequence, is their product negative? A plain RNN
and an LSTM with 30 units learn it from fresh batches of 128, until a batch's
loss is below 0.1 or the iterations run out. Everybody is clipped to norm one:
PSGD its preconditioned gradient, the others the gradient; all else is at its
default. Learning rates are tuned, equally many for each method, at the first
delay and kept for the longer ones; a best rate on the edge of its grid extends
it. Tuning has seeds 1000 on, the search 2000 on, its confirmation 3000 on, and
the results that are compared 0 on: other weights, other batches.

The paper gives each run 100,000 iterations and does not say how rates were
chosen; here `--cap` and `--tuning-cap` are far smaller, to fit a processor.

  python -m scripts.psgd.delayed_xor              delay 32, and longer as far
                                                  as --budget-minutes go
  python -m scripts.psgd.delayed_xor --search-55  settings of low-rank PSGD that
                                                  solve delay 55 with an RNN
  python -m scripts.psgd.delayed_xor --report     tables and picture once more
  python -m scripts.psgd.delayed_xor --quick      delay 8, two methods, a minute

Each run is kept in a results file as it ends; a campaign that was cut short
goes on there.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.common import cli
from scripts.common.report import table
from scripts.psgd import xor
from scripts.psgd.xor import METHODS, SEARCH

TUNING_SEED, SEARCH_SEED, FRESH_SEED = 1000, 2000, 3000
# How often a best rate on the edge of its grid may extend it.
MAX_EXTENSIONS = 2
DELAY_OF_SEARCH = 55


def main():
  args = parse_arguments()
  caps = {"cap": args.cap, "tuning_cap": args.tuning_cap}
  grid = {"rates": args.rates, "tuning_seeds": args.tuning_seeds}
  trains = not (args.report or args.search_55)
  path = args.out / ("quick.json" if args.quick else "results.json")
  results = opened(path, {**caps, **grid}, trains)
  search = opened(args.out / "search.json", caps, args.search_55)
  if trains:
    for cell in args.cells:
      run_campaign(results, cell, args)
  elif not args.report:
    run_search(search, args)
  if not args.search_55:
    for cell in xor.CELLS:
      report_campaign(results, cell)
    if results.records:
      draw(results, path.with_suffix(".png"))
  if args.search_55 or args.report:
    report_search(search)


def opened(path, settings, to_train) -> cli.Results:
  """The results file; its settings must be ours only where we add to it."""
  if path.exists() and not to_train:
    settings = json.loads(path.read_text())["settings"]
  return cli.Results(path, settings)


def parse_arguments():
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add("--cells", nargs="+", choices=xor.CELLS, default=list(xor.CELLS))
  add("--delays", nargs="+", type=int, default=[32, 55, 64, 112])
  add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
  add("--seeds", type=int, default=5, help="runs of each method")
  add("--cap", type=int, default=20_000, help="iterations of a run, at most")
  add("--rates", type=int, default=4, help="learning rates tried, at least")
  add("--tuning-cap", type=int, default=10_000, help="iterations of a trial")
  add("--tuning-seeds", type=int, default=1, help="runs at each rate")
  add(
    "--budget-minutes",
    type=float,
    default=60,
    help="no run but of the first delay is begun later",
  )
  add("--out", type=Path, default=Path("out/delayed_xor"))
  add("--search-55", action="store_true", help="search settings for delay 55")
  add(
    "--fresh-seed",
    type=int,
    default=FRESH_SEED,
    help="the first of --seeds on which the best setting is confirmed",
  )
  add("--report", action="store_true", help="only print what there is")
  add("--quick", action="store_true", help="a small form, about a minute")
  args = parser.parse_args()
  args.deadline = time.monotonic() + 60 * args.budget_minutes
  if args.quick:
    args.cells, args.delays = ["RNN"], [8]
    args.methods, args.seeds = ["PSGD rank 10", "SGD"], 1
    args.rates, args.cap, args.tuning_cap = 2, 2000, 1000
  return args


# Training


def train(results, key, problem, make, rate, seed, cap):
  """The record of one run, from the results file where it is there."""

  def run():
    with tqdm(total=cap, desc=key, mininterval=1, leave=False) as bar:

      def look(done, loss):
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update(done - bar.n)

      return xor.train(problem, make, rate, seed, cap, look)

  return results.get(key, run)


def merit(runs):
  """Smaller is better: iterations, the cap where unsolved, then the loss."""
  spent = [run["iterations"] if run["solved"] else run["cap"] for run in runs]
  loss = float(np.mean([float(run["loss"]) for run in runs]))
  return float(np.mean(spent)), loss if np.isfinite(loss) else float("inf")


def tune(results, problem, name, args) -> float:
  """The best learning rate of a method; a best one on the edge goes on."""
  method, tried = METHODS[name], {}

  def attempt(step):
    """The rate that lies `step` half decades from the centre."""
    rate = float(f"{method.centre * 10 ** (step / 2):.3g}")
    tried[step] = merit(
      [
        train(
          results,
          f"{problem.cell}/{problem.length}/{name}/tune/{rate:g}/{seed}",
          problem,
          method.make,
          rate,
          seed,
          args.tuning_cap,
        )
        for seed in range(TUNING_SEED, TUNING_SEED + args.tuning_seeds)
      ]
    )
    return rate

  first = -((args.rates - 1) // 2)
  rates = {step: attempt(step) for step in range(first, first + args.rates)}
  for _ in range(MAX_EXTENSIONS):
    best = min(tried, key=tried.get)
    if best not in (min(tried), max(tried)):
      break
    beyond = best - 1 if best == min(tried) else best + 1
    rates[beyond] = attempt(beyond)
  return rates[min(tried, key=tried.get)]


def run_campaign(results, cell, args):
  """Tunes at the first delay, then every method with one seed after another.

  So what the budget cuts off, it cuts off evenly.
  """
  first = xor.Problem(cell, args.delays[0])
  rates = {name: tune(results, first, name, args) for name in args.methods}
  for delay in args.delays:
    for seed, name in itertools.product(range(args.seeds), args.methods):
      if delay != args.delays[0] and time.monotonic() > args.deadline:
        return
      problem, key = xor.Problem(cell, delay), f"{cell}/{delay}/{name}/{seed}"
      make = METHODS[name].make
      train(results, key, problem, make, rates[name], seed, args.cap)


def run_search(search, args):
  """Tries each setting on one seed, and the best one on fresh seeds."""
  problem, trials = xor.Problem("RNN", DELAY_OF_SEARCH), {}
  for setting in SEARCH:
    # The other half of the budget is for the confirmation.
    if trials and time.monotonic() > args.deadline - 30 * args.budget_minutes:
      break
    trials[setting] = train(
      search,
      f"search/{setting}",
      problem,
      setting.make,
      setting.rate,
      SEARCH_SEED,
      args.tuning_cap,
    )
  best = min(trials, key=lambda setting: merit([trials[setting]]))
  for seed in range(args.fresh_seed, args.fresh_seed + args.seeds):
    key = f"fresh/{best}/{seed}"
    train(search, key, problem, best.make, best.rate, seed, args.cap)


# Reading the results back


def iterations(runs) -> np.ndarray:
  """Iterations of each run, infinite where it was not solved."""
  return np.array(
    [run["iterations"] if run["solved"] else np.inf for run in runs]
  )


def middle(runs) -> str:
  """The median number of iterations, unsolved runs counted as longest."""
  median = float(np.median(iterations(runs)))
  cap = max(run["cap"] for run in runs)
  return f"{median:.0f}" if np.isfinite(median) else f"> {cap}"


def solved(runs) -> str:
  return f"{sum(run['solved'] for run in runs)}/{len(runs)}"


def grouped(results) -> dict:
  """Runs by (cell, delay, method), and those of tuning by (..., "tune")."""
  groups = {}
  for key, run in results.records.items():
    cell, delay, name, *rest = key.split("/")
    part = (cell, int(delay), name, *(["tune"] if "tune" in rest else []))
    groups.setdefault(part, []).append(run)
  return groups


def report_campaign(results, cell):
  groups = grouped(results)
  delays = sorted({k[1] for k in groups if k[0] == cell and len(k) == 3})
  if not delays:
    return
  headers = ["method", "trials", "rate"]
  for delay in delays:
    headers += [f"{delay}: solved", "iterations"]
  rows = []
  for name in METHODS:
    trials = groups.get((cell, delays[0], name, "tune"))
    runs = [groups.get((cell, delay, name)) for delay in delays]
    if trials and any(runs):
      rate = next(filter(None, runs))[0]["rate"]
      row = [name, len(trials), f"{rate:.3g}"]
      for part in runs:
        row += [solved(part), middle(part)] if part else ["", ""]
      rows.append(row)
  seeds = sorted({run["seed"] for runs in groups.values() for run in runs})
  print(
    f"\n{cell}: runs solved, and the median of their iterations. Rates were "
    f"tuned at delay {delays[0]}.\n"
    f"Seeds (from {TUNING_SEED} on for tuning): {seeds}.\n"
  )
  print(table(headers, rows))


def report_search(search):
  if not search.records:
    return
  headers = ["rate", "rank", "normalizer", "group rate", "momentum"]
  headers += ["scale", "clip", "solved", "iterations", "last loss"]
  rows = []
  for setting in SEARCH:
    run = search.records.get(f"search/{setting}")
    if run:
      result = [solved([run]), middle([run]), float(run["loss"])]
      rows.append([*setting.cells(), *result])
  print(
    f"\nRNN, delay {DELAY_OF_SEARCH}: {len(rows)} settings of low-rank PSGD "
    f"on seed {SEARCH_SEED}.\n\n{table(headers, rows)}"
  )
  for setting in SEARCH:
    runs = [
      run
      for key, run in search.records.items()
      if key.startswith(f"fresh/{setting}/")
    ]
    if runs:
      chosen = dict(zip(headers, setting.cells(), strict=False))
      seeds = [run["seed"] for run in runs]
      print(
        f"\nOn fresh seeds {seeds}, with "
        + ", ".join(f"{name} {value}" for name, value in chosen.items())
        + f":\nsolved {solved(runs)}; iterations: "
        + ", ".join(middle([run]) for run in runs)
      )


def draw(results, path):
  """Iterations of each run, one panel for each network and delay."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  groups = {k: runs for k, runs in grouped(results).items() if len(k) == 3}
  panels = sorted({k[:2] for k in groups}, key=lambda k: (k[0] != "RNN", k[1]))
  names = [name for name in METHODS if any(k[2] == name for k in groups)]
  figure, axes = plt.subplots(
    1,
    len(panels),
    figsize=(2.0 + 3.6 * len(panels), 1.6 + 0.32 * len(names)),
    sharey=True,
    squeeze=False,
    layout="constrained",
  )
  for ax, (cell, delay) in zip(axes[0], panels, strict=True):
    for row, name in enumerate(names):
      runs = groups.get((cell, delay, name), [])
      if not runs:
        continue
      colour = "tab:blue" if name.startswith("PSGD") else "tab:orange"
      done = iterations(runs)
      good = np.isfinite(done)
      caps = np.array([run["cap"] for run in runs])
      # Runs with the same number of iterations stay apart.
      height = row + np.linspace(-0.2, 0.2, len(runs)) * (len(runs) > 1)
      ax.plot(done[good], height[good], "o", color=colour, alpha=0.8, ms=5)
      ax.plot(caps[~good], height[~good], "x", color="0.55", ms=5)
      where = {"transform": ax.get_yaxis_transform(), "va": "center"}
      ax.text(1.02, row, solved(runs), fontsize=9, **where)
    ax.set_title(f"{cell}, delay {delay}")
    ax.set_xlabel("iterations")
    ax.set_xlim(left=0)
    ax.grid(axis="x", color="0.92")
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
  figure.supxlabel("dot: a solved run; cross: given up", fontsize=9)
  figure.savefig(path, dpi=130)
  plt.close(figure)
  print(f"\npicture: {path}")


if __name__ == "__main__":
  main()
