"""Properties of drawn molecules: a graph network, most labels missing.

A molecule is a random tree of at most 16 atoms with a few rings. Twelve
properties are drawn from a teacher's probabilities, which depend on two rounds
of messages; six of ten are missing, as in ogbg-molpcba.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from scripts.league.layers import Mlp, masked_mean
from scripts.league.workload import (
  ACTIVATIONS,
  Family,
  Form,
  Parts,
  builder,
  split,
)

ATOMS, KINDS, BONDS, PROPERTIES = 16, 6, 3, 12
MISSING = 0.6
SEED = 104


def load(data_dir=None, *, train: int = 6000, held: int = 400) -> Parts:
  del data_dir
  rng = np.random.default_rng(SEED)
  graphs = draw(rng, train + 2 * held)
  logits = teacher(rng, graphs)
  present = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
  graphs["property"] = present.astype(np.float32)
  known = rng.random(logits.shape) > MISSING
  graphs["known"] = known.astype(np.float32)
  return split(graphs, train, held)


def draw(rng, count: int):
  """Kinds of atoms, 0 where there is none, and a matrix for each bond."""
  atoms = rng.integers(8, ATOMS + 1, size=count)
  chance = np.array([0.55, 0.18, 0.14, 0.07, 0.06])
  kind = 1 + rng.choice(KINDS - 1, size=(count, ATOMS), p=chance)
  kind[np.arange(ATOMS) >= atoms[:, None]] = 0
  bond = np.zeros((count, ATOMS, ATOMS, BONDS), np.float32)
  graph = np.arange(count)

  def join(chosen, a, b):
    which = rng.choice(BONDS, size=count, p=[0.7, 0.2, 0.1])[chosen]
    bond[graph[chosen], a[chosen], b[chosen], which] = 1
    bond[graph[chosen], b[chosen], a[chosen], which] = 1

  for atom in range(1, ATOMS):
    # To one of the last few, so that chains are long.
    other = np.maximum(0, atom - rng.integers(1, 4, size=count))
    join(atom < atoms, np.full(count, atom), other)
  for _ in range(2):
    a, b = rng.integers(0, atoms), rng.integers(0, atoms)
    free = bond[graph, a, b].sum(-1) == 0
    join((a != b) & free & (rng.random(count) < 0.6), a, b)
  return {"kind": kind.astype(np.int32), "bond": bond}


def teacher(rng, graphs):
  """Two rounds of messages with random weights, summed over atoms."""
  width = 16
  weights = lambda n, m: rng.normal(size=(n, m)) / n**0.5
  table = rng.normal(size=(KINDS, width))
  table[0] = 0
  x = table[graphs["kind"]]
  for _ in range(2):
    messages = [
      graphs["bond"][..., k] @ x @ weights(width, width) for k in range(BONDS)
    ]
    x = np.tanh(x @ weights(width, width) + sum(messages))
    x = x * (graphs["kind"] > 0)[..., None]
  logits = x.sum(1) @ weights(width, PROPERTIES)
  return 3 * (logits - logits.mean(0)) / logits.std(0) - 1.5


class GraphNetwork(nn.Module):
  """Rounds of messages along bonds, then the mean and the largest."""

  width: int
  activation: str
  rounds: int = 3

  @nn.compact
  def __call__(self, kind, bond, train):
    act = ACTIVATIONS[self.activation]
    drop = nn.Dropout(0.1, deterministic=not train)
    exists = (kind > 0).astype(jnp.float32)[..., None]
    x = nn.Embed(KINDS, self.width)(kind) * exists
    for _ in range(self.rounds):
      sent = [nn.Dense(self.width)(x) for _ in range(BONDS)]
      heard = sum(bond[..., k] @ sent[k] for k in range(BONDS))
      new = act(nn.LayerNorm()(nn.Dense(self.width)(x) + heard))
      x = (x + drop(new)) * exists
    pooled = [masked_mean(x, exists, 1), x.sum(1) / 4]
    widths = (2 * self.width, PROPERTIES)
    return Mlp(widths, self.activation)(jnp.concatenate(pooled, -1))


def known_loss(logits, rows):
  each = optax.sigmoid_binary_cross_entropy(logits, rows["property"])
  return (each * rows["known"]).sum() / jnp.maximum(rows["known"].sum(), 1)


FAMILY = Family(
  "gnn",
  "graph network, drawn molecules",
  Form(32, "relu", 1.0, 32, 600),
  load,
  builder(
    "gnn",
    GraphNetwork,
    lambda rows: (rows["kind"], rows["bond"]),
    known_loss,
  ),
  needs_data=False,
)
