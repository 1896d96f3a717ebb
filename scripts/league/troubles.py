"""Training under trouble, beside optimizers that nobody tuned.

Small batches, rows that are seldom touched, bursts of wrong labels, a new task,
a loss that changes its scale, gradients at another scale than the closure. Each
of ours is compared with the best of Adam, momentum and Lion at two rates each,
on the loss of what is held back, all read at the parameters or all at their
polynomial average: at the end (the mean of the last tenth of forty evaluations)
and at the worst (since the trouble began, or since a quarter of the run).

    python -m scripts.league.troubles           three seeds
    python -m scripts.league.troubles --quick   one, a tenth of the steps

Seeds are 1, 2, 3, of start, batches and dropout; labels that go wrong are drawn
from the batch's own key.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import gen_optax
from scripts.common import cli, report
from scripts.league.development import rare
from scripts.league.development.families import FAMILIES
from scripts.league.runner import EVALUATIONS, averages, interval
from scripts.league.workload import Family

# What counts as the end.
LAST = 4
# Where a run that is not finite stands in a table.
MOST = 1e3


def unchanged(count):
  return 1.0


def same_rows(rows, count, key):
  del count, key
  return rows


class Trouble(NamedTuple):
  """A task, and what goes wrong on it.

  Attributes:
    family: the task.
    steps: how long it is trained.
    batch_size: examples of a batch; None is the task's own.
    begins: the step at which the trouble starts; zero: it is there all along.
    batch: rows, count, key -> rows.
    loss: count -> factor on the loss, gradient and closure alike.
    gradient: count -> factor on the gradient alone.
    held: rows held back -> rows to judge by after the start of the trouble.
  """

  family: Family
  steps: int
  batch_size: int | None = None
  begins: int = 0
  batch: Callable = same_rows
  loss: Callable = unchanged
  gradient: Callable = unchanged
  held: Callable = lambda rows: rows


def during(begin: int, length: int, changed: Callable) -> Callable:
  """`changed(rows, key)` in place of a batch for some steps."""

  def batch(rows, count, key):
    here = (count >= begin) & (count < begin + length)
    return jax.tree.map(
      lambda x, y: jnp.where(here, y, x), rows, changed(rows, key)
    )

  return batch


def wrong_labels(rows, key):
  x, y = rows
  return x, jax.random.randint(key, y.shape, 0, 10)


def new_labels(rows, key=None):
  x, y = rows
  return x, jnp.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])[y]


def from_step(begin: int, factor: float) -> Callable:
  return lambda count: jnp.where(count >= begin, factor, 1.0)


def up_and_down(begin: int, length: int, growth: float) -> Callable:
  """Grows by a factor a step, then falls by it, to where it was."""

  def factor(count):
    since = jnp.clip(count - begin, 0, 2 * length)
    return growth ** jnp.minimum(since, 2 * length - since)

  return factor


def at_every(period: int, factor: float) -> Callable:
  return lambda count: jnp.where(count % period == 0, factor, 1.0)


def troubles() -> dict[str, Trouble]:
  digits = FAMILIES["dig32"]
  late = functools.partial(Trouble, digits, 1000, begins=500)
  return {
    **{
      f"batches of {size}": Trouble(digits, 2000, size) for size in (1, 2, 4, 8)
    },
    "tanh network, long": Trouble(digits, 3000),
    "CNN, long": Trouble(FAMILIES["cnn"], 3000),
    "autoencoder, long": Trouble(FAMILIES["ae"], 3000),
    "table of ids": Trouble(FAMILIES["ctr"], 800),
    "bag of words": Trouble(rare.BAG, 800),
    "mixture of experts": Trouble(rare.MIXTURE, 800),
    **{
      f"{length} batches of wrong labels": late(
        batch=during(500, length, wrong_labels)
      )
      for length in (5, 20, 100)
    },
    "a new task": late(batch=during(500, 500, new_labels), held=new_labels),
    "loss x 0.001": late(loss=from_step(500, 1e-3)),
    "loss x 1000": late(loss=from_step(500, 1e3)),
    "loss x 1.1 a step and back": late(loss=up_and_down(500, 100, 1.1)),
    "every fifth gradient x 0.02": Trouble(
      digits, 1000, gradient=at_every(5, 0.02)
    ),
    "every fifth gradient x 5": Trouble(digits, 1000, gradient=at_every(5, 5)),
  }


OURS: dict[str, Callable] = {
  "gen_adamw": gen_optax.gen_adamw,
  "gen_momentum": gen_optax.gen_momentum,
  "gen_lion": gen_optax.gen_lion,
  "gen_muon": gen_optax.gen_muon,
  "gen_sgd": gen_optax.gen_sgd,
}
OTHERS: dict[str, Callable] = {
  "adam, 1e-3": lambda: optax.adam(1e-3),
  "adam, 1e-2": lambda: optax.adam(1e-2),
  "momentum, 1e-2": lambda: optax.sgd(1e-2, momentum=0.9),
  "momentum, 1e-1": lambda: optax.sgd(1e-1, momentum=0.9),
  "lion, 1e-4": lambda: optax.lion(1e-4),
  "lion, 1e-3": lambda: optax.lion(1e-3),
}


class Carry(NamedTuple):
  params: Any
  opt: Any
  average: Any


def train(trouble: Trouble, tx, seeds) -> dict:
  """Held-out losses of all seeds at forty steps, at parameters and average."""
  family = trouble.family
  form = family.form
  if trouble.batch_size is not None:
    form = form._replace(batch_size=trouble.batch_size)
  workload = family.build(family.load(None), form)
  tx = optax.with_extra_args_support(tx)
  each = interval(trouble.steps)

  def step(carry, xs):
    count, key = xs
    batch_key, loss_key, trouble_key = jax.random.split(key, 3)
    rows = workload.sample(workload.data, batch_key)
    rows = trouble.batch(rows, count, trouble_key)

    def value_fn(params):
      loss = workload.loss(params, {}, rows, loss_key)[0]
      return trouble.loss(count) * loss

    value, grad = jax.value_and_grad(value_fn)(carry.params)
    grad = optax.tree.scale(trouble.gradient(count), grad)
    updates, opt = tx.update(
      grad, carry.opt, carry.params, value=value, grad=grad, value_fn=value_fn
    )
    average = averages().update(updates, carry.average, carry.params)[1]
    params = optax.apply_updates(carry.params, updates)
    return Carry(params, opt, average), None

  def losses(count, params):
    held = workload.data.test
    other = trouble.held(held)
    late = count > trouble.begins
    held = jax.tree.map(lambda x, y: jnp.where(late, y, x), held, other)
    data = workload.data._replace(test=held)
    return workload.evaluate(data, params, {}).test

  def stretch(carry, xs):
    carry, _ = jax.lax.scan(step, carry, xs)
    count = xs[0][-1] + 1
    average = gen_optax.averaged_parameters(carry.average)
    return carry, (losses(count, carry.params), losses(count, average))

  def run(seed):
    start_key, key = jax.random.split(jax.random.key(seed))
    params, _ = workload.init(start_key)
    carry = Carry(params, tx.init(params), averages().init(params))
    counts = jnp.arange(EVALUATIONS * each)
    xs = counts, jax.random.split(key, len(counts))
    xs = jax.tree.map(lambda x: x.reshape(EVALUATIONS, each, *x.shape[1:]), xs)
    _, curves = jax.lax.scan(stretch, carry, xs)
    return losses(0, params), *curves

  start, *curves = jax.jit(jax.vmap(run))(jnp.asarray(seeds))
  names = ("iterate", "average")
  return {"start": start.tolist()} | {
    name: np.asarray(curve, float).tolist()
    for name, curve in zip(names, curves, strict=True)
  }


def figures(record: dict, trouble: Trouble, where: str):
  """Mean end, worst loss and whether a seed ends above its start."""
  curves = np.asarray(record[where], float)
  curves = np.where(np.isfinite(curves), curves, np.inf)
  ends = curves[:, -LAST:].mean(1)
  first = EVALUATIONS * (trouble.begins / trouble.steps or 0.25)
  worst = curves[:, int(first) :].max(1)
  above = bool(np.any(~(ends <= np.asarray(record["start"], float))))
  return float(ends.mean()), float(worst.mean()), above


def show(cases: dict, records: dict, where: str) -> str:
  """Ours in units of the best of the others: end / worst, * above the start."""
  rows, ratios = [], {name: [] for name in OURS}
  for case, trouble in cases.items():
    found = {
      name: figures(records[f"{case}, {name}"], trouble, where)
      for name in (*OTHERS, *OURS)
    }
    best = min(OTHERS, key=lambda name: found[name][0])
    least_worst = min(found[name][1] for name in OTHERS)
    cells = []
    for name in OURS:
      end, worst, above = found[name]
      ratios[name].append(end / found[best][0])
      pair = min(MOST, ratios[name][-1]), min(MOST, worst / least_worst)
      cells.append(f"{pair[0]:.2f}/{pair[1]:.2f}" + "*" * above)
    rows.append([case, best, report.number(found[best][0]), *cells])
  for title, count in (
    ("ahead", lambda x: sum(r <= 1 for r in x)),
    ("above three times", lambda x: sum(not r <= 3 for r in x)),
  ):
    counts = [f"{count(x)} of {len(cases)}" for x in ratios.values()]
    rows.append([title, "", "", *counts])
  headers = ["trouble", "best of the others", "its end", *OURS]
  return report.table(headers, rows)


def main():
  parser = cli.parser(__doc__.splitlines()[0], "out")
  parser.add_argument("--only", nargs="*", help="names of troubles")
  args = parser.parse_args()
  cases = {
    name: trouble
    for name, trouble in troubles().items()
    if not args.only or name in args.only
  }
  if args.quick:
    cases = {
      name: case._replace(steps=case.steps // 10)
      for name, case in cases.items()
      if not case.begins
    }
  seeds = [1] if args.quick else list(range(1, 1 + args.seeds))
  path = args.out / f"troubles_{'quick' if args.quick else 'full'}.json"
  results = cli.Results(path, {"seeds": seeds})
  jobs = [(case, name) for case in cases for name in (*OTHERS, *OURS)]
  for case, name in tqdm(jobs, disable=None):
    make = (OTHERS | OURS)[name]
    results.get(
      f"{case}, {name}",
      lambda case=case, make=make: train(cases[case], make(), seeds),
    )
  for where in ("iterate", "average"):
    print(f"\nRead at the {where}\n{show(cases, results.records, where)}")
  print(f"\nseeds {seeds}; records: {path}")


if __name__ == "__main__":
  main()
