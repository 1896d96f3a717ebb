"""ELMO's trials: a step, what it promises, and whether the loss keeps it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.elmo import step
from gen_optax.elmo.model import Model
from gen_optax.guards.scale import exceeds, include
from gen_optax.helpers.lazy import run_if

# Ratios of actual to predicted decrease: a trial is accepted from the first on,
# and sigma is halved above the second.
ACCEPT = 0.1
RELAX = 0.9
# A rejection raises sigma by a factor between these, to the value with which
# the model would have foreseen the loss. Doubling alone takes a fifth more
# evaluations on Rosenbrock's function.
LEAST_RAISE = 2
MOST_RAISE = 8
# A trial this many times as long as the usual step is refused, whatever the
# loss. Where the curvature turns negative, the length is twice the eigenvalue
# over a sigma that has halved for many steps.
MAX_GROWTH = 5.0
# Sigma's range; the floor is in units of the largest |eigenvalue|.
_FLOOR = 1e-8
_CEILING = 1e30


class Settings(NamedTuple):
  """The arguments of `scale_by_elmo` that trials read."""

  saddle_sign: str
  max_step: Any
  max_rejections: Any


class Trials(NamedTuple):
  """Where the trials stand.

  Attributes:
    moves: the coordinates of the last trial, shape (m,).
    side: of a saddle, for the next trial, 1 or -1.
    scale: the factor on the step of the complement's optimizer.
    sigma: what the next trial or step adds to the Lipschitz parameters.
    ratio: actual over predicted decrease.
    accepted: whether that was enough.
    rejections: trials that failed.
    evaluations: of the loss.
    too_long: whether a trial was refused for its length.
  """

  moves: jax.Array
  side: jax.Array
  scale: jax.Array
  sigma: jax.Array
  ratio: jax.Array
  accepted: jax.Array
  rejections: jax.Array
  evaluations: jax.Array
  too_long: jax.Array


def no_trial(model: Model, sigma, evaluations) -> Trials:
  """The state before the first trial."""
  dtype = model.values.dtype
  return Trials(
    moves=jnp.zeros_like(model.values),
    side=jnp.ones((), dtype),
    scale=jnp.ones((), dtype),
    sigma=sigma,
    ratio=jnp.zeros((), dtype),
    accepted=jnp.zeros((), bool),
    rejections=jnp.zeros((), jnp.int32),
    evaluations=evaluations,
    too_long=jnp.zeros((), bool),
  )


def propose(model: Model, sigma, scale, settings: Settings):
  """Coordinates downhill and along lost negative curvature, and the scale."""
  moves, escape = model.minimum(sigma)
  if settings.saddle_sign == "zero":
    escape = jnp.zeros_like(moves)
  if settings.max_step is not None:
    size = model.norm(jnp.stack([moves, escape]), scale)
    limit = jnp.asarray(settings.max_step, moves.dtype)
    shrink = jnp.minimum(1, limit / jnp.where(size > 0, size, 1))
    moves, escape, scale = shrink * moves, shrink * escape, shrink * scale
  return moves, escape, scale


def learn_length(usual, model: Model, trial: Trials) -> jax.Array:
  """The usual length of a step, with one that was taken.

  It goes up at once and comes down as an average does. A trial that was
  refused for its length resets it: the next step is not limited, because two
  long ones in a row are believed. Otherwise tiny steps would hold a run back
  until they have grown again.
  """
  new = model.norm(trial.moves, trial.scale).astype(usual.dtype)
  new = jnp.where(trial.accepted, new, 0.0)
  after = jnp.maximum(include(usual, new), new)
  return jnp.where(trial.too_long, 0.0, after)


def safeguarded(
  model: Model, start: Trials, pending, usual, settings: Settings
) -> Trials:
  """Tries steps of growing caution until one keeps its promise.

  It tries none unless `pending`; `usual` is their usual length, zero where
  it is not known.
  """
  before: Any = model.spaces.value
  dtype = model.values.dtype
  size = jnp.abs(model.values).max(initial=0)
  # The floor ends the halving. It never raises sigma, which would take dozens
  # of steps to come down after one absurd Hessian.
  floor = jnp.minimum(_FLOOR * jnp.where(size > 0, size, 1), start.sigma)

  def body(carry):
    _, trial = carry
    moves, escape, scale = propose(model, trial.sigma, trial.scale, settings)
    moves = moves + trial.side * escape
    far = exceeds(usual, model.norm(moves, scale), MAX_GROWTH)
    after = run_if(
      ~far,
      lambda _: model.loss_after(moves, scale).astype(before.dtype),
      jnp.full_like(before, jnp.nan),
    )
    other = model.other_change(scale)
    # An optimizer with memory may go uphill; it does not promise that.
    promised = model.change(moves, trial.sigma) + jnp.minimum(other, 0)
    foreseen = model.change(moves) + other
    ratio = step.decrease_ratio(before, after, -promised.astype(before.dtype))
    ratio = ratio.astype(dtype)
    accepted = ratio >= ACCEPT
    lower = jnp.where(ratio > RELAX, trial.sigma / 2, trial.sigma)
    needed = (after - before - foreseen) / step.cubic_change(model.same, moves)
    needed = needed.astype(trial.sigma.dtype) / trial.sigma
    # A loss that is not finite, or was not evaluated, says nothing.
    needed = jnp.where(jnp.isfinite(needed), needed, MOST_RAISE)
    higher = trial.sigma * jnp.clip(needed, LEAST_RAISE, MOST_RAISE)
    sigma = jnp.where(accepted, lower, higher)
    rejections = trial.rejections + ~accepted
    following = Trials(
      moves=moves,
      # Trials take turns on the two sides of a saddle.
      side=-trial.side if settings.saddle_sign == "probe" else trial.side,
      scale=jnp.where(accepted, scale, trial.scale / 2),
      sigma=jnp.clip(sigma, floor, _CEILING),
      ratio=ratio,
      accepted=accepted,
      rejections=rejections,
      evaluations=trial.evaluations + ~far,
      too_long=trial.too_long | far,
    )
    return ~accepted & (rejections <= settings.max_rejections), following

  last = jax.lax.while_loop(lambda c: c[0], body, (pending, start))[1]
  # If nothing helped, the gradient may be at fault rather than the curvature.
  # So the next step does not start from the largest sigma that was tried.
  doubled = start.sigma * 2.0**last.rejections
  failed = pending & ~last.accepted
  sigma = jnp.where(failed, jnp.clip(doubled, floor, _CEILING), last.sigma)
  return last._replace(sigma=sigma.astype(start.sigma.dtype))


def unsafeguarded(
  model: Model, start: Trials, healthy, settings: Settings
) -> Trials:
  """The first step without a trial, on the lower side of a saddle."""
  moves, escape, scale = propose(model, start.sigma, start.scale, settings)

  def probe(carry):
    ahead, back = moves + escape, moves - escape
    after = lambda moves: model.loss_after(moves, scale)
    return jnp.where(after(back) < after(ahead), back, ahead), carry[1] + 2

  carry = (moves + escape, start.evaluations)
  if settings.saddle_sign == "probe":
    carry = run_if(jnp.any(escape > 0), probe, carry)
  size = jnp.sum(jnp.abs(carry[0])) + jnp.abs(scale * model.other_length)
  return start._replace(
    moves=carry[0],
    scale=scale,
    accepted=healthy & jnp.isfinite(size),
    evaluations=carry[1],
  )
