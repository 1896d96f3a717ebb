"""Reconstruction from a quarter of k-space: a U-Net on MNIST.

Of each image's Fourier transform the four central columns and four random ones
are kept, with noise. The network gets the magnitude of the zero-filled inverse
and is trained on the absolute error, as the fastMRI baseline is.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from scripts.common import data_sets
from scripts.common.models import Conv, max_pool
from scripts.league.workload import (
  ACTIVATIONS,
  Family,
  Form,
  Parts,
  builder,
  split,
)

SIDE, CENTRAL, RANDOM = 32, 4, 4
NOISE = 0.3
SEED = 102


def load(data_dir, *, train: int = 8000, held: int = 64) -> Parts:
  data = data_sets.mnist(data_dir, train=train)
  images = np.concatenate([data.train.x, data.test.x[: 2 * held]])[..., 0]
  images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
  return split(undersample(images, SEED), train, held)


def undersample(images, seed: int):
  """Pairs of what the scanner gives and what is looked for."""
  rng = np.random.default_rng(seed)
  rank = rng.random((len(images), SIDE))
  middle = (SIDE - CENTRAL) // 2
  rank[:, middle : middle + CENTRAL] = -1
  order = np.argsort(np.argsort(rank, 1), 1)
  kept = order < CENTRAL + RANDOM
  space = np.fft.fftshift(np.fft.fft2(images), (1, 2))
  noise = rng.normal(size=(2, *images.shape)) * NOISE
  space = (space + noise[0] + 1j * noise[1]) * kept[:, None]
  seen = np.abs(np.fft.ifft2(np.fft.ifftshift(space, (1, 2))))
  return {"seen": seen.astype(np.float32), "image": images.astype(np.float32)}


class UNet(nn.Module):
  """Three levels of two convolutions, of w, 2w and 4w channels.

  The first level has a place for each 2x2 pixels.
  """

  width: int
  activation: str

  @nn.compact
  def __call__(self, seen, train):
    act = ACTIVATIONS[self.activation]

    def level(x, channels):
      for _ in range(2):
        x = act(Conv(channels, 3)(x))
      return nn.GroupNorm(num_groups=4)(x)

    w, levels = self.width, []
    x = folded(seen)
    for channels in (w, 2 * w):
      x = level(x, channels)
      levels.append(x)
      x = max_pool(x)
    x = level(x, 4 * w)
    for past in levels[::-1]:
      x = x.repeat(2, 1).repeat(2, 2)
      channels = past.shape[-1]
      x = level(jnp.concatenate([nn.Dense(channels)(x), past], -1), channels)
    return seen + unfolded(nn.Dense(4)(x))


def folded(x):
  """(images, 2h, 2w) -> (images, h, w, 4)."""
  images, height, width = x.shape
  x = x.reshape(images, height // 2, 2, width // 2, 2).swapaxes(2, 3)
  return x.reshape(images, height // 2, width // 2, 4)


def unfolded(x):
  """The inverse of `folded`."""
  images, height, width, _ = x.shape
  x = x.reshape(images, height, width, 2, 2).swapaxes(2, 3)
  return x.reshape(images, 2 * height, 2 * width)


def absolute_error(found, rows):
  return jnp.abs(found - rows["image"]).mean()


FAMILY = Family(
  "unet",
  "U-Net, MNIST from a quarter of k-space",
  Form(8, "relu", 1.0, 8, 500),
  load,
  builder("unet", UNet, lambda rows: (rows["seen"],), absolute_error),
)
