"""Adapting a small language model: GeN-AdamW against schedules.

The language generation of the GeN paper (Tables 3 and 8, Figure 9, section 4.1)
without its weights: a byte-level transformer trained on Tiny Shakespeare learns
to put E2E's records into words, by all weights, by LoRA and by BitFit. Each
schedule's peak rate is searched over eight rates on a seed of its own, an edge
of the grid extends it; GeN has nothing to search. Numbers are from other seeds.

  python scripts/finetune_e2e.py --quick              a minute, templates
  python scripts/finetune_e2e.py --data-dir DATA

Without `--data-dir` the texts are Python's language reference, and sentences
made from templates.
"""

import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from common import adapting, cli, tuning
from common.report import WINDOW, smooth, table
from tqdm import tqdm

from gen_optax import plotting

GEN = "GeN"
BASE = tuning.BASES["adamw"]


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
  print(f"\npicture: {draw(found, args)}")
  print(f"results: {results.path}")
  print(f"time: {time.perf_counter() - began:.0f} s")


def parse_arguments():
  parser = cli.parser(__doc__.splitlines()[0], out="out/finetune_e2e")
  parser.add_argument(
    "--ways", nargs="+", choices=adapting.WAYS, default=adapting.WAYS
  )
  parser.add_argument("--pretraining", type=int, default=1500, help="steps")
  args = parser.parse_args()
  args.schedules = tuning.SCHEDULES
  args.steps = args.steps or 300
  if args.quick:
    args.steps, args.pretraining, args.seeds = 50, 50, 1
    args.schedules, args.ways = ("constant",), ("LoRA",)
  args.search_seeds = [0]
  args.report_seeds = list(range(1, 1 + args.seeds))
  return args


def one_way(results, task, args) -> dict:
  """Runs of each schedule at its best rate, of GeN, and GeN's speed."""
  steps, seeds = args.steps, args.report_seeds
  scheduled = tuning.scheduled(BASE.make)
  gen = tuning.untuned_gen(BASE.make)
  untuned = {"rate": jnp.float32(1e-3)}

  def bar(name, runs):
    total = runs * steps
    return tqdm(total=total, desc=f"{task.name}, {name}", mininterval=1)

  def setting(schedule, rate):
    shape = tuning.schedule_shape(schedule, steps)
    return {"rate": jnp.float32(rate), "shape": jnp.asarray(shape)}

  def tuned(schedule):
    with bar(schedule, len(BASE.rates) + len(seeds)) as shown:
      search = tuning.tune(
        *(task, scheduled, schedule, BASE.rates),
        *(args.search_seeds, steps, shown),
      )
      best = setting(schedule, search["best_rate"])
      runs = tuning.run(task, scheduled, best, seeds, steps, shown)
    return {**tuning.record(runs), "search": search}

  def own_rate():
    with bar(GEN, len(seeds)) as shown:
      runs = tuning.run(task, gen, untuned, seeds, steps, shown)
    return tuning.record(runs)

  def relative_time():
    base = setting("constant", 1e-3)
    return tuning.relative_time(task, gen, untuned, scheduled, base, seeds[:1])

  found = {
    name: results.get(f"{task.name}/{name}", lambda name=name: tuned(name))
    for name in args.schedules
  }
  found[GEN] = results.get(f"{task.name}/{GEN}", own_rate)
  found["time"] = results.get(f"{task.name}/time", relative_time)
  return found


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
  peak = f"{record['search']['best_rate']:.2g}" if "search" in record else "-"
  losses = [
    np.asarray(record[where][what], float)
    for where, what in (
      ("last", "train_loss"),
      ("last", "test_loss"),
      ("average", "test_loss"),
    )
  ]
  return [name, peak, *(f"{x.mean():.3f} ± {x.std():.3f}" for x in losses)]


def draw(found, args):
  """The loss of GeN and of the schedules, and their rates; a row for a way."""
  path = args.out / ("quick.png" if args.quick else "finetune_e2e.png")
  path.parent.mkdir(parents=True, exist_ok=True)
  figure, axes = plt.subplots(
    *(len(found), 2),
    figsize=(9.6, 3.2 * len(found)),
    layout="constrained",
    squeeze=False,
  )
  for (way, records), pair in zip(found.items(), axes, strict=True):
    runs = runs_of(records)
    curves = lambda what, runs=runs: {
      name: smooth(runs[name][what])
      for name in sorted(runs, key=lambda name: name != GEN)
    }
    plotting.plot_history(curves("loss"), curves("rate"), axes=pair)
    pair[0].set_title(f"{way}: training loss, mean of {WINDOW} steps")
    pair[1].set_title(f"{way}: learning rate")
  figure.savefig(path, dpi=110)
  plt.close(figure)
  return path


if __name__ == "__main__":
  main()
