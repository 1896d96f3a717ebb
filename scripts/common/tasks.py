"""A task: data, a network, a loss and how long to train."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from scripts.common import data_sets, models


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """What is trained, and by what the result is judged.

  `losses(params, x, y)` gives the loss of each example and how right each is,
  from 0 to 1 (NaN where accuracy has no meaning), both of shape (examples,).
  """

  name: str
  title: str
  data: data_sets.Data
  init: Callable
  losses: Callable
  batch_size: int
  steps: int
  judged_by: str
  scored: int = 5000  # examples of each split that final scores are taken on


def _classification(model):
  def losses(params, x, y):
    logits = model.apply(params, x)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    right = (logits.argmax(-1) == y).astype(jnp.float32)
    # A text has one loss for each character: an example is their mean.
    axes = tuple(range(1, loss.ndim))
    return loss.mean(axes), right.mean(axes)

  return losses


def _reconstruction(model):
  def losses(params, x, y):
    del y
    errors = model.apply(params, x) - x.reshape(x.shape[0], -1)
    loss = jnp.sum(errors**2, axis=-1)
    return loss, jnp.full_like(loss, jnp.nan)

  return losses


def _task(name, title, data, model, losses, batch_size, steps, judged_by, **kw):
  def init(key):
    return model.init(key, data.train.x[:1])

  return Task(
    name,
    f"{title}, batches of {batch_size}",
    jax.tree.map(jnp.asarray, data),
    init,
    losses(model),
    batch_size,
    steps,
    judged_by,
    **kw,
  )


def mlp(data_dir: Path | None = None) -> Task:
  del data_dir
  return _task(
    "mlp",
    "MLP 64-128-128-10 on scikit-learn's digits",
    data_sets.digits(),
    models.MLP(),
    _classification,
    batch_size=128,
    steps=500,
    judged_by="accuracy",
  )


def cnn(data_dir: Path | None = None) -> Task:
  del data_dir
  return _task(
    "cnn",
    "CNN with 8 and 16 channels on scikit-learn's digits",
    data_sets.digits(),
    models.CNN(),
    _classification,
    batch_size=128,
    steps=300,
    judged_by="accuracy",
  )


def autoencoder(data_dir: Path | None = None) -> Task:
  del data_dir
  return _task(
    "autoencoder",
    "autoencoder 64-128-32-8-32-128-64 on scikit-learn's digits",
    data_sets.digits(),
    models.Autoencoder(),
    _reconstruction,
    batch_size=128,
    steps=500,
    judged_by="loss",
  )


def lenet(data_dir: Path | None) -> Task:
  return _task(
    "lenet",
    "LeNet-5 on 10,000 images of MNIST at 14x14",
    data_sets.mnist(data_dir, size=14, train=10_000),
    models.LeNet5(),
    _classification,
    batch_size=64,
    steps=500,
    judged_by="accuracy",
  )


def logistic(data_dir: Path | None = None) -> Task:
  del data_dir
  return _task(
    "logistic",
    "logistic regression on synthetic data with a tenth of labels flipped",
    data_sets.noisy_logistic(),
    models.LogisticRegression(),
    _classification,
    batch_size=32,
    steps=500,
    judged_by="loss",
  )


def transformer(data_dir: Path | None = None) -> Task:
  data, text = data_sets.characters(data_dir, length=64)
  symbols = 1 + int(max(split.x.max() for split in data))
  return _task(
    "transformer",
    f"two-block character transformer, width 64, on {text}",
    data,
    models.CharTransformer(symbols),
    _classification,
    batch_size=8,
    steps=400,
    judged_by="loss",
    scored=500,
  )


def mnist_mlp(data_dir: Path | None) -> Task:
  return _task(
    "mlp",
    "MLP 784-128-128-10 on MNIST",
    data_sets.mnist(data_dir),
    models.MLP(),
    _classification,
    batch_size=128,
    steps=500,
    judged_by="accuracy",
  )


def mnist_cnn(data_dir: Path | None) -> Task:
  return _task(
    "cnn",
    "CNN with 8 and 16 channels on MNIST",
    data_sets.mnist(data_dir),
    models.CNN(),
    _classification,
    batch_size=64,
    steps=300,
    judged_by="accuracy",
  )


def cifar_mlp(data_dir: Path | None) -> Task:
  return _task(
    "mlp",
    "MLP 3072-128-128-10 on CIFAR-10, 30k subset",
    data_sets.cifar10_30k(data_dir),
    models.MLP(),
    _classification,
    batch_size=128,
    steps=500,
    judged_by="accuracy",
  )


def cifar_cnn(data_dir: Path | None) -> Task:
  return _task(
    "cnn",
    "CNN with 16 and 32 channels on CIFAR-10, 30k subset",
    data_sets.cifar10_30k(data_dir),
    models.CNN(channels=(16, 32)),
    _classification,
    batch_size=64,
    steps=300,
    judged_by="accuracy",
  )


def vision(network: str, images: str, width: int, data_dir=None) -> Task:
  """A residual or plain network or a vision transformer, of any width."""
  data, patch, batch_size, steps = {
    "digits": lambda: (data_sets.digits(), 2, 64, 300),
    "mnist": lambda: (
      *(data_sets.mnist(data_dir, size=14, train=10_000), 2, 64, 500),
    ),
    "cifar": lambda: (data_sets.cifar10_30k(data_dir), 4, 128, 2000),
  }[images]()
  model, name = {
    "resnet": (models.ResNet(width), "residual network"),
    "plain": (models.ResNet(width, skips=False), "the same without skips"),
    "vit": (models.ViT(4 * width, patch=patch), "vision transformer"),
  }[network]
  return _task(
    f"{images}/{network}{width}",
    f"{name}, width {width if network != 'vit' else 4 * width}, on {images}",
    data,
    model,
    _classification,
    batch_size=batch_size,
    steps=steps,
    judged_by="accuracy",
    scored=2000,
  )
