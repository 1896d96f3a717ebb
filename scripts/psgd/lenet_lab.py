"""LeNet-5 under many optimizers on equal terms: data, tuned rates, runs.

Every method gets the same number of learning rates to try, on seeds and
validation images that no result is taken from.
"""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scripts.common import data_sets, methods, models, tasks, tuning
from scripts.psgd.annealed import RECIPES, search, setting

LENET = models.LeNet5()


# Data


def lenet_task(data_dir, size: int, examples: int) -> tuple:
  """The task, and the validation images that rates are chosen on."""
  if data_dir is None:
    name, held_out, data = "scikit-learn's digits", 237, data_sets.digits()
  else:
    held_out = min(5000, 60_000 - examples)
    data = data_sets.mnist(data_dir, size=size, train=examples + held_out)
    name = f"{examples} images of MNIST at {size}x{size}"
  train, validation = split(data.train, len(data.train.y) - held_out)
  task = tasks.Task(
    name="lenet",
    title=f"LeNet-5 on {name}, batches of 64",
    data=jax.tree.map(jnp.asarray, data_sets.Data(train, data.test)),
    init=lambda key: LENET.init(key, train.x[:1]),
    losses=losses,
    batch_size=64,
    steps=500,
    judged_by="accuracy",
  )
  return task, validation


def split(whole, first: int):
  """The first rows and the rest."""
  return (
    jax.tree.map(lambda rows: rows[:first], whole),
    jax.tree.map(lambda rows: rows[first:], whole),
  )


def losses(params, x, y):
  logits = LENET.apply(params, x)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  return loss, (logits.argmax(-1) == y).astype(jnp.float32)


# Runs


class Part(NamedTuple):
  """One stretch of a run: who trains on what."""

  method: methods.Method
  setting: dict
  rows: np.ndarray  # (steps, batch_size), of `images`
  images: data_sets.Split
  restart: bool = False  # with a new optimizer state


def train(task, parts, seed, progress=None, look=None):
  """Trains through `parts`; returns parameters and the loss of each batch.

  An optimizer keeps its state from part to part unless it is restarted or
  another takes over. `look(step, params)` is called every `tuning.CHUNK` steps
  and at the end.
  """
  params, _ = initial(task, seed)
  method, done, curve = None, 0, []
  for part in parts:
    if part.method is not method or part.restart:
      method, first = part.method, 0
      carry = tuning.start(method, part.setting, params)
    for at in range(0, len(part.rows), tuning.CHUNK):
      if look is not None:
        look(done, one(carry[0]))
      rows = part.rows[None, at : at + tuning.CHUNK]
      carry, (loss, _) = tuning.advance(
        task, method, carry, part.setting, rows, first, part.images
      )
      curve.append(np.asarray(loss[0]))
      done, first = done + rows.shape[1], first + rows.shape[1]
      if progress is not None:
        progress.set_postfix(loss=f"{curve[-1].mean():.3g}", refresh=False)
        progress.update(rows.shape[1])
    params = carry[0]
  if look is not None:
    look(done, one(params))
  return one(params), np.concatenate(curve)


def initial(task, seed):
  return tuning.initial(task, (seed,))


def one(tree):
  """The only run of a stack of runs."""
  return jax.tree.map(lambda leaf: leaf[0], tree)


@jax.jit
def _logits(params, batches):
  return jax.lax.map(lambda x: LENET.apply(params, x), batches)


def logits(params, images) -> np.ndarray:
  """Float64, shape (examples, classes)."""
  count = len(images)
  rows = np.arange(-(-count // 500) * 500) % count  # whole batches
  batches = np.asarray(images)[rows].reshape(-1, 500, *images.shape[1:])
  out = np.asarray(_logits(params, batches), np.float64)
  return out.reshape(len(rows), -1)[:count]


def log_probabilities(params, images) -> np.ndarray:
  z = logits(params, images)
  z -= z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def judge(params, images) -> dict:
  """Mean loss, accuracy in % and confidence in % on a split."""
  logs, labels = log_probabilities(params, images.x), np.asarray(images.y)
  return {
    "loss": -logs[np.arange(len(labels)), labels].mean(),
    "accuracy": 100 * (logs.argmax(-1) == labels).mean(),
    "confidence": 100 * np.exp(logs.max(-1)).mean(),
  }


class Lab:
  """Tuned rates and runs of one task, kept in a results file."""

  def __init__(self, task, validation, args, results, bar):
    self.task, self.validation, self.results = task, validation, results
    self.trials, self.bar = args.trials, bar
    self.steps = args.steps or task.steps
    self.search_seeds, self.seeds = args.search_seeds, args.report_seeds

  def rows(self, seed, steps=None, examples=None):
    examples = examples or len(self.task.data.train.y)
    return tuning.batch_rows(
      examples, self.task.batch_size, steps or self.steps, seed
    )

  def setting(self, name, seed, **options):
    """At the best rate found for `name`, or `rate` if given."""
    rate = options.pop("rate", None) or self.tuned(name)["best_rate"]
    steps = options.pop("steps", self.steps)
    return setting(rate, seed, steps, length=self.steps, **options)

  def part(self, name, seed, *, rows=None, images=None, **options):
    return Part(
      RECIPES[name].method,
      self.setting(name, seed, **options),
      self.rows(seed) if rows is None else rows,
      self.task.data.train if images is None else images,
    )

  def tuned(self, name) -> dict:
    """The search of a method, by mean validation accuracy, then loss."""

    def score(rate, progress):
      found = []
      for seed in self.search_seeds:
        part = self.part(name, seed, rate=rate)
        params, _ = train(self.task, [part], seed, progress)
        found.append(judge(params, self.validation))
      loss = float(np.mean([each["loss"] for each in found]))
      accuracy = float(np.mean([each["accuracy"] for each in found]))
      return (accuracy, -loss if np.isfinite(loss) else -np.inf)

    def make():
      runs = self.trials * len(self.search_seeds)
      with self.bar(f"search {name}", runs * self.steps) as progress:
        trial = functools.partial(score, progress=progress)
        return search(trial, RECIPES[name].start, self.trials)

    return self.results.get(f"search/{name}", make)

  def plain(self, name) -> list[dict]:
    """Results of each seed at the best rate, and the time of a step."""
    return self.runs(
      f"plain/{name}", [name], lambda seed: [self.part(name, seed)]
    )

  def runs(self, key, names, parts, look=None, finish=None) -> list[dict]:
    """One record a seed, from `parts(seed)` at the rates of `names`.

    `look(step, params)` gives the entries of its history, and `finish(seed,
    params, history)` what else it holds.
    """

    def one_seed(seed, progress):
      history: list[Any] = []

      def see(step, params):
        history.append(look(step, params))

      began = time.perf_counter()
      params, curve = train(
        self.task, parts(seed), seed, progress, see if look else None
      )
      seconds = time.perf_counter() - began
      return {
        "seed": seed,
        "seconds": seconds,
        "train": judge(params, self.task.data.train),
        "test": judge(params, self.task.data.test),
        "curve": [float(f"{loss:.4g}") for loss in curve],
        "history": history,
        **(finish(seed, params, history) if finish else {}),
      }

    def make():
      for name in names:
        self.tuned(name)
      with self.bar(key, len(self.seeds) * self.steps) as progress:
        return [one_seed(seed, progress) for seed in self.seeds]

    return self.results.get(key, make)

  def relative_time(self, name, base="momentum") -> list[float]:
    """Time of a training step over the base's, side by side: quartiles."""

    def at_mean_chance(name):
      chosen = self.setting(name, 0)
      mean = chosen["chance"].mean()
      return {**chosen, "chance": np.full_like(chosen["chance"], mean)}

    def make():
      return tuning.relative_time(
        self.task,
        RECIPES[name].method,
        at_mean_chance(name),
        RECIPES[base].method,
        at_mean_chance(base),
        self.seeds[:1],
      )

    return self.results.get(f"time/{name}", make)
