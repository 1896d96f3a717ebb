"""Two tasks whose parameters are seldom touched: rare words, rare experts."""

import jax
import jax.numpy as jnp
import numpy as np

from scripts.league.development.task import (
  cross_entropy,
  dense,
  held_out,
  mlp,
  normal,
  task,
)
from scripts.league.workload import Parts

TRAIN, HELD = 20_000, 2_000
CLASSES = 8


def zipf(count: int) -> np.ndarray:
  chance = 1 / np.arange(1, count + 1)
  return chance / chance.sum()


def sampled(rng, logits) -> np.ndarray:
  """Labels drawn from a softmax."""
  noise = rng.gumbel(size=logits.shape)
  return np.argmax(logits + noise, 1).astype(np.int32)


# A bag of words

WORDS, LENGTH = 5_000, 24


def bags(data_dir=None) -> Parts:
  del data_dir
  rng = np.random.default_rng(11)
  words = rng.choice(WORDS, size=(TRAIN + HELD, LENGTH), p=zipf(WORDS))
  votes = rng.normal(size=(WORDS, CLASSES))
  labels = sampled(rng, votes[words].sum(1) / 2)
  return held_out((words.astype(np.int32), labels), TRAIN)


def bag_init(key):
  table, layers = jax.random.split(key)
  return {
    "table": normal(table, WORDS, 16, scale=0.1),
    "mlp": dense(layers, (16, 32, CLASSES)),
  }


def bag_loss(params, rows, key):
  del key
  words, labels = rows
  bag = params["table"][words].sum(1)
  return cross_entropy(mlp(params["mlp"], bag), labels)


# A mixture of experts, each example sent to one of them

EXPERTS, INPUTS, HIDDEN = 16, 16, 16


def clusters(data_dir=None) -> Parts:
  del data_dir
  rng = np.random.default_rng(12)
  rows = TRAIN + HELD
  cluster = rng.choice(EXPERTS, size=rows, p=zipf(EXPERTS))
  centres = 2 * rng.normal(size=(EXPERTS, INPUTS))
  x = centres[cluster] + rng.normal(size=(rows, INPUTS))
  teachers = rng.normal(size=(EXPERTS, INPUTS, CLASSES))
  labels = sampled(rng, np.einsum("ni,nic->nc", x, teachers[cluster]))
  return held_out((x.astype(np.float32), labels), TRAIN)


def experts_init(key):
  gate, inner, last = jax.random.split(key, 3)
  scale = INPUTS**-0.5
  return {
    "gate": normal(gate, INPUTS, EXPERTS),
    "in": normal(inner, EXPERTS, INPUTS, HIDDEN, scale=scale),
    "out": normal(last, EXPERTS, HIDDEN, CLASSES, scale=HIDDEN**-0.5),
  }


def experts_loss(params, rows, key):
  del key
  x, labels = rows
  chances = jax.nn.softmax(x @ params["gate"])
  chosen = jnp.argmax(chances, 1)
  share = jnp.take_along_axis(chances, chosen[:, None], 1)
  hidden = jnp.tanh(jnp.einsum("ni,nih->nh", x, params["in"][chosen]))
  logits = jnp.einsum("nh,nhc->nc", hidden, params["out"][chosen])
  return cross_entropy(share * logits, labels)


BAG = task("bag", "bag of words", 32, 800, bags, bag_init, bag_loss)
MIXTURE = task(
  "experts", "mixture of experts", 32, 800, clusters, experts_init, experts_loss
)
