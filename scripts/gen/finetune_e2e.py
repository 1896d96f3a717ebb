"""Adapting a small language model: GeN-AdamW against schedules.

The language generation of the GeN paper (Tables 3 and 8, Figure 9, section 4.1)
without its weights: a byte-level transformer trained on Tiny Shakespeare learns
to put E2E's records into words, by all weights, by LoRA and by BitFit. Each
schedule's peak rate is searched over eight rates on a seed of its own, an edge
of the grid extends it; GeN has nothing to search. Numbers are from other seeds.

  python -m scripts.gen.finetune_e2e --quick              a minute, templates
  python -m scripts.gen.finetune_e2e --data-dir DATA

Without `--data-dir` the texts are Python's language reference, and sentences
made from templates.
"""

import time

import jax
import numpy as np

from scripts.common import cli, methods, tuning
from scripts.common.report import table
from scripts.gen import adapting, schedules

BASE = methods.BASES["adamw"]


def main():
  args = parse_arguments()
  began = time.perf_counter()
  weights, source, loss = adapting.pretrain(args.data_dir, args.pretraining)
  data, target = adapting.sentences(args.data_dir)
  results = cli.Results(
    args.out / ("quick.json" if args.quick else "results.json"),
    {
      "texts": [source, target],
      **{k: getattr(args, k) for k in ("steps", "seeds", "pretraining")},
    },
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(weights))
  print(
    f"\n{count} weights, {args.pretraining} steps on {source}: test loss "
    f"{loss:.3f}.\nAdapted to {target} for {args.steps} steps. Peak rates "
    f"searched on seeds {args.search_seeds}; results of {args.report_seeds}."
  )
  found = {}
  for way in args.ways:
    task = adapting.adapt(way, weights, data, target, args.steps)
    found[way] = one_way(results, task, args)
    show(task, found[way])
  path = args.out / ("quick.png" if args.quick else "finetune_e2e.png")
  drawn = (schedules.GEN, *args.schedules)
  print(f"\npicture: {schedules.draw(path, found, drawn)}")
  print(f"results: {results.path}")
  print(f"time: {time.perf_counter() - began:.0f} s")


def parse_arguments():
  parser = cli.parser(__doc__.splitlines()[0], out="out/finetune_e2e")
  parser.add_argument(
    "--ways", nargs="+", choices=adapting.WAYS, default=adapting.WAYS
  )
  parser.add_argument("--pretraining", type=int, default=1500, help="steps")
  args = parser.parse_args()
  args.schedules, args.base = methods.SCHEDULES, BASE
  args.steps = args.steps or 300
  if args.quick:
    args.steps, args.pretraining, args.seeds = 50, 50, 1
    args.schedules, args.ways = ("constant",), ("LoRA",)
    args.base = BASE._replace(rates=BASE.rates[3:7])
  args.search_seeds = [0]
  args.report_seeds = list(range(1, 1 + args.seeds))
  return args


def one_way(results, task, args) -> dict:
  """Runs of each schedule at its best rate, of GeN, and GeN's time."""
  found = schedules.compare(
    results, task.name, task, args.base, args.steps, args
  )

  def relative_time():
    return tuning.relative_time(
      *(task, methods.untuned_gen(BASE), schedules.INITIAL),
      *(methods.scheduled(BASE.make),),
      schedules.setting("constant", 1e-3, args.steps),
      args.report_seeds[:1],
    )

  return {**found, "time": results.get(f"{task.name}/time", relative_time)}


HEADERS = ("rate", "peak", "training loss", "test loss", "at the average")


def show(task, found):
  rows = [row(name, record) for name, record in runs_of(found).items()]
  low, middle, high = map(float, found["time"])
  trained = sum(
    leaf.size for leaf in jax.tree.leaves(task.init(jax.random.key(0)))
  )
  print(
    f"\n{task.title}, {trained} trained parameters\n\n{table(HEADERS, rows)}"
  )
  print(
    f"GeN's speed relative to AdamW's: {1 / middle:.2f} "
    f"({1 / high:.2f}-{1 / low:.2f}), fitting every step"
  )


def runs_of(found) -> dict:
  return {name: record for name, record in found.items() if name != "time"}


def row(name, record):
  losses = [
    np.asarray(record[where][what], float)
    for where, what in (
      ("last", "train_loss"),
      ("last", "test_loss"),
      ("average", "test_loss"),
    )
  ]
  return [
    name,
    schedules.peak(record),
    *(f"{x.mean():.3f} ± {x.std():.3f}" for x in losses),
  ]


if __name__ == "__main__":
  main()
