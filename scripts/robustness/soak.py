"""20,000 steps of every method: do the state and the rate stay where they are?

Softmax regression with 27 parameters, 64 fresh examples in each step whose
labels are wrong one time in ten: the noise never ends, and neither does
the work of what follows it. Of four classes one has logit 0, so that there is
one optimum: with `--flat` all three have their own, and adding a number to all
changes nothing. Each method runs at its defaults, in float32.

    python -m scripts.robustness.soak

What is looked at, on 400 even times:
  finite   every number of the parameters and of the state, but for eigenpairs
           that were not found
  growth   of each array of the state, the lower decile of its norm in the last
           quarter over the upper decile in the second; the largest is shown. A
           walk at random would give 1.3, steady growth 1.6; what jumps to and
           fro stays below 1
  rate     the least and the largest learning rate of GeN in the second half
  gauge    of the low rank's two factors, the largest |U| / |V| or its inverse
  loss     on 4096 other examples, the median over the last quarter, and that
           over the second quarter

A verdict other than "steady" names what failed.
"""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import gen_optax
from gen_optax import amos
from scripts.common import cli, report

FREE, FEATURES, BATCH = 3, 8, 64
TIMES = 400
GROWTH, RATES, GAUGE, RISE = 1.15, (1e-6, 1e4), 1.5, 1.1

METHODS = {
  "gen_sgd": gen_optax.gen_sgd,
  "gen_momentum": gen_optax.gen_momentum,
  "gen_adam": gen_optax.gen_adam,
  "gen_adamw": gen_optax.gen_adamw,
  "gen_lion": gen_optax.gen_lion,
  "scale_by_gen_paper, SGD": lambda: optax.chain(
    optax.sgd(1.0), gen_optax.scale_by_gen_paper(0.1)
  ),
  # Diverges, as its docstring says.
  "scale_by_gen_paper, momentum": lambda: optax.chain(
    optax.sgd(1.0, momentum=0.9), gen_optax.scale_by_gen_paper(0.1)
  ),
  "psgd_diagonal": gen_optax.psgd_diagonal,
  "psgd_xmat": gen_optax.psgd_xmat,
  "psgd_butterfly": gen_optax.psgd_butterfly,
  "psgd_lra": functools.partial(gen_optax.psgd_lra, rank=4),
  "psgd_dense": gen_optax.psgd_dense,
  "psgd_kron": gen_optax.psgd_kron,
  "psgd_lra, whitening": functools.partial(
    gen_optax.psgd_lra, 0.01, rank=4, pairs="whitening"
  ),
  "psgd_kron, whitening": functools.partial(
    gen_optax.psgd_kron, 0.01, pairs="whitening"
  ),
  "psgd_lra, GeN": lambda: gen_optax.generalized_newton(
    optax.chain(
      gen_optax.scale_by_psgd(gen_optax.psgd.low_rank(4)), optax.scale(-1.0)
    )
  ),
  "elmo_dense": functools.partial(gen_optax.elmo_dense, 0.1),
  "elmo_lanczos": functools.partial(
    gen_optax.elmo_lanczos, 0.1, top=3, bottom=1, every=10
  ),
  "elmo_lanczos, drift": functools.partial(
    gen_optax.elmo_lanczos, 0.1, top=3, bottom=1, every=10, lipschitz="drift"
  ),
  "track_lipschitz": lambda: optax.chain(
    gen_optax.track_lipschitz(subspace=(3, 1), every=10), optax.adam(0.01)
  ),
  "amos_router": lambda: gen_optax.amos_router(
    [optax.sgd(0.1), amos.sophia(0.01)]
  ),
  "amos_router, frozen": lambda: gen_optax.amos_router(
    [optax.sgd(0.1), optax.adam(0.01)], states="frozen"
  ),
  "skip, average": lambda: optax.chain(
    gen_optax.skip_implausible(optax.adam(0.01)),
    gen_optax.average_parameters(),
  ),
}


class Verdict(NamedTuple):
  """What the table says of a method."""

  finite: bool
  growth: float
  grown: str
  rates: tuple[float, float] | None
  gauge: float | None
  losses: tuple[float, float]

  def says(self) -> str:
    failed = [
      *([] if self.finite else ["not finite"]),
      *([] if self.growth < GROWTH else [f"grows: {self.grown}"]),
      *([] if self.gauge is None or self.gauge < GAUGE else ["gauge"]),
      *([] if self.losses[1] < RISE * self.losses[0] else ["loss rises"]),
    ]
    if self.rates and not RATES[0] < self.rates[0] <= self.rates[1] < RATES[1]:
      failed.append("rate")
    return ", ".join(failed) or "steady"


# --- the problem --------------------------------------------------------------


def draw(key, count, classes):
  """Examples of a fixed linear model; one label in ten is drawn at random."""
  truth = jax.random.normal(jax.random.key(1), (FEATURES, classes))
  x_key, label_key, flip_key, other_key = jax.random.split(key, 4)
  x = jax.random.normal(x_key, (count, FEATURES))
  y = jax.random.categorical(label_key, x @ truth)
  other = jax.random.randint(other_key, y.shape, 0, classes)
  return x, jnp.where(jax.random.uniform(flip_key, y.shape) < 0.1, other, y)


def loss_fn(params, x, y, classes):
  logits = x @ params["w"] + params["b"]
  logits = jnp.pad(logits, ((0, 0), (0, classes - FREE)))
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def initial_params():
  return {"b": jnp.zeros(FREE), "w": jnp.zeros((FEATURES, FREE))}


# --- a run --------------------------------------------------------------------


def watched(params, state):
  """The norm of each array of floats, by the name of its place."""
  tree = {"parameters": params, "state": state}
  return {
    jax.tree_util.keystr(at): jnp.linalg.norm(jnp.ravel(leaf))
    for at, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating) and "info" not in str(at)
  }


def run(tx, steps, flat=False, seed=0):
  """Norms and the test loss at `TIMES` even times, from one compiled scan."""
  classes = FREE if flat else FREE + 1
  loss = functools.partial(loss_fn, classes=classes)
  tx = optax.with_extra_args_support(tx)
  test, length = draw(jax.random.key(2), 4096, classes), steps // TIMES

  def step(carry, batch):
    params, state = carry
    x, y = batch
    value_fn = functools.partial(loss, x=x, y=y)
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = tx.update(
      grad, state, params, value=value, grad=grad, value_fn=value_fn
    )
    return (optax.apply_updates(params, updates), state), None

  def stretch(carry, t):
    # All examples of a stretch at once: drawn one by one they take most of the
    # time.
    x, y = draw(
      jax.random.fold_in(jax.random.key(seed), t), length * BATCH, classes
    )
    batches = x.reshape(length, BATCH, -1), y.reshape(length, BATCH)
    carry, _ = jax.lax.scan(step, carry, batches)
    return carry, (watched(*carry), loss(carry[0], *test))

  params = initial_params()
  times = jnp.arange(TIMES)
  scan = jax.jit(lambda carry: jax.lax.scan(stretch, carry, times)[1])
  norms, losses = jax.device_get(scan((params, tx.init(params))))
  return norms | {"test loss": losses}


def judge(history) -> Verdict:
  losses = history["test loss"]
  second, last = slice(TIMES // 4, TIMES // 2), slice(3 * TIMES // 4, TIMES)
  growth = {}
  for name, norms in history.items():
    # GeN's path is a sum over all steps, and is read as 1 / sqrt(path).
    if name == "test loss" or name.endswith(".sum_sq_norms"):
      continue
    if not np.isfinite(norms).all():
      continue
    before = np.quantile(norms[second], 0.9)
    after = np.quantile(norms[last], 0.1)
    growth[name] = float(after / before) if before else np.inf if after else 0.0
  grown = max(growth, key=growth.get)
  rates = [n for k, n in history.items() if k.endswith(".learning_rate")]
  u, v = (total(history, f".{name}[") for name in "uv")
  tilt = None if u is None else float(np.max(np.maximum(u / v, v / u)))
  return Verdict(
    finite=all(
      np.isfinite(norms).all()
      for name, norms in history.items()
      if "spectrum" not in name
    ),
    growth=growth[grown],
    grown=grown,
    rates=tuple(map(float, extent(rates[0][TIMES // 2 :]))) if rates else None,
    gauge=tilt,
    losses=(float(np.median(losses[second])), float(np.median(losses[last]))),
  )


def total(history, part):
  """The norm of all leaves whose place has `part` in its name."""
  squares = [norms**2 for name, norms in history.items() if part in name]
  return np.sqrt(sum(squares)) if squares else None


def extent(x):
  return np.min(x), np.max(x)


# --- what is shown ------------------------------------------------------------


def rows(records):
  for name, record in records.items():
    found = judge(as_arrays(record["history"]))
    rates = (
      ""
      if found.rates is None
      else " to ".join(map(report.number, found.rates))
    )
    yield (
      *(name, found.says(), found.growth, rates),
      "" if found.gauge is None else found.gauge,
      *(found.losses[0], found.losses[1], record["seconds"]),
    )


def as_arrays(history):
  return {name: np.asarray(x, float) for name, x in history.items()}


def picture(records, steps, path):
  import matplotlib.pyplot as plt
  from matplotlib.ticker import NullFormatter

  columns = 4
  lines = -(-len(records) // columns)
  figure, axes = plt.subplots(
    *(lines, columns),
    figsize=(3.1 * columns, 2.2 * lines),
    sharex=True,
    layout="constrained",
  )
  times = steps / TIMES * np.arange(1, TIMES + 1)
  special = {
    "learning rate": ("tab:blue", lambda k: k.endswith(".learning_rate")),
    "|V|": ("tab:green", lambda k: ".v[" in k),
    "|U|, on it": ("tab:orange", lambda k: ".u[" in k),
    "parameters": ("black", lambda k: k.startswith("['parameters']")),
  }
  for axis, (name, record) in zip(axes.flat, records.items(), strict=False):
    history = as_arrays(record["history"])
    for place, norms in history.items():
      if place.startswith("['state']"):
        axis.loglog(times, np.where(norms > 0, norms, np.nan), "0.8", lw=0.8)
    for colour, mine in special.values():
      squares = [norms**2 for place, norms in history.items() if mine(place)]
      if squares:
        style = "--" if colour == "tab:orange" else "-"
        axis.loglog(times, np.sqrt(sum(squares)), style, color=colour, lw=1.3)
    verdict = judge(history).says()
    axis.set_title(
      name if verdict == "steady" else f"{name}: {verdict.split(':')[0]}",
      fontsize=9,
      color="black" if verdict == "steady" else "tab:red",
    )
    axis.tick_params(labelsize=7)
    axis.yaxis.set_minor_formatter(NullFormatter())
  for axis in axes.flat[len(records) :]:
    axis.axis("off")
  handles = [
    plt.Line2D([], [], color=colour, label=label)
    for label, (colour, _) in special.items()
  ] + [plt.Line2D([], [], color="0.8", label="other arrays of the state")]
  figure.legend(handles=handles, loc="outside upper center", ncols=5)
  figure.supxlabel("step")
  figure.supylabel("norm")
  figure.savefig(path, dpi=120)


def main():
  parser = cli.parser(__doc__.splitlines()[0], "out/soak")
  parser.add_argument(
    "--flat", action="store_true", help="directions in which the loss is flat"
  )
  args = parser.parse_args()
  steps = args.steps or (2_000 if args.quick else 20_000)
  if steps % TIMES:
    parser.error(f"--steps must be a multiple of {TIMES}")
  settings = {"steps": steps, "batch": BATCH, "flat": args.flat, "seed": 0}
  print(f"settings: {settings}")
  args.out.mkdir(parents=True, exist_ok=True)
  results = cli.Results(args.out / "soak.json", settings)

  def record(make):
    began = time.process_time()
    history = run(make(), steps, args.flat)
    return {"history": history, "seconds": time.process_time() - began}

  for name, make in tqdm(METHODS.items()):
    results.get(name, lambda make=make: record(make))
  records = {name: results.records[name] for name in METHODS}
  headers = ("method", "verdict", "growth", "rate", "gauge", "loss in the 2nd")
  print(
    report.table((*headers, "and 4th quarter", "CPU s"), list(rows(records)))
  )
  print(f"CPU time in all: {sum(r['seconds'] for r in records.values()):.0f} s")
  picture(records, steps, args.out / "soak.png")


if __name__ == "__main__":
  main()
