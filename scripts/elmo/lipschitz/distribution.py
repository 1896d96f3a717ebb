"""How fast the Hessian changes along its extreme eigenvectors, and what for.

Section 5 and appendices E, I and L of the ELMO/AMOS paper in kind, on nets of a
few thousand parameters. Along runs of SGD the Lipschitz parameters of the
largest (L+) and the smallest eigenvalue's space (L-) are estimated in five
ways, which disagree:

  |D3f[v,v,v]|  the change of the curvature along the eigenvector itself
  |D3f[v,v,.]|  the norm of the eigenvalue's gradient
  remainder     6 |f - its quadratic| / s^3 after Newton's length s = |c / h|
                down along the eigenvector, c the slope and h the curvature
  validated     the smallest power of 2 whose minmax step along the eigenvector
                saves at least half of what the upper model promises
  EigenARC      algorithm 3, which the paper measured with

    python -m scripts.elmo.lipschitz.distribution --quick
    python -m scripts.elmo.lipschitz.distribution
    python -m scripts.elmo.lipschitz.distribution --data-dir DATA  CIFAR-10, 8x8

Superiority of Newton's method, as in appendix E: the loss after a step of
gradient descent less that after Newton's step, both along the largest
eigenvalue's vector only, with the rate that SGD trains with. Rates are searched
on seeds of their own. Records are kept under `--out`, and a run that was cut
short goes on there.
"""

import time

import jax
import numpy as np
from tqdm import tqdm

from scripts.common import cli
from scripts.elmo.lipschitz import cases, lab, pictures, stats, tables
from scripts.elmo.lipschitz.cases import CASES
from scripts.elmo.lipschitz.claims import all_claims

# Powers of ten among which all rates are searched.
RATES = tuple(np.arange(-1.75, 0.51, 0.25).tolist())
# Of the hybrid's Newton steps: FOSI's default.
DAMPING = 0.1
COMPARED = ("residual", "plain", "autoencoder")
SGD, HYBRID = "SGD", "Newton in the top 5, SGD elsewhere"


def parse_arguments():
  parser = cli.parser(__doc__.splitlines()[0], out="out/lipschitz")
  parser.set_defaults(seeds=5)
  parser.add_argument(
    "--looks", type=int, default=100, help="measurements along each run"
  )
  args = parser.parse_args()
  args.width, args.depth, searching = 16, 6, 3
  if args.quick:
    args.steps, args.seeds, args.looks = args.steps or 40, 2, 8
    args.width, args.depth, searching = 8, 3, 1
  args.steps = args.steps or 1200
  unit = args.looks * lab.REFRESH
  if args.steps % args.looks or args.steps % lab.REFRESH:
    raise SystemExit(
      f"--steps must be a multiple of --looks, {args.looks}, and of "
      f"{lab.REFRESH}: take {-(-args.steps // unit) * unit}"
    )
  args.report_seeds = list(range(args.seeds))
  args.search_seeds = list(range(100, 100 + searching))
  return args


class Study:
  """Runs of the cases, each made once and kept."""

  def __init__(self, args):
    self.args = args
    self.split, self.source = cases.images(args.data_dir)
    name = "quick.json" if args.quick else "results.json"
    self.results = cli.Results(
      args.out / name,
      {
        key: getattr(args, key)
        for key in ("steps", "seeds", "looks", "width", "depth", "search_seeds")
      }
      | {"data": self.source},
    )

  def problem(self, case):
    args, features = self.args, self.split.x.shape[1]
    return cases.make_problem(
      CASES[case].kind, features, args.width, args.depth
    )

  def seeds(self, case, seeds):
    return cases.prepare(
      *(CASES[case], self.problem(case), self.split, seeds, self.args.steps)
    )

  def search(self, case, damping=None) -> dict:
    """SGD's best rate, or the hybrid's, by the last loss."""
    quick = self.args.quick
    rates = RATES[3::3] if quick else RATES

    def make():
      problem = self.problem(case)
      seeds = self.seeds(case, self.args.search_seeds)

      def score(rates):
        losses = lab.train(problem, seeds, rates, damping)
        return lab.last_loss(losses).mean(1)

      return lab.search(score, rates, 0 if quick else 4)._asdict()

    which = "sgd" if damping is None else "hybrid"
    return self.results.get(f"rate/{case}/{which}", make)

  def measured(self, case) -> dict:
    """What `lab.look` saw along SGD's run, and the rate."""
    rate = self.search(case)["rate"]

    def make():
      seeds = self.seeds(case, self.args.report_seeds)
      with tqdm(total=self.args.steps, desc=case, unit="step") as bar:
        seen = lab.measure(
          *(self.problem(case), seeds, rate, self.args.looks),
          *(4 if self.args.quick else 10, bar),
        )
      pixels = self.split.x.shape[1]
      outputs = pixels if CASES[case].kind == "autoencoder" else 1
      return {**seen, "rate": rate, "averaged_over": outputs}

    return self.results.get(f"looks/{case}", make)

  def compared(self, case) -> dict:
    """SGD, as measured, and the hybrid at its best."""
    sgd, hybrid = self.search(case), self.search(case, DAMPING)

    def make():
      problem = self.problem(case)
      seeds = self.seeds(case, self.args.report_seeds)
      return lab.train(problem, seeds, [hybrid["rate"]], DAMPING)[0]

    losses = np.array(self.measured(case)["loss"], float)
    return {
      SGD: {**sgd, "losses": losses.reshape(len(losses), -1)},
      HYBRID: {**hybrid, "losses": self.results.get(f"hybrid/{case}", make)},
    }


def main():
  args = parse_arguments()
  jax.config.update("jax_enable_x64", True)
  began = time.perf_counter()
  study = Study(args)
  print(
    f"{study.source}; {args.steps} steps of SGD with batches of "
    f"{cases.BATCH}; {args.looks} looks at the Hessian of the next "
    f"batch.\nSeeds {args.report_seeds}; rates searched on seeds "
    f"{args.search_seeds}. Numbers in brackets: lowest and highest seed."
  )
  for case in CASES:
    problem = study.problem(case)
    print(f"  {case}: {problem.kind}, {problem.size} parameters")
  records = {case: study.measured(case) for case in CASES}
  training = {}
  # Nearly all of the quick form's time is compilation.
  compared = COMPARED[1:] if args.quick else COMPARED
  for case in (bar := tqdm(compared, desc="SGD and hybrid", unit="task")):
    training[case] = study.compared(case)
    last = (stats.last_loss(run) for run in training[case].values())
    bar.set_postfix_str(" / ".join(f"loss {x.mean():.4f}" for x in last))
  tables.show(records, training, lab.control())
  tables.show_claims(all_claims(records, training))

  prefix = "quick_" if args.quick else ""
  labels = ("residual", "random labels", "noise")
  nets = (("residual", "plain"), ("plain", "autoencoder"))
  draw = [
    ("labels", pictures.draw_curves, records, (labels,), args.steps),
    ("networks", pictures.draw_curves, records, nets, args.steps),
    ("superiority", pictures.draw_scatter, records),
    ("selection", pictures.draw_training, training),
  ]
  for name, picture, *what in draw:
    path = args.out / f"{prefix}{name}.png"
    picture(path, *what)
    print(f"picture: {path}")
  print(f"records: {study.results.path}")
  print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
  main()
