"""ELMO's trials: a step, what it promises, and whether the loss keeps it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.elmo import step
from gen_optax.elmo.local import Local
from gen_optax.guards.scale import Scale, check, exceeds, new_scale
from gen_optax.helpers import trees
from gen_optax.helpers.lazy import run_if

# A trial is accepted from this ratio of actual to predicted decrease on, and
# sigma is halved above the other one.
ACCEPT = 0.1
RELAX = 0.9
# A rejection raises sigma by a factor between these, to the value with which
# the model would have foreseen the loss that was met. Doubling alone takes a
# fifth more evaluations on Rosenbrock's function.
LEAST_RAISE = 2
MOST_RAISE = 8
# A trial this many times as long as the steps before it is not believed,
# however low the loss there: where the curvature turns negative, the length is
# twice the eigenvalue over a sigma that has halved for many steps.
MAX_GROWTH = 5.0
# Sigma's range; the floor is in units of the largest |eigenvalue|.
_FLOOR = 1e-8
_CEILING = 1e30


class Trials(NamedTuple):
  """Where the trials stand.

  Attributes:
    moves: the coordinates of the last trial, shape (m,).
    side: of a saddle that the next trial takes, 1 or -1.
    scale: the factor on the other optimizer's step.
    sigma: what is added to the Lipschitz parameters; after the last trial, of
      the next step.
    ratio: actual over predicted decrease.
    accepted: whether that was enough.
    rejections: trials that failed.
    evaluations: of the loss.
    cut: whether a trial was refused for its length.
  """

  moves: jax.Array
  side: jax.Array
  scale: jax.Array
  sigma: jax.Array
  ratio: jax.Array
  accepted: jax.Array
  rejections: jax.Array
  evaluations: jax.Array
  cut: jax.Array


def no_trial(local: Local, sigma, evaluations) -> Trials:
  """The state before the first trial."""
  dtype = local.values.dtype
  return Trials(
    moves=jnp.zeros_like(local.values),
    side=jnp.ones((), dtype),
    scale=jnp.ones((), dtype),
    sigma=sigma,
    ratio=jnp.zeros((), dtype),
    accepted=jnp.zeros((), bool),
    rejections=jnp.zeros((), jnp.int32),
    evaluations=evaluations,
    cut=jnp.zeros((), bool),
  )


def propose(local: Local, sigma, scale, saddle_sign, max_step):
  """Coordinates downhill, along lost negative curvature, and L of a trial."""
  lipschitz = local.lipschitz + sigma
  arguments = (local.same, local.slopes, local.values, lipschitz)
  moves = step.coordinates(*arguments)
  escape = jnp.zeros_like(moves)
  if saddle_sign != "zero":
    escape = step.escapes(*arguments, local.length, local.used)
  if max_step is not None:
    size = length(local, jnp.stack([moves, escape]), scale)
    limit = jnp.asarray(max_step, moves.dtype)
    shrink = jnp.minimum(1, limit / jnp.where(size > 0, size, 1))
    moves, escape, scale = shrink * moves, shrink * escape, shrink * scale
  return moves, escape, scale, lipschitz


def length(local: Local, moves, scale) -> jax.Array:
  """The norm of a step, of these coordinates and `scale` of the other's."""
  other = scale * local.other_size
  return jnp.sqrt(jnp.sum(moves**2) + other**2)


def learn_length(scale: Scale, local: Local, trial: Trials) -> Scale:
  """Takes in the norm of a step that was taken.

  The scale goes up at once and comes down as an average does. A trial that was
  refused for its length resets it: the next step is not limited, since if it is
  as long, two agree. Otherwise lengths that were tiny once would hold the run
  back for as long as they take to grow again.
  """
  new = length(local, trial.moves, trial.scale).astype(scale.usual.dtype)
  new = jnp.where(trial.accepted, new, 0.0)
  _, _, after = check(scale, new, MAX_GROWTH)
  after = after._replace(usual=jnp.maximum(after.usual, new))
  return trees.select(trial.cut, new_scale(new.dtype), after)


def run(
  local: Local,
  before,
  start: Trials,
  pending,
  usual: Scale,
  saddle_sign,
  max_step,
  tries,
) -> Trials:
  """Tries steps of growing caution until one keeps its promise.

  Args:
    local: this step.
    before: the loss at the parameters.
    start: from `no_trial`.
    pending: whether to try at all.
    usual: running scale of the length of steps.
    saddle_sign: "probe" tries the sides of a saddle in turn.
    max_step: the largest norm of a step, or None.
    tries: how many rejections are too many.
  """
  size = jnp.abs(local.values).max(initial=0)
  # It ends the halving and never raises: after one absurd Hessian sigma would
  # take dozens of steps to come down.
  floor = jnp.minimum(_FLOOR * jnp.where(size > 0, size, 1), start.sigma)

  def body(carry):
    _, trial = carry
    moves, escape, scale, lipschitz = propose(
      local, trial.sigma, trial.scale, saddle_sign, max_step
    )
    moves = moves + trial.side * escape
    far = exceeds(usual, length(local, moves, scale), MAX_GROWTH)
    after = run_if(
      ~far,
      lambda _: loss_at(local, moves, scale).astype(before.dtype),
      jnp.full_like(before, jnp.nan),
    )
    arguments = (local.same, moves, local.slopes, local.values)
    change = step.predicted_change(*arguments, lipschitz)
    foreseen = step.predicted_change(*arguments, local.lipschitz)
    if local.other is not None:
      # An optimizer with memory may go uphill; it does not promise that.
      change += jnp.minimum(local.other_change(scale), 0)
      foreseen += local.other_change(scale)
    ratio = step.decrease_ratio(before, after, -change.astype(before.dtype))
    ratio = ratio.astype(local.values.dtype)
    accepted = ratio >= ACCEPT
    lower = jnp.where(ratio > RELAX, trial.sigma / 2, trial.sigma)
    needed = (after - before - foreseen) / step.cubic_change(local.same, moves)
    needed = needed.astype(trial.sigma.dtype) / trial.sigma
    # Where the loss is not a number, or not believed, nothing is known.
    needed = jnp.where(jnp.isfinite(needed), needed, MOST_RAISE)
    higher = trial.sigma * jnp.clip(needed, LEAST_RAISE, MOST_RAISE)
    sigma = jnp.where(accepted, lower, higher)
    rejections = trial.rejections + ~accepted
    following = Trials(
      moves=moves,
      # Trials take turns on the two sides of a saddle.
      side=jnp.where(saddle_sign == "probe", -trial.side, trial.side),
      scale=jnp.where(accepted, scale, trial.scale / 2),
      sigma=jnp.clip(sigma, floor, _CEILING),
      ratio=ratio,
      accepted=accepted,
      rejections=rejections,
      evaluations=trial.evaluations + ~far,
      cut=trial.cut | far,
    )
    return ~accepted & (rejections <= tries), following

  last = jax.lax.while_loop(lambda c: c[0], body, (pending, start))[1]
  # Where nothing helped, the gradient may be to blame rather than the
  # curvature: the next step must not start from all that was tried.
  doubled = start.sigma * 2.0**last.rejections
  failed = pending & ~last.accepted
  sigma = jnp.where(failed, jnp.clip(doubled, floor, _CEILING), last.sigma)
  return last._replace(sigma=sigma.astype(start.sigma.dtype))


def only(local: Local, start: Trials, healthy, saddle_sign, max_step) -> Trials:
  """The first step without a trial, on the lower side of a saddle."""
  moves, escape, scale, _ = propose(
    local, start.sigma, start.scale, saddle_sign, max_step
  )

  def look(carry):
    ahead, back = moves + escape, moves - escape
    lower = loss_at(local, back, scale) < loss_at(local, ahead, scale)
    return jnp.where(lower, back, ahead), carry[1] + 2

  carry = (moves + escape, start.evaluations)
  if saddle_sign == "probe":
    carry = run_if(jnp.any(escape > 0), look, carry)
  size = jnp.sum(jnp.abs(carry[0])) + jnp.abs(scale * local.other_size)
  return start._replace(
    moves=carry[0],
    scale=scale,
    accepted=healthy & jnp.isfinite(size),
    evaluations=carry[1],
  )


def loss_at(local: Local, moves, scale) -> jax.Array:
  """The loss after the move with these coordinates."""
  fn, params = local.spaces.value_fn, local.spaces.params
  return step.loss_after(fn, params, local.move(moves, scale))
