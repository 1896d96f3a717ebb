r"""Oracles for the Lipschitz parameters of the eigenspaces.

An oracle says how fast each eigenvalue may change. None of these bounds that
over a step of finite length or mixed direction, and without more every one of
them diverges on a small network: ELMO adds an adaptive sigma to what they say.
A factor would not do: the third derivative is exactly zero on a symmetric
saddle.

    adaptive             0: sigma alone; costs nothing, and is hard to beat
    constant             a number, or one for each eigenspace
    from_function        anybody's function of the eigenspaces
    drift                a running average of |change of eigenvalue| / |step|
    third_derivative     |D3f[v, v, v]|, the change along v itself
    eigenvalue_gradient  |D3f[v, v, .]|, the change in the worst direction
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gen_optax.elmo.step import Eigenspaces, norm_in_space, same_space
from gen_optax.helpers import trees
from gen_optax.helpers.checks import is_known
from gen_optax.oracle import hessian, line
from gen_optax.oracle.drift import no_drift, observe


class LipschitzOracle(NamedTuple):
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
) -> LipschitzOracle:
  """An oracle without memory from a function of the eigenspaces.

  Args:
    fn: from `Eigenspaces` to a number or an array of shape (k,).

  Returns:
    A `LipschitzOracle`.

  Raises:
    ValueError: when asked, where `fn` returns another shape.

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

  return LipschitzOracle(lambda params, k: (), estimate)


def adaptive() -> LipschitzOracle:
  """Zero everywhere: ELMO's own sigma is all there is.

  Returns:
    A `LipschitzOracle`.

  Example:

    >>> from gen_optax import elmo
    >>> oracle = elmo.adaptive()
  """
  return from_function(lambda spaces: 0.0)


def constant(lipschitz: ArrayLike) -> LipschitzOracle:
  """The same parameters in every step.

  Args:
    lipschitz: positive; a number, or shape (k,) in the order of the
      eigenvalues: ascending in the dense form; in a subspace the largest in
      descending order, then the smallest in ascending order.

  Returns:
    A `LipschitzOracle`.

  Raises:
    ValueError: one of them is not positive and finite.

  Example:

    >>> from gen_optax import elmo
    >>> oracle = elmo.constant(100.0)
  """
  if is_known(lipschitz):
    known = jnp.asarray(lipschitz)
    if not bool(((known > 0) & jnp.isfinite(known)).all()):
      raise ValueError(
        f"lipschitz must be positive and finite, got {lipschitz!r}."
      )
  return from_function(lambda spaces: lipschitz)


def third_derivative() -> LipschitzOracle:
  """|D3f[v, v, v]| for each eigenvector v.

  Good in two dimensions, too small on networks, where an eigenvalue changes
  most across its own eigenvector. See `gen_optax.third_derivative`.

  Returns:
    A `LipschitzOracle`. Costs about seven forward passes for each eigenvector,
    one after the other.

  Example:

    >>> from gen_optax import elmo
    >>> oracle = elmo.third_derivative()
  """

  def along(spaces, v):
    return jnp.abs(line.third_derivative(spaces.value_fn, spaces.params, v))

  return _each_direction(along)


def eigenvalue_gradient() -> LipschitzOracle:
  """The norm of each eigenvalue's gradient, |D3f[v, v, .]|.

  Bounds to first order how fast the eigenvalue can change in any direction;
  the most informative of the local oracles, and the dearest. See
  `gen_optax.eigenvalue_gradient`.

  Returns:
    A `LipschitzOracle`. Costs about three Hessian-vector products for each
    eigenvector, one after the other.

  Example:

    >>> from gen_optax import elmo
    >>> oracle = elmo.eigenvalue_gradient()
  """

  def along(spaces, v):
    dtype = spaces.values.dtype
    gradient = hessian.eigenvalue_gradient(spaces.value_fn, spaces.params, v)
    return trees.norm(gradient, dtype)

  return _each_direction(along)


def _each_direction(along) -> LipschitzOracle:
  """`along` on each eigenvector, one at a time to hold one set of tangents.

  In a repeated eigenvalue's space the direction is that of the gradient, for
  the result must not depend on the basis.
  """

  def fn(spaces):
    directions = down_slopes(spaces)
    one = lambda v: along(spaces, v).astype(spaces.values.dtype)
    return jax.lax.map(one, directions)

  return from_function(fn)


def down_slopes(spaces: Eigenspaces):
  """One unit vector for each eigenvalue: the gradient's part in its space."""
  same = same_space(spaces.values, spaces.used)
  a = norm_in_space(same, spaces.slopes)
  alone = (same.sum(1) == 1) | (a == 0)
  weights = same * spaces.slopes / jnp.where(a > 0, a, 1)[:, None]
  eye = jnp.eye(len(a), dtype=a.dtype)
  return trees.combine(spaces.vectors, jnp.where(alone[:, None], eye, weights))


def drift(decay: float = 0.9) -> LipschitzOracle:
  r"""How far the eigenvalues have moved from one Hessian to the next.

  .. math::

    L \leftarrow \alpha L + (1 - \alpha)
      \frac{|\lambda_t - \lambda_{t'}|}{\|\theta_t - \theta_{t'}\|}

  with t' the time of the Hessian before, divided by the sum of the weights.
  (The paper subtracts t - 1 whenever the Hessian was taken, and starts from 0
  with no correction.) Eigenvalues are compared by rank, so crossings count as
  changes. With minibatches it mostly measures their noise.

  Args:
    decay: alpha in [0, 1).

  Returns:
    A `LipschitzOracle` that says 0 until there have been two Hessians. State:
    one copy of the parameters.

  Raises:
    ValueError: `decay` is outside [0, 1).

  Example:

    >>> from gen_optax import elmo
    >>> oracle = elmo.drift(decay=0.5)

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Algorithm 2, line 5.
  """
  if is_known(decay) and not 0 <= decay < 1:
    raise ValueError(f"decay must lie in [0, 1), got {decay!r}.")

  def init(params, k):
    values = jnp.zeros(k, trees.scalar_dtype(params))
    return no_drift(trees.widen(params), values)

  def estimate(spaces, state):
    before, now = state.curvature, spaces.values
    state = observe(state, trees.widen(spaces.params), now, before, decay)
    return state.lipschitz(), state, _none()

  return LipschitzOracle(init, estimate)


def _none():
  return jnp.zeros((), jnp.int32)
