"""An optimizer under tuned schedules and under GeN: runs, and their picture."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from gen_optax import plotting
from scripts.common import methods, tuning
from scripts.common.report import WINDOW, smooth

GEN = "GeN"
# Where GeN starts to search; it is not tuned.
INITIAL = {"rate": np.float32(1e-3)}


def setting(schedule: str, rate: float, steps: int) -> dict:
  """Of a run whose rate is a peak times a schedule's shape."""
  shape = methods.schedule_shape(schedule, steps)
  return {"rate": jnp.float32(rate), "shape": jnp.asarray(shape)}


def compare(results, key: str, task, base: methods.Base, steps, args) -> dict:
  """Runs of each schedule at its best peak rate, and of GeN, on unseen seeds.

  Args:
    results: where records are kept, under names that begin with `key`.
    key: the comparison's name.
    task: what is trained.
    base: the optimizer, with the rates that each schedule's peak is tuned over.
    steps: the length of each run.
    args: `schedules`, `search_seeds` and `report_seeds`.

  Returns:
    For each schedule, and for `GEN`, a record of `tuning.record`; those of
    schedules hold the `search` too.
  """
  scheduled = methods.scheduled(base.make)
  untuned = methods.untuned_gen(base)

  def bar(name, runs):
    return tqdm(total=runs * steps, desc=f"{key}, {name}", mininterval=1)

  def confirm(method, chosen, shown):
    runs = tuning.run(task, method, chosen, args.report_seeds, steps, shown)
    return tuning.record(runs)

  def tuned(name):
    with bar(name, len(base.rates) + len(args.report_seeds)) as shown:
      search = tuning.tune(
        *(task, scheduled, name, base.rates),
        *(args.search_seeds, steps, shown),
      )
      best = setting(name, search["best_rate"], steps)
      return {**confirm(scheduled, best, shown), "search": search}

  def own_rate():
    with bar(GEN, len(args.report_seeds)) as shown:
      return confirm(untuned, INITIAL, shown)

  found = {
    name: results.get(f"{key}/{name}", lambda name=name: tuned(name))
    for name in args.schedules
  }
  return {**found, GEN: results.get(f"{key}/{GEN}", own_rate)}


def peak(record) -> str:
  """The peak rate that was found, for a table."""
  return f"{record['search']['best_rate']:.2g}" if "search" in record else "-"


def draw(path, comparisons: dict, names, title: str = ""):
  """Loss and rate of the runs called `names`; a row for each comparison."""
  path.parent.mkdir(parents=True, exist_ok=True)
  figure, axes = plt.subplots(
    *(len(comparisons), 2),
    figsize=(9.6, 3.3 * len(comparisons)),
    layout="constrained",
    squeeze=False,
  )
  for (label, records), pair in zip(comparisons.items(), axes, strict=True):
    curves = lambda what, records=records: {
      name: smooth(records[name][what]) for name in names if name in records
    }
    plotting.plot_history(curves("loss"), curves("rate"), axes=pair)
    pair[0].set_title(f"{label}: training loss, mean of {WINDOW} steps")
    pair[1].set_title(f"{label}: learning rate")
  figure.suptitle(title, fontsize="medium")
  figure.savefig(path, dpi=110)
  plt.close(figure)
  return path
