"""A byte-level transformer, and three ways to adapt it to another text.

Each way is a task whose parameters are what is trained and nothing else:

    full     all weights
    LoRA     W + A B of rank 4 beside the query and value matrices
    BitFit   all biases
"""

import csv
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from scripts.common import data_sets, methods, models, tuning
from scripts.common.data_sets import Data, Split
from scripts.common.tasks import Task
from scripts.gen import schedules

SYMBOLS, LENGTH, RANK = 128, 192, 4
WAYS = ("full", "LoRA", "BitFit")
IGNORED = -1  # in targets: bytes that are not predicted


def network():
  return models.CharTransformer(SYMBOLS)


def losses(weights, x, y):
  """The mean loss of each example's predicted bytes."""
  logits = network().apply(weights, x)
  kept = (y != IGNORED).astype(jnp.float32)
  each = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.maximum(y, 0)
  )
  right = (logits.argmax(-1) == y) * kept
  count = jnp.maximum(kept.sum(-1), 1)
  return (each * kept).sum(-1) / count, right.sum(-1) / count


# The texts


def ascii_codes(text: str) -> np.ndarray:
  return np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(
    np.int32
  )


def sentences(data_dir) -> tuple[Data, str]:
  """Records and sentences that say them; the sentence alone is predicted.

  E2E, the development set to train on and the test set to test on; without a
  folder, records and sentences from a few templates.
  """
  if data_dir is not None:
    parts, name = [], "E2E"
    for file in ("e2e_dev.csv", "e2e_test_refs.csv"):
      with open(Path(data_dir) / file, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
      parts.append(_aligned([(row["mr"], row["ref"]) for row in rows]))
    return Data(*parts), name
  pairs = _templates(np.random.default_rng(0), 3000)
  return Data(_aligned(pairs[:2000]), _aligned(pairs[2000:])), "templates"


def _aligned(pairs) -> Split:
  """One row a pair that fits; targets where the record stands are ignored."""
  x, y = [], []
  for record, sentence in pairs:
    codes = ascii_codes(f"{record} | {sentence}\n")
    if len(codes) > LENGTH + 1:
      continue
    row = np.full(LENGTH + 1, IGNORED, np.int32)
    row[: len(codes)] = codes
    target = row[1:].copy()
    target[: len(record) + 2] = IGNORED
    x.append(np.maximum(row[:-1], 0))
    y.append(target)
  return Split(np.stack(x), np.stack(y))


def _templates(rng, count):
  names = ["Alma", "Brink", "Corvo", "Dune", "Ember", "Fjord", "Grove", "Halt"]
  foods = ["Thai", "Greek", "Indian", "French", "Korean", "Cuban"]
  areas = ["by the river", "in the old town", "near the station"]
  forms = [
    "{0} is a {1} place {2}.",
    "For {1} food go to {0} {2}.",
    "You find {0}, which serves {1} dishes, {2}.",
  ]
  pairs = []
  for _ in range(count):
    words = [str(rng.choice(part)) for part in (names, foods, areas)]
    record = "name[{}], food[{}], area[{}]".format(*words)
    pairs.append((record, str(rng.choice(forms)).format(*words)))
  return pairs


# Pretraining


def pretrain(
  data_dir, steps: int, rate: float = 3e-3
) -> tuple[Any, str, float]:
  """Weights after `steps` of AdamW with a cosine, the text, its test loss."""
  text, name = data_sets.text_of(data_dir)
  data = data_sets.windows(ascii_codes(text), LENGTH)
  task = _task("pretrained", name, data, lambda p: p, _initial, 16, steps)
  method = methods.scheduled(methods.BASES["adamw"].make)
  setting = schedules.setting("cosine", rate, steps)
  with tqdm(total=steps, desc=f"pretraining on {name}") as bar:
    (params, _), *_ = tuning.train(task, method, setting, [0], steps, bar)
  test = float(tuning.score(task, params).test_loss[0])
  return jax.tree.map(lambda leaf: leaf[0], params), name, test


def _initial(key):
  return network().init(key, jnp.zeros((1, LENGTH), jnp.int32))


def _task(name, title, data, weights_of, init, batch_size, steps) -> Task:
  return Task(
    name=name,
    title=title,
    data=jax.tree.map(jnp.asarray, data),
    init=init,
    losses=lambda params, x, y: losses(weights_of(params), x, y),
    batch_size=batch_size,
    steps=steps,
    judged_by="loss",
    scored=200,
  )


# Ways to adapt


def adapt(way: str, weights, data: Data, name: str, steps: int) -> Task:
  """The task of one way: its parameters are the trained part."""
  start, merge = {
    "full": lambda: (lambda key: weights, lambda part: part),
    "LoRA": lambda: (
      functools.partial(low_rank, weights),
      functools.partial(with_low_rank, weights),
    ),
    "BitFit": lambda: (
      lambda key: biases(weights),
      functools.partial(with_biases, weights),
    ),
  }[way]()
  return _task(way, f"{way} on {name}", data, merge, start, 8, steps)


def low_rank(weights, key):
  """A is random and B is zero, so that adapting starts where training ended."""
  kernels = _attention(weights)
  keys = jax.random.split(key, len(kernels))
  return {
    path: {
      "a": jax.random.normal(k, (w.shape[0], RANK)) / w.shape[0] ** 0.5,
      "b": jnp.zeros((RANK, *w.shape[1:])),
    }
    for k, (path, w) in zip(keys, kernels.items(), strict=True)
  }


def with_low_rank(weights, part):
  def add(path, leaf):
    factors = part.get(jax.tree_util.keystr(path))
    if factors is None:
      return leaf
    return leaf + jnp.tensordot(factors["a"], factors["b"], 1)

  return jax.tree.map_with_path(add, weights)


def biases(weights):
  return {
    path: leaf for path, leaf in _leaves(weights) if path.endswith("['bias']")
  }


def with_biases(weights, part):
  return jax.tree.map_with_path(
    lambda path, leaf: part.get(jax.tree_util.keystr(path), leaf), weights
  )


def _leaves(weights):
  for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
    yield jax.tree_util.keystr(path), leaf


def _attention(weights):
  ends = ("['query']['kernel']", "['value']['kernel']")
  return {path: leaf for path, leaf in _leaves(weights) if path.endswith(ends)}
