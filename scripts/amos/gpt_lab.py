"""A nanoGPT under many optimizers: sizes, what is compared, equal searches."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gen_optax
from gen_optax import amos
from scripts.common import data_sets, methods, models, tasks, tuning
from scripts.common.search import pattern_search

EVERY = 10  # calls from one Hessian time to the next
DECAY = 0.1
# Factors of the first step of a search: of rates, and of the odds of shares.
RATE_STEP, SHARE_STEP = 10**0.5, 1 / 3


class Size(NamedTuple):
  """A network and its batches; steps are the default length of a run."""

  width: int
  heads: int
  blocks: int
  length: int
  batch: int
  steps: int


SIZES = {
  "quick": Size(16, 2, 1, 16, 4, 50),
  "tiny": Size(64, 4, 2, 64, 8, 600),
  "small": Size(128, 4, 4, 128, 16, 1000),
  "medium": Size(384, 6, 6, 256, 32, 2010),
  # 12 layers, 12 heads, 2010 steps: section 4 of the paper.
  "paper": Size(768, 12, 12, 256, 64, 2010),
}


def gpt_task(name: str, data_dir) -> tasks.Task:
  size = SIZES[name]
  data, text = data_sets.characters(data_dir, length=size.length)
  symbols = 1 + int(max(split.x.max() for split in data))
  model = models.GPT(symbols, size.width, size.heads, size.blocks, size.length)

  def losses(params, x, y):
    logits = model.apply(params, x)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    right = (logits.argmax(-1) == y).astype(jnp.float32)
    return loss.mean(-1), right.mean(-1)

  return tasks.Task(
    name=name,
    title=f"{size.blocks} blocks of width {size.width} on {text}",
    data=jax.tree.map(jnp.asarray, data),
    init=lambda key: model.init(key, data.train.x[:1]),
    losses=losses,
    batch_size=size.batch,
    steps=size.steps,
    judged_by="loss",
    scored=500 if size.width <= 128 else 100,
  )


# What is compared


class Entry(NamedTuple):
  """A method, and where the search of its numbers starts.

  Attributes:
    label: what the table calls it.
    make: from a setting to the optimizer.
    start: the numbers that are searched.
    options: of `amos_router`, where it is one; a control runs with them.
  """

  label: str
  make: Callable[[dict], optax.GradientTransformation]
  start: dict[str, float]
  options: dict[str, Any] | None = None

  @property
  def steps(self) -> dict[str, float]:
    return {
      name: SHARE_STEP if name == "share" else RATE_STEP for name in self.start
    }

  @property
  def method(self) -> methods.Method:
    return _method(self.make)


def _method(make) -> methods.Method:
  """Beside the loss, runs keep which part of each leaf the first one has."""

  def routed(state, setting, step):
    del setting, step
    found = optax.tree.get(state, "AmosRouterState")
    if found is None:
      return jnp.full((1,), jnp.nan)
    return found.info.leaf_fractions[:, 0]

  return methods.Method(make, routed)


def schedule(setting, name="rate"):
  return lambda count: setting[name] * setting["shape"][count]


def sgd(setting, name="rate"):
  return optax.sgd(schedule(setting, name))


def adamw(setting):
  return optax.adamw(schedule(setting), b2=0.95, weight_decay=DECAY)


def gen_adamw(setting):
  """No rate: the weight decay is searched instead."""
  return gen_optax.gen_adamw(
    weight_decay=setting["decay"],
    horizon=lambda count: setting["shape"][count],
  )


def sophia(setting):
  """optax's own, with a product of its own."""
  tx = optax.contrib.sophia(
    schedule(setting), weight_decay=DECAY, update_interval=EVERY
  )
  return gen_optax.rename_extra_args(tx, obj_fn="value_fn")


def psgd(setting):
  return optax.chain(
    gen_optax.scale_by_psgd(
      gen_optax.psgd.xmat(), probability=1 / EVERY, momentum=0.9
    ),
    optax.add_decayed_weights(DECAY),
    optax.scale_by_learning_rate(schedule(setting)),
  )


def pair(setting):
  second = amos.sophia(
    schedule(setting), weight_decay=DECAY, update_interval=EVERY
  )
  return {"sgd": sgd(setting, "first"), "sophia": second}


def router(**options):
  """`amos_router` of SGD and Sophia; a setting's "share" is what SGD gets."""

  def make(setting):
    chosen = dict(options)
    if "share" in setting:
      chosen["threshold"] = ("quantile", 1 - setting["share"])
    chosen.setdefault("ema", setting.get("ema", 0.9))
    return gen_optax.amos_router(pair(setting), every=EVERY, **chosen)

  return make


def amos_entry(label: str, share: float | None = None, **options) -> Entry:
  start = {"rate": 3e-3, "first": 0.3}
  if share is not None:
    start["share"] = share
  return Entry(f"AMOS {label}", router(**options), start, options)


PAPERS = {name: amos.PAPER_NEWTON[name] for name in amos.PAPER_NEWTON}
ENTRIES = {
  "sgd": Entry("SGD", sgd, {"rate": 0.3}),
  "sophia": Entry("Sophia", sophia, {"rate": 3e-3}),
  "adamw": Entry("AdamW", adamw, {"rate": 3e-3}),
  "gen-adamw": Entry("GeN-AdamW", gen_adamw, {"decay": DECAY}),
  "psgd": Entry("PSGD XMat", psgd, {"rate": 0.1}),
  "amos": amos_entry("elements, eq. 8", granularity="element"),
  "amos-share": amos_entry("elements, share", 0.1, granularity="element"),
  "amos-tensors": amos_entry("tensors, share", 0.1),
  "amos-paper": amos_entry("tensors' maxima, eq. 8, as the paper", **PAPERS),
}


def control(entry: Entry) -> Entry:
  """Routes at random, at each Hessian time the share that a run had there.

  `setting["shares"]` holds that share for every step.
  """

  def threshold_of(setting):
    def rule(seen):
      leaves, treedef = jax.tree.flatten(seen.groups)
      keys = jax.random.split(seen.key, len(leaves))
      lots = [
        jax.random.uniform(key, x.shape)
        for key, x in zip(keys, leaves, strict=True)
      ]
      share = setting["shares"][seen.count]
      cut = amos.quantiles(lots, jax.tree.leaves(seen.sizes), (1 - share,))[0]
      return treedef.unflatten([jnp.where(x > cut, 0, 1) for x in lots])

    return rule

  def make(setting):
    options = dict(entry.options, threshold=threshold_of(setting))
    options.setdefault("ema", 0.9)
    return gen_optax.amos_router(pair(setting), every=EVERY, **options)

  return Entry(f"{entry.label}: at random", make, entry.start, entry.options)


# Runs


@dataclasses.dataclass
class Lab:
  """Searches and runs of one task, kept in a results file."""

  task: tasks.Task
  results: Any
  bar: Callable
  steps: int
  trials: int
  search_seeds: list[int]
  seeds: list[int]
  schedule: str

  def __post_init__(self):
    self.methods = {}
    params, _ = tuning.initial(self.task, (self.seeds[0],))
    # The path of each leaf within one run's parameters.
    self.params = jax.tree.map(lambda leaf: leaf[0], params)
    self.sizes = np.array([x.size for x in jax.tree.leaves(self.params)])

  def method(self, name, entry):
    """One object for each method: compiled programs are kept by it."""
    return self.methods.setdefault(name, entry.method)

  def setting(self, numbers, **more):
    shape = methods.schedule_shape(self.schedule, self.steps)
    numbers = {name: jnp.float32(x) for name, x in numbers.items()}
    return {**numbers, "shape": jnp.asarray(shape), **more}

  def search(self, name) -> dict:
    """The best of `trials` settings, by the training loss at the end."""
    entry = ENTRIES[name]

    def make():
      total = self.trials * len(self.search_seeds) * self.steps
      with self.bar(f"search {name}", total) as progress:

        def trial(numbers):
          runs = self.train(name, entry, self.setting(numbers), progress)
          return np.mean(runs.last.train_loss)

        return pattern_search(trial, entry.start, entry.steps, self.trials)

    return self.results.get(f"{self.task.name}/search/{name}", make)

  def train(self, name, entry, setting, progress, seeds=None):
    return tuning.run(
      self.task,
      self.method(name, entry),
      setting,
      seeds or self.search_seeds,
      self.steps,
      progress,
    )

  def confirm(self, name, **more) -> list[dict]:
    """One record a seed, at the best setting, on seeds of their own."""
    entry, best = ENTRIES[name], self.search(name)["best"]
    key = "/".join(
      [self.task.name, name, *(f"{k}={v}" for k, v in more.items())]
    )

    def make():
      with self.bar(key, len(self.seeds) * self.steps) as progress:
        runs = self.train(
          name + "".join(more),
          self.with_options(entry, more),
          self.setting(best, **{k: jnp.float32(v) for k, v in more.items()}),
          progress,
          self.seeds,
        )
      return self.records(runs)

    return self.results.get(key, make)

  def with_options(self, entry, more):
    """The entry with the setting's `ema` in place of its own."""
    if "ema" not in more:
      return entry
    options = {k: x for k, x in entry.options.items() if k != "ema"}
    return entry._replace(make=router(**options), options=options)

  def control(self, name) -> list[dict]:
    """The same at random, each seed with the shares of its own run."""
    entry, best = control(ENTRIES[name]), self.search(name)["best"]

    def make():
      records = []
      total = len(self.seeds) * self.steps
      with self.bar(f"{name} at random", total) as progress:
        for seed, run in zip(self.seeds, self.confirm(name), strict=True):
          shares = np.repeat(np.asarray(run["shares"], np.float32), EVERY)
          setting = self.setting(best, shares=jnp.asarray(shares[: self.steps]))
          runs = self.train(f"{name} random", entry, setting, progress, [seed])
          records += self.records(runs, [seed])
      return records

    return self.results.get(f"{self.task.name}/{name}/random", make)

  def records(self, runs, seeds=None) -> list[dict]:
    """Losses, and at Hessian times what part of each leaf the first has."""
    rows = []
    for k, seed in enumerate(seeds or self.seeds):
      leaves = runs.rate[k][::EVERY]
      routed = leaves.shape[1] == len(self.sizes)
      shares = leaves @ self.sizes / self.sizes.sum() if routed else []
      rows.append(
        {
          "seed": seed,
          "train": runs.last.train_loss[k],
          "test": runs.last.test_loss[k],
          "test_at_average": runs.average.test_loss[k],
          "curve": [float(f"{x:.4g}") for x in runs.loss[k]],
          "shares": shares,
          "leaves": np.round(leaves, 3) if routed and k == 0 else [],
        }
      )
    return rows
