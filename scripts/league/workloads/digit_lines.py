"""Lines of handwritten digits, read by CTC: a conformer and an LSTM.

Three to six digits of MNIST stand side by side at random distances, seen column
by column, four at a time, under noise. The label is their sequence without
places, which is what speech recognition has.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from scripts.common import data_sets
from scripts.league.layers import Lstm, Mlp, positions
from scripts.league.workload import Family, Form, Parts, builder, split

HEIGHT, COLUMNS, MOST = 14, 96, 6
STRIDE = 4
NOISE = 0.1
SEED = 103


def load(data_dir, *, train: int = 8000, held: int = 96) -> Parts:
  data = data_sets.mnist(data_dir, size=HEIGHT, train=20_000)
  rng = np.random.default_rng(SEED)
  parts = [
    lines(rng, part.x[..., 0], part.y, count)
    for part, count in ((data.train, train), (data.test, 2 * held))
  ]
  joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
  return split(joined, train, held)


def lines(rng, images, labels, count: int):
  """`count` lines: frames of four columns, labels from 1 on, 0 behind them."""
  frames = np.zeros((count, HEIGHT, COLUMNS), np.float32)
  digits = np.zeros((count, MOST), np.int32)
  for line in range(count):
    length = rng.integers(3, MOST + 1)
    chosen = rng.integers(len(images), size=length)
    digits[line, :length] = labels[chosen] + 1
    room = COLUMNS - length * HEIGHT
    gaps = np.sort(rng.integers(0, room + 1, size=length))
    for place, image in enumerate(images[chosen]):
      start = gaps[place] + place * HEIGHT
      frames[line, :, start : start + HEIGHT] = image
  frames += NOISE * rng.normal(size=frames.shape)
  frames = frames.transpose(0, 2, 1).reshape(count, -1, STRIDE * HEIGHT)
  return {"frames": frames.astype(np.float32), "digits": digits}


class Convolution(nn.Module):
  """Gated, then each channel over time by itself."""

  width: int
  side: int = 7

  @nn.compact
  def __call__(self, x):
    gate, x = jnp.split(nn.Dense(2 * self.width)(x), 2, -1)
    x = x * nn.sigmoid(gate)
    normal = nn.initializers.normal(self.side**-0.5)
    kernel = self.param("kernel", normal, (self.side, self.width))
    length, around = x.shape[1], self.side // 2
    padded = jnp.pad(x, ((0, 0), (around, around), (0, 0)))
    shifted = [padded[:, i : i + length] for i in range(self.side)]
    x = sum(x * row for x, row in zip(shifted, kernel, strict=True))
    return nn.Dense(self.width)(nn.silu(nn.LayerNorm()(x)))


class Conformer(nn.Module):
  """Blocks of half an MLP, attention, a convolution, half an MLP."""

  width: int
  activation: str
  blocks: int = 2

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(self.width)(x)
    x = x + positions(self, x.shape[1], self.width)
    drop = nn.Dropout(0.1, deterministic=not train)
    half = lambda: Mlp((4 * self.width, self.width), self.activation)
    for _ in range(self.blocks):
      x = x + drop(half()(nn.LayerNorm()(x))) / 2
      x = x + drop(nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x)))
      x = x + drop(Convolution(self.width)(nn.LayerNorm()(x)))
      x = nn.LayerNorm()(x + drop(half()(nn.LayerNorm()(x))) / 2)
    return nn.Dense(11)(x)


class LstmReader(nn.Module):
  """One LSTM each way, and an MLP."""

  width: int
  activation: str

  @nn.compact
  def __call__(self, x, train):
    x = Mlp((self.width,), self.activation, last_is_linear=False)(x)
    both = [Lstm(self.width, reverse)(x) for reverse in (False, True)]
    return Mlp((self.width, 11), self.activation)(jnp.concatenate(both, -1))


def ctc(logits, rows):
  """Mean loss of a line; every frame counts."""
  no_padding = jnp.zeros(logits.shape[:2])
  blank = (rows["digits"] == 0).astype(jnp.float32)
  return optax.ctc_loss(logits, no_padding, rows["digits"], blank).mean()


def frames_of(rows):
  return (rows["frames"],)


CONFORMER = Family(
  "conformer",
  "conformer with CTC, lines of MNIST digits",
  Form(24, "silu", 1.0, 16, 800),
  load,
  builder("conformer", Conformer, frames_of, ctc),
)
LSTM = Family(
  "lstm_ctc",
  "LSTM with CTC, lines of MNIST digits",
  Form(48, "relu", 1.0, 16, 800),
  load,
  builder("lstm_ctc", LstmReader, frames_of, ctc),
)
