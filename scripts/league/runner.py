"""One run: an optimizer on a workload, evaluated forty times on the way.

A program of `interval` steps and one evaluation are compiled once for each
workload and entrant; settings and seeds are arguments. An evaluation reads the
iterate (an entrant's own average where it has one) and the polynomial average
of the parameters. BatchNorm's statistics are averaged with the same weights,
not estimated anew: that would cost passes that the clock had to count.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gen_optax
from scripts.league import meter
from scripts.league.entrant import Entrant
from scripts.league.workload import Workload

EVALUATIONS = 40
# What others may use of the work that the references were tuned with.
BUDGET = 1.5


class Carry(NamedTuple):
  """What goes on from step to step.

  Attributes:
    params, state: the network's.
    opt: the optimizer's state.
    average: state of the polynomial averages of (params, state).
    clock: work so far, in passes of `value_and_grad`.
    averaging: what the averages added to it.
  """

  params: Any
  state: Any
  opt: Any
  average: Any
  clock: jax.Array
  averaging: jax.Array


class Readings(NamedTuple):
  """Losses (validation, test) at the iterate and at the average."""

  iterate: Any
  average: Any


def interval(steps: int) -> int:
  """Steps between two evaluations."""
  return max(1, steps // EVALUATIONS)


class Program:
  """A workload and an entrant, compiled for runs of any setting and seed."""

  def __init__(self, workload: Workload, entrant: Entrant):
    self.workload, self.entrant = workload, entrant
    self.interval = interval(workload.steps)
    key = jax.random.key(0)
    setting = {name: jnp.float32(x) for name, x in entrant.default.items()}
    params, state = jax.eval_shape(workload.init, key)
    batch = jax.eval_shape(workload.sample, workload.data, key)
    gradient = lambda *args: self._gradient(*args)[1:]
    self.unit = meter.flops_of(gradient, params, state, batch, key)
    began = time.perf_counter()
    # The number of steps is a schedule's alone; its value changes no price.
    steps = jnp.float32(1.0)
    carry = jax.eval_shape(self._start, setting, steps, key)
    self.static_cost = (
      meter.flops_of(self._update, carry, setting, steps, batch, key)
      / self.unit
    )
    self.start = jax.jit(self._start)
    self.advance = (
      jax.jit(self._advance, donate_argnums=0)
      .lower(carry, setting, steps, workload.data, jnp.int32(0), key)
      .compile()
    )
    self.evaluate = jax.jit(self._evaluate)
    self.seconds_to_compile = time.perf_counter() - began

  def steps_within(self, work: float) -> int:
    """Steps that fit in `work`, where no search takes more."""
    return max(1, int(work / self.static_cost))

  def run(self, setting, seed: int, work: float, progress=None) -> dict:
    """Trains until `work` is used up.

    Args:
      setting: a number for each name of the entrant's space.
      seed: of initial parameters, batches and dropout.
      work: in passes of `value_and_grad`.
      progress: called with the share that is done.

    Returns:
      A record for a JSON file: for each evaluation the step and the clock,
      (validation, test) losses at the iterate and at the average.
    """
    setting = {name: jnp.float32(x) for name, x in setting.items()}
    steps = jnp.float32(self.steps_within(work))
    key = jax.random.key(seed)
    data = self.workload.data
    carry = jax.block_until_ready(self.start(setting, steps, key))
    record = {"step": [0], "clock": [0.0], "averaging": 0.0}
    losses = [self.evaluate(carry, data)]
    done, seconds = 0, 0.0
    # An interval is run as long as most of it fits.
    while record["clock"][-1] + self.static_cost * self.interval / 2 < work:
      began = time.perf_counter()
      carry = self.advance(carry, setting, steps, data, jnp.int32(done), key)
      jax.block_until_ready(carry)
      seconds += time.perf_counter() - began
      done += self.interval
      losses.append(self.evaluate(carry, data))
      record["step"].append(done)
      record["clock"].append(float(carry.clock))
      if progress is not None:
        progress(min(1.0, float(carry.clock) / work))
    record["averaging"] = float(carry.averaging) / done
    record["seconds"] = seconds
    for where in Readings._fields:
      read = [getattr(each, where) for each in losses]
      record[where] = [
        [float(each.validation), float(each.test)] for each in read
      ]
    return record

  # What is compiled

  def _optimizer(self, setting, steps):
    optimizer = self.entrant.make(setting, steps)
    return optax.with_extra_args_support(optimizer)

  def _start(self, setting, steps, key):
    params, state = self.workload.init(key)
    opt = self._optimizer(setting, steps).init(params)
    average = averages().init((params, state))
    zero = jnp.float32(0)
    return Carry(params, state, opt, average, zero, zero)

  def _gradient(self, params, state, batch, key):
    def value_fn(params):
      return self.workload.loss(params, state, batch, key)[0]

    def with_state(params):
      return self.workload.loss(params, state, batch, key)

    (value, new_state), grad = jax.value_and_grad(with_state, has_aux=True)(
      params
    )
    return value_fn, value, new_state, grad

  def _update(self, carry, setting, steps, batch, key):
    """A whole step but for the average: what the clock counts."""
    value_fn, value, state, grad = self._gradient(
      carry.params, carry.state, batch, key
    )
    # The closure is the loss of the same batch, key and BatchNorm state.
    updates, opt = self._optimizer(setting, steps).update(
      grad, carry.opt, carry.params, value=value, grad=grad, value_fn=value_fn
    )
    return optax.apply_updates(carry.params, updates), state, opt

  def _average(self, average, old, new):
    change = jax.tree.map(lambda x, y: y - x, old, new)
    return averages().update(change, average, old)[1]

  def _advance(self, carry, setting, steps, data, first, key):
    update = meter.metered(
      lambda carry, batch, key: self._update(carry, setting, steps, batch, key)
    )
    average = meter.metered(self._average)

    def step(carry, count):
      batch_key, loss_key = jax.random.split(jax.random.fold_in(key, count))
      batch = self.workload.sample(data, batch_key)
      (params, state, opt), work = update(carry, batch, loss_key)
      kept, averaging = average(
        carry.average, (carry.params, carry.state), (params, state)
      )
      return Carry(
        params,
        state,
        opt,
        kept,
        carry.clock + work / self.unit,
        carry.averaging + averaging / self.unit,
      ), None

    counts = first + jnp.arange(self.interval)
    return jax.lax.scan(step, carry, counts)[0]

  def _evaluate(self, carry, data):
    own = carry.params
    if self.entrant.evaluate_at is not None:
      own = self.entrant.evaluate_at(carry.opt, carry.params)
    averaged = gen_optax.averaged_parameters(carry.average)
    evaluate = self.workload.evaluate
    return Readings(evaluate(data, own, carry.state), evaluate(data, *averaged))


def averages():
  """Of parameters and statistics alike."""
  return gen_optax.average_parameters()


def curve(record: dict, where: str) -> tuple[np.ndarray, np.ndarray]:
  """Clock and validation loss of each evaluation at one place."""
  clock = np.asarray(record["clock"], float)
  if where == "average":
    clock = clock + record["averaging"] * np.asarray(record["step"])
  losses = np.asarray(record[where], float)[:, 0]
  return clock, np.where(np.isfinite(losses), losses, np.inf)
