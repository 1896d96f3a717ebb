"""Complete PSGD optimizers, one for each structure of Q."""

from typing import Any

import optax

from gen_optax.helpers.checks import check_not_negative
from gen_optax.psgd.blocks import butterfly, diagonal, xmat
from gen_optax.psgd.dense import dense
from gen_optax.psgd.kron import kron
from gen_optax.psgd.low_rank import low_rank
from gen_optax.psgd.preconditioner import Scope
from gen_optax.psgd.transform import scale_by_psgd


def _psgd(preconditioner, learning_rate, weight_decay, mask, psgd_options):
  check_not_negative(learning_rate=learning_rate, weight_decay=weight_decay)
  # `optax.inject_hyperparams` hands collected keywords back as one argument.
  psgd_options |= psgd_options.pop("psgd_options", {})
  return optax.chain(
    scale_by_psgd(preconditioner, **psgd_options),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )


def psgd_diagonal(
  learning_rate: optax.ScalarOrSchedule = 0.1,
  *,
  weight_decay: float = 0.0,
  mask: Any = None,
  **psgd_options: Any,
) -> optax.GradientTransformationExtraArgs:
  r"""PSGD with a diagonal preconditioner: ESGD's, without its averages.

  .. math:: w \leftarrow w - \eta (P G + \lambda w), \quad P = Q' Q

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count. It
      bounds the length of a step without decay, since P G is clipped to norm 1.
    weight_decay: :math:`\lambda`, at least 0, not preconditioned.
    mask: which leaves decay, as in `optax.adamw`.
    **psgd_options: the options of `scale_by_psgd`: `clip_norm`, `momentum`,
      `probability` and others.

  Returns:
    A transformation whose `update` takes `value_fn` and `params`, at the cost
    of `scale_by_psgd` with `gen_optax.psgd.diagonal`.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> loss = lambda w: jnp.sum(jnp.array([1.0, 100.0]) * (w - 3.0) ** 2)
    >>> tx, w = gen_optax.psgd_diagonal(0.5), jnp.zeros(2)
    >>> step, state = gen_optax.make_step(loss, tx), tx.init(w)
    >>> for _ in range(60):
    ...   w, state, *_ = step(w, state)
    >>> print(f"{loss(w):.4f}")
    0.0000

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
    Example 1; Dauphin, de Vries and Bengio, Equilibrated adaptive learning
    rates for non-convex optimization, 2015 (ESGD).
  """
  # One mu for all entries: a mu for each follows the noise on networks.
  preconditioner = diagonal(steps="global")
  return _psgd(preconditioner, learning_rate, weight_decay, mask, psgd_options)


def psgd_xmat(
  learning_rate: optax.ScalarOrSchedule = 0.1,
  *,
  scope: Scope = "leaf",
  weight_decay: float = 0.0,
  mask: Any = None,
  **psgd_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """PSGD with an X-shaped preconditioner: pairs (i, n - 1 - i).

  Args:
    scope: "leaf" or "global", see `gen_optax.psgd.xmat`.
    learning_rate, weight_decay, mask, **psgd_options: as in `psgd_diagonal`.

  Returns:
    As `psgd_diagonal` (see the mathematics there), at the cost of
    `scale_by_psgd` with `gen_optax.psgd.xmat`.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> tx, w = gen_optax.psgd_xmat(), jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(2))
    [-0.05 -0.05 -0.05 -0.05]

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
    Example 2.
  """
  return _psgd(xmat(scope), learning_rate, weight_decay, mask, psgd_options)


def psgd_butterfly(
  learning_rate: optax.ScalarOrSchedule = 0.1,
  *,
  scope: Scope = "leaf",
  weight_decay: float = 0.0,
  mask: Any = None,
  **psgd_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """PSGD with a butterfly preconditioner: pairs (i, i + n / 2).

  Args:
    scope: "leaf" or "global", see `gen_optax.psgd.butterfly`.
    learning_rate, weight_decay, mask, **psgd_options: as in `psgd_diagonal`.

  Returns:
    As `psgd_diagonal` (see the mathematics there), at the cost of
    `scale_by_psgd` with `gen_optax.psgd.butterfly`.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> tx, w = gen_optax.psgd_butterfly(), jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(2))
    [-0.05 -0.05 -0.05 -0.05]

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
    Example 3.
  """
  return _psgd(
    butterfly(scope), learning_rate, weight_decay, mask, psgd_options
  )


def psgd_lra(
  learning_rate: optax.ScalarOrSchedule = 0.1,
  *,
  rank: int = 10,
  weight_decay: float = 0.0,
  mask: Any = None,
  **psgd_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """PSGD with a low-rank approximation, the paper's LRA.

  Args:
    rank: r >= 0 of `gen_optax.psgd.low_rank`.
    learning_rate, weight_decay, mask, **psgd_options: as in `psgd_diagonal`.

  Returns:
    As `psgd_diagonal` (see the mathematics there), at the cost of
    `scale_by_psgd` with `gen_optax.psgd.low_rank`.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> tx, w = gen_optax.psgd_lra(), jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(2))
    [-0.05 -0.05 -0.05 -0.05]

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
    Sec. 3.2.
  """
  return _psgd(low_rank(rank), learning_rate, weight_decay, mask, psgd_options)


def psgd_dense(
  learning_rate: optax.ScalarOrSchedule = 0.1,
  *,
  weight_decay: float = 0.0,
  mask: Any = None,
  **psgd_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """PSGD with a dense preconditioner, for few parameters.

  Args:
    learning_rate, weight_decay, mask, **psgd_options: as in `psgd_diagonal`.

  Returns:
    As `psgd_diagonal` (see the mathematics there), at the cost of
    `scale_by_psgd` with `gen_optax.psgd.dense`.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> tx, w = gen_optax.psgd_dense(), jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(2))
    [-0.05 -0.05 -0.05 -0.05]

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024:
    Example 4.
  """
  return _psgd(dense(), learning_rate, weight_decay, mask, psgd_options)


def psgd_kron(
  learning_rate: optax.ScalarOrSchedule = 0.1,
  *,
  max_size: int = 1024,
  weight_decay: float = 0.0,
  mask: Any = None,
  **psgd_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """PSGD with Kronecker-factored preconditioners, the affine group.

  Args:
    max_size: axes longer than this have diagonal factors.
    learning_rate, weight_decay, mask, **psgd_options: as in `psgd_diagonal`.

  Returns:
    As `psgd_diagonal` (see the mathematics there), at the cost of
    `scale_by_psgd` with `gen_optax.psgd.kron`.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> tx, w = gen_optax.psgd_kron(), jnp.ones(4)
    >>> step, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: w @ w)
    >>> print(step.round(2))
    [-0.05 -0.05 -0.05 -0.05]

  References:
    Li, Preconditioner on matrix Lie group for SGD, 2019.
  """
  return _psgd(kron(max_size), learning_rate, weight_decay, mask, psgd_options)
