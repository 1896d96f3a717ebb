"""From a record to a sentence: an encoder and a decoder on E2E, by words."""

import collections
import csv
import re
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from scripts.league.layers import Block, positions
from scripts.league.workload import Family, Form, Parts, builder, split

RECORD, SENTENCE, WORDS = 32, 32, 800
NOTHING, BEGIN, END, RARE = range(4)


def load(data_dir, *, held: int = 80) -> Parts:
  """Trained on the development set, evaluated on the test set."""
  if data_dir is None:
    raise FileNotFoundError("e2e_dev.csv is needed: give its folder")
  pairs = [
    pairs_of(Path(data_dir) / name)
    for name in ("e2e_dev.csv", "e2e_test_refs.csv")
  ]
  # A record has several sentences in a row: those held are spread out.
  chosen = np.linspace(0, len(pairs[1]) - 1, 2 * held).astype(int)
  order = np.random.default_rng(105).permutation(chosen)
  held_pairs = [pairs[1][i] for i in order]
  return split(encode(pairs[0], held_pairs), len(pairs[0]), held)


def pairs_of(path):
  with open(path, encoding="utf-8", newline="") as lines:
    rows = list(csv.DictReader(lines))
  return [(words(row["mr"]), words(row["ref"])) for row in rows]


def words(text: str) -> list[str]:
  return re.findall(r"[a-z£0-9]+|[^\sa-z£0-9]", text.lower())


def encode(train, held):
  """Codes of the most frequent words of the training pairs."""
  count = collections.Counter(
    w for pair in train for side in pair for w in side
  )
  frequent = [word for word, _ in count.most_common(WORDS - 4)]
  code = {word: i + 4 for i, word in enumerate(frequent)}

  def rows(side, length):
    out = np.full((len(train) + len(held), length), NOTHING, np.int32)
    for row, pair in enumerate([*train, *held]):
      codes = [code.get(word, RARE) for word in pair[side]]
      codes = [BEGIN, *codes[: length - 2], END]
      out[row, : len(codes)] = codes
    return out

  return {"record": rows(0, RECORD), "sentence": rows(1, SENTENCE + 1)}


class Translator(nn.Module):
  """One block to read, two to write; words have one table."""

  width: int
  activation: str

  @nn.compact
  def __call__(self, record, sentence, train):
    embed = nn.Embed(WORDS, self.width)
    block = lambda: Block(self.width, self.activation)
    there = (record != NOTHING)[:, None, None, :]
    read = embed(record) + positions(self, RECORD, self.width)
    memory = nn.LayerNorm()(block()(read, there))
    normal = nn.initializers.normal(0.02)
    place = self.param("place", normal, (SENTENCE, self.width))
    x = embed(sentence) + place
    causal = nn.make_causal_mask(sentence[:1])
    for _ in range(2):
      x = block()(x, causal, memory, there)
    return nn.Dense(WORDS)(nn.LayerNorm()(x))


def word_loss(logits, rows):
  target = rows["sentence"][:, 1:]
  there = (target != NOTHING).astype(jnp.float32)
  each = optax.softmax_cross_entropy_with_integer_labels(logits, target)
  return (each * there).sum() / there.sum()


FAMILY = Family(
  "translator",
  "encoder and decoder, E2E",
  Form(32, "gelu", 1.0, 12, 400),
  load,
  builder(
    "translator",
    Translator,
    lambda rows: (rows["record"], rows["sentence"][:, :-1]),
    word_loss,
  ),
)
