"""GeN against learning rate schedules on image classifiers.

In kind what Figure 4, appendix C.6 and Table 2 of the GeN paper show: a
residual network, the same without its skips, and a vision transformer, scaled
in width. Each schedule's peak rate is searched over eight rates on a seed of
its own, an edge of the grid extends it; GeN has nothing to search. Every number
printed is from other seeds.

  python -m scripts.gen.vision --quick                     a minute
  python -m scripts.gen.vision                             digits
  python -m scripts.gen.vision --data-dir DATA --images mnist
  python -m scripts.gen.vision --data-dir DATA --images cifar --width 64

The paper's pretrained networks do not come with this package.
"""

import time

import numpy as np

from scripts.common import cli, methods, tasks
from scripts.common.report import table
from scripts.gen import schedules

NETWORKS = ("resnet", "plain", "vit")
BASES = ("momentum", "adamw")
# In the picture.
DRAWN = (schedules.GEN, "cosine", "constant", "1/t")


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
    found = {
      name: schedules.compare(
        *(results, f"{task.name}/{name}", task, methods.BASES[name]),
        *(steps, args),
      )
      for name in BASES
    }
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
  args.schedules = methods.SCHEDULES
  if args.quick:
    args.steps, args.seeds = args.steps or 50, 1
    args.networks = args.networks or ["vit"]
    args.schedules = ("constant", "cosine")
  args.networks = args.networks or NETWORKS
  args.search_seeds = [0]
  args.report_seeds = list(range(1, 1 + args.seeds))
  return args


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
  path = args.out / f"{task.name.replace('/', '_')}.png"
  print(f"\npicture: {schedules.draw(path, found, DRAWN, task.title)}")


def row(name, record):
  percent = lambda where: spread(100 * scores(record, where, "test_accuracy"))
  loss = scores(record, "last", "train_loss")
  cells = [name, schedules.peak(record), f"{loss.mean():.3g}"]
  return [*cells, percent("last"), percent("average")]


def scores(record, where, what) -> np.ndarray:
  return np.asarray(record[where][what], float)


def spread(x) -> str:
  return f"{x.mean():.1f} ± {x.std():.1f}"


if __name__ == "__main__":
  main()
