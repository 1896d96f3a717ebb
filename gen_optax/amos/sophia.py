"""optax's Sophia, fed by the router."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gen_optax.helpers.checks import check_not_negative
from gen_optax.oracle.closures import rename_extra_args


def sophia(
  learning_rate: optax.ScalarOrSchedule, **sophia_options: Any
) -> optax.GradientTransformationExtraArgs:
  r"""`optax.contrib.sophia` with the diagonal that the router computed.

  Inside `amos_router` one estimate of the curvature serves the routing and
  Sophia: Hutchinson's makes it Sophia-H, Gauss-Newton-Bartlett's Sophia-G.

  .. math::

    \nu \leftarrow \beta_2 \nu + (1 - \beta_2) h, \quad
    u = -\eta \, \mathrm{clip}(\hat m / \max(\gamma \nu, \epsilon), 1)

  The first steps are clipped momentum, :math:`\eta` in every entry, since optax
  does not correct the bias of :math:`\nu` and uses it before it is renewed.

  Args:
    learning_rate: as in `optax.contrib.sophia`, or a schedule.
    **sophia_options: its other options: `b1`, `b2`, `gamma`, `weight_decay`,
      `clip_threshold` and others. Leave `update_interval` at the router's
      `every`; both are 10 by default. A `hessian_diagonal_fn` of your own
      replaces the router's diagonal and gets the loss as `obj_fn`.

  Returns:
    An optimizer whose `update` takes `hessian_diagonal`, which `amos_router`
    passes. Its state is two copies of the parameters; it takes no product.

  Raises:
    ValueError: `learning_rate` is negative, or there is no diagonal, as outside
      a router.

  Example:

    >>> import jax.numpy as jnp, optax, gen_optax
    >>> tx = gen_optax.amos_router([optax.sgd(0.1), gen_optax.amos.sophia(0.1)])
    >>> loss = lambda w: jnp.sum(w**2)
    >>> w = jnp.ones(2)
    >>> _, state = tx.update(2 * w, tx.init(w), w, value_fn=loss)
    >>> print(optax.tree.get(state, "nu"))  # (1 - b2) h
    [0.02 0.02]

  References:
    Liu et al., Sophia, 2023.
  """
  check_not_negative(learning_rate=learning_rate)
  sophia_options.setdefault("hessian_diagonal_fn", given_diagonal())
  inner = optax.contrib.sophia(learning_rate, **sophia_options)
  return rename_extra_args(inner, obj_fn="value_fn")


def given_diagonal() -> optax.GradientTransformationExtraArgs:
  """A `hessian_diagonal_fn` that passes on the argument `hessian_diagonal`.

  Returns:
    A transformation for `optax.contrib.sophia` and its like.

  Raises:
    ValueError: there is no such argument, as outside a router.

  Example:

    >>> import optax
    >>> from gen_optax import amos
    >>> tx = optax.contrib.sophia(
    ...   1e-3, hessian_diagonal_fn=amos.given_diagonal())
  """

  def update_fn(
    updates, state, params: Any = None, *, hessian_diagonal=None, **extra_args
  ):
    del updates, extra_args
    if hessian_diagonal is None:
      raise ValueError(
        "gen_optax.amos.sophia needs hessian_diagonal: put it in an "
        "amos_router, which computes one, or pass "
        "tx.update(updates, state, params, hessian_diagonal=diagonal)."
      )
    return jax.tree.map(_narrowed, hessian_diagonal, params), state

  init_fn = lambda params: optax.EmptyState()
  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _narrowed(diagonal, param):
  """In the parameter's dtype, in which optax averages it, and finite."""
  limit = jnp.finfo(param.dtype).max.astype(diagonal.dtype)
  return jnp.clip(diagonal, -limit, limit).astype(param.dtype)
