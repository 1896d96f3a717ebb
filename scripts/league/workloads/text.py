"""The next character: a small GPT and an LSTM on Tiny Shakespeare."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scripts.common import data_sets
from scripts.league.layers import Block, Lstm, Mlp, positions
from scripts.league.workload import Family, Form, Parts, supervised

LENGTH = 48


def load(data_dir, *, held: int = 64) -> Parts:
  """A text to draw windows from, and windows held back from its last tenth."""
  return parts_of(codes_of(data_dir), held)


def codes_of(data_dir) -> np.ndarray:
  """The text with a number for each symbol."""
  text, _ = data_sets.text_of(data_dir)
  symbols = {symbol: code for code, symbol in enumerate(sorted(set(text)))}
  return np.array([symbols[symbol] for symbol in text], np.int32)


def parts_of(codes, held: int) -> Parts:
  border = int(0.9 * len(codes))
  starts = np.linspace(border, len(codes) - LENGTH - 1, 2 * held).astype(int)
  windows = codes[starts[:, None] + np.arange(LENGTH + 1)]
  # Alternate ones, so that both are of the same pages.
  return Parts(*map(jnp.asarray, (codes[:border], windows[::2], windows[1::2])))


def windows(codes, key, count: int, length: int = LENGTH):
  """`count` windows of `length` symbols and the one after them."""
  starts = jax.random.randint(key, (count,), 0, codes.shape[0] - length - 1)
  return codes[starts[:, None] + jnp.arange(length + 1)]


class Gpt(nn.Module):
  width: int
  activation: str
  symbols: int
  blocks: int = 2

  @nn.compact
  def __call__(self, tokens, train):
    x = nn.Embed(self.symbols, self.width)(tokens)
    x = x + positions(self, LENGTH, self.width)
    causal = nn.make_causal_mask(tokens[:1])
    for _ in range(self.blocks):
      x = Block(self.width, self.activation)(x, causal)
    return nn.Dense(self.symbols)(nn.LayerNorm()(x))


class LstmWriter(nn.Module):
  """Two LSTMs, with dropout between, and an MLP."""

  width: int
  activation: str
  symbols: int

  @nn.compact
  def __call__(self, tokens, train):
    x = nn.Embed(self.symbols, self.width)(tokens)
    x = Lstm(self.width)(x)
    x = nn.Dropout(0.1, deterministic=not train)(x)
    x = Lstm(self.width)(x)
    return Mlp((self.width, self.symbols), self.activation)(x)


def next_loss(logits, windows):
  each = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
  return each.mean()


def build(name: str, module):
  def build_one(data: Parts, form: Form):
    symbols = 1 + int(max(part.max() for part in data))

    return supervised(
      name,
      form,
      data,
      module(form.width, form.activation, symbols),
      lambda windows: (windows[:, :-1],),
      next_loss,
      lambda data, key: windows(data.train, key, form.batch_size),
    )

  return build_one


GPT = Family(
  "gpt",
  "GPT, characters of Tiny Shakespeare",
  Form(48, "gelu", 1.0, 12, 500),
  load,
  build("gpt", Gpt),
)
LSTM = Family(
  "lstm",
  "LSTM, characters of Tiny Shakespeare",
  Form(64, "relu", 1.0, 12, 400),
  load,
  build("lstm", LstmWriter),
)
