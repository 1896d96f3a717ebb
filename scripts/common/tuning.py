"""Training many small runs on equal terms, and tuning a learning rate.

Every run of a task sees the same number of steps and, for the same seed, the
same initial parameters and the same batches in the same order. Runs are
compiled once for each method: a scan over steps inside a loop over seeds.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gen_optax
from scripts.common.methods import Method, schedule_shape
from scripts.common.tasks import Task

# Steps between two looks at a run: for the progress bar, and for pictures.
CHUNK = 50
# How often an optimum on the edge of the grid may extend it by two rates.
MAX_EXTENSIONS = 4


class Scores(NamedTuple):
  """Mean loss and accuracy at the end, one number a seed."""

  train_loss: Any
  train_accuracy: Any
  test_loss: Any
  test_accuracy: Any


class Runs(NamedTuple):
  """What several seeds of one setting gave."""

  loss: np.ndarray  # (seeds, steps), of each batch before its step
  rate: np.ndarray  # (seeds, steps)
  initial_loss: np.ndarray  # (seeds,), over the training set
  last: Scores
  average: Scores


def batch_rows(examples: int, batch_size: int, steps: int, seed: int):
  """Rows of each batch, shape (steps, batch_size): shuffled epochs."""
  rng = np.random.default_rng([seed, 1])
  batches = examples // batch_size
  epochs = [
    rng.permutation(examples)[: batches * batch_size].reshape(batches, -1)
    for _ in range(-(-steps // batches))
  ]
  return np.concatenate(epochs)[:steps].astype(np.int32)


def rows_of_seeds(task: Task, seeds, steps: int) -> np.ndarray:
  """`batch_rows` of each seed, shape (seeds, steps, batch_size)."""
  examples = len(task.data.train.y)
  return np.stack(
    [batch_rows(examples, task.batch_size, steps, seed) for seed in seeds]
  )


def over_runs(fn: Callable, tree):
  """`fn` for each run: one after the other on a CPU, side by side elsewhere.

  On a CPU `vmap` turns every product into a batched one: side by side on one
  core the networks were up to 1.8 times slower than the loop, and only logistic
  regression, microseconds a step, was faster.
  """
  if jax.default_backend() == "cpu":
    return jax.lax.map(fn, tree)
  return jax.vmap(fn)(tree)


@functools.partial(jax.jit, static_argnums=0)
def _score(task: Task, params, data) -> Scores:
  def mean(params, split):
    kept = min(len(split.y), task.scored)
    rows = np.linspace(0, len(split.y) - 1, kept).astype(int)
    batch = 500 if kept % 500 == 0 else kept

    def one_batch(rows):
      loss, right = task.losses(params, split.x[rows], split.y[rows])
      return loss.mean(), right.mean()

    loss, right = jax.lax.map(one_batch, jnp.asarray(rows.reshape(-1, batch)))
    return loss.mean(), right.mean()

  def one_run(params):
    return Scores(*mean(params, data.train), *mean(params, data.test))

  return over_runs(one_run, params)


def score(task: Task, params) -> Scores:
  """Loss and accuracy of each run on the training and the test set."""
  return jax.tree.map(np.asarray, _score(task, params, task.data))


@functools.lru_cache
def initial(task: Task, seeds: tuple[int, ...]):
  """Each seed's parameters before training, and their scores."""
  init = jax.jit(lambda seed: task.init(jax.random.key(seed)))
  params = jax.tree.map(lambda *runs: jnp.stack(runs), *map(init, seeds))
  return params, score(task, params)


def with_average(method: Method, setting):
  optimizer = method.make(setting)
  return optax.chain(optimizer, gen_optax.average_parameters())


@functools.partial(jax.jit, static_argnums=0)
def start(method: Method, setting, params):
  """Parameters and optimizer state of each run."""
  optimizer = with_average(method, setting)
  return params, over_runs(optimizer.init, params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def advance(task: Task, method: Method, carry, setting, rows, first, train):
  """Trains each run on its `rows`, shape (seeds, steps, batch_size)."""
  optimizer = with_average(method, setting)

  def step(carry, step_and_rows):
    params, state = carry
    count, rows = step_and_rows
    value_fn = batch_loss(task, train.x[rows], train.y[rows])
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = optimizer.update(
      grad, state, params, value=value, grad=grad, value_fn=value_fn
    )
    params = optax.apply_updates(params, updates)
    rate = jnp.asarray(method.rate(state, setting, count))
    return (params, state), (value, rate)

  def one_run(carry_and_rows):
    carry, rows = carry_and_rows
    counts = first + jnp.arange(rows.shape[0])
    return jax.lax.scan(step, carry, (counts, rows))

  return over_runs(one_run, (carry, rows))


def batch_loss(task: Task, x, y) -> Callable:
  """The mean loss of one batch as a function of the parameters."""
  return lambda params: task.losses(params, x, y)[0].mean()


def train(
  task: Task, method: Method, setting, seeds, steps, progress=None, look=None
):
  """Trains every seed from its start.

  Args:
    task: what is trained.
    method: the optimizer.
    setting: what the method's runs differ by.
    seeds: one run each.
    steps: the length of each run.
    progress: a tqdm bar that counts steps and shows loss and learning rate.
    look: called with the step count and the carry before each chunk.

  Returns:
    Parameters and optimizer states at the end, with losses and rates of each
    seed and step.
  """
  carry = start(method, setting, initial(task, tuple(seeds))[0])
  rows = rows_of_seeds(task, seeds, steps)
  losses, rates = [], []
  for first in range(0, steps, CHUNK):
    if look is not None:
      look(first, carry)
    chunk = rows[:, first : first + CHUNK]
    carry, (loss, rate) = advance(
      task, method, carry, setting, chunk, first, task.data.train
    )
    losses.append(np.asarray(loss))
    rates.append(np.asarray(rate))
    if progress is not None:
      shown = {"loss": f"{losses[-1].mean():.3g}"}
      if rates[-1].shape == losses[-1].shape:
        shown["learning_rate"] = f"{np.median(rates[-1]):.2g}"
      progress.set_postfix(shown, refresh=False)
      progress.update(chunk.shape[1])
  return carry, np.concatenate(losses, 1), np.concatenate(rates, 1)


def run(
  task: Task, method: Method, setting, seeds, steps, progress=None, look=None
) -> Runs:
  """Curves and final scores of `train`."""
  (params, state), loss, rate = train(
    task, method, setting, seeds, steps, progress, look
  )
  return Runs(
    loss=loss,
    rate=rate,
    initial_loss=initial(task, tuple(seeds))[1].train_loss,
    last=score(task, params),
    average=score(task, gen_optax.averaged_parameters(state)),
  )


def tune(
  task: Task, method: Method, schedule: str, rates, seeds, steps, progress=None
) -> dict:
  """Tries each rate, extends the grid while its edge is best, and picks.

  Returns:
    `rates`, and for the last iterate and for the average the mean final
    training loss over seeds at each (infinite where a run diverged), with the
    rate that is best for it, `best_rate` and `best_rate_average`.
  """
  shape = schedule_shape(schedule, steps)
  last, average = {}, {}

  def attempt(rate):
    setting = {"rate": jnp.float32(rate), "shape": shape}
    runs = run(task, method, setting, seeds, steps, progress)
    last[rate] = _finite_mean(runs.last.train_loss)
    average[rate] = _finite_mean(runs.average.train_loss)

  for rate in rates:
    attempt(rate)
  for _ in range(MAX_EXTENSIONS):
    below, above = _edges([last, average])
    if not (below or above):
      break
    for rate in below + above:
      if progress is not None:
        progress.total += steps
      attempt(rate)

  tried = sorted(last)
  return {
    "rates": tried,
    "train_loss": [last[rate] for rate in tried],
    "train_loss_average": [average[rate] for rate in tried],
    "best_rate": min(last, key=last.get),
    "best_rate_average": min(average, key=average.get),
  }


def _finite_mean(losses) -> float:
  mean = float(np.mean(losses))
  return mean if np.isfinite(mean) else float("inf")


def _edges(tables) -> tuple[list[float], list[float]]:
  """Rates to add below and above where a table's best is on its edge."""
  best = {min(table, key=table.get) for table in tables}
  low, high = min(tables[0]), max(tables[0])
  factor = 10**0.5
  below = [low / factor**2, low / factor] if low in best else []
  above = [high * factor, high * factor**2] if high in best else []
  return below, above


def diverged(runs: Runs) -> np.ndarray:
  """Which seeds ended non-finite or above their start, shape (seeds,)."""
  return ~(runs.last.train_loss <= runs.initial_loss)


def record(runs: Runs, curves: bool = True) -> dict:
  """A run's results for a JSON file; curves with four digits."""
  kept = {
    "initial_loss": runs.initial_loss,
    "last": runs.last._asdict(),
    "average": runs.average._asdict(),
    "diverged": diverged(runs),
    "final_rate": runs.rate[:, -1],
  }
  if curves:
    kept["loss"] = _rounded(runs.loss)
    kept["rate"] = _rounded(runs.rate)
  return kept


def _rounded(curves):
  return [[float(f"{x:.4g}") for x in curve] for curve in curves]


def relative_time(
  task: Task, method: Method, setting, base: Method, base_setting, seeds
) -> list[float]:
  """Time of a training step over the base's: quartiles of nine paired rounds.

  Both keep the parameter average. Each round times 50 steps of every seed with
  one optimizer right after the other, from the 50th step on.
  """
  params, _ = initial(task, tuple(seeds))
  rows = rows_of_seeds(task, seeds, 2 * CHUNK)

  def prepare(method, setting):
    train = functools.partial(advance, task, method)
    carry = start(method, setting, params)
    carry, _ = train(carry, setting, rows[:, :CHUNK], 0, task.data.train)

    def timed():
      begin = time.perf_counter()
      done = train(carry, setting, rows[:, CHUNK:], CHUNK, task.data.train)
      jax.block_until_ready(done)
      return time.perf_counter() - begin

    timed()  # compiles, unless the same seeds were trained before
    return timed

  ours, theirs = prepare(method, setting), prepare(base, base_setting)
  ratios = [ours() / theirs() for _ in range(9)]
  return np.percentile(ratios, [25, 50, 75]).tolist()
