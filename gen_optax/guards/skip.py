"""A gate for gradients that no optimizer should remember."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.guards.scale import Scale, check, new_scale
from gen_optax.helpers import trees
from gen_optax.helpers.checks import require_leaves, take_optimizer
from gen_optax.helpers.lazy import run_if

# A gradient this many times the running root mean square is refused.
MAX_LENGTH = 20.0
# Two in a row this many times shorter: what came before was no gradient. Nor
# was the first one where the next two are as many times longer.
MIN_LENGTH = 1e-6


class SkipImplausibleState(NamedTuple):
  """State of `skip_implausible`.

  Attributes:
    inner_state: the wrapped state, as it was before a refused gradient.
    size: running scale of the squared norm of the gradient.
    refused: whether the last gradient was refused.
    total_refused: how many were, int32.
  """

  inner_state: optax.OptState
  size: Scale
  refused: jax.Array
  total_refused: jax.Array


def _dtype(leaf):
  return leaf.dtype


def skip_implausible(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Withholds steps whose gradient is not finite or absurdly long.

  A moment that has taken in one gradient of 1e20 times the usual size needs
  hundreds of steps to forget it. A gradient is refused where its norm is not
  finite or twenty times the running root mean square; a refused one counts
  there as twenty times, so that a size that stays is accepted after a few
  steps, and a batch that comes again is accepted the second time. On a refused
  gradient the update is zero and the wrapped state stays as it was.

  The first gradient has nothing to be compared with. Where the next two are a
  million times shorter or longer, the optimizer starts anew.

  Args:
    inner: the optimizer to protect; its `update` takes raw gradients.

  Returns:
    The protected optimizer.

  Raises:
    ValueError: `inner` makes floats of integer leaves. What it raises passes.

  Cost: one pass over the gradient. A refused step runs nothing of `inner`. On a
  mesh: an all-reduce of one scalar for each sharded leaf.

  Example:

    >>> import jax.numpy as jnp, optax
    >>> from gen_optax import skip_implausible
    >>> tx = skip_implausible(optax.adam(0.1))
    >>> w = jnp.ones(2)
    >>> state = tx.init(w)
    >>> updates, state = tx.update(w * jnp.nan, state, w)
    >>> print(updates, state.refused)
    [0. 0.] True
  """
  inner = take_optimizer("inner", inner)

  def init_fn(params):
    return SkipImplausibleState(
      inner_state=inner.init(params),
      size=new_scale(trees.scalar_dtype(params)),
      refused=jnp.zeros((), bool),
      total_refused=jnp.zeros((), jnp.int32),
    )

  def update_fn(updates, state, params=None, **extra_args):
    size = trees.vdot(updates, updates, state.size.usual.dtype)
    ok, restart, scale = check(
      *(state.size, size, MAX_LENGTH**2, MIN_LENGTH**2), cap=MAX_LENGTH**2
    )
    refused = ~ok

    def step(carry):
      gradient, inner_state = carry
      # Of the loop's own gradient: another name for it would hold it twice.
      named = {"grad": gradient} if extra_args.get("grad") is updates else {}
      arguments = extra_args | named
      found, after = inner.update(gradient, inner_state, params, **arguments)
      # optax turns integers into floats, and a loop does not say where.
      if jax.tree.map(_dtype, found) != jax.tree.map(_dtype, updates):
        require_leaves("the optimizer", updates, jnp.inexact)
      return found, after

    standing = state.inner_state
    if params is not None:
      standing = run_if(restart, lambda _: inner.init(params), standing)
    # A loop of one trip, so that the state is written once and in place. The
    # step is written where the gradient was.
    new_updates, inner_state = run_if(~refused, step, (updates, standing))
    new_updates = run_if(refused, optax.tree.zeros_like, new_updates)
    return new_updates, SkipImplausibleState(
      inner_state=inner_state,
      size=scale,
      refused=refused,
      total_refused=state.total_refused + refused.astype(jnp.int32),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
