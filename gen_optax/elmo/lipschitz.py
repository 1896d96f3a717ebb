r"""Estimators of the Lipschitz parameters of the eigenspaces.

An estimator says how fast each eigenvalue may change. None gives a bound over a
step of finite length or mixed direction, and each alone diverges on a small
network. So ELMO adds an adaptive sigma. A factor would not do, because the
third derivative is exactly zero on a symmetric saddle.

    adaptive             0: sigma alone; costs nothing, and is hard to beat
    constant             a number, or one for each eigenspace
    from_function        any function of the eigenspaces
    drift                a running average of |change of eigenvalue| / |step|
    third_derivative     |D3f[v, v, v]|, the change along v itself
    eigenvalue_gradient  |D3f[v, v, .]|, the change in the worst direction
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gen_optax.elmo.spectrum import Eigenspaces
from gen_optax.elmo.step import norm_in_space, same_space
from gen_optax.helpers import trees
from gen_optax.helpers.checks import check_in, is_known
from gen_optax.oracle import hessian, line
from gen_optax.oracle.drift import no_drift, observe


class LipschitzEstimator(NamedTuple):
  """A source of Lipschitz parameters.

  Attributes:
    init: `(params, k) -> state`, any tree of arrays.
    estimate: `(spaces, state) -> (lipschitz, state, evaluations)`: shape (k,)
      and at least 0; evaluations of the loss spent, an int32 scalar.
  """

  init: Callable[[Any, int], Any]
  estimate: Callable[[Eigenspaces, Any], tuple[jax.Array, Any, jax.Array]]


def from_function(
  fn: Callable[[Eigenspaces], ArrayLike],
) -> LipschitzEstimator:
  """An estimator without memory from a function of the eigenspaces.

  Args:
    fn: from `Eigenspaces` to a number or an array of shape (k,).

  Returns:
    A `LipschitzEstimator`.

  Raises:
    ValueError: from `estimate`, if `fn` returns another shape.

  Example:

    >>> import jax.numpy as jnp
    >>> from gen_optax import elmo
    >>> cautious_where_concave = elmo.from_function(
    ...   lambda spaces: jnp.where(spaces.values < 0, 10.0, 0.0))
  """

  def estimate(spaces, state):
    values = spaces.values
    found = jnp.asarray(fn(spaces), values.dtype)
    if found.shape not in ((), values.shape):
      raise ValueError(
        "lipschitz must be a number or have one entry for each eigenspace, "
        f"shape {values.shape}, got shape {found.shape}."
      )
    return jnp.broadcast_to(found, values.shape), state, _none()

  return LipschitzEstimator(lambda params, k: (), estimate)


def adaptive() -> LipschitzEstimator:
  """Zero everywhere, which leaves ELMO's own sigma.

  Returns:
    A `LipschitzEstimator`.

  Example:

    >>> from gen_optax import elmo
    >>> estimator = elmo.adaptive()
  """
  return from_function(lambda spaces: 0.0)


def constant(lipschitz: ArrayLike) -> LipschitzEstimator:
  """The same parameters in every step.

  Args:
    lipschitz: positive; a number, or shape (k,) in the order of the
      eigenvalues: ascending in the dense form; in a subspace the largest in
      descending order, then the smallest in ascending order.

  Returns:
    A `LipschitzEstimator`.

  Raises:
    ValueError: one of them is not positive and finite.

  Example:

    >>> from gen_optax import elmo
    >>> estimator = elmo.constant(100.0)
  """
  if is_known(lipschitz):
    known = jnp.asarray(lipschitz)
    if not bool(((known > 0) & jnp.isfinite(known)).all()):
      raise ValueError(
        f"lipschitz must be positive and finite, got {lipschitz!r}."
      )
  return from_function(lambda spaces: lipschitz)


def third_derivative() -> LipschitzEstimator:
  """|D3f[v, v, v]| for each eigenvector v.

  Good in two dimensions; too small on networks, where an eigenvalue changes
  most across its own eigenvector. See `gen_optax.third_derivative`.

  Returns:
    A `LipschitzEstimator`. Costs about seven forward passes for each
    eigenvector, one after the other.

  Example:

    >>> from gen_optax import elmo
    >>> estimator = elmo.third_derivative()
  """

  def along(spaces, v):
    return jnp.abs(line.third_derivative(spaces.value_fn, spaces.params, v))

  return _each_direction(along)


def eigenvalue_gradient() -> LipschitzEstimator:
  """The norm of each eigenvalue's gradient, |D3f[v, v, .]|.

  It bounds to first order how fast the eigenvalue changes in any direction. It
  is the most informative of the local estimators, and the most expensive. See
  `gen_optax.eigenvalue_gradient`.

  Returns:
    A `LipschitzEstimator`. Costs about three Hessian-vector products for each
    eigenvector, one after the other.

  Example:

    >>> from gen_optax import elmo
    >>> estimator = elmo.eigenvalue_gradient()
  """

  def along(spaces, v):
    gradient = hessian.eigenvalue_gradient(spaces.value_fn, spaces.params, v)
    return trees.norm(gradient, spaces.values.dtype)

  return _each_direction(along)


def _each_direction(along) -> LipschitzEstimator:
  """`along` on `gradient_directions`, one at a time to hold few tangents."""

  def fn(spaces):
    one = lambda v: along(spaces, v).astype(spaces.values.dtype)
    return jax.lax.map(one, gradient_directions(spaces))

  return from_function(fn)


def gradient_directions(spaces: Eigenspaces):
  """One unit vector for each eigenvalue: its eigenvector, if that is unique.

  For a repeated eigenvalue it is the direction of the gradient's part in the
  eigenspace, which does not depend on the basis.
  """
  same = same_space(spaces.values, spaces.used)
  a = norm_in_space(same, spaces.slopes)
  simple = (same.sum(1) == 1) | (a == 0)
  weights = same * spaces.slopes / jnp.where(a > 0, a, 1)[:, None]
  eye = jnp.eye(len(a), dtype=a.dtype)
  return trees.combine(spaces.vectors, jnp.where(simple[:, None], eye, weights))


def drift(decay: float = 0.9) -> LipschitzEstimator:
  r"""How far the eigenvalues have moved from one Hessian to the next.

  .. math::

    L \leftarrow \alpha L + (1 - \alpha)
      \frac{|\lambda_t - \lambda_{t'}|}{\|\theta_t - \theta_{t'}\|}

  with t' the time of the Hessian before, divided by the sum of the weights.
  (The paper subtracts t - 1 whenever the Hessian was taken, and starts from 0
  without correction.) Eigenvalues are compared by rank, so a crossing counts as
  a change. With minibatches it mostly measures their noise.

  Args:
    decay: alpha in [0, 1).

  Returns:
    A `LipschitzEstimator` that says 0 until there have been two Hessians. Its
    state holds one copy of the parameters.

  Raises:
    ValueError: `decay` is outside [0, 1).

  Example:

    >>> from gen_optax import elmo
    >>> estimator = elmo.drift(decay=0.5)

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Algorithm 2, line 5.
  """
  check_in("decay", decay, 0, 1)

  def init(params, k):
    values = jnp.zeros(k, trees.scalar_dtype(params))
    return no_drift(trees.widen(params), values)

  def estimate(spaces, state):
    before, now = state.curvature, spaces.values
    state = observe(state, trees.widen(spaces.params), now, before, decay)
    return state.lipschitz(), state, _none()

  return LipschitzEstimator(init, estimate)


def _none():
  return jnp.zeros((), jnp.int32)
