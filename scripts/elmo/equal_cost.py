"""Runs of equal cost: until the work counted reaches a budget.

Work is counted inside the compiled loop: gradients, losses alone and
Hessian-vector products, each weighed by its floating-point operations in units
of one gradient. What a method does besides (two-loop recursions, Lanczos'
orthogonalisation, products with a preconditioner) is in the seconds alone.

A run is judged by the lowest loss that it met within the budget. Seconds are
those of the processor, so that a shared machine does not count.
"""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scripts.elmo.full_batch import Problem, Weights
from scripts.elmo.full_batch_methods import Family, Work

# Steps between two looks at the clock, at most; also this part of the budget.
CHUNK, PARTS = 256, 40
# Points of a curve that are kept.
KEPT = 160
MAX_EXTENSIONS = 4


class Setting(NamedTuple):
  """What a method's runs differ by."""

  form: tuple
  number: float


class Tuned(NamedTuple):
  """The best setting, the number of trials, and whether the grid goes on."""

  setting: Setting
  trials: int
  on_edge: bool


@functools.cache
def _program(problem: Problem, family: Family, form, fixed, weights: Weights):
  """The compiled loop of one method in one form."""

  def advance(params, state, spent, number, data, cap):
    number = number if fixed is None else fixed
    optimizer = optax.with_extra_args_support(family.make(form, number))
    value_fn = lambda p: problem.loss(p, data)
    dtype = params.dtype
    like = lambda: jnp.zeros(CHUNK, dtype)

    def wanted(carry):
      i, _, _, spent, losses, _ = carry
      sane = jnp.isfinite(losses[jnp.maximum(i - 1, 0)])
      return (i < CHUNK) & (cost_of(spent, weights) < cap) & sane

    def body(carry):
      i, params, state, spent, losses, costs = carry
      if family.keeps_gradient:
        both = optax.value_and_grad_from_state(value_fn)
        value, grad = both(params, state=state)
      else:
        value, grad = jax.value_and_grad(value_fn)(params)
      updates, after = optimizer.update(
        grad, state, params, value=value, grad=grad, value_fn=value_fn
      )
      done = family.work(form, number, params.size, state, after)
      losses = losses.at[i].set(value)
      costs = costs.at[i].set(cost_of(spent, weights).astype(dtype))
      spent = jax.tree.map(
        lambda s, d: s + jnp.asarray(d, s.dtype), spent, done
      )
      return i + 1, params + updates, after, spent, losses, costs

    carry = jnp.zeros((), jnp.int32), params, state, spent, like(), like()
    carry = jax.lax.while_loop(wanted, body, carry)
    count, params, state, spent, losses, costs = carry
    return params, state, spent, count, losses, costs, value_fn(params)

  return jax.jit(advance)


def cost_of(spent: Work, weights: Weights):
  """Work in gradients."""
  return (
    spent.gradients
    + weights.value * spent.evaluations
    + weights.product * spent.products
  )


def run(
  problem: Problem,
  family: Family,
  setting: Setting,
  seed: int,
  weights: Weights,
  budget: float,
  progress=None,
) -> dict:
  """One run: its judged losses, its work, and its curve.

  Returns:
    A record with `loss`, the lowest above `problem.lowest` at a quarter, a half
    and all of the budget, `work`, `steps`, `seconds`, and `curve`: the lowest
    loss so far against steps, cost and seconds.
  """
  with jax.enable_x64(problem.float64):
    params, data = problem.draw(seed)
    lowest = problem.lowest(data) if problem.lowest else 0.0
    number = int(setting.number) if family.is_count else float(setting.number)
    fixed = number if family.is_static else None
    program = _program(problem, family, setting.form, fixed, weights)
    state = family.make(setting.form, number).init(params)
    spent = Work(*(jnp.zeros((), jnp.int32) for _ in Work._fields))
    # Weak types would be gone after the first call, and compile anew.
    state = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)
    # Compiles, and makes no step.
    jax.block_until_ready(program(params, state, spent, number, data, 0.0))
    points, seconds, steps, cost, sane = [], 0.0, 0, 0.0, True
    while sane and cost < budget:
      cap = min(budget, cost + budget / PARTS)
      began = time.process_time()
      out = program(params, state, spent, number, data, cap)
      params, state, spent, count, losses, costs, last = jax.block_until_ready(
        out
      )
      passed = time.process_time() - began
      count, start = int(count), cost
      cost = float(cost_of(spent, weights))
      # Within a chunk time passes as work does.
      costs = np.asarray(costs[:count], float)
      clock = seconds + passed * (costs - start) / max(cost - start, 1e-9)
      counts = steps + np.arange(count)
      losses = np.asarray(losses[:count], float)
      points += zip(counts, costs, clock, losses, strict=True)
      seconds, steps = seconds + passed, steps + count
      sane = bool(np.isfinite(points[-1][3]))
      if progress is not None:
        progress.set_postfix(loss=f"{points[-1][3] - lowest:.3g}")
        progress.update(round(min(cost, budget)) - progress.n)
    points.append((steps, cost, seconds, float(last)))
  eps = float(jnp.finfo(params.dtype).eps)
  return _record(np.array(points, float), lowest, budget, spent, eps)


def _record(points, lowest, budget, spent, eps) -> dict:
  steps, costs, clock, losses = points.T
  # The lowest so far; what is not finite never is.
  losses = np.where(np.isfinite(losses), losses, np.inf)
  best = np.minimum.accumulate(losses) - lowest
  # A loss is known up to rounding.
  best = np.maximum(best, eps * abs(lowest))
  within = lambda limit: float(best[costs <= limit * (1 + 1e-6)][-1])
  spread = np.unique(
    np.r_[
      np.geomspace(1, len(best), KEPT // 2),
      np.linspace(1, len(best), KEPT // 2),
    ].astype(int)
    - 1
  )
  return {
    "loss": [within(part * budget) for part in (0.25, 0.5, 1.0)],
    "diverged": bool(not np.isfinite(losses[-1])),
    "steps": int(steps[-1]),
    "seconds": float(clock[-1]),
    "work": {name: int(n) for name, n in spent._asdict().items()},
    "curve": {
      "steps": steps[spread],
      "cost": costs[spread],
      "seconds": clock[spread],
      "loss": best[spread],
    },
  }


def tune(family: Family, attempt, extends: bool = True) -> Tuned:
  """Tries every form with every number.

  Args:
    family: the method.
    attempt: `Setting` -> the loss to be judged by.
    extends: whether a grid may go on.

  A best number on the edge of its grid takes that grid further with the same
  form, as long as that is so, `MAX_EXTENSIONS` times at most.
  """
  tried = {}
  for form in family.forms:
    for number in family.numbers:
      tried[Setting(form, number)] = attempt(Setting(form, number))
  extensions = MAX_EXTENSIONS if extends else 0
  while True:
    best = min(tried, key=tried.get)
    numbers = sorted(s.number for s in tried if s.form == best.form)
    following = beyond(numbers, best.number, family.is_count)
    if following is None or not extensions:
      return Tuned(best, len(tried), following is not None)
    extensions -= 1
    setting = Setting(best.form, following)
    tried[setting] = attempt(setting)


def beyond(numbers, best, is_count):
  """The grid's next number behind a best one on its edge, or None."""
  if best == numbers[0]:
    following = best * best / numbers[1]
  elif best == numbers[-1]:
    following = best * best / numbers[-2]
  else:
    return None
  if not is_count:
    return float(f"{following:.3g}")
  following = round(following)
  return following if following >= 1 and following not in numbers else None
