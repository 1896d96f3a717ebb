"""Wall times that a noisy machine allows: of programs that run by turns."""

import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

MIN_PAIRS, MAX_PAIRS = 5, 41
MIN_ROUNDS, MAX_ROUNDS = 5, 31


def copy_of(tree):
  """New buffers: a program that donates its carry must not eat the caller's."""
  return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def paired_ratios(ours, theirs, seconds: float) -> np.ndarray:
  """Ours over theirs, one right after the other, who is first by turns."""
  ratios, pairs = [], MAX_PAIRS
  began = time.perf_counter()
  while len(ratios) < pairs:
    if len(ratios) % 2:
      second, first = theirs(), ours()
    else:
      first, second = ours(), theirs()
    ratios.append(first / second)
    each = (time.perf_counter() - began) / len(ratios)
    pairs = int(np.clip(seconds / each, MIN_PAIRS, MAX_PAIRS))
  return np.array(ratios)


def rounds(
  timers: Mapping[str, Callable[[], float]], seconds: float
) -> dict[str, np.ndarray]:
  """Times of several programs that run by turns, in both orders.

  Ratios are taken within a round: what else the machine does then slows all
  programs of a round alike.
  """
  times = {name: [] for name in timers}
  wanted, done = MAX_ROUNDS, 0
  began = time.perf_counter()
  while done < wanted:
    order = list(timers) if done % 2 else list(timers)[::-1]
    for name in order:
      times[name].append(timers[name]())
    done += 1
    each = (time.perf_counter() - began) / done
    wanted = int(np.clip(seconds / each, MIN_ROUNDS, MAX_ROUNDS))
  return {name: np.array(t) for name, t in times.items()}


def quartiles(ratios) -> list[float]:
  return np.percentile(ratios, [25, 50, 75]).tolist()


def calls_timer(
  step: Callable, carry, calls: list[tuple], args: tuple, window: float
) -> Callable[[], float]:
  """Seconds of one call of `step(carry, *call, *args) -> carry`, donated.

  Args:
    step: the program; compiled here.
    carry: where it starts. It goes on from where it stopped.
    calls: the arguments that change from call to call, in turns.
    args: the arguments that stay.
    window: a measurement repeats `calls` until it lasts as many seconds.
  """
  # A donated argument that the program does not read gives its output a place.
  step = jax.jit(step, donate_argnums=0, keep_unused=True)
  held = [copy_of(carry)]

  def run(repeats: int) -> float:
    carry = held[0]
    began = time.perf_counter()
    for _ in range(repeats):
      for call in calls:
        carry = step(carry, *call, *args)
    jax.block_until_ready(carry)
    held[0] = carry
    return (time.perf_counter() - began) / (repeats * len(calls))

  run(1)
  repeats = max(1, round(window / (run(1) * len(calls))))
  return lambda: run(repeats)
