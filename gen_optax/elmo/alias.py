"""ELMO as complete optimizers, with a learning rate."""

from typing import Any

import optax

from gen_optax.elmo.estimators import Lipschitz
from gen_optax.elmo.transform import scale_by_elmo
from gen_optax.helpers.checks import check_not_negative


def elmo_dense(
  learning_rate: optax.ScalarOrSchedule = 1.0,
  *,
  lipschitz: Lipschitz = "adaptive",
  **elmo_options: Any,
) -> optax.GradientTransformationExtraArgs:
  r"""ELMO on all eigenspaces of the exact Hessian, for few parameters.

  .. math:: w \leftarrow w - \eta \Phi g

  Args:
    learning_rate: :math:`\eta`, or a schedule of the step count. The trials are
      made with 1: less is a damped step, and no trial tests more.
    lipschitz: see `scale_by_elmo`.
    **elmo_options: the other options of `scale_by_elmo`: `safeguarded`,
      `initial_sigma`, `saddle_sign`, `max_step` and others.

  Returns:
    A transformation whose `update` takes `value_fn` and `params`. It costs what
    `scale_by_elmo` costs in the dense form.

  Raises:
    ValueError: on a wrong option, on more than 2000 parameters, and on a
      missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> loss = gen_optax.problems.rosenbrock().fn
    >>> tx = gen_optax.elmo_dense()
    >>> step = gen_optax.make_step(loss, tx)
    >>> w = jnp.array([-1.2, 1.0])
    >>> state = tx.init(w)
    >>> for _ in range(25):
    ...   w, state, *_ = step(w, state)
    >>> print(f"{loss(w):.4f}")
    0.0000

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Algorithm 1.
  """
  return _elmo(learning_rate, elmo_options, lipschitz=lipschitz)


def elmo_lanczos(
  learning_rate: optax.ScalarOrSchedule = 1.0,
  *,
  top: int = 10,
  bottom: int = 5,
  lipschitz: Lipschitz = "adaptive",
  **elmo_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """ELMO on the extreme eigenspaces, found by Lanczos' method.

  The step in the complement of the eigenspaces is at most 1 over the largest
  |eigenvalue| there. It does most of the work, because most of the gradient
  lies in the complement.

  Args:
    learning_rate: as in `elmo_dense`.
    top: how many of the largest eigenvalues.
    bottom: how many of the smallest.
    lipschitz: see `scale_by_elmo`.
    **elmo_options: the other options of `scale_by_elmo`: `order`, `complement`,
      `every` and others.

  Returns:
    As `elmo_dense`, which has the mathematics. It costs what `scale_by_elmo`
    costs in a subspace: by default 4 top + 8 bottom Hessian-vector products for
    each step, and a tenth of that with `every=10`.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> loss = lambda w: jnp.sum(w**4 - w**2)
    >>> tx = gen_optax.elmo_lanczos(top=1, bottom=1, every=5)
    >>> step = gen_optax.make_step(loss, tx, donate=False)
    >>> w = jnp.array([1.0, 0.1, 0.5])
    >>> bool(loss(step(w, tx.init(w)).params) < loss(w))
    True

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Algorithm 1; Lanczos, An iteration method for the solution of the eigenvalue
    problem of linear differential and integral operators, 1950.
  """
  own = dict(lipschitz=lipschitz, subspace=(top, bottom))
  return _elmo(learning_rate, elmo_options, **own)


def _elmo(learning_rate, elmo_options, **own):
  check_not_negative(learning_rate=learning_rate)
  # `optax.inject_hyperparams` hands collected keywords back as one argument.
  elmo_options |= elmo_options.pop("elmo_options", {})
  return optax.chain(
    scale_by_elmo(**own, **elmo_options),
    optax.scale_by_learning_rate(learning_rate),
  )
