"""Image classifiers on the CIFAR-10 subset: a ResNet-8 and a ViT.

The ResNet has BatchNorm, whose statistics are the workload's state. Its first
convolution is followed by pooling, so that one core can train it.
"""

import flax.linen as nn
import numpy as np
import optax

from scripts.common import data_sets
from scripts.common.models import Conv, max_pool
from scripts.league.layers import Block, positions
from scripts.league.workload import (
  ACTIVATIONS,
  Family,
  Form,
  Parts,
  builder,
  split,
)

PATCH = 4


def load(data_dir, *, side: int, train: int = 20_000, held: int = 64) -> Parts:
  data = data_sets.cifar10_30k(data_dir)
  examples = {
    "image": np.concatenate([data.train.x[:train], data.test.x[: 2 * held]]),
    "label": np.concatenate([data.train.y[:train], data.test.y[: 2 * held]]),
  }
  if side == 16:
    folded = examples["image"].reshape(-1, 16, 2, 16, 2, 3)
    examples["image"] = folded.mean((2, 4))
  return split(examples, train, held)


class ResNet8(nn.Module):
  width: int
  activation: str

  @nn.compact
  def __call__(self, x, train):
    act = ACTIVATIONS[self.activation]
    norm = lambda: nn.BatchNorm(not train, momentum=0.9)
    x = max_pool(act(norm()(Conv(self.width, 3)(x))))
    for stage in range(3):
      channels = self.width * 2**stage
      x = max_pool(x) if stage else x
      past = x if x.shape[-1] == channels else nn.Dense(channels)(x)
      x = act(norm()(Conv(channels, 3)(x)))
      x = act(norm()(Conv(channels, 3)(x)) + past)
    return nn.Dense(10)(x.mean((1, 2)))


class ViT(nn.Module):
  width: int
  activation: str
  blocks: int = 2

  @nn.compact
  def __call__(self, x, train):
    images, side, _, channels = x.shape
    rows = side // PATCH
    x = x.reshape(images, rows, PATCH, rows, PATCH, channels).swapaxes(2, 3)
    x = nn.Dense(self.width)(x.reshape(images, rows * rows, -1))
    x = x + positions(self, rows * rows, self.width)
    for _ in range(self.blocks):
      x = Block(self.width, self.activation)(x)
    return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


def images_of(rows):
  return (rows["image"],)


def label_loss(logits, rows):
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, rows["label"]
  ).mean()


RESNET = Family(
  "resnet",
  "ResNet-8 with BatchNorm, CIFAR-10, 30k subset",
  Form(8, "relu", 1.0, 16, 500),
  lambda data_dir: load(data_dir, side=32),
  builder("resnet", ResNet8, images_of, label_loss),
)
VIT = Family(
  "vit",
  "ViT on 16x16 images, CIFAR-10, 30k subset",
  Form(48, "gelu", 1.0, 16, 800),
  lambda data_dir: load(data_dir, side=16),
  builder("vit", ViT, images_of, label_loss),
)
