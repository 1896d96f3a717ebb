"""One run: an optimizer on a workload, evaluated forty times on the way.

A program of `interval` steps and one evaluation are compiled once for each
workload and entrant; settings and seeds are arguments. An evaluation reads the
iterate (an entrant's own average where it has one) and the polynomial average
of the parameters. BatchNorm's statistics are averaged with the same weights,
not estimated anew: that would cost passes that the clock had to count.
"""

import functools
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
# What entrants may use of the work of AdamW's tuned run.
BUDGET = 1.5


class Carry(NamedTuple):
  """What goes on from step to step.

  Attributes:
    params, state: the network's.
    opt: the optimizer's state.
    average: state of the polynomial averages of (params, state).
    clock: work so far, in passes of `value_and_grad`, but for the averages.
  """

  params: Any
  state: Any
  opt: Any
  average: Any
  clock: jax.Array


def interval(steps: int) -> int:
  """Steps between two evaluations."""
  return max(1, steps // EVALUATIONS)


class Ground:
  """A workload, with what all entrants share compiled once.

  Attributes:
    workload: what is trained.
    unit: flops of one `value_and_grad`.
    init: key -> parameters, state.
    evaluate: data, parameters, state -> losses.
  """

  def __init__(self, workload: Workload):
    self.workload = workload
    self.init = jax.jit(workload.init)
    self.evaluate = jax.jit(workload.evaluate)
    key = jax.random.key(0)
    self.shapes = jax.eval_shape(workload.init, key)
    self.batch = jax.eval_shape(workload.sample, workload.data, key)
    gradient = lambda *args: self.gradient(*args)[1:]
    self.unit = meter.flops_of(gradient, *self.shapes, self.batch, key)

  def gradient(self, params, state, batch, key):
    """The closure, its value, the new state, the gradient."""
    loss = self.workload.loss

    # The loss of the same batch, key and BatchNorm state.
    def value_fn(params):
      return loss(params, state, batch, key)[0]

    both = jax.value_and_grad(
      lambda params: loss(params, state, batch, key), has_aux=True
    )
    (value, new_state), grad = both(params)
    return value_fn, value, new_state, grad


class Program:
  """An entrant on a ground, compiled for runs of any setting and seed."""

  def __init__(self, ground: Ground, entrant: Entrant):
    self.ground, self.entrant = ground, entrant
    workload = ground.workload
    self.interval = interval(workload.steps)
    key, steps = jax.random.key(0), jnp.float32(1.0)
    setting = {name: jnp.float32(x) for name, x in entrant.default.items()}
    self.start = jax.jit(self._start)
    carry = jax.eval_shape(self._start, *ground.shapes, setting, steps)
    update = (carry, setting, steps, ground.batch, key)
    self.static_cost = meter.flops_of(self._update, *update) / ground.unit
    # The polynomial averages, which take the same at every step.
    moved = carry.params, carry.state
    averaging = meter.flops_of(self._average, carry.average, moved, moved)
    self.averaging = averaging / ground.unit
    self._arguments = carry, setting, steps, workload.data, jnp.int32(0), key

  @functools.cached_property
  def advance(self):
    """Compiled when it is first run: a price can be had without."""
    program = jax.jit(self._advance, donate_argnums=0)
    return program.lower(*self._arguments).compile()

  def steps_within(self, work: float) -> int:
    """Steps that fit in `work`, where no search takes more."""
    return max(1, int(work / self.static_cost))

  def run(self, setting, seed: int, work: float) -> dict:
    """Trains until `work` is used up.

    Args:
      setting: a number for each name of the entrant's space.
      seed: of initial parameters, batches and dropout.
      work: in passes of `value_and_grad`.

    Returns:
      A record for a JSON file: for each evaluation the step and the clock,
      (validation, test) losses at each of the entrant's readings.
    """
    setting = {name: jnp.float32(x) for name, x in setting.items()}
    steps = jnp.float32(self.steps_within(work))
    key = jax.random.key(seed)
    data = self.ground.workload.data
    carry = self.start(*self.ground.init(key), setting, steps)
    record = {"step": [0], "clock": [0.0], "work": work}
    record |= {where: [] for where in self.entrant.readings}
    self._read(carry, record)
    advance, done, seconds = self.advance, 0, 0.0
    at_start = time.perf_counter()
    # An interval is run as long as most of it fits.
    while record["clock"][-1] + self.static_cost * self.interval / 2 < work:
      began = time.perf_counter()
      carry = advance(carry, setting, steps, data, jnp.int32(done), key)
      jax.block_until_ready(carry)
      seconds += time.perf_counter() - began
      done += self.interval
      record["step"].append(done)
      record["clock"].append(float(carry.clock))
      self._read(carry, record)
    record["averaging"] = self.averaging
    record["seconds"] = seconds
    record["evaluating"] = time.perf_counter() - at_start - seconds
    return record

  def _read(self, carry, record):
    for where in self.entrant.readings:
      place = self._place(carry, where)
      losses = self.ground.evaluate(self.ground.workload.data, *place)
      record[where].append([float(x) for x in losses])

  def _place(self, carry, where):
    if where == "average":
      return gen_optax.averaged_parameters(carry.average)
    if self.entrant.evaluate_at is None:
      return carry.params, carry.state
    return self.entrant.evaluate_at(carry.opt, carry.params), carry.state

  # What is compiled

  def _optimizer(self, setting, steps):
    optimizer = self.entrant.make(setting, steps)
    return optax.with_extra_args_support(optimizer)

  def _start(self, params, state, setting, steps):
    opt = self._optimizer(setting, steps).init(params)
    average = averages().init((params, state))
    zero = jnp.float32(0)
    return Carry(params, state, opt, average, zero)

  def _update(self, carry, setting, steps, batch, key):
    """A whole step but for the average: what the clock counts."""
    value_fn, value, state, grad = self.ground.gradient(
      carry.params, carry.state, batch, key
    )
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

    def step(carry, count):
      batch_key, loss_key = jax.random.split(jax.random.fold_in(key, count))
      batch = self.ground.workload.sample(data, batch_key)
      (params, state, opt), work = update(carry, batch, loss_key)
      average = self._average(
        carry.average, (carry.params, carry.state), (params, state)
      )
      clock = carry.clock + work / self.ground.unit
      return Carry(params, state, opt, average, clock), None

    counts = first + jnp.arange(self.interval)
    return jax.lax.scan(step, carry, counts)[0]


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
