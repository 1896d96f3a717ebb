"""The data sets of the experiments, as arrays in memory.

Digits and the noisy logistic regression need no download. MNIST, the CIFAR-10
subset and Tiny Shakespeare are read from a folder given by `--data-dir`.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
  """Inputs and targets, one row an example."""

  x: np.ndarray
  y: np.ndarray


class Data(NamedTuple):
  train: Split
  test: Split


def digits(seed: int = 0) -> Data:
  """Scikit-learn's 8x8 digits in [0, 1]: 1,437 to train on, 360 to test."""
  from sklearn.datasets import load_digits

  images, labels = load_digits(return_X_y=True)
  images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
  order = np.random.default_rng(seed).permutation(len(labels))
  train, test = order[:1437], order[1437:]
  labels = labels.astype(np.int32)
  return Data(
    Split(images[train], labels[train]), Split(images[test], labels[test])
  )


def noisy_logistic(
  seed: int = 0, *, features: int = 50, flipped: float = 0.1
) -> Data:
  """Two classes split by a plane, a tenth of all labels flipped.

  The features' scales fall from 1 to 0.1, and nothing can interpolate the
  labels: the gradient of a batch stays noisy to the end.
  """
  rng = np.random.default_rng(seed)
  n_train, n_test = 2000, 2000
  scales = np.geomspace(1.0, 0.1, features)
  x = rng.normal(size=(n_train + n_test, features)) * scales
  normal = rng.normal(size=features) / scales
  y = x @ normal > 0
  y ^= rng.random(len(y)) < flipped
  x, y = x.astype(np.float32), y.astype(np.int32)
  return Data(Split(x[:n_train], y[:n_train]), Split(x[n_train:], y[n_train:]))


def mnist(
  data_dir: Path, *, size: int = 28, train: int = 60_000, seed: int = 0
) -> Data:
  """MNIST in [0, 1]; `size=14` averages 2x2 pixels, `train` takes a subset."""
  if size not in (14, 28):
    raise ValueError(f"size must be 14 or 28, got {size}")
  arrays = np.load(_file(data_dir, "mnist.npz"))

  def images(name):
    pixels = arrays[name].astype(np.float32) / 255.0
    folded = pixels.reshape(-1, size, 28 // size, size, 28 // size)
    return folded.mean((2, 4))[..., None]

  def labels(name):
    return arrays[name].astype(np.int32)

  subset = np.random.default_rng(seed).permutation(60_000)[:train]
  return Data(
    Split(images("train_images")[subset], labels("train_labels")[subset]),
    Split(images("test_images"), labels("test_labels")),
  )


def cifar10_30k(data_dir: Path) -> Data:
  """The 30,000-image subset of CIFAR-10, standardised by channel."""
  from PIL import Image

  arrays = np.load(_file(data_dir, "cifar10_30k_jpeg.npz"))

  def decode(split):
    jpeg = arrays[f"{split}_jpeg"].tobytes()
    offsets = arrays[f"{split}_offsets"]
    pixels = np.stack(
      [
        np.asarray(Image.open(io.BytesIO(jpeg[start:end])))
        for start, end in zip(offsets[:-1], offsets[1:], strict=True)
      ]
    )
    return pixels.astype(np.float32) / 255.0

  train, test = decode("train"), decode("test")
  mean, std = train.mean((0, 1, 2)), train.std((0, 1, 2))
  return Data(
    Split((train - mean) / std, arrays["train_labels"].astype(np.int32)),
    Split((test - mean) / std, arrays["test_labels"].astype(np.int32)),
  )


def text_of(data_dir: Path | None) -> tuple[str, str]:
  """A text and its name.

  Tiny Shakespeare where `data_dir` has it, otherwise the language reference
  that Python ships (`pydoc_data.topics`).
  """
  if data_dir is not None and (Path(data_dir) / "tinyshakespeare.txt").exists():
    text = (Path(data_dir) / "tinyshakespeare.txt").read_text()
    return text, "Tiny Shakespeare"
  from pydoc_data.topics import topics

  text = "\n".join(topics[key] for key in sorted(topics))
  return text, "Python's language reference"


def windows(codes: np.ndarray, length: int) -> Data:
  """Windows and the same shifted by one, split 90/10 in order."""
  border = int(0.9 * len(codes))

  def rows_of(part):
    rows = (len(part) - 1) // length
    return Split(
      part[: rows * length].reshape(rows, length),
      part[1 : rows * length + 1].reshape(rows, length),
    )

  return Data(rows_of(codes[:border]), rows_of(codes[border:]))


def characters(data_dir: Path | None, *, length: int = 64) -> tuple[Data, str]:
  """Windows of `length` characters of `text_of`; and its name."""
  text, name = text_of(data_dir)
  symbols = {symbol: code for code, symbol in enumerate(sorted(set(text)))}
  codes = np.array([symbols[symbol] for symbol in text], np.int32)
  return windows(codes, length), name


def _file(data_dir: Path | None, name: str) -> Path:
  if data_dir is None or not (Path(data_dir) / name).exists():
    raise FileNotFoundError(
      f"{name} is needed: give its folder by --data-dir or GEN_OPTAX_DATA "
      f"(looked in {data_dir})"
    )
  return Path(data_dir) / name
