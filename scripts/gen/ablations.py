"""What each setting of GeN is worth: one change at a time from the defaults.

Batch size, fitting interval Phi, initial rate, probes and degree, smoothing,
fresh slope, horizon and estimator (Figures 3, 5 and 14, A.5, C.2, C.3, C.4 and
C.7 of the GeN paper), for the default rule and, where it has the setting, the
paper's rule, on an MLP on digits and on noisy logistic regression; and the
share of the distance in the default's least rate, on LeNet, which needs MNIST.
Nothing is tuned, so every seed is a report.

  python -m scripts.gen.ablations                everything, some minutes
  python -m scripts.gen.ablations --study every  one study
  python -m scripts.gen.ablations --study distance --data-dir DATA --steps 500
  python -m scripts.gen.ablations --quick        50 steps, one seed, ends only
"""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import gen_optax
from gen_optax import plotting
from scripts.common import cli, methods, tasks, tuning
from scripts.common.report import number, table

TASKS = {"mlp": tasks.mlp, "logistic": tasks.logistic, "lenet": tasks.lenet}
WORKLOADS = (
  ("mlp", "momentum"),
  ("mlp", "adamw"),
  ("logistic", "momentum"),
  ("logistic", "adamw"),
)
LENET = (("lenet", "momentum"), ("lenet", "adamw"), ("lenet", "lion"))
DEFAULT, PAPER = "default", "paper"
# These are arrays to the compiled run: changing them compiles nothing anew.
# `decay` is how far the linear horizon has sunk at the end of the run.
SETTING = {"rate": 1e-3, "smoothing": 0.9, "decay": 0.0}
LOSS_SHOWN = 10.0  # losses above are drawn here


def fit(*probes, degree=2):
  return {"estimator": "fit", "probes": probes, "degree": degree}


def one_probe():
  return {"estimator": "known_slope", "probes": (1.0,), "degree": 2}


def exact(estimator):
  return {"estimator": estimator, "probes": None, "degree": 2}


# The rules' own defaults, spelled out so that studies share their runs.
OPTIONS = {
  DEFAULT: {
    "every": 1,
    "fresh_slope": True,
    "distance": gen_optax.GenRule().distance_share,
    **one_probe(),
  },
  PAPER: {"every": 1, **fit(-1.0, 1.0)},
}


class Study(NamedTuple):
  """One setting and the values it takes.

  Attributes:
    title: what is varied, and where the paper does it.
    values: by label, what is changed from the defaults.
    rules: the rules that have the setting.
    workloads: what is trained.
  """

  title: str
  values: dict[str, dict[str, Any]]
  rules: tuple[str, ...] = (DEFAULT, PAPER)
  workloads: tuple[tuple[str, str], ...] = WORKLOADS


STUDIES = {
  "batch_size": Study(
    "batch size (Figure 3)",
    {str(size): {"batch_size": size} for size in (8, 32, 128, 512)},
  ),
  "every": Study(
    "fitting interval Phi (Figure 5)",
    {str(phi): {"every": phi} for phi in (1, 4, 16)},
  ),
  "initial_rate": Study(
    "initial rate (Figure 14, C.4)",
    {f"1e{k}": {"rate": 10.0**k} for k in range(-6, 3)},
  ),
  "probes": Study(
    "probes of the fit, degree 2 or 4 (A.5, C.2)",
    {
      "-1 1": fit(-1.0, 1.0),
      "-2 2": fit(-2.0, 2.0),
      "1 2": fit(1.0, 2.0),
      "-2 -1 1 2": fit(-2.0, -1.0, 1.0, 2.0),
      "same, deg 4": fit(-2.0, -1.0, 1.0, 2.0, degree=4),
    },
  ),
  "smoothing": Study(
    "smoothing gamma (C.3)",
    {f"{x:g}": {"smoothing": x} for x in (0.0, 0.5, 0.9, 0.97, 0.99)},
  ),
  "fresh_slope": Study(
    "slope on fresh data",
    {"on": {"fresh_slope": True}, "off": {"fresh_slope": False}},
    rules=(DEFAULT,),
  ),
  "horizon": Study(
    "horizon (C.7)", {"none": {"decay": 0.0}, "linear": {"decay": 1.0}}
  ),
  "estimator": Study(
    "estimator of slope and curvature",
    {
      "known_slope": one_probe(),
      "fit": fit(-1.0, 1.0),
      "forward": exact("forward"),
      "hvp": exact("hvp"),
    },
  ),
  "distance": Study(
    "share of the distance in the least rate",
    {f"{x:g}": {"distance": x} for x in (0.0, 0.1, 0.15, 0.2)},
    rules=(DEFAULT,),
    workloads=LENET,
  ),
}


@functools.cache
def task_of(name: str, data_dir, batch_size: int | None = None) -> tasks.Task:
  task = TASKS[name](data_dir)
  if batch_size is None:
    return task
  return dataclasses.replace(task, batch_size=batch_size)


@functools.cache
def method_of(base: str, rule: str, steps: int, options) -> methods.Method:
  """A base under a rule; `options` are pairs, to be told from others."""

  def make(setting):
    common = {
      "learning_rate": setting["rate"],
      "smoothing": setting["smoothing"],
      "horizon": lambda count: 1.0 - setting["decay"] * count / steps,
      **dict(options),
    }
    optimizer = methods.BASES[base].make()
    if rule == PAPER:
      return optax.chain(optimizer, gen_optax.scale_by_gen_paper(**common))
    rule_with = gen_optax.GenRule(distance_share=common.pop("distance"))
    return gen_optax.generalized_newton(optimizer, rule=rule_with, **common)

  def rate(state, setting, step):
    del setting, step
    name = "ScaleByGenPaperState" if rule == PAPER else "ScaleByGenState"
    return optax.tree.get(state, name).learning_rate

  return methods.Method(make, rate)


def run_one(workload, rule, change, args, progress) -> dict:
  """Trains every seed of one workload with one change from the defaults."""
  name, base = workload
  change = dict(change)
  task = task_of(name, args.data_dir, change.pop("batch_size", None))
  setting = {
    key: jnp.float32(change.pop(key, usual)) for key, usual in SETTING.items()
  }
  options = OPTIONS[rule] | change
  method = method_of(base, rule, args.steps, tuple(sorted(options.items())))
  return tuning.record(
    tuning.run(task, method, setting, args.report_seeds, args.steps, progress)
  )


def key_of(workload, rule, change, data_dir) -> str:
  """The same for every study that comes to the same run."""
  usual = {"batch_size": task_of(workload[0], data_dir).batch_size}
  full = usual | SETTING | OPTIONS[rule] | change
  settings = [f"{name}={value}" for name, value in sorted(full.items())]
  return "/".join([*workload, rule, *settings])


def rows_of(study: Study):
  """(workload, rule) for each row of the study's table."""
  return [(w, rule) for w in study.workloads for rule in study.rules]


def run_study(study: Study, args, results, progress) -> dict:
  """Records by workload, rule and label; trains what is missing."""
  records = {}
  for workload, rule in rows_of(study):
    for label, change in study.values.items():
      progress.set_description(f"{' '.join(workload)}, {rule}: {label}")
      before = progress.n
      records[workload, rule, label] = results.get(
        key_of(workload, rule, change, args.data_dir),
        functools.partial(run_one, workload, rule, change, args, progress),
      )
      # A record that was there already counts as its steps.
      progress.update(before + args.steps - progress.n)
  return records


def mean_train_loss(record) -> float:
  return float(np.mean(np.asarray(record["last"]["train_loss"], float)))


def cell(record) -> str:
  """Training loss / test accuracy, and how many seeds diverged."""
  accuracy = np.mean(np.asarray(record["last"]["test_accuracy"], float))
  lost = int(np.sum(record["diverged"]))
  text = f"{number(mean_train_loss(record), 2)} / {100 * accuracy:.1f}"
  return f"{text} ({lost} lost)" if lost else text


def study_table(study: Study, records) -> str:
  rows = [
    [
      f"{' '.join(workload)}, {rule}",
      *(cell(records[workload, rule, label]) for label in study.values),
    ]
    for workload, rule in rows_of(study)
  ]
  return table([study.title.split(" (")[0], *study.values], rows)


# Picture

COLOUR_OF = {
  **dict(zip(WORKLOADS, plotting.COLOURS, strict=False)),
  **dict(zip(LENET, plotting.COLOURS, strict=False)),
}
STYLE_OF = {DEFAULT: "-", PAPER: ":"}


def draw(studies, records_of, path):
  """A panel for each study, and the rates from every initial rate."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  panels = len(records_of) + ("initial_rate" in records_of)
  columns = min(3, panels)
  rows = -(-panels // columns)
  figure, axes = plt.subplots(
    rows,
    columns,
    figsize=(4.6 * columns, 3.3 * rows + 0.6),
    layout="constrained",
    squeeze=False,
  )
  axes = list(axes.flat)
  for name, records in records_of.items():
    draw_study(studies[name], records, axes.pop(0))
  if "initial_rate" in records_of:
    draw_rates(studies["initial_rate"], records_of, axes.pop(0))
  for unused in axes:
    unused.set_axis_off()
  shown = [drawn.get_legend_handles_labels() for drawn in figure.axes]
  by_label = {
    label: handle for pair in shown for handle, label in zip(*pair, strict=True)
  }
  figure.legend(
    by_label.values(), by_label.keys(), loc="outside lower center", ncols=4
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)
  plt.close(figure)


def draw_study(study, records, axes):
  """Final training loss at each value; runs that were lost as crosses."""
  places = np.arange(len(study.values))
  for workload, rule in rows_of(study):
    cells = [records[workload, rule, label] for label in study.values]
    losses = np.array([mean_train_loss(record) for record in cells])
    shown = np.where(np.isfinite(losses), losses, np.inf).clip(1e-6, LOSS_SHOWN)
    lost = np.array([bool(np.any(record["diverged"])) for record in cells])
    style = {"color": COLOUR_OF[workload], "linestyle": STYLE_OF[rule]}
    axes.plot(
      places,
      shown,
      marker="o",
      markersize=3,
      label=f"{' '.join(workload)}, {rule} rule",
      **style,
    )
    axes.plot(
      places[lost], shown[lost], "x", color=COLOUR_OF[workload], markersize=8
    )
  axes.set_xticks(places, list(study.values), fontsize=8)
  axes.set_yscale("log")
  axes.set_title(study.title, fontsize=10)
  axes.set_ylabel("final training loss")


def draw_rates(study, records_of, axes):
  """The first seed's learning rate on the first workload, as in Figure 14."""
  workload = study.workloads[0]
  for rule in study.rules:
    for label in study.values:
      record = records_of["initial_rate"][workload, rule, label]
      curve = np.asarray(record["rate"][0], float)
      axes.plot(
        1 + np.arange(len(curve)),
        curve.clip(1e-7, 1e3),
        STYLE_OF[rule],
        color=COLOUR_OF[workload],
        linewidth=1,
      )
  axes.set_xscale("log")
  axes.set_yscale("log")
  axes.set_xlabel("step")
  axes.set_ylabel("learning rate")
  axes.set_title(f"rates from all initial rates, {' '.join(workload)}", size=10)


def parse_arguments():
  parser = cli.parser(__doc__.splitlines()[0], out="out/ablations")
  parser.add_argument(
    "--study", nargs="+", choices=STUDIES, help="all that have their data"
  )
  parser.set_defaults(seeds=2)
  args = parser.parse_args()
  with_data = {name for name in STUDIES if name != "distance" or args.data_dir}
  args.study = args.study or [name for name in STUDIES if name in with_data]
  if not with_data.issuperset(args.study):
    parser.error("--study distance trains on MNIST: name its --data-dir")
  if args.quick:
    args.steps, args.seeds = args.steps or 50, 1
  args.steps = args.steps or 200
  args.report_seeds = list(range(args.seeds))
  return args


def shortened(study: Study) -> Study:
  """The first and the last value, on one workload."""
  labels = list(study.values)
  kept = {label: study.values[label] for label in (labels[0], labels[-1])}
  return study._replace(values=kept, workloads=study.workloads[:1])


def main():
  args = parse_arguments()
  began = time.perf_counter()
  studies = {name: STUDIES[name] for name in args.study}
  if args.quick:
    studies = {name: shortened(study) for name, study in studies.items()}
  results = cli.Results(
    args.out / ("quick.json" if args.quick else "results.json"),
    {"steps": args.steps, "seeds": args.seeds},
  )
  cells = sum(len(rows_of(s)) * len(s.values) for s in studies.values())
  records_of = {}
  with tqdm(total=cells * args.steps, mininterval=1, smoothing=0.1) as bar:
    for name, study in studies.items():
      records_of[name] = run_study(study, args, results, bar)
      tqdm.write(f"\n{study_table(study, records_of[name])}")
  picture = args.out / ("quick.png" if args.quick else "ablations.png")
  draw(studies, records_of, picture)
  print("\nTraining loss / test accuracy in percent at the last step, mean of")
  print(f"seeds {args.report_seeds}, {args.steps} steps; lost: a seed that")
  print("ended non-finite or above its start")
  print(f"picture: {picture}\nresults: {results.path}")
  print(f"time: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
  main()
