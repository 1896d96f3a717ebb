"""The state of `scale_by_gen`."""

from typing import Any, NamedTuple

import jax

from gen_optax.gen.averages import Averages
from gen_optax.gen.stage import GenInfo


class ScaleByGenState(NamedTuple):
  """State of `scale_by_gen`.

  Attributes:
    count: number of calls, int32.
    learning_rate: the rate, in at least float32.
    calibrated: whether the first rate has been found.
    averages: what the rule remembers of earlier lines.
    previous_update: the last update, zero where it was withheld; None without
      `fresh_slope`.
    curvature_times_step: the last emitted rate times the curvature along it.
    follows: whether the two above describe a step that was taken, neither zero
      nor an outlier.
    start: the parameters at the start; None without `fresh_slope`.
    momentum_free: whether no update so far went uphill in a coordinate, as
      those of an optimizer with momentum do; watched where `every` is 1.
    info: diagnostics.
  """

  count: jax.Array
  learning_rate: jax.Array
  calibrated: jax.Array
  averages: Averages
  previous_update: Any
  curvature_times_step: jax.Array
  follows: jax.Array
  start: Any
  momentum_free: jax.Array
  info: GenInfo
