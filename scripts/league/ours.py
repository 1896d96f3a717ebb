"""Entrants of the package: optimizers that GeN gives a rate."""

import optax

import gen_optax
from scripts.league.entrant import Entrant
from scripts.league.ranges import (
  DECAY,
  ONE_MINUS_B1,
  REST_DEFAULT,
  REST_SPACE,
  betas,
)


def gen_adam_like(name: str, every: int):
  """A ready-made chain of the package; what it is built on may be tuned."""

  def make(s, steps):
    del steps
    chain = getattr(gen_optax, name)
    return chain(weight_decay=s["decay"], every=every, **betas(s))

  return make


def gen_momentum(every: int):
  def make(s, steps):
    del steps
    return gen_optax.gen_momentum(momentum=1 - s["one_minus_b1"], every=every)

  return make


def gen_muon(every: int):
  def make(s, steps):
    del steps
    return gen_optax.gen_muon(weight_decay=s["decay"], every=every)

  return make


def gen_kron(s, steps):
  """PSGD's whitening, then GeN; no curvature is asked for twice."""
  del steps
  base = optax.chain(
    gen_optax.scale_by_psgd(gen_optax.psgd.kron(256), pairs="whitening"),
    optax.add_decayed_weights(s["decay"]),
    optax.scale(-1.0),
  )
  return gen_optax.generalized_newton(base)


def ours(name, make, space, default) -> Entrant:
  return Entrant(name, make, space, default, FILES)


# A folder stands for all that it holds.
FILES = ("scripts/league/ours.py", "gen_optax")

LION_DEFAULT = REST_DEFAULT | {"decay": 1e-3, "one_minus_b2": 1e-2}
ONLY_DECAY = {"decay": DECAY}
OURS = (
  *(
    entrant
    for every in (1, 8)
    for entrant in (
      ours(
        f"GeN-AdamW/{every}",
        gen_adam_like("gen_adamw", every),
        REST_SPACE,
        REST_DEFAULT | {"decay": 1e-4},
      ),
      ours(
        f"GeN-momentum/{every}",
        gen_momentum(every),
        {"one_minus_b1": ONE_MINUS_B1},
        {"one_minus_b1": 0.1},
      ),
      ours(
        f"GeN-Lion/{every}",
        gen_adam_like("gen_lion", every),
        REST_SPACE,
        LION_DEFAULT,
      ),
      ours(f"GeN-Muon/{every}", gen_muon(every), ONLY_DECAY, {"decay": 0.0}),
    )
  ),
  ours("GeN-Kron", gen_kron, ONLY_DECAY, {"decay": 0.0}),
)
