"""The networks of the experiments: small enough for two processor cores."""

import flax.linen as nn
import jax.numpy as jnp


class Conv(nn.Module):
  """A square convolution as one matrix product over shifted copies.

  Same result and initial weights' distribution as `nn.Conv` with "SAME"
  padding. On a CPU a training step of LeNet-5 takes a sixth of the time that
  XLA's own convolution needs, nearly all of it saved in the backward pass.
  """

  features: int
  side: int

  @nn.compact
  def __call__(self, x):
    _, height, width, _ = x.shape
    before, after = (self.side - 1) // 2, self.side // 2
    x = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    shifts = [
      x[:, row : row + height, column : column + width]
      for row in range(self.side)
      for column in range(self.side)
    ]
    return nn.Dense(self.features)(jnp.concatenate(shifts, axis=-1))


def max_pool(x):
  """The largest of each 2x2 square; an odd last row or column is dropped.

  Two at a time: the gradient of a maximum over axes divides by how many entries
  equal it. A compiler that computes them twice, with and without fused
  multiplication, finds none, and the gradient is not a number.
  """
  x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
  x = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


class MLP(nn.Module):
  """Fully connected with ReLU: 64-128-128-10 on digits."""

  hidden: tuple[int, ...] = (128, 128)
  classes: int = 10

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    for width in self.hidden:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.classes)(x)


class CNN(nn.Module):
  """Two 3x3 convolutions, pooling, one linear layer."""

  channels: tuple[int, int] = (8, 16)
  classes: int = 10

  @nn.compact
  def __call__(self, x):
    x = nn.relu(Conv(self.channels[0], 3)(x))
    x = max_pool(nn.relu(Conv(self.channels[1], 3)(x)))
    return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))


class LeNet5(nn.Module):
  """LeCun et al. (1998) with ReLU and max-pooling; any image size."""

  classes: int = 10

  @nn.compact
  def __call__(self, x):
    x = nn.relu(Conv(6, 5)(x))
    x = max_pool(x)
    x = nn.relu(Conv(16, 5)(x))
    x = max_pool(x)
    x = x.reshape(x.shape[0], -1)
    for width in (120, 84):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.classes)(x)


class Autoencoder(nn.Module):
  """64-128-32-8-32-128-64; returns the reconstruction, flat."""

  widths: tuple[int, ...] = (128, 32, 8, 32, 128)

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    pixels = x.shape[1]
    for width in self.widths:
      x = nn.tanh(nn.Dense(width)(x))
    return nn.Dense(pixels)(x)


class LogisticRegression(nn.Module):
  """One linear layer."""

  classes: int = 2

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.classes)(x)


class CharTransformer(nn.Module):
  """A decoder of two pre-norm blocks: about 0.1 million parameters."""

  symbols: int
  width: int = 64
  heads: int = 4
  blocks: int = 2

  @nn.compact
  def __call__(self, tokens):
    length = tokens.shape[1]
    position = self.param(
      "position", nn.initializers.normal(0.02), (length, self.width)
    )
    x = nn.Embed(self.symbols, self.width)(tokens) + position
    mask = nn.make_causal_mask(jnp.zeros((1, length)))
    for _ in range(self.blocks):
      x = x + nn.MultiHeadDotProductAttention(self.heads)(
        nn.LayerNorm()(x), mask=mask
      )
      hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
      x = x + nn.Dense(self.width)(hidden)
    return nn.Dense(self.symbols)(nn.LayerNorm()(x))


class GPT(nn.Module):
  """nanoGPT's decoder: no biases, one matrix for embedding and output.

  Initial weights are normal with deviation 0.02, those that write to the
  residual stream over the root of the number of writes.
  """

  symbols: int
  width: int
  heads: int
  blocks: int
  length: int

  @nn.compact
  def __call__(self, tokens):
    normal = nn.initializers.normal(0.02)
    writes = nn.initializers.normal(0.02 / (2 * self.blocks) ** 0.5)
    embed = nn.Embed(self.symbols, self.width, embedding_init=normal)
    shape = (self.length, self.width)
    position = self.param("position", normal, shape)
    x = embed(tokens) + position[: tokens.shape[1]]
    mask = nn.make_causal_mask(tokens[:1])
    norm = lambda: nn.LayerNorm(use_bias=False)
    for _ in range(self.blocks):
      x = x + nn.MultiHeadDotProductAttention(
        self.heads, use_bias=False, kernel_init=normal, out_kernel_init=writes
      )(norm()(x), mask=mask)
      hidden = nn.Dense(4 * self.width, use_bias=False, kernel_init=normal)
      back = nn.Dense(self.width, use_bias=False, kernel_init=writes)
      x = x + back(nn.gelu(hidden(norm()(x))))
    return embed.attend(norm()(x))


class ResNet(nn.Module):
  """Basic blocks in three stages, of w, 2w and 4w channels.

  With `skips=False` the same layers in the same order, and nothing goes past
  them. Group normalisation in place of batch normalisation: a loss that depends
  on its own example alone is the same function wherever it is evaluated.
  """

  width: int = 8
  blocks: int = 1
  skips: bool = True
  classes: int = 10

  @nn.compact
  def __call__(self, x):
    norm = lambda: nn.GroupNorm(num_groups=4)
    x = nn.relu(norm()(Conv(self.width, 3)(x)))
    for stage in range(3):
      channels = self.width * 2**stage
      x = max_pool(x) if stage else x
      for _ in range(self.blocks):
        past = x if x.shape[-1] == channels else nn.Dense(channels)(x)
        x = nn.relu(norm()(Conv(channels, 3)(x)))
        x = norm()(Conv(channels, 3)(x))
        x = nn.relu(x + past if self.skips else x)
    return nn.Dense(self.classes)(x.mean((1, 2)))


class ViT(nn.Module):
  """A vision transformer: square patches, pre-norm blocks, mean pooling."""

  width: int = 32
  blocks: int = 2
  heads: int = 4
  patch: int = 2
  classes: int = 10

  @nn.compact
  def __call__(self, x):
    images, height, width, channels = x.shape
    rows, columns, p = height // self.patch, width // self.patch, self.patch
    x = x[:, : rows * p, : columns * p]
    x = x.reshape(images, rows, p, columns, p, channels).swapaxes(2, 3)
    x = nn.Dense(self.width)(x.reshape(images, rows * columns, -1))
    x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:])
    for _ in range(self.blocks):
      x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
      hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
      x = x + nn.Dense(self.width)(hidden)
    return nn.Dense(self.classes)(nn.LayerNorm()(x).mean(1))
