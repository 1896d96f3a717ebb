"""ELMO with Lanczos against first- and second-order methods at equal cost.

Full-batch problems in float32: a digits classifier, an ill-conditioned logistic
regression, a digits autoencoder, a network that solves Poisson's equation. Two
of them come in float64 too, where L-BFGS does not drown in rounding, and the
regression also from a start where Newton's step is safe.

Each run ends when its work reaches the problem's budget. Work is gradients,
losses and Hessian-vector products, counted in the compiled loop and weighed by
XLA's count of floating-point operations. Every method is tuned over as many
trials on the tuning seed; a best setting on the edge of a grid extends it. The
median of fresh seeds decides.

    python -m scripts.elmo.digits --quick              about a minute
    python -m scripts.elmo.digits
    python -m scripts.elmo.digits --study eigenvalues  Lanczos against LAPACK

Records are kept as they come; a run that was cut short goes on there.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from scripts.common import cli
from scripts.common.report import number, table
from scripts.elmo import equal_cost, full_batch, top_eigenvalues
from scripts.elmo.equal_cost import Setting
from scripts.elmo.full_batch_methods import families
from scripts.elmo.full_batch_pictures import draw

TUNING_SEED, FRESH_SEED = 1000, 10
# Losses that differ by less than this part are equal: at the minimum, rounding
# alone does as much.
TIE = 0.02


def main():
  args = parse_arguments()
  began = time.perf_counter()
  name = "quick.json" if args.quick else "results.json"
  settings = {"budget": args.budget, "quick": args.quick}
  results = cli.Results(args.out / name, settings)
  if args.study in ("all", "eigenvalues"):
    hidden, images = (12, 200) if args.quick else (60, 300)
    key = f"eigenvalues/{hidden}/{images}"
    top_eigenvalues.show(
      results.get(key, lambda: top_eigenvalues.compare(hidden, images, 0))
    )
  if args.study in ("all", "methods"):
    verdicts = [study(args, results, name) for name in args.problems]
    conclude(verdicts)
  print(f"\nresults: {results.path}")
  print(f"time: {time.perf_counter() - began:.0f} s")


def parse_arguments():
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add("--study", choices=["all", "methods", "eigenvalues"], default="all")
  add(
    "--problems",
    nargs="+",
    choices=list(full_batch.PROBLEMS),
    default=list(full_batch.PROBLEMS),
  )
  add("--seeds", type=int, default=3, help="fresh seeds of each method")
  add("--budget", type=float, default=1.0, help="a factor on every budget")
  add("--out", type=Path, default=Path("out/elmo_digits"))
  add("--quick", action="store_true", help="a small form, about a minute")
  args = parser.parse_args()
  if args.quick:
    args.problems, args.seeds = ["logistic"], 1
  return args


# --- one problem --------------------------------------------------------------


def study(args, results, name):
  """Tunes and runs every method on one problem, and shows it."""
  problem = full_batch.PROBLEMS[name]()
  budget = problem.budget * args.budget
  with jax.enable_x64(problem.float64):
    weights = full_batch.weights(problem)
  seeds = range(FRESH_SEED, FRESH_SEED + args.seeds)

  def record(family, setting, seed):
    form = family.label(setting.form)
    label = f"{family.name}, {form}, {family.axis} {setting.number:g}"

    def train():
      with tqdm(
        total=int(budget), desc=f"{problem.name}: {label}", leave=False
      ) as bar:
        return equal_cost.run(
          problem, family, setting, seed, weights, budget, bar
        )

    return results.get(f"{problem.name}/{label}/{seed}", train)

  found = {}
  for family in families(problem.name):
    if args.quick:
      family = family._replace(
        forms=family.forms[-1:], numbers=family.numbers[-2:]
      )
    tuned = equal_cost.tune(
      family,
      lambda setting, family=family: float(
        record(family, setting, TUNING_SEED)["loss"][-1]
      ),
      extends=not args.quick,
    )
    runs = [record(family, tuned.setting, seed) for seed in seeds]
    found[family.name] = family, tuned, runs
  show(problem, budget, weights, seeds, found)
  suffix = "_quick" if args.quick else ""
  path = args.out / f"{problem.name}{suffix}.png"
  draw(path, problem, budget, {name: x[-1] for name, x in found.items()})
  print(f"picture: {path}")
  return problem.name, {name: medians(x[-1]) for name, x in found.items()}


def medians(runs) -> np.ndarray:
  """The median loss at a quarter, a half and all of the budget."""
  return np.median([[float(x) for x in run["loss"]] for run in runs], axis=0)


def describe(family, setting: Setting) -> str:
  return f"{family.label(setting.form)}; {family.axis} {setting.number:g}"


def show(problem, budget, weights, seeds, found):
  print(
    f"\n{problem.title}.\n"
    f"Budget {budget:.0f} gradients; a loss costs {weights.value:.2f} and a "
    f"Hessian-vector product {weights.product:.2f} gradients.\n"
    f"Tuned on seed {TUNING_SEED}; medians of seeds {list(seeds)}"
    + ("; losses above the minimum.\n" if problem.lowest else ".\n")
  )
  rows = []
  for name, (family, tuned, runs) in sorted(
    found.items(), key=lambda item: medians(item[1][-1])[-1]
  ):
    last = [float(run["loss"][-1]) for run in runs]
    work = {
      key: int(np.median([run["work"][key] for run in runs]))
      for key in runs[0]["work"]
    }
    rows.append(
      [
        name,
        describe(family, tuned.setting),
        f"{tuned.trials}{' (edge)' if tuned.on_edge else ''}",
        *(number(x) for x in medians(runs)),
        f"{number(min(last))} - {number(max(last))}",
        str(int(np.median([run["steps"] for run in runs]))),
        *(str(n) for n in work.values()),
        f"{np.median([float(run['seconds']) for run in runs]):.2f}",
      ]
    )
  headers = ["method", "setting", "trials", "at 1/4", "at 1/2", "loss"]
  headers += ["range", "steps", "gradients", "losses", "products", "seconds"]
  print(table(headers, rows))


def conclude(verdicts):
  """Where ELMO has the lowest median loss at equal cost, and where not."""
  print("\nAt equal cost, by the median of the lowest loss:")
  for problem, losses in verdicts:
    others = {name: x for name, x in losses.items() if name != "ELMO"}
    best = min(others, key=lambda name: others[name][-1])
    ours, theirs = losses["ELMO"][-1], others[best][-1]
    word = "wins" if ours < theirs else "loses"
    if abs(ours - theirs) <= TIE * theirs:
      word = "ties"
    place = sorted(x[-1] for x in losses.values()).index(ours) + 1
    print(
      f"  {problem}: ELMO {word}, {number(ours)} against {number(theirs)} of "
      f"{best} (place {place} of {len(losses)})"
    )


if __name__ == "__main__":
  main()
