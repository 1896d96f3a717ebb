"""Flax networks on images: GeN with no learning rate against tuned optimizers.

Bases with constant, linear and cosine schedules are tuned over at least eight
rates each; the same bases under GeN, and optimizers that need no rate, run as
they come. The search uses its own seeds; the table and the pictures come from
other seeds, with other initial weights and data order.

  python -m scripts.gen.train_digits --quick          a minute, one picture
  python -m scripts.gen.train_digits                  MLP and CNN on digits
  python -m scripts.gen.train_digits --data mnist --data-dir DATA

The CNN on MNIST or CIFAR-10 takes hours on a CPU; `--models mlp` leaves it out.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
from tqdm import tqdm

from gen_optax import plotting
from gen_optax.oracle import line
from scripts.common import cli, methods, tasks, tuning
from scripts.common.report import table

TASKS = {
  "digits": {"mlp": tasks.mlp, "cnn": tasks.cnn},
  "mnist": {"mlp": tasks.mnist_mlp, "cnn": tasks.mnist_cnn},
  "cifar10": {"mlp": tasks.cifar_mlp, "cnn": tasks.cifar_cnn},
}
BASES = ("sgd", "momentum", "adamw", "lion")
# The initial rate of GeN is where its search starts and changes nothing; that
# of the paper's rule matters, and stands at the paper's value.
INITIAL_RATE = {"rate": np.float32(1e-3)}
LINE_MULTIPLES = np.linspace(-1.0, 3.0, 41, dtype=np.float32)


def backtracking():
  search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
  return optax.chain(optax.sgd(1.0), search)


def zoom():
  search = optax.scale_by_zoom_linesearch(max_linesearch_steps=15)
  return optax.chain(optax.sgd(1.0), search)


# Optimizers that take no rate: how to build one, the key of the rate in its
# state, and the base that its time is compared with.
RATE_FREE = {
  "Prodigy": (contrib.prodigy, "estim_lr", "adamw"),
  "D-Adaptation": (contrib.dadapt_adamw, "estim_lr", "adamw"),
  "DoG": (contrib.dog, None, "sgd"),
  "Polyak": (optax.polyak_sgd, None, "sgd"),
  "backtracking": (backtracking, "learning_rate", "sgd"),
  "zoom": (zoom, "learning_rate", "sgd"),
}


def main():
  args = parse_arguments()
  began = time.perf_counter()
  results = cli.Results(
    args.out / ("quick.json" if args.quick else f"{args.data}.json"),
    {"data": args.data, "steps": args.steps, "seeds": args.seeds},
  )
  for name in args.models:
    task = TASKS[args.data][name](args.data_dir)
    experiment = Experiment(task, args, results)
    rows = experiment.run()
    suffix = "_quick" if args.quick else ""
    picture = args.out / f"{args.data}_{name}{suffix}.png"
    draw(experiment, picture)
    print(f"\n{task.title}, {experiment.steps} steps, seeds ", end="")
    print(f"{args.report_seeds}; rates searched on seeds {args.search_seeds}\n")
    print(table(HEADERS, rows))
    print(f"\npicture: {picture}")
  print(f"results: {results.path}")
  print(f"time: {time.perf_counter() - began:.0f} s")


def parse_arguments():
  parser = cli.parser(__doc__.splitlines()[0], out="out/train_digits")
  parser.add_argument("--data", choices=TASKS, default="digits")
  parser.add_argument("--models", nargs="+", choices=["mlp", "cnn"])
  parser.add_argument("--bases", nargs="+", choices=methods.BASES)
  args = parser.parse_args()
  args.models = args.models or (["mlp"] if args.quick else ["mlp", "cnn"])
  quick_bases = ("momentum", "adamw")
  args.bases = args.bases or (quick_bases if args.quick else BASES)
  args.schedules = ("constant", "cosine")
  args.rate_free = {}
  if args.quick:
    args.steps = args.steps or 300
  else:
    args.schedules = ("constant", "linear", "cosine")
    args.rate_free = RATE_FREE
  args.search_seeds = list(range(args.seeds))
  args.report_seeds = list(range(args.seeds, 2 * args.seeds))
  return args


def rate_free(make, rate_key) -> methods.Method:
  """An optimizer that takes no rate; `rate_key` names the one it finds."""

  def rate(state, setting, step):
    del setting, step
    return optax.tree.get(state, rate_key) if rate_key else jnp.nan

  return methods.Method(lambda setting: make(), rate)


class Experiment:
  """All runs of one task; `records` holds what each method gave."""

  def __init__(self, task, args, results):
    self.task, self.args, self.results = task, args, results
    self.steps = args.steps or task.steps
    self.records = {}
    self.scheduled = {
      base: methods.scheduled(methods.BASES[base].make)
      for base in methods.BASES
    }

  def run(self):
    """Trains what is missing and returns the rows of the table."""
    for base in self.args.bases:
      make = methods.BASES[base].make
      for schedule in self.args.schedules:
        self.add((base, schedule), self.tuned, base, schedule)
      gen = methods.untuned_gen(methods.BASES[base])
      self.add((base, "GeN"), self.untuned, gen, base, base)
      paper = methods.paper_gen(make)
      self.add((base, "paper's rule"), self.untuned, paper, base)
    for name, (make, rate_key, base) in self.args.rate_free.items():
      method = rate_free(make, rate_key)
      self.add((name, ""), self.untuned, method, base)
    return [
      row(optimizer, rule, record)
      for (optimizer, rule), record in self.records.items()
    ]

  def add(self, label, make, *arguments):
    def timed():
      with self.bar(" ".join(filter(None, label))) as progress:
        return make(*arguments, progress)

    key = "/".join((self.task.name, *filter(None, label)))
    self.records[label] = self.results.get(key, timed)

  def bar(self, label):
    return tqdm(
      total=self.steps, desc=f"{self.task.name} {label}", mininterval=0.5
    )

  def tuned(self, base, schedule, progress):
    """The best of at least eight rates, on seeds the search did not see."""
    rates = methods.BASES[base].rates
    progress.total = (len(rates) + 1) * self.steps
    method = self.scheduled[base]
    search = tuning.tune(
      self.task,
      method,
      schedule,
      rates,
      self.args.search_seeds,
      self.steps,
      progress,
    )
    setting = {
      "rate": jnp.float32(search["best_rate"]),
      "shape": methods.schedule_shape(schedule, self.steps),
    }
    runs = self.confirm(method, setting, progress)
    return {**tuning.record(runs), "search": search}

  def untuned(self, method, base, *rest):
    """One run a seed, as the optimizer comes; `base` is what it is timed by.

    With a third argument, GeN's base, lines are kept for the picture.
    """
    *gen_base, progress = rest
    lines = []
    look = self.keep_lines(method, lines) if gen_base else None
    runs = self.confirm(method, INITIAL_RATE, progress, look)
    base_setting = {
      "rate": jnp.float32(1e-3),
      "shape": methods.schedule_shape("constant", self.steps),
    }
    times = tuning.relative_time(
      self.task,
      method,
      INITIAL_RATE,
      self.scheduled[base],
      base_setting,
      self.args.report_seeds,
    )
    return {**tuning.record(runs), "relative_time": times, "lines": lines}

  def confirm(self, method, setting, progress, look=None):
    return tuning.run(
      self.task,
      method,
      setting,
      self.args.report_seeds,
      self.steps,
      progress,
      look,
    )

  def keep_lines(self, method, lines):
    """A look at the first seed's run, early and half way."""
    seed = self.args.report_seeds[:1]
    rows = tuning.rows_of_seeds(self.task, seed, self.steps)[0]
    half = self.steps // 2 // tuning.CHUNK * tuning.CHUNK
    wanted = {min(tuning.CHUNK, half), half}

    def look(step, carry):
      if step in wanted:
        first = jax.tree.map(lambda leaf: leaf[0], carry)
        seen = line_of_step(self.task, method, first, rows[step])
        lines.append({"step": step, **jax.tree.map(np.asarray, seen)})

    return look


@functools.partial(jax.jit, static_argnums=(0, 1))
def line_of_step(task, method, carry, rows):
  """The loss along the next update, and the parabola that GeN fits to it."""
  params, state = carry
  train = task.data.train
  value_fn = tuning.batch_loss(task, train.x[rows], train.y[rows])
  value, grad = jax.value_and_grad(value_fn)(params)
  optimizer = tuning.with_average(method, INITIAL_RATE)
  _, state = optimizer.update(
    grad, state, params, value=value, grad=grad, value_fn=value_fn
  )
  gen = optax.tree.get(state, "ScaleByGenState")
  steps = gen.learning_rate * LINE_MULTIPLES
  losses = line.losses(
    value_fn, params, gen.memory.previous_update, steps, "map"
  )
  return {
    "steps": steps,
    "losses": losses,
    "value": value,
    "slope": gen.info.slope,
    "curvature": gen.info.curvature,
    "learning_rate": gen.learning_rate,
  }


# Table and picture

HEADERS = (
  "optimizer",
  "rate",
  "train loss",
  "at average",
  "test acc. %",
  "at average",
  "time / base",
)


def row(optimizer, rule, record):
  rate, times = "none", record.get("relative_time")
  if "search" in record:
    search = record["search"]
    rate = f"{search['best_rate']:.2g}, best of {len(search['rates'])}"
  return [
    f"{optimizer} {rule}".strip(),
    rate,
    mean_loss(record["last"]),
    mean_loss(record["average"]),
    accuracy(record["last"]),
    accuracy(record["average"]),
    f"{float(times[1]):.2f}" if times else "1",
  ]


def mean_loss(scores):
  return float(np.mean(np.asarray(scores["train_loss"], float)))


def accuracy(scores):
  percent = 100 * np.asarray(scores["test_accuracy"], float)
  return f"{percent.mean():.1f} ± {percent.std():.1f}"


def draw(experiment, path):
  """For each base: loss, learning rate, and two lines with their parabolas."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  bases = experiment.args.bases
  figure, axes = plt.subplots(
    len(bases),
    4,
    figsize=(15, 3.4 * len(bases)),
    layout="constrained",
    squeeze=False,
  )
  for base, panels in zip(bases, axes, strict=True):
    records = {
      rule: record
      for (optimizer, rule), record in experiment.records.items()
      if optimizer == base and rule != "linear"
    }
    draw_history(records, panels[:2])
    panels[0].set_title(f"{base}: mean of 10 batches")
    panels[1].set_title(f"{base}: mean of 10 steps")
    lines = records["GeN"]["lines"]
    for panel in panels[2 + len(lines) :]:
      panel.set_axis_off()
    for seen, panel in zip(lines, panels[2:], strict=False):
      plotting.plot_line(
        seen["steps"],
        seen["losses"],
        seen["slope"],
        seen["curvature"],
        value=seen["value"],
        learning_rate=seen["learning_rate"],
        axes=panel,
      )
      panel.set_title(f"GeN {base}: batch of step {seen['step']}")
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)
  plt.close(figure)


def draw_history(records, axes):
  losses, rates = {}, {}
  for rule, record in records.items():
    label = rule
    if "search" in record:
      label = f"{rule}, tuned to {record['search']['best_rate']:.2g}"
    losses[label] = smooth(np.asarray(record["loss"], float))
    rates[label] = smooth(np.asarray(record["rate"], float))
  plotting.plot_history(losses, rates, loss_label="training loss", axes=axes)
  # A run that blows up may leave the picture.
  axes[0].set_ylim(
    top=5 * max(np.max(curves[:, 0]) for curves in losses.values())
  )


def smooth(curves, window=10):
  """Means over the last `window` steps, shape (seeds, steps - window + 1)."""
  sums = np.cumsum(np.pad(curves, ((0, 0), (1, 0))), axis=1)
  return (sums[:, window:] - sums[:, :-window]) / window


if __name__ == "__main__":
  main()
