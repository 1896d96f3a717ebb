"""Ranges that settings are searched in, and the schedule that many follow."""

import jax.numpy as jnp

from scripts.league.entrant import Entrant, Range

RATE = Range(1e-4, 3e-2)
ONE_MINUS_B1 = Range(0.02, 0.3)
ONE_MINUS_B2 = Range(1e-3, 5e-2)
DECAY = Range(1e-4, 0.3)
WARM_UP = Range(0.01, 0.1)
# Where the cosine ends, as a share of the run; the rate is 0 from there on.
HORIZON = Range(0.5, 1.0, log=False)
# The factor on a rate that the method finds itself.
FACTOR = Range(0.1, 10.0)

ADAM_SPACE = {
  "rate": RATE,
  "decay": DECAY,
  "one_minus_b1": ONE_MINUS_B1,
  "one_minus_b2": ONE_MINUS_B2,
}
ADAM_DEFAULT = {
  "rate": 1e-3,
  "decay": 1e-4,
  "one_minus_b1": 0.1,
  "one_minus_b2": 1e-3,
}
SCHEDULE_SPACE = {"warm_up": WARM_UP, "horizon": HORIZON}
SCHEDULE_DEFAULT = {"warm_up": 0.05, "horizon": 1.0}


def warm_up_cosine(s, steps):
  """A rate that rises to `rate`, and falls to 0 at `horizon`."""
  horizon = s["horizon"] * steps
  warm_up = jnp.maximum(s["warm_up"] * horizon, 1.0)

  def rate(count):
    count = jnp.asarray(count, jnp.float32)
    rising = (count + 1) / warm_up
    share = (count - warm_up) / jnp.maximum(horizon - warm_up, 1.0)
    falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0.0, 1.0)))
    return s["rate"] * jnp.minimum(rising, falling)

  return rate


def betas(s):
  return {"b1": 1 - s["one_minus_b1"], "b2": 1 - s["one_minus_b2"]}


def without(space, *names):
  return {name: x for name, x in space.items() if name not in names}


# The numbers of Adam but for its rate, and that for which "rate" is a factor.
REST_SPACE = without(ADAM_SPACE, "rate")
REST_DEFAULT = without(ADAM_DEFAULT, "rate") | {"decay": 0.0}
FACTOR_SPACE = {"factor": FACTOR} | REST_SPACE
FACTOR_DEFAULT = {"factor": 1.0} | REST_DEFAULT


def scheduled(name, make, space, default, files=()) -> Entrant:
  """An entrant whose rate rises and falls."""
  return Entrant(
    name, make, space | SCHEDULE_SPACE, default | SCHEDULE_DEFAULT, files
  )
