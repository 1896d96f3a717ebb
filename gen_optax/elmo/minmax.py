r"""The minmax step in one eigenspace, and what follows from it; all pure.

Three numbers describe an eigenspace: the slope c = <v, g> of the loss along its
unit eigenvector v, the eigenvalue, and the Lipschitz parameter L, which bounds
how fast the eigenvalue changes. The loss along v lies between the cubics
`lower_model` and `upper_model`, and ELMO moves to the minimum of the upper one.
Everything works elementwise on arrays that broadcast.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gen_optax.helpers import trees


def upper_model(
  move: ArrayLike, slope: ArrayLike, eigenvalue: ArrayLike, lipschitz: ArrayLike
) -> jax.Array:
  r"""M(x), the largest change of the loss after a move x along v.

  .. math:: M(x) = c x + \tfrac12 \lambda x^2 + \tfrac16 L |x|^3

  Args:
    move: x, signed, in units of the parameters.
    slope: c = <v, g>, signed.
    eigenvalue: the curvature along v.
    lipschitz: L >= 0, how much the curvature changes over a unit move.

  Returns:
    M(x), negative where the loss must fall.

  Example:

    >>> from gen_optax import elmo
    >>> print(f"{elmo.upper_model(-1.0, 1.0, 0.0, 2.0):.4f}")
    -0.6667

  References:
    Optimizer selection based on function-proxy proximity, under review: Eq. 3.
    The paper's M, a maximum, leaves out the offset f and that gradient and
    Hessian match. Lemma 3.1 needs a larger L than it says, because eigenvectors
    rotate.
  """
  x, c, h, lip = _arrays(move, slope, eigenvalue, lipschitz)
  return x * (c + x * (h / 2 + lip / 6 * jnp.abs(x)))


def lower_model(
  move: ArrayLike, slope: ArrayLike, eigenvalue: ArrayLike, lipschitz: ArrayLike
) -> jax.Array:
  r"""m(x), the smallest change of the loss after a move x along v.

  .. math:: m(x) = c x + \tfrac12 \lambda x^2 - \tfrac16 L |x|^3

  After the minmax step m / M lies in [1, 2] for a positive eigenvalue and in
  [2, 5] for a negative one (Lemma C.2, tight). So no loss with these L falls by
  more than five times the certain decrease.

  Args:
    move: x, signed, in units of the parameters.
    slope: c = <v, g>, signed.
    eigenvalue: the curvature along v.
    lipschitz: L >= 0.

  Returns:
    m(x).

  Example:

    >>> from gen_optax import elmo
    >>> print(f"{elmo.lower_model(-1.0, 1.0, 0.0, 2.0):.4f}")
    -1.3333

  References:
    Optimizer selection based on function-proxy proximity, under review: Eq. 4,
    Lemma C.2.
  """
  x, c, h, lip = _arrays(move, slope, eigenvalue, lipschitz)
  return x * (c + x * (h / 2 - lip / 6 * jnp.abs(x)))


def minmax_step(
  slope: ArrayLike, eigenvalue: ArrayLike, lipschitz: ArrayLike
) -> jax.Array:
  r"""The length s of ELMO's step, taken downhill: the minimum of `upper_model`.

  .. math::

    s = \frac{\sqrt{\lambda^2 + 2 L |c|} - \lambda}{L}
      = \frac{2 |c|}{\lambda + \sqrt{\lambda^2 + 2 L |c|}}

  In float32 the first form loses every digit to cancellation for a positive
  eigenvalue once :math:`2 L |c| < 10^{-7} \lambda^2`, and the second for a
  negative one. So each sign takes the form that adds, with the root by `hypot`,
  which neither over- nor underflows.

  In a convex eigenspace the limit for L -> 0 is Newton's step
  :math:`|c| / \lambda`. In a concave one the step is at least
  :math:`2 |\lambda| / L`, which it takes in either direction without a slope.

  Args:
    slope: c = <v, g>; its sign does not matter.
    eigenvalue: the curvature along v, of any sign.
    lipschitz: L >= 0. At L = 0 the step is infinite where the eigenvalue is
      negative, or zero with a slope.

  Returns:
    s >= 0; the move along v is -sign(c) s. The derivative in the slope, which
    does not exist at slope zero, is zero there.

  Example:

    >>> from gen_optax import elmo
    >>> print(f"{elmo.minmax_step(1.0, 0.0, 2.0):.4f}")
    1.0000

  References:
    Optimizer selection based on function-proxy proximity, under review: Eq. 7,
    where "argmin" is meant for each component and the positive root for
    eigenvectors signed such that c <= 0.
  """
  c, h, lip = _arrays(slope, eigenvalue, lipschitz)
  flat = c == 0
  a = jnp.where(flat, 1, jnp.abs(c))
  reach = jnp.abs(h) + jnp.hypot(h, jnp.sqrt(2 * a) * jnp.sqrt(lip))
  convex = h >= 0
  # A denominator is 1 where the other branch is taken.
  by_slope = 2 * a / jnp.where(convex, reach, 1)
  by_curvature = reach / jnp.where(convex, 1, lip)
  no_slope = jnp.where(convex, 0, 2 * jnp.abs(h) / jnp.where(convex, 1, lip))
  return jnp.where(flat, no_slope, jnp.where(convex, by_slope, by_curvature))


def minmax_preconditioner(
  hessian: jax.Array, gradient: jax.Array, lipschitz: ArrayLike
) -> jax.Array:
  r"""The matrix whose product with the gradient is ELMO's step, negated.

  .. math::

    \Phi = 2 \Big(H + \sqrt{H^2 + 2 V\,\mathrm{diag}(L_i |c_i|)\,V'}\Big)^{-1}

  Args:
    hessian: H, shape (n, n); its symmetric part is used.
    gradient: g, shape (n,).
    lipschitz: L, a number or shape (n,), by ascending eigenvalue.

  Returns:
    Phi, shape (n, n), symmetric and positive, by one eigendecomposition. It is
    not finite at a saddle, where an eigenvalue is at most zero and its slope is
    zero, because no matrix gives ELMO's step (the Lemma does not say so).

  Example:

    >>> import jax.numpy as jnp
    >>> from gen_optax import elmo
    >>> hessian, gradient = jnp.diag(jnp.array([1.0, 0.0])), jnp.ones(2)
    >>> step = elmo.minmax_preconditioner(hessian, gradient, 1.5) @ gradient
    >>> print([f"{s:.4f}" for s in step])
    ['0.6667', '1.1547']

  References:
    Optimizer selection based on function-proxy proximity, under review: Lemma
    3.2.
  """
  values, vectors = jnp.linalg.eigh((hessian + hessian.T) / 2)
  slope = jnp.abs(vectors.T @ gradient)
  lip = jnp.asarray(lipschitz, slope.dtype)
  reach = jnp.abs(values) + jnp.hypot(values, jnp.sqrt(2 * lip * slope))
  concave = reach / (lip * slope)
  scale = jnp.where(values >= 0, 2 / reach, concave)
  return (vectors * scale) @ vectors.T


def newton_threshold(
  slope: ArrayLike, eigenvalue: ArrayLike, learning_rate: ArrayLike = 1.0
) -> jax.Array:
  r"""The Lipschitz parameter from which Newton's step may raise the loss.

  .. math::

    L \ge \frac{3 (2 - \alpha)}{\alpha^2} \frac{\lambda^2}{|c|}
    \quad \Leftrightarrow \quad M(-\alpha c / \lambda) \ge 0

  At :math:`\alpha = 1` that is eq. 8, and the step's relative regret is
  :math:`(\sqrt 7 - 1) / 2 = 0.823` there.

  Args:
    slope: c = <v, g>.
    eigenvalue: the curvature along v. Where it is negative, Newton's step
      ascends for any L, and the threshold is 0.
    learning_rate: alpha in (0, 2), the damping of Newton's step.

  Returns:
    The threshold, at least 0; infinite where the slope is zero.

  Example:

    >>> from gen_optax import elmo
    >>> print(elmo.newton_threshold(0.5, 2.0))
    24.0

  References:
    Optimizer selection based on function-proxy proximity, under review: Eq. 8;
    the damped form follows from eq. 3 in the same way.
  """
  c, h, rate = _arrays(slope, eigenvalue, learning_rate)
  a = jnp.abs(c)
  positive = jnp.maximum(h, 0)
  ratio = positive * (positive / jnp.where(a > 0, a, 1))
  return jnp.where(a > 0, 3 * (2 - rate) / rate**2 * ratio, jnp.inf)


def step_regret(
  move: ArrayLike, slope: ArrayLike, eigenvalue: ArrayLike, lipschitz: ArrayLike
) -> jax.Array:
  r"""How far a move is from ELMO's, in units of ELMO's.

  .. math:: r = x / x^* - 1, \quad x^* = -\mathrm{sign}(c) s

  The certain decrease falls short of ELMO's by
  :math:`\tfrac12 R s^2 r^2 + \tfrac16 L s^3 r^3` for r >= -1, with R the root
  in `minmax_step`. (Theorem 3.3 writes its second half with a wrong
  coefficient and claims a bound from below that does not hold.)

  Args:
    move: x = <v, u>, what an optimizer's update u does along v.
    slope: c = <v, g>.
    eigenvalue: the curvature along v.
    lipschitz: L >= 0.

  Returns:
    r: 0 is ELMO's move, -1 is none, -2 is as far uphill. At slope zero ELMO's
    move has no sign, and r compares lengths. If that move is zero too, r is 0
    for no move and infinite for any other.

  Example:

    >>> from gen_optax import elmo
    >>> newton = -1.0 / 2.0
    >>> print(f"{elmo.step_regret(newton, 1.0, 2.0, 12.0):.3f}")
    0.823

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Notation 8; `relative_regret` is this for a whole update.
  """
  x, c, h, lip = _arrays(move, slope, eigenvalue, lipschitz)
  step = minmax_step(c, h, lip)
  along = jnp.where(c == 0, jnp.abs(x), -jnp.sign(c) * x)
  nothing = jnp.where(along == 0, 0.0, jnp.inf).astype(x.dtype)
  return jnp.where(step > 0, along / jnp.where(step > 0, step, 1) - 1, nothing)


def _arrays(*numbers):
  """The numbers as arrays of one real dtype, at least float32."""
  dtype = jnp.result_type(*numbers)
  if not jnp.issubdtype(dtype, jnp.floating):
    dtype = jnp.result_type(float)
  dtype = trees.at_least_float32(dtype)
  return tuple(jnp.asarray(x, dtype) for x in numbers)
