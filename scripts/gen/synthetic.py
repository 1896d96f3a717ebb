"""A race on Rosenbrock's and Beale's functions: tuned rates against none.

Figures 6 and 7 and Appendix B.1 of the GeN paper (Bu and Xu, 2024). Every base
optimizer runs with each rate of the paper's 18-value grid and keeps the best.
Its GeN form gets no such search: it runs from three initial rates, 1e-6, 1e-2
and 1, and is judged by the median of the three: with the default rule, and
with the greedy one, which is meant for losses without noise. The paper's own
rules run from the same three: Algorithm 1, which also has its initial rate
tuned, and eq. 3.2, fitted or with exact derivatives (GeN-HOD).
PSGD (an X-shaped preconditioner, which in two dimensions is a dense one, steps
clipped to norm 1) joins with its rate tuned and with GeN behind it, and ELMO
with exact eigenpairs and nothing to tune: its sigma starts at 1e-2, 1 and 100.

    python -m scripts.gen.synthetic rosenbrock
    python -m scripts.gen.synthetic all --held-out 8 --seed 1

The race, in float64, and who runs in it are in `race.py`.
"""

import argparse
import math
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from gen_optax import plotting, problems
from scripts.common import report
from scripts.gen.race import (
  BASES,
  CURVED,
  ENTRANTS,
  INITIAL_RATES,
  INITIAL_SIGMAS,
  TIE,
  WIDE_GRID,
  as_good,
  judge,
  race,
)


def finals_table(records, starts) -> str:
  """One row for each entrant, one column for each start."""
  headers = ["entrant"] + [f"({x:.3g}, {y:.3g})" for x, y in starts]
  rows = []
  for entrant in ENTRANTS:
    cells = []
    for i in range(len(starts)):
      record = records[entrant.name, i]
      cell = report.number(record["final"])
      if not entrant.tuned:
        cell += f" / {report.number(record['worst'])}"
      elif math.isfinite(record["final"]):
        cell += f" @ {record['rate']:g}" + "*" * record["at_edge"]
      if entrant.against:
        rival = records[entrant.against, i]["final"]
        cell += " +" if as_good(record["final"], rival) else " -"
      cells.append(cell)
    rows.append([entrant.name, *cells])
  return report.table(headers, rows)


LEGEND = """Loss at the end of the race.
tuned:   the best of the 18-value grid @ its rate (* the grid's edge)
untuned: the median over the initial rates 1e-6, 1e-2, 1 / the worst of them;
         for ELMO over the initial sigmas 1e-2, 1, 100
+ or -:  as good as the tuned base, or not"""


def compare(records, method: str, reference: str) -> dict:
  """How often a method does as well as its rivals' `reference` loss."""
  rivals = {e.name: e.against for e in ENTRANTS if e.method == method}
  cells = [
    (problem, name, start)
    for problem, by_start in records.items()
    for name, start in by_start
    if name in rivals
  ]
  behind = []
  for problem, name, start in cells:
    record = records[problem][name, start]
    rival = records[problem][rivals[name], start]
    if not as_good(record["final"], rival[reference]):
      at = ", ".join(f"{x:.3g}" for x in record["start"])
      behind.append(
        f"{name}, {problem} from ({at}): {report.number(record['final'])} "
        f"against {report.number(rival[reference])}"
      )
  return {
    "cells": len(cells),
    "as_good": len(cells) - len(behind),
    "behind": behind,
  }


def acceptance(records, title: str) -> dict:
  """Prints and returns what each method is judged by.

  `records` holds, for each problem's name, the records by entrant and start.
  """
  methods = dict.fromkeys(e.method for e in ENTRANTS if e.against)
  summary, rows = {}, []
  for method in methods:
    mine = [
      record
      for by_start in records.values()
      for record in by_start.values()
      if record["method"] == method
    ]
    result = {
      "runs": sum(len(record["finals"]) for record in mine),
      "lost_runs": sum(record["lost_runs"] for record in mine),
      "against_paper_grid": compare(records, method, "final"),
      "against_wide_grid": compare(records, method, "wide_final"),
    }
    summary[method] = result
    rows.append(
      [
        method,
        f"{result['lost_runs']} of {result['runs']}",
        share(result["against_paper_grid"]),
        share(result["against_wide_grid"]),
      ]
    )
  headers = [
    "method",
    "runs non-finite or above start",
    "as good as tuned base",
    "base's grid 2 decades wider each way",
  ]
  print(f"\n{title}; losses below {TIE:g} count as a tie")
  print(report.table(headers, rows))
  for name in summary["GeN"]["against_paper_grid"]["behind"]:
    print(f"  behind: {name}")
  return summary


def share(comparison: dict) -> str:
  good, cells = comparison["as_good"], comparison["cells"]
  return f"{good} of {cells} ({100 * good / cells:.0f} %)"


def draw(problem, races, records, steps: int, path: Path):
  """The four panels of Figures 6 and 7, from the problem's first start."""
  import matplotlib.pyplot as plt

  figure, panels = plt.subplots(2, 2, figsize=(11, 8.4), layout="constrained")
  bases = [*BASES, *CURVED]
  colour = dict(zip(bases, [*plotting.COLOURS, "0.55"], strict=True))
  colour["elmo"] = "tab:brown"
  every_base = [*bases, "gen sgd", "elmo"]
  pairs = [form for base in bases for form in (base, f"gen {base}")]
  few = [
    form
    for base in ("momentum", "adam", *CURVED)
    for form in (base, f"gen {base}")
  ] + ["elmo"]

  def run(name):
    """Losses and points of the tuned run, or of the middle initial rate."""
    if name in bases:
      rate = records[name, 0]["rate"]
      k = WIDE_GRID.index(rate) if rate in WIDE_GRID else 0
    elif name == "elmo":
      k = INITIAL_SIGMAS.index(1.0)
    else:
      k = INITIAL_RATES.index(1e-2)
    return races[name].losses[0, k], races[name].points[0, k]

  def style(name):
    form = {"ls": "--", "lw": 1.2} if name in bases else {"ls": "-", "lw": 1.8}
    return {"color": colour[name.removeprefix("gen ")], **form}

  for axes, names in ((panels[0, 0], every_base), (panels[1, 0], pairs)):
    for name in names:
      axes.plot(np.maximum(run(name)[0], TIE / 10), **style(name))
    axes.set_yscale("log")
    axes.set_ylim(bottom=TIE)
    axes.set_xlim(0, steps)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
  panels[0, 0].set_title("tuned optimizers and untuned GeN-SGD")
  panels[1, 0].set_title(
    "each tuned optimizer (dashed) and its GeN form (solid)"
  )
  ends = np.sort([problem.starts[0], problem.minimizer], axis=0)
  view = np.clip(ends + [[-1.7], [1.7]], *np.transpose(problem.box)).T
  # The lengths that the paper draws.
  short, long = (40, 180) if problem.name == "Rosenbrock" else (60, 40)
  for axes, names, length in (
    (panels[0, 1], every_base, min(short, steps)),
    (panels[1, 1], few, min(long, steps)),
  ):
    plotting.plot_trajectories(
      problem.fn,
      {name: run(name)[1][: length + 1] for name in names},
      view,
      minimizer=problem.minimizer,
      styles={name: style(name) for name in names},
      axes=axes,
    )
    axes.get_legend().remove()
    axes.set_title(f"the first {length} steps (star: the minimum)")
  lines = [plt.Line2D([], [], **style(f"gen {b}"), label=b) for b in bases]
  lines.append(plt.Line2D([], [], **style("elmo"), label="elmo, untuned"))
  for ls, meaning in (("--", "tuned"), ("-", "GeN form, untuned")):
    lines.append(plt.Line2D([], [], color="0.4", ls=ls, label=meaning))
  figure.legend(
    handles=lines, loc="outside lower center", ncols=len(lines) // 2
  )
  start = ", ".join(f"{x:g}" for x in problem.starts[0])
  figure.suptitle(f"{problem.name} from ({start}); GeN from initial rate 0.01")
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=130)
  plt.close(figure)


def random_starts(problem, n: int, seed: int) -> np.ndarray:
  low, high = np.transpose(problem.box)
  return np.random.default_rng(seed).uniform(low, high, (n, len(low)))


def run_problem(problem, args, bar) -> dict:
  """Races everybody on one problem, draws and prints; returns the records."""
  began = time.perf_counter()
  usual = np.array(problem.starts[: args.starts])
  drawn = random_starts(problem, args.held_out, args.seed)
  starts = np.concatenate([usual, drawn])
  races, records = {}, {}
  for entrant in ENTRANTS:
    bar.set_description(f"{problem.name}: {entrant.name}")
    races[entrant.name] = race(entrant, problem.fn, starts, args.steps)
    for i, losses in enumerate(races[entrant.name].losses):
      records[entrant.name, i] = judge(entrant, starts[i], losses)
    bar.update()
  path = args.out / f"synthetic_{problem.name.lower()}.png"
  draw(problem, races, records, args.steps, path)
  seconds = time.perf_counter() - began
  tqdm.write(f"\n{problem.name}. {LEGEND}\n{finals_table(records, starts)}")
  tqdm.write(f"{seconds:.0f} s with compilation; figure: {path}")
  return records


def parse_args():
  parser = argparse.ArgumentParser(
    description="Tuned optimizers against untuned GeN on test functions."
  )
  parser.add_argument("problem", choices=["rosenbrock", "beale", "all"])
  parser.add_argument("--steps", type=int, default=1000)
  parser.add_argument(
    "--starts",
    type=int,
    default=4,
    choices=range(1, 5),
    help="how many of the usual starts",
  )
  parser.add_argument(
    "--held-out", type=int, default=0, help="how many random starts besides"
  )
  parser.add_argument(
    "--seed", type=int, default=0, help="seed of the random starts"
  )
  parser.add_argument("--out", type=Path, default=Path("out"))
  parser.add_argument(
    "--quick", action="store_true", help="100 steps from one start"
  )
  args = parser.parse_args()
  if args.quick:
    args.steps, args.starts = 100, 1
  return args


def main():
  args = parse_args()
  jax.config.update("jax_enable_x64", True)
  makers = {"rosenbrock": problems.rosenbrock, "beale": problems.beale}
  names = list(makers) if args.problem == "all" else [args.problem]
  print(f"{args.steps} steps in float64 from {args.starts} usual starts")
  if args.held_out:
    print(f"and {args.held_out} random ones drawn with seed {args.seed}")
  with tqdm(total=len(names) * len(ENTRANTS)) as bar:
    records = {name: run_problem(makers[name](), args, bar) for name in names}

  def part(keep):
    return {
      name: {key: r for key, r in by_start.items() if keep(key[1])}
      for name, by_start in records.items()
    }

  usual = part(lambda i: i < args.starts)
  summary = {"usual_starts": acceptance(usual, "The usual starts")}
  if args.held_out:
    drawn = part(lambda i: i >= args.starts)
    title = f"The random starts of seed {args.seed}"
    summary["random_starts"] = acceptance(drawn, title)
  path = report.write_json(
    args.out / f"synthetic_{args.problem}.json",
    {
      "acceptance": summary,
      "tie": TIE,
      "records": {
        name: list(by_start.values()) for name, by_start in records.items()
      },
    },
    settings=vars(args),
    seeds=[args.seed],
  )
  print(f"\nrecords: {path}")


if __name__ == "__main__":
  main()
