"""What a workload is: a network, its data, a loss, and how long to train.

Data are an argument of every program: an array that a traced function closes
over becomes a constant of each program that is compiled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS = {
  "relu": jax.nn.relu,
  "gelu": jax.nn.gelu,
  "silu": jax.nn.silu,
  "tanh": jnp.tanh,
}


class Form(NamedTuple):
  """What a family's members differ by.

  Attributes:
    width: of the network, a multiple of 4.
    activation: of `ACTIVATIONS`.
    gain: factor on the initial matrices.
    batch_size: examples of a batch.
    steps: of the tuned references; others may use half as much work again.
  """

  width: int
  activation: str
  gain: float
  batch_size: int
  steps: int


class Losses(NamedTuple):
  """The validation loss decides whether a target is reached."""

  validation: Any
  test: Any


class Workload(NamedTuple):
  """Functions of arrays alone, to be traced.

  Attributes:
    name: one word.
    form: width, activation and so on.
    data: what `sample` and `evaluate` read, a tree of arrays.
    init: key -> parameters, state (BatchNorm's statistics, or an empty tree).
    sample: data, key -> batch.
    loss: parameters, state, batch, key -> loss, new state.
    evaluate: data, parameters, state -> `Losses`.
  """

  name: str
  form: Form
  data: Any
  init: Callable
  sample: Callable
  loss: Callable
  evaluate: Callable

  @property
  def steps(self) -> int:
    return self.form.steps


class Family(NamedTuple):
  """A workload that is scored, and what it takes to build its variants.

  Attributes:
    name: one word.
    title: what it is, for a table.
    form: the form that is scored.
    load: folder of data -> `Parts`.
    build: `Parts`, form -> `Workload`.
    needs_data: whether `load` reads a file that the package does not bring.
    files: what it is made of beside the module of `load`.
  """

  name: str
  title: str
  form: Form
  load: Callable
  build: Callable
  needs_data: bool = True
  files: tuple[str, ...] = ()


class Parts(NamedTuple):
  """Three trees of arrays, one row an example."""

  train: Any
  validation: Any
  test: Any


def split(examples, train: int, held: int) -> Parts:
  """The first `train` rows, the next `held`, and as many after those."""
  cut = lambda start, stop: jax.tree.map(
    lambda x: jnp.asarray(x[start:stop]), examples
  )
  border = train + held
  return Parts(cut(0, train), cut(train, border), cut(border, border + held))


def random_rows(data: Parts, key, batch_size: int):
  """A batch drawn with replacement."""
  rows = jax.tree.leaves(data.train)[0].shape[0]
  chosen = jax.random.randint(key, (batch_size,), 0, rows)
  return jax.tree.map(lambda x: x[chosen], data.train)


def supervised(
  name: str,
  form: Form,
  data: Parts,
  module,
  inputs: Callable,
  loss_of: Callable,
  sample: Callable | None = None,
) -> Workload:
  """A workload from a Flax module.

  Args:
    name, form, data: as in `Workload`.
    module: called with `inputs(rows)` and `train`, in training with a random
      key named "dropout".
    inputs: rows -> tuple of the module's arguments.
    loss_of: outputs, rows -> mean loss.
    sample: as in `Workload`; by default `random_rows`.
  """

  def init(key):
    # Traced with one example: only shapes are read.
    row = jax.tree.map(lambda x: x[:1], data.validation)
    variables = dict(module.init(key, *inputs(row), train=False))
    params = variables.pop("params")
    return rescaled(params, form.gain), variables

  def batch_loss(params, state, rows, key):
    variables = {"params": params, **state}
    if key is None:
      out = module.apply(variables, *inputs(rows), train=False)
    else:
      out, state = module.apply(
        variables,
        *inputs(rows),
        train=True,
        rngs={"dropout": key},
        mutable=list(state),
      )
    return loss_of(out, rows), state

  def evaluate(data, params, state):
    held = data.validation, data.test
    return Losses(*(batch_loss(params, state, rows, None)[0] for rows in held))

  sample = sample or (lambda data, key: random_rows(data, key, form.batch_size))
  return Workload(name, form, data, init, sample, batch_loss, evaluate)


def builder(name: str, module, inputs: Callable, loss_of: Callable) -> Callable:
  """A family's `build` from a module of a width and an activation."""

  def build(data: Parts, form: Form) -> Workload:
    network = module(form.width, form.activation)
    return supervised(name, form, data, network, inputs, loss_of)

  return build


def rescaled(params, gain: float):
  """Matrices and tables times `gain`; vectors as they are."""
  return jax.tree.map(lambda x: gain * x if x.ndim > 1 else x, params)


# What variants are drawn from. None has the width or the gain that is scored.
WIDTH_FACTORS = (0.5, 0.75, 1.5)
GAINS = (0.5, 0.7, 1.4)
BATCH_SIZES = (4, 8, 16, 64)
VARIANT_SEED = 2025


def variants(family: Family, count: int) -> list[Form]:
  """Forms for calibration, drawn from a fixed seed, half as long."""
  base = family.form
  rng = np.random.default_rng([VARIANT_SEED, *family.name.encode()])
  widths = {4 * max(1, round(x * base.width / 4)) for x in WIDTH_FACTORS}
  widths = sorted(widths - {base.width})
  forms = []
  for _ in range(count):
    forms.append(
      Form(
        width=int(rng.choice(widths)),
        activation=str(rng.choice(list(ACTIVATIONS))),
        gain=float(rng.choice(GAINS)),
        batch_size=int(rng.choice(BATCH_SIZES)),
        steps=base.steps // 2,
      )
    )
  return forms
