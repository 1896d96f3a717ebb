"""GeN against learning rate schedules on image classifiers.

In kind what Figure 4, appendix C.6 and Table 2 of the GeN paper show: a
residual network, the same without its skips, and a vision transformer, scaled
in width. Each schedule's peak rate is searched over eight rates on a seed of
its own, an edge of the grid extends it; GeN has nothing to search. Every number
printed is from other seeds.

  python scripts/vision.py --quick                       a minute
  python scripts/vision.py                               digits
  python scripts/vision.py --data-dir DATA --images mnist
  python scripts/vision.py --data-dir DATA --images cifar --width 64    on a GPU

The paper's pretrained networks do not come with this package.
"""

import time

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from common import cli, tasks, tuning
from common.report import WINDOW, smooth, table
from tqdm import tqdm

from gen_optax import plotting

NETWORKS = ("resnet", "plain", "vit")
BASES = ("momentum", "adamw")
GEN = "GeN"


def main():
  args = parse_arguments()
  began = time.perf_counter()
  results = cli.Results(
    args.out / ("quick.json" if args.quick else f"{args.images}.json"),
    {name: getattr(args, name) for name in ("steps", "seeds", "width")},
  )
  for network in args.networks:
    task = tasks.vision(network, args.images, args.width, args.data_dir)
    steps = args.steps or task.steps
    found = {base: one_base(results, task, base, steps, args) for base in BASES}
    show(task, steps, found, args)
  print(f"\nresults: {results.path}")
  print(f"time: {time.perf_counter() - began:.0f} s")


def parse_arguments():
  parser = cli.parser(__doc__.splitlines()[0], out="out/vision")
  parser.add_argument("--networks", nargs="+", choices=NETWORKS)
  parser.add_argument(
    "--images", choices=["digits", "mnist", "cifar"], default="digits"
  )
  parser.add_argument("--width", type=int, default=8, help="a multiple of 4")
  args = parser.parse_args()
  args.schedules = tuning.SCHEDULES
  if args.quick:
    args.steps, args.seeds = args.steps or 50, 1
    args.networks = args.networks or ["vit"]
    args.schedules = ("constant", "cosine")
  args.networks = args.networks or NETWORKS
  args.search_seeds = [0]
  args.report_seeds = list(range(1, 1 + args.seeds))
  return args


def one_base(results, task, base, steps, args) -> dict:
  """Runs of each schedule at its best rate, and of GeN, on unseen seeds."""
  key = f"{task.name}/{base}"
  optimizer = tuning.BASES[base]
  scheduled = tuning.scheduled(optimizer.make)
  method = tuning.untuned_gen(optimizer.make)

  def bar(name, runs):
    return tqdm(total=runs * steps, desc=f"{key}, {name}", mininterval=1)

  def tuned(schedule):
    with bar(schedule, len(optimizer.rates) + len(args.report_seeds)) as shown:
      search = tuning.tune(
        *(task, scheduled, schedule, optimizer.rates),
        *(args.search_seeds, steps, shown),
      )
      shape = tuning.schedule_shape(schedule, steps)
      setting = {"rate": jnp.float32(search["best_rate"]), "shape": shape}
      runs = tuning.run(
        task, scheduled, setting, args.report_seeds, steps, shown
      )
    return {**tuning.record(runs), "search": search}

  def untuned():
    with bar(GEN, len(args.report_seeds)) as shown:
      setting = {"rate": jnp.float32(1e-3)}
      runs = tuning.run(task, method, setting, args.report_seeds, steps, shown)
    return tuning.record(runs)

  found = {
    name: results.get(f"{key}/{name}", lambda name=name: tuned(name))
    for name in args.schedules
  }
  return {**found, GEN: results.get(f"{key}/{GEN}", untuned)}


HEADERS = (
  "rate",
  "peak",
  "training loss",
  "test accuracy, %",
  "accuracy at the average, %",
)


def show(task, steps, found, args):
  print(
    f"\n{task.title}, {steps} steps. Peak rates searched on seeds "
    f"{args.search_seeds}; mean and deviation of seeds {args.report_seeds}."
  )
  for base, records in found.items():
    rows = [row(name, record) for name, record in records.items()]
    print(f"\n{base}\n\n{table(HEADERS, rows)}")
  print(f"\npicture: {draw(task, found, args)}")


def row(name, record):
  peak = f"{record['search']['best_rate']:.2g}" if "search" in record else "-"
  percent = lambda where: spread(100 * scores(record, where, "test_accuracy"))
  loss = scores(record, "last", "train_loss")
  cells = [name, peak, f"{loss.mean():.3g}"]
  return [*cells, percent("last"), percent("average")]


def scores(record, where, what) -> np.ndarray:
  return np.asarray(record[where][what], float)


def spread(x) -> str:
  return f"{x.mean():.1f} ± {x.std():.1f}"


def draw(task, found, args):
  """The loss of GeN and of three schedules, and their rates."""
  path = args.out / f"{task.name.replace('/', '_')}.png"
  path.parent.mkdir(parents=True, exist_ok=True)
  figure, axes = plt.subplots(
    len(found), 2, figsize=(9.6, 3.4 * len(found)), layout="constrained"
  )
  for (base, records), pair in zip(found.items(), axes, strict=True):
    kept = [n for n in (GEN, "cosine", "constant", "1/t") if n in records]
    curves = lambda what, kept=kept, records=records: {
      name: smooth(records[name][what]) for name in kept
    }
    plotting.plot_history(curves("loss"), curves("rate"), axes=pair)
    pair[0].set_title(f"{base}: training loss, mean of {WINDOW} steps")
    pair[1].set_title(f"{base}: learning rate")
  figure.suptitle(task.title, fontsize="medium")
  figure.savefig(path, dpi=110)
  plt.close(figure)
  return path


if __name__ == "__main__":
  main()
