"""Optimizers that scripts compare: a base under a schedule, or under GeN."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax

import gen_optax


class Base(NamedTuple):
  """An optimizer of learning rate 1, and eight rates to tune it over.

  `ready` is its ready-made chain where that has options of its own.
  """

  make: Callable
  rates: tuple[float, ...]
  ready: Callable | None = None


def half_decades(low: float, high: float) -> tuple[float, ...]:
  """10^low, 10^(low + 1/2), ..., 10^high."""
  exponents = np.arange(low, high + 0.25, 0.5)
  return tuple(float(f"{10**x:.3g}") for x in exponents)


BASES = {
  "sgd": Base(lambda: optax.sgd(1.0), half_decades(-3, 0.5)),
  "momentum": Base(lambda: optax.sgd(1.0, momentum=0.9), half_decades(-3.5, 0)),
  "rmsprop": Base(lambda: optax.rmsprop(1.0), half_decades(-4, -0.5)),
  "adamw": Base(lambda: optax.adamw(1.0), half_decades(-4, -0.5)),
  "lion": Base(
    lambda: optax.lion(1.0), half_decades(-4.5, -1), gen_optax.gen_lion
  ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
  """An optimizer whose runs differ by a `setting`, a tree of arrays.

  `make(setting)` builds the optimizer; `rate(state, setting, step)` reads the
  learning rate of the step that led to `state` (NaN where there is none).
  """

  make: Callable
  rate: Callable


def scheduled(make_base: Callable) -> Method:
  """A base whose rate is a peak times a schedule's shape over the run."""

  def make(setting):
    def rate(count):
      return setting["rate"] * setting["shape"][count]

    return optax.chain(make_base(), optax.scale_by_schedule(rate))

  def rate(state, setting, step):
    del state
    return setting["rate"] * setting["shape"][step]

  return Method(make, rate)


SCHEDULES = ("constant", "linear", "cosine", "warm-up", "1/sqrt(t)", "1/t")


def schedule_shape(name: str, steps: int) -> np.ndarray:
  """Factors on the peak rate over a run, shape (steps,).

  The warm-up rises over a tenth of the run and falls linearly. The powers of t
  start to fall after the first twentieth.
  """
  done = np.arange(steps, dtype=np.float32) / steps
  late = np.maximum(20 * done, 1)
  return {
    "constant": np.ones(steps, np.float32),
    "linear": 1 - done,
    "cosine": (1 + np.cos(np.pi * done)) / 2,
    "warm-up": np.minimum(10 * (done + 1 / steps), (1 - done) / 0.9),
    "1/sqrt(t)": late**-0.5,
    "1/t": 1 / late,
  }[name].astype(np.float32)


def untuned_gen(base: Base, every: int = 1) -> Method:
  """The base under GeN; a setting's "rate" is where its search starts."""

  def make(setting):
    if base.ready is not None:
      return base.ready(setting["rate"], every=every)
    return gen_optax.generalized_newton(
      base.make(), setting["rate"], every=every
    )

  def rate(state, setting, step):
    del setting, step
    return optax.tree.get(state, "ScaleByGenState").learning_rate

  return Method(make, rate)


def paper_gen(make_base: Callable) -> Method:
  """The base under the paper's rule; a setting's "rate" is its eta_0."""

  def make(setting):
    stage = gen_optax.scale_by_gen_paper(setting["rate"])
    return optax.chain(make_base(), stage)

  def rate(state, setting, step):
    del setting, step
    return optax.tree.get(state, "ScaleByGenPaperState").learning_rate

  return Method(make, rate)
