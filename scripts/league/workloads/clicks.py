"""Click prediction: many rare ids, few dense features, labels by chance.

A small DLRM: a table of embeddings for each field, an MLP for the dense
features, all inner products between them, an MLP on top. Ids follow Zipf's law,
so that most rows of a table are seen once or never. Labels are drawn from a
teacher's probability, a tenth of them at random.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from scripts.league.layers import Mlp
from scripts.league.workload import Family, Form, Parts, builder, split

FIELDS, IDS, DENSE = 8, 3000, 8
EXPONENT = 1.1
SEED = 101


def load(data_dir=None, *, train: int = 100_000, held: int = 4000) -> Parts:
  del data_dir
  rng = np.random.default_rng(SEED)
  rows = train + 2 * held
  chance = np.arange(1, IDS + 1) ** -EXPONENT
  ids = rng.choice(IDS, size=(rows, FIELDS), p=chance / chance.sum())
  dense = rng.normal(size=(rows, DENSE))
  logits = teacher(rng, ids, dense)
  clicked = rng.random(rows) < 1 / (1 + np.exp(-logits))
  at_random = rng.random(rows) < 0.1
  clicked = np.where(at_random, rng.random(rows) < 0.5, clicked)
  examples = {
    "ids": ids.astype(np.int32),
    "dense": dense.astype(np.float32),
    "clicked": clicked.astype(np.float32),
  }
  return split(examples, train, held)


def teacher(rng, ids, dense):
  """A random network of one hidden layer on random embeddings."""
  tables = rng.normal(size=(FIELDS, IDS, 4))
  found = tables[np.arange(FIELDS), ids].reshape(len(ids), -1)
  features = np.concatenate([found, dense], 1)
  inner = rng.normal(size=(features.shape[1], 24)) / features.shape[1] ** 0.5
  outer = rng.normal(size=24) / 24**0.5
  return 4 * np.tanh(1.5 * features @ inner) @ outer - 1


class Dlrm(nn.Module):
  width: int
  activation: str

  @nn.compact
  def __call__(self, ids, dense, train):
    normal = nn.initializers.normal(self.width**-0.5)
    size = (FIELDS * IDS, self.width)
    table = self.param("table", normal, size)
    found = table[ids + IDS * jnp.arange(FIELDS)]
    below = Mlp((4 * self.width, self.width), self.activation)(dense)
    vectors = jnp.concatenate([found, below[:, None]], 1)
    products = jnp.einsum("bik,bjk->bij", vectors, vectors)
    above, right = np.triu_indices(FIELDS + 1, 1)
    features = jnp.concatenate([below, products[:, above, right]], 1)
    widths = (8 * self.width, 4 * self.width, 1)
    return Mlp(widths, self.activation)(features)[:, 0]


def click_loss(logits, rows):
  return optax.sigmoid_binary_cross_entropy(logits, rows["clicked"]).mean()


FAMILY = Family(
  "clicks",
  "click prediction, DLRM, Zipf ids",
  Form(16, "relu", 1.0, 256, 1000),
  load,
  builder(
    "clicks", Dlrm, lambda rows: (rows["ids"], rows["dense"]), click_loss
  ),
  needs_data=False,
)
