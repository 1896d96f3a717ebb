"""A deep autoencoder of MNIST with a narrow middle and saturating units."""

import flax.linen as nn
import numpy as np
import optax

from scripts.common import data_sets
from scripts.league.layers import Mlp
from scripts.league.workload import Family, Form, Parts, builder, split

CODE = 12


def load(data_dir, *, train: int = 20_000, held: int = 400) -> Parts:
  data = data_sets.mnist(data_dir, train=train)
  images = np.concatenate([data.train.x, data.test.x[: 2 * held]])
  return split(images.reshape(len(images), -1), train, held)


class Autoencoder(nn.Module):
  width: int
  activation: str

  @nn.compact
  def __call__(self, x, train):
    w, pixels = self.width, x.shape[-1]
    widths = (4 * w, 2 * w, w, CODE, w, 2 * w, 4 * w, pixels)
    return Mlp(widths, self.activation)(x)


def pixel_loss(logits, images):
  return optax.sigmoid_binary_cross_entropy(logits, images).sum(-1).mean()


FAMILY = Family(
  "autoencoder",
  "deep autoencoder, MNIST",
  Form(40, "tanh", 1.0, 64, 800),
  load,
  builder("autoencoder", Autoencoder, lambda images: (images,), pixel_loss),
)
