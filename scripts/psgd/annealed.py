"""Optimizers whose rate is annealed, PSGD's among them, and an equal search.

Rates fall exponentially to a hundredth, the step on PSGD's group from 0.1 to
0.01 and its updates are clipped to norm 10: App. E.1 of the PSGD paper.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import gen_optax
from gen_optax import psgd
from scripts.common import methods

CLIP_NORM = 10.0


class Recipe(NamedTuple):
  """A method, the name it is printed by and where its search starts."""

  label: str
  method: methods.Method
  start: float


def recipe(label: str, start: float, stage: Callable) -> Recipe:
  """`stage(setting)` gives a direction; decay and an annealed rate follow."""

  def make(setting):
    return optax.chain(
      stage(setting),
      optax.add_decayed_weights(setting["decay"]),
      optax.scale_by_learning_rate(
        lambda count: setting["rate"] * setting["shape"][count]
      ),
    )

  def rate(state, setting, step):
    del state
    return setting["rate"] * setting["shape"][step]

  return Recipe(label, methods.Method(make, rate), start)


def psgd_recipe(
  label: str, preconditioner, start: float = 0.1, lazy: bool = False
) -> Recipe:
  def stage(setting):
    return gen_optax.scale_by_psgd(
      preconditioner,
      precond_learning_rate=lambda count: setting["precond"][count],
      probability=(lambda count: setting["chance"][count]) if lazy else 1.0,
      clip_norm=CLIP_NORM,
      seed=setting["seed"],
    )

  return recipe(label, start, stage)


def first_order(label: str, start: float, make: Callable) -> Recipe:
  return recipe(label, start, lambda setting: make())


RECIPES = {
  "sgd": first_order("SGD", 0.3, optax.identity),
  "momentum": first_order("SGD, momentum", 0.03, lambda: optax.trace(0.9)),
  "adam": first_order("Adam", 3e-3, optax.scale_by_adam),
  # One step on the group for all blocks, and each block its own.
  "diagonal": psgd_recipe("PSGD diagonal", psgd.diagonal(steps="global")),
  "diagonal-own": psgd_recipe(
    "PSGD diagonal, own steps", psgd.diagonal(steps="block")
  ),
  "xmat": psgd_recipe("PSGD XMat", psgd.xmat()),
  "xmat-own": psgd_recipe("PSGD XMat, own steps", psgd.xmat(steps="block")),
  **{
    f"lra{r}": psgd_recipe(f"PSGD low rank {r}", psgd.low_rank(r))
    for r in (0, 1, 2, 5, 10)
  },
  "lazy": psgd_recipe("PSGD low rank 5, lazy", psgd.low_rank(5), lazy=True),
  "kron": psgd_recipe("PSGD kron", psgd.kron()),
}


def falling(start: float, end: float, steps: int, length: int | None = None):
  """Exponential from `start` to `end` in `steps`; `end` from there on."""
  done = np.minimum(np.arange(length or steps) / steps, 1.0)
  return (start * (end / start) ** done).astype(np.float32)


def setting(rate, seed, steps, *, length=None, decay=0.0):
  """What a run is told: an anneal over `steps` in arrays of `length`."""
  return {
    "rate": jnp.float32(rate),
    "shape": falling(1.0, 0.01, steps, length),
    "precond": falling(0.1, 0.01, steps, length),
    "chance": falling(1.0, 0.1, steps, length),
    "decay": jnp.float32(decay),
    "seed": jnp.int32(seed),
  }


def search(trial: Callable, start: float, trials: int) -> dict:
  """Tries exactly `trials` rates, each beside the best so far.

  Steps are half decades until the best has a worse rate on either side, then
  quarter decades, and so on. `trial(rate)` returns what is to be largest.
  """
  scores, spacing = {0.0: trial(start)}, 1.0
  while len(scores) < trials:
    best = max(scores, key=scores.get)
    untried = {best + spacing, best - spacing} - set(scores)
    if untried:
      position = max(untried)
      scores[position] = trial(start * 10 ** (position / 2))
    else:
      spacing /= 2
  tried = sorted(scores)
  best = max(scores, key=scores.get)
  return {
    "rates": [start * 10 ** (position / 2) for position in tried],
    "scores": [scores[position] for position in tried],
    "best_rate": start * 10 ** (best / 2),
    "bracketed": tried[0] < best < tried[-1],
  }
