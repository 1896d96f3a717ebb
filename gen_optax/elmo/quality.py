"""How good a preconditioner is: measures from the literature, and ELMO's."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gen_optax.elmo.minmax import step_regret
from gen_optax.helpers import trees


def relative_regret(
  update: Any,
  gradient: Any,
  eigenvalues: jax.Array,
  eigenvectors: Any,
  lipschitz: ArrayLike,
) -> jax.Array:
  r"""How far any optimizer's update is from ELMO's in given eigenspaces.

  .. math:: r_i = \frac{v_i' u}{x_i^*} - 1

  with :math:`x^*` ELMO's move: 0 is as good as ELMO in the worst case, -1 is no
  move, and less is uphill.

  Args:
    update: u, the step to be added, a tree like the parameters.
    gradient: g, a tree like them.
    eigenvalues: shape (k,).
    eigenvectors: a tree with k orthonormal rows of each leaf's shape, as
      `extreme_eigenpairs` returns them.
    lipschitz: a number or shape (k,), at least 0.

  Returns:
    r, shape (k,); see `step_regret` for slopes of zero.

  Example:

    >>> import jax.numpy as jnp
    >>> from gen_optax import elmo
    >>> g = values = jnp.array([1.0, 4.0])
    >>> print(elmo.relative_regret(-0.25 * g, g, values, jnp.eye(2), 0.0))
    [-0.75  0.  ]

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Notation 8.
  """
  move = trees.project(eigenvectors, update, eigenvalues)
  slope = trees.project(eigenvectors, gradient, eigenvalues)
  return step_regret(move, slope, eigenvalues, lipschitz)


def newton_residual(
  hessian: jax.Array, preconditioner: jax.Array, gradient: jax.Array
) -> jax.Array:
  r"""How far a preconditioned step is from solving Newton's equation.

  .. math:: \eta = \|(I - H \Phi) g\| / \|g\|

  Convex losses converge if it is below 1 at every step, fast if it tends to 0.

  Args:
    hessian: H, shape (n, n).
    preconditioner: Phi, shape (n, n).
    gradient: g, shape (n,), not zero.

  Returns:
    eta >= 0: 0 for Newton's step, 1 for no step.

  Example:

    >>> import jax.numpy as jnp
    >>> from gen_optax import elmo
    >>> hessian = jnp.diag(jnp.array([1.0, 4.0]))
    >>> eta = elmo.newton_residual(hessian, jnp.eye(2) / 4, jnp.ones(2))
    >>> print(f"{eta:.4f}")
    0.5303

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Appendix B.
  """
  left = gradient - hessian @ (preconditioner @ gradient)
  return jnp.linalg.norm(left) / jnp.linalg.norm(gradient)


def effective_condition(
  hessian: jax.Array, preconditioner: jax.Array
) -> jax.Array:
  r"""The condition number of the Hessian as a preconditioned step sees it.

  .. math::

    \kappa = \max_i |\mu_i| / \min_i |\mu_i|, \quad
    \mu = \mathrm{eig}(\Phi H) = \mathrm{eig}(C' H C), \; \Phi = C C'

  The eigenvalues are real, though Phi H is not symmetric, and keep their values
  in other coordinates. Its singular values, another reading of "condition
  number", do not. The learning rate cancels.

  Args:
    hessian: H, symmetric, shape (n, n).
    preconditioner: Phi, symmetric and positive, shape (n, n).

  Returns:
    kappa >= 1; 1 for Newton's preconditioner.

  Example:

    >>> import jax.numpy as jnp
    >>> from gen_optax import elmo
    >>> hessian = jnp.diag(jnp.array([1.0, -100.0]))
    >>> half = jnp.diag(jnp.array([1.0, 0.1]))
    >>> print(f"{elmo.effective_condition(hessian, half):.3f}")
    10.000

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Appendix D, the "effective Hessian". For the measure of appendix B,
    kappa(Phi) alone, call it with the identity for H.
  """
  root = jnp.linalg.cholesky((preconditioner + preconditioner.T) / 2)
  size = jnp.abs(jnp.linalg.eigvalsh(root.T @ hessian @ root))
  return size.max() / size.min()


def eigenspace_residuals(
  hessian: jax.Array, preconditioner: jax.Array, gradient: jax.Array
) -> jax.Array:
  r"""`newton_residual` in each eigenspace by itself.

  .. math:: r_i = 1 - \frac{g' \Phi H v_i}{g' v_i}

  `preconditioner_regret` tends to it, up to the sign, where the curvature does
  not change.

  Args:
    hessian: H, symmetric, shape (n, n).
    preconditioner: the learning rate times Phi, shape (n, n). (The paper's
      text leaves the learning rate out.)
    gradient: g, shape (n,).

  Returns:
    r, shape (n,), by ascending eigenvalue, from one eigendecomposition. NaN or
    infinite where g has no part in the eigenspace.

  Example:

    >>> import jax.numpy as jnp
    >>> from gen_optax import elmo
    >>> hessian = jnp.diag(jnp.array([1.0, 4.0]))
    >>> print(elmo.eigenspace_residuals(hessian, jnp.eye(2) / 4, jnp.ones(2)))
    [0.75 0.  ]

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Appendix D.
  """
  values, vectors = jnp.linalg.eigh((hessian + hessian.T) / 2)
  moves = vectors.T @ (preconditioner @ gradient)
  return 1 - values * (moves / (vectors.T @ gradient))


def preconditioner_regret(
  hessian: jax.Array,
  preconditioner: jax.Array,
  gradient: jax.Array,
  lipschitz: ArrayLike,
) -> jax.Array:
  r"""The relative regret of a preconditioned step in each eigenspace.

  .. math::

    r_i = \frac{g' \Phi H v_i}{g' v_i} \cdot
      \frac{\sqrt{1 + 2 L_i |g' v_i| / \lambda_i^2} + 1}{2} - 1
      \quad (\lambda_i > 0)

  Args:
    hessian: H, symmetric, shape (n, n).
    preconditioner: the learning rate times Phi, shape (n, n).
    gradient: g, shape (n,).
    lipschitz: L, a number or shape (n,), by ascending eigenvalue.

  Returns:
    r, shape (n,), by ascending eigenvalue, from one eigendecomposition. It is
    the `step_regret` of the step, which agrees with the formula and holds for
    concave eigenspaces too.

  Example:

    >>> import jax.numpy as jnp
    >>> from gen_optax import elmo
    >>> hessian, gradient = jnp.diag(jnp.array([1.0, -4.0])), jnp.ones(2)
    >>> best = elmo.minmax_preconditioner(hessian, gradient, 1.0)
    >>> r = elmo.preconditioner_regret(hessian, best, gradient, 1.0)
    >>> print(bool(abs(r).max() < 1e-6))
    True

  References:
    Optimizer selection based on function-proxy proximity, under review: Eq. 12;
    notation 8.
  """
  values, vectors = jnp.linalg.eigh((hessian + hessian.T) / 2)
  move = -vectors.T @ (preconditioner @ gradient)
  return step_regret(move, vectors.T @ gradient, values, lipschitz)
