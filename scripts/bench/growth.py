"""How the cost of an optimizer's step grows with the number of parameters.

One matrix of n float32 under a loss that costs a few operations for each
parameter, so that what grows is the optimizer's work and not a network's. Time
is the median of rounds in which all programs run by turns; operations are XLA's
count. The slope is that of log time over log n between the two largest sizes: 1
is linear.
"""

import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import gen_optax
from scripts.bench import programs, timing
from scripts.common import report

MAKES = {
  "Adam": programs.base_optimizer,
  "GeN": gen_optax.gen_adam,
  "PSGD xmat": lambda: gen_optax.psgd_xmat(0.1),
  "PSGD low rank 10": lambda: gen_optax.psgd_lra(0.1, rank=10),
  "ELMO Lanczos 4+2": lambda: gen_optax.elmo_lanczos(top=4, bottom=2),
}
SIZES = (10**4, 10**5, 10**6, 10**7)
WINDOW = 0.02


def loss(params, batch):
  return jnp.mean(jnp.square(jnp.sin(params) - batch))


def problem_of(size: int) -> programs.Problem:
  side = round(size**0.5)
  params = jnp.linspace(-1.0, 1.0, side * side).reshape(side, side)
  return programs.Problem(f"{side} x {side}", loss, params, 0.5 * jnp.ones(8))


def measure(size: int, args) -> list[dict]:
  problem = problem_of(size)
  timers, flops = {}, {}
  for name, make in MAKES.items():
    tx = optax.with_extra_args_support(make())
    step = programs.train_step(tx, problem.loss)
    flops[name] = programs.step_cost(problem, tx).flops
    timers[name] = timing.calls_timer(
      lambda carry, batch, step=step: step(carry, batch)[0],
      (problem.params, tx.init(problem.params)),
      [(jnp.float32(0.5),)],
      (),
      WINDOW,
    )
  times = timing.rounds(timers, args.seconds * len(timers))
  return [
    {
      "name": name,
      "n": problem.size,
      "seconds": timing.quartiles(times[name]),
      "flops": flops[name],
      "over_adam": timing.quartiles(times[name] / times["Adam"]),
    }
    for name in MAKES
  ]


def slope(rows: list[dict], key) -> float:
  """Of the last two sizes, on logarithmic axes."""
  first, last = rows[-2:]
  return np.log(key(last) / key(first)) / np.log(last["n"] / first["n"])


def picture(found: dict, path):
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
  for name, rows in found.items():
    sizes = [row["n"] for row in rows]
    low, middle, high = np.array([row["seconds"] for row in rows]).T * 1e3
    label = name
    if len(rows) > 1:
      label += f": slope {slope(rows, lambda row: row['seconds'][1]):.2f}"
    (line,) = axes.loglog(sizes, middle, "o-", label=label)
    axes.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2)
  axes.set_xlabel("parameters")
  axes.set_ylabel("one step with its gradient, ms")
  axes.set_title("Median of rounds, quartiles shaded; slope of the last decade")
  axes.legend(frameon=False)
  axes.grid(alpha=0.3)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=130)
  plt.close(figure)


def add_options(parser):
  parser.add_argument(
    "--growth-sizes", nargs="+", type=float, default=list(SIZES)
  )


def check_options(parser, args):
  del parser
  if args.quick:
    args.growth_sizes = [1e3, 1e4]


def run(args) -> dict:
  """Measures, prints, draws and returns the records."""
  print(__doc__.split("\n\n", 1)[1])
  rows = []
  for size in tqdm(args.growth_sizes, desc="growth"):
    rows += measure(int(size), args)
  found = {name: [r for r in rows if r["name"] == name] for name in MAKES}
  cells = [
    [
      row["name"],
      f"{row['n']:,}",
      1e3 * row["seconds"][1],
      report.spread(row["over_adam"]),
      row["flops"] / row["n"],
    ]
    for row in rows
  ]
  headers = ["step", "parameters", "ms", "/ Adam", "operations / parameter"]
  print(report.table(headers, cells))
  for name, rows in found.items() if len(args.growth_sizes) > 1 else ():
    time = slope(rows, lambda row: row["seconds"][1])
    work = slope(rows, lambda row: row["flops"])
    print(f"{name}: slope {time:.2f} in time, {work:.2f} in operations")
  path = args.out / "bench_growth.png"
  picture(found, path)
  print(f"picture: {path}")
  return found
