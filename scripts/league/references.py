"""Optimizers that are tuned on each workload and give its target."""

from functools import partial

import optax

from scripts.league.entrant import Range
from scripts.league.ranges import (
  ADAM_DEFAULT,
  ADAM_SPACE,
  ONE_MINUS_B1,
  betas,
  scheduled,
  warm_up_cosine,
)


def adam_family(alias):
  """AdamW or NadamW with warm-up and cosine."""
  return lambda s, steps: alias(
    warm_up_cosine(s, steps), weight_decay=s["decay"], **betas(s)
  )


def momentum(s, steps, *, nesterov: bool):
  """The decay is part of the gradient here, as is usual without Adam."""
  rate = warm_up_cosine(s, steps)
  return optax.chain(
    optax.add_decayed_weights(s["decay"]),
    optax.sgd(rate, momentum=1 - s["one_minus_b1"], nesterov=nesterov),
  )


MOMENTUM_SPACE = {
  "rate": Range(1e-3, 3.0),
  "decay": Range(1e-7, 1e-3),
  "one_minus_b1": ONE_MINUS_B1,
}
MOMENTUM_DEFAULT = {"rate": 0.1, "decay": 1e-6, "one_minus_b1": 0.1}


ADAMW = scheduled("AdamW", adam_family(optax.adamw), ADAM_SPACE, ADAM_DEFAULT)
NADAMW = scheduled(
  "NadamW", adam_family(optax.nadamw), ADAM_SPACE, ADAM_DEFAULT
)
REFERENCES = (
  ADAMW,
  NADAMW,
  *(
    scheduled(
      name,
      partial(momentum, nesterov=nesterov),
      MOMENTUM_SPACE,
      MOMENTUM_DEFAULT,
    )
    for name, nesterov in (("Nesterov", True), ("heavy ball", False))
  ),
)
