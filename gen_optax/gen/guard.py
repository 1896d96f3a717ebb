"""A gate for gradients that no optimizer should remember."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.oracle import trees

SMOOTHING = 0.9
# A gradient this many times longer than usual is refused once.
MAX_LENGTH = 100.0


class SkipImplausibleState(NamedTuple):
  """State of `skip_implausible`.

  Attributes:
    inner_state: the wrapped state, as it was before a refused gradient.
    size: running average of the squared norm of accepted gradients.
    refused: whether the last gradient was refused.
    total_refused: how many were, int32.
  """

  inner_state: optax.OptState
  size: jax.Array
  refused: jax.Array
  total_refused: jax.Array


def skip_implausible(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Withholds steps whose gradient is not finite or absurdly long.

  A moment that has taken in one gradient of 1e20 times the usual size needs
  hundreds of steps to forget it. A gradient whose norm is not finite is
  refused; so is one a hundred times the running root mean square, unless the
  one before was refused too: then it is the new normal. On a refused gradient
  the update is zero and the wrapped state stays as it was.

  Args:
    inner: the optimizer to protect; its `update` takes raw gradients.

  Returns:
    The protected optimizer.

  Cost: one pass over the gradient; the choice fuses into the state's update.

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
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    return SkipImplausibleState(
      inner_state=inner.init(params),
      size=jnp.zeros((), trees.scalar_dtype(params)),
      refused=jnp.zeros((), bool),
      total_refused=jnp.zeros((), jnp.int32),
    )

  def update_fn(updates, state, params=None, **extra_args):
    size = trees.vdot(updates, updates, state.size.dtype)
    known = state.size > 0
    long = known & (size > MAX_LENGTH**2 * state.size)
    refused = ~jnp.isfinite(size) | (long & ~state.refused)

    new_updates, inner_state = inner.update(
      updates, state.inner_state, params, **extra_args
    )
    mixed = SMOOTHING * state.size + (1 - SMOOTHING) * size
    mixed = jnp.where(known & ~long, mixed, size)
    zeros = trees.zeros_like(new_updates)
    return trees.select(refused, zeros, new_updates), SkipImplausibleState(
      inner_state=trees.select(refused, state.inner_state, inner_state),
      size=jnp.where(refused, state.size, mixed),
      refused=refused,
      total_refused=state.total_refused + refused.astype(jnp.int32),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
