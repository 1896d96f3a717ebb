"""Optimizers from elsewhere with one setting for all workloads."""

import jax.numpy as jnp
import optax
from optax import contrib

from scripts.league import schedule_free_plus as plus
from scripts.league.entrant import Entrant, Range
from scripts.league.ranges import (
  ADAM_DEFAULT,
  ADAM_SPACE,
  DECAY,
  FACTOR,
  FACTOR_DEFAULT,
  FACTOR_SPACE,
  ONE_MINUS_B1,
  REST_DEFAULT,
  REST_SPACE,
  WARM_UP,
  betas,
  scheduled,
  warm_up_cosine,
  without,
)
from scripts.league.references import ADAMW, NADAMW


def schedule_free(s, steps):
  """optax's Schedule-Free AdamW; there the warm-up must be a whole number."""
  warm_up = jnp.maximum(s["warm_up"] * steps, 1.0)
  rate = lambda count: s["rate"] * jnp.minimum(count / warm_up, 1.0)
  base = optax.chain(
    optax.scale_by_rms(
      1 - s["one_minus_b2"], eps_in_sqrt=False, bias_correction=True
    ),
    optax.add_decayed_weights(s["decay"]),
    optax.scale_by_learning_rate(rate),
  )
  return contrib.schedule_free(base, rate, b1=1 - s["one_minus_b1"])


def schedule_free_x(state, params):
  return contrib.schedule_free_eval_params(state, params)


def schedule_free_plus(s, steps):
  names = ("power", "factor", "warm_up")
  options = {name: s[name] for name in names}
  return plus.schedule_free_plus(steps, **options, **betas(s))


def prodigy(s, steps):
  del steps
  return contrib.prodigy(
    s["factor"], betas=tuple(betas(s).values()), weight_decay=s["decay"]
  )


def d_adaptation(s, steps):
  del steps
  return contrib.dadapt_adamw(
    s["factor"], betas=tuple(betas(s).values()), weight_decay=s["decay"]
  )


def dog(s, steps):
  del steps
  return contrib.dog(
    s["factor"],
    init_step=("heuristic", s["first"]),
    weight_decay=s["decay"],
  )


def momo(s, steps):
  del steps
  return contrib.momo_adam(s["rate"], weight_decay=s["decay"], **betas(s))


def mechanic(s, steps):
  del steps
  base = optax.adamw(1.0, weight_decay=0.0, **betas(s))
  return contrib.mechanize(base, weight_decay=s["decay"], s_init=s["first"])


def muon(s, steps):
  return contrib.muon(
    warm_up_cosine(s, steps),
    beta=1 - s["one_minus_b1"],
    weight_decay=s["decay"],
    adam_learning_rate=warm_up_cosine(
      s | {"rate": s["rate"] * s["adam_factor"]}, steps
    ),
  )


def lion(s, steps):
  return optax.lion(
    warm_up_cosine(s, steps), weight_decay=s["decay"], **betas(s)
  )


def ademamix(s, steps):
  """The slow average and its weight grow over the run, as in its paper."""
  grown = lambda count: jnp.minimum(count / steps, 1.0)
  return contrib.ademamix(
    warm_up_cosine(s, steps),
    **betas(s),
    b3=lambda count: 0.9 + grown(count) * 0.0999,
    alpha=lambda count: s["alpha"] * grown(count),
    weight_decay=s["decay"],
  )


FILES = ("scripts/league/rivals.py",)
PLUS = (*FILES, "scripts/league/schedule_free_plus.py")

RIVALS = (
  ADAMW,
  NADAMW,
  Entrant(
    "Schedule-Free AdamW",
    schedule_free,
    ADAM_SPACE | {"warm_up": WARM_UP},
    {
      "rate": 2.5e-3,
      "decay": 1e-4,
      "one_minus_b1": 0.1,
      "one_minus_b2": 4.5e-3,
      "warm_up": 0.02,
    },
    FILES,
    evaluate_at=schedule_free_x,
  ),
  Entrant(
    "ScheduleFree+",
    schedule_free_plus,
    without(REST_SPACE, "decay")
    | {
      "power": Range(0.0, 8.0, log=False),
      "factor": Range(0.01, 1.0),
      "warm_up": WARM_UP,
    },
    without(REST_DEFAULT, "decay")
    | {"power": 0.0, "factor": 1.0, "warm_up": 0.02},
    PLUS,
    evaluate_at=plus.evaluate_at,
  ),
  Entrant("Prodigy", prodigy, FACTOR_SPACE, FACTOR_DEFAULT, FILES),
  Entrant("D-Adaptation", d_adaptation, FACTOR_SPACE, FACTOR_DEFAULT, FILES),
  Entrant(
    "DoG",
    dog,
    {"factor": FACTOR, "first": Range(1e-6, 1e-2), "decay": DECAY},
    {"factor": 1.0, "first": 1e-6, "decay": 0.0},
    FILES,
  ),
  Entrant(
    "MoMo-Adam",
    momo,
    {"rate": Range(1e-3, 1.0)} | REST_SPACE,
    {"rate": 1e-2} | REST_DEFAULT,
    FILES,
  ),
  Entrant(
    "Mechanic",
    mechanic,
    {"first": Range(1e-8, 1e-4)} | REST_SPACE,
    {"first": 1e-6} | REST_DEFAULT | {"decay": 1e-2},
    FILES,
  ),
  scheduled(
    "Muon",
    muon,
    {
      "rate": Range(1e-3, 0.1),
      "adam_factor": Range(1e-2, 1.0),
      "decay": DECAY,
      "one_minus_b1": ONE_MINUS_B1,
    },
    {"rate": 2e-2, "adam_factor": 5e-2, "decay": 0.0, "one_minus_b1": 0.05},
    FILES,
  ),
  scheduled(
    "Lion",
    lion,
    ADAM_SPACE | {"rate": Range(1e-5, 3e-3)},
    ADAM_DEFAULT | {"rate": 1e-4, "decay": 1e-3, "one_minus_b2": 1e-2},
    FILES,
  ),
  scheduled(
    "AdEMAMix",
    ademamix,
    ADAM_SPACE | {"alpha": Range(1.0, 10.0)},
    ADAM_DEFAULT | {"alpha": 5.0},
    FILES,
  ),
)
