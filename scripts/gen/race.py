"""Who runs in the race of `synthetic.py`, the race, and its judge.

The race is compiled whole: a scan over steps inside a vmap over starts and
rates. A method is one row of `ENTRANTS`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gen_optax


def decades(low: int, high: int) -> tuple[float, ...]:
  """{1, 2, 5} * 10^k for k = low, ..., high."""
  return tuple(
    float(f"{m}e{k}") for k in range(low, high + 1) for m in (1, 2, 5)
  )


PAPER_GRID = decades(-5, 0)

# Two decades more on both sides: the best rate may lie at the grid's edge.
WIDE_GRID = decades(-7, 2)
INITIAL_RATES = (1e-6, 1e-2, 1.0)
INITIAL_SIGMAS = (1e-2, 1.0, 100.0)

# What lies below is rounding: two runs that reach it are counted as a tie.
TIE = 1e-20
SOLVED = 1e-6

BASES = {
  "sgd": optax.sgd,
  "momentum": partial(optax.sgd, momentum=0.9),
  "adam": optax.adam,
  "adan": optax.adan,
  "rmsprop": optax.rmsprop,
  "adagrad": optax.adagrad,
  # optax's default decay would move the minimum.
  "lion": partial(optax.lion, weight_decay=0.0),
}
# Ready-made chains whose options are not those of `generalized_newton`.
READY_MADE = {"lion": partial(gen_optax.gen_lion, weight_decay=0.0)}
# PSGD sets a direction with curvature of its own: judged by itself.
CURVED = {"psgd": gen_optax.psgd_xmat}


class Entrant(NamedTuple):
  """One row of the race.

  Attributes:
    name: what the table calls it.
    method: entrants of one method are summed up together.
    build: learning rate -> optax transform; the rate may be a tracer.
    rates: the rates it runs with.
    tuned: whether its result is the best over `rates`, found by search, or the
      median over `rates`, which are then initial rates that nobody chose.
    against: the tuned entrant that it has to match, by name, if any.
  """

  name: str
  method: str
  build: Callable[[jax.Array], optax.GradientTransformation]
  rates: tuple[float, ...]
  tuned: bool
  against: str | None = None


def with_gen(name: str, base):
  """Ready made where a chain's defaults are its own."""
  return READY_MADE.get(name) or partial(
    gen_optax.generalized_newton, base(1.0)
  )


# For a loss that is the same function at every step.
GREEDY = dict(rule=gen_optax.greedy(), estimator="hvp", probes=(1.0,))


def with_paper_rule(base, **options):
  return lambda rate: optax.chain(
    base(1.0), gen_optax.scale_by_gen_paper(rate, **options)
  )


def pair_of(name: str, base, method: str) -> tuple[Entrant, ...]:
  """An optimizer with its rate tuned, and its GeN form, untuned."""
  gen = with_gen(name, base)
  return (
    Entrant(name, "base", base, WIDE_GRID, tuned=True),
    Entrant(f"gen {name}", method, gen, INITIAL_RATES, False, name),
  )


def forms_of(name: str, base) -> tuple[Entrant, ...]:
  """A base optimizer, its GeN forms, and the paper's rules.

  Algorithm 1 runs without and with a tuned initial rate, eq. 3.2 (gamma = 0)
  with its estimator and with exact derivatives (GeN-HOD).
  """
  paper = with_paper_rule(base)
  untuned = lambda title, method, build: Entrant(
    f"{title} {name}", method, build, INITIAL_RATES, False, name
  )
  greedy = partial(with_gen(name, base), **GREEDY)
  fitted = with_paper_rule(base, smoothing=0.0)
  exact = with_paper_rule(base, smoothing=0.0, estimator="hvp")
  return (
    *pair_of(name, base, "GeN"),
    untuned("greedy", "GeN, greedy", greedy),
    untuned("paper", "paper's rule", paper),
    untuned("eq. 3.2", "eq. 3.2, fitted", fitted),
    untuned("GeN-HOD", "eq. 3.2, exact", exact),
    Entrant(
      f"paper {name}, tuned",
      "paper's rule, tuned",
      paper,
      PAPER_GRID,
      True,
      name,
    ),
  )


ENTRANTS = [
  *(row for name, base in BASES.items() for row in forms_of(name, base)),
  *(
    row
    for name, base in CURVED.items()
    for row in pair_of(name, base, "GeN on PSGD")
  ),
  Entrant(
    "elmo",
    "ELMO",
    lambda sigma: gen_optax.elmo_dense(initial_sigma=sigma),
    INITIAL_SIGMAS,
    tuned=False,
  ),
]


class Race(NamedTuple):
  """Losses, shape (starts, rates, steps + 1); points have an axis of 2 more."""

  losses: np.ndarray
  points: np.ndarray


def race(entrant: Entrant, fn, starts, steps: int) -> Race:
  """Runs `entrant` from every start with every one of its rates."""

  def run(start, rate):
    tx = optax.with_extra_args_support(entrant.build(rate))

    def step(carry, _):
      x, state = carry
      value, grad = jax.value_and_grad(fn)(x)
      updates, state = tx.update(
        grad, state, x, value=value, grad=grad, value_fn=fn
      )
      return (optax.apply_updates(x, updates), state), (value, x)

    (x, _), (losses, points) = jax.lax.scan(
      step, (start, tx.init(start)), length=steps
    )
    return jnp.append(losses, fn(x)), jnp.concatenate([points, x[None]])

  over_rates = jax.vmap(run, in_axes=(None, 0))
  over_starts = jax.jit(jax.vmap(over_rates, in_axes=(0, None)))
  losses, points = over_starts(jnp.asarray(starts), jnp.asarray(entrant.rates))
  return Race(np.asarray(losses), np.asarray(points))


def judge(entrant: Entrant, start, losses) -> dict:
  """The record of an entrant from one start; `losses` is (rates, steps + 1)."""
  # A run that ends non-finite is worse than any that does not.
  finals = np.where(np.isfinite(losses[:, -1]), losses[:, -1], np.inf)
  record = {
    "entrant": entrant.name,
    "method": entrant.method,
    "start": start,
    "rates": entrant.rates,
    "finals": losses[:, -1],
    "steps_to_1e-6": [first_step_below(run, SOLVED) for run in losses],
    "lost_runs": int(np.sum(~(finals <= losses[:, 0]))),
  }
  if not entrant.tuned:
    return record | {"final": float(np.median(finals)), "worst": finals.max()}
  final, rate = best_on(PAPER_GRID, entrant.rates, finals)
  wide_final, wide_rate = best_on(entrant.rates, entrant.rates, finals)
  return record | {
    "final": final,
    "rate": rate,
    "at_edge": rate in (PAPER_GRID[0], PAPER_GRID[-1]),
    "wide_final": wide_final,
    "wide_rate": wide_rate,
  }


def best_on(grid, rates, finals) -> tuple[float, float]:
  """The lowest of `finals` among the rates in `grid`, and its rate."""
  inside = np.where(np.isin(rates, grid), finals, np.inf)
  k = int(np.argmin(inside))
  lost = not math.isfinite(inside[k])
  return float(inside[k]), math.nan if lost else rates[k]


def first_step_below(losses, bar) -> int | None:
  below = np.flatnonzero(losses <= bar)
  return int(below[0]) if below.size else None


def as_good(final: float, reference: float) -> bool:
  return max(final, TIE) <= max(reference, TIE)
