"""Test functions whose minima are known."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Problem(NamedTuple):
  """A function to minimise, where to start, and where to end.

  Attributes:
    name: what tables and figures call it.
    fn: the function, from an array of shape (n,) to a scalar, in the array's
      dtype. It is smooth, so it can be differentiated at will.
    minimizer: the global minimiser, n floats.
    minimum: `fn` at the minimiser.
    starts: usual starting points, each n floats.
    box: the usual domain, (low, high) for each of the n coordinates, for
      drawing and for random starts. Nothing keeps an optimizer inside.
  """

  name: str
  fn: Callable[[jax.Array], jax.Array]
  minimizer: tuple[float, ...]
  minimum: float
  starts: tuple[tuple[float, ...], ...]
  box: tuple[tuple[float, float], ...]


def rosenbrock(dimension: int = 2) -> Problem:
  r"""Rosenbrock's banana valley.

  .. math:: f(x) = \sum_{i=1}^{n-1} 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2

  The valley is easy to find and slow to follow: at the minimum the Hessian's
  condition number is 2508 for n = 2. From n = 4 on there is a second, local
  minimum; for n = 4 it is (-0.78, 0.61, 0.38, 0.15) with f = 3.70.

  Args:
    dimension: n, at least 2.

  Returns:
    A `Problem` with minimiser (1, ..., 1) and minimum 0. Its starts are
    (-1.2, 1), (0, 0), (-2, 2), (2, -1), repeated along the coordinates. An
    evaluation costs O(n) operations and memory.

  Raises:
    ValueError: `dimension` is below 2.

  >>> from gen_optax import problems
  >>> import jax.numpy as jnp
  >>> problem = problems.rosenbrock()
  >>> print(f"{problem.fn(jnp.array(problem.starts[0])):.1f}")
  24.2

  This is Figure 6 and Appendix B.1 of the GeN paper (Bu and Xu, 2024).
  """
  if dimension < 2:
    raise ValueError(
      f"dimension must be at least 2 for Rosenbrock's function, got {dimension}"
    )

  def fn(x):
    valley = x[1:] - x[:-1] ** 2
    return jnp.sum(100 * valley**2 + (1 - x[:-1]) ** 2)

  pairs = ((-1.2, 1.0), (0.0, 0.0), (-2.0, 2.0), (2.0, -1.0))
  return Problem(
    name="Rosenbrock",
    fn=fn,
    minimizer=(1.0,) * dimension,
    minimum=0.0,
    starts=tuple((pair * dimension)[:dimension] for pair in pairs),
    box=((-2.048, 2.048),) * dimension,
  )


def beale() -> Problem:
  r"""Beale's function: a flat basin between steep walls.

  .. math::

    f(x, y) = (1.5 - x + x y)^2 + (2.25 - x + x y^2)^2 + (2.625 - x + x y^3)^2

  It is not convex, although the GeN paper calls it so: the Hessian has a
  negative eigenvalue at (0, 0) and at (1, 1), and (0, 1) is a saddle with
  f = 14.203125. A second valley, along y = 1 - 0.99 / x for x < 0, falls for
  ever towards 0.452; runs that end between 0.45 and 1 with x < 0 are there.

  Returns:
    A `Problem` with minimiser (3, 0.5) and minimum 0, where the Hessian has
    eigenvalues 0.3015 and 48.98. The gradient at the start (3, 4) has norm 6e4;
    the start (0, 1.5) lies close to the saddle.

  >>> from gen_optax import problems
  >>> import jax.numpy as jnp
  >>> problem = problems.beale()
  >>> print(f"{problem.fn(jnp.array(problem.starts[0])):.6f}")
  14.203125

  This is Figure 7 and Appendix B.1 of the GeN paper (Bu and Xu, 2024).
  """

  def fn(x):
    x, y = x[0], x[1]
    first, second = 1.5 - x + x * y, 2.25 - x + x * y**2
    return first**2 + second**2 + (2.625 - x + x * y**3) ** 2

  return Problem(
    name="Beale",
    fn=fn,
    minimizer=(3.0, 0.5),
    minimum=0.0,
    starts=((1.0, 1.0), (3.0, 4.0), (-1.0, -1.0), (0.0, 1.5)),
    box=((-4.5, 4.5),) * 2,
  )


def quadratic(eigenvalues: Sequence[float] = (1.0, 10.0)) -> Problem:
  r"""A convex quadratic with the given eigenvalues.

  .. math:: f(x) = \tfrac12 \sum_i \lambda_i x_i^2

  Args:
    eigenvalues: the n curvatures, each positive.

  Returns:
    A `Problem` with minimiser 0 and minimum 0. An evaluation costs O(n)
    operations and memory. For two eigenvalues its start,
    :math:`x_i = \lambda_{\max} / \lambda_i`, is the worst one for steepest
    descent with the exact step: each step shrinks f by the constant factor
    :math:`((\kappa - 1) / (\kappa + 1))^2`, with :math:`\kappa` the condition
    number. So the GeN paper's Theorem 1, quadratic convergence, cannot hold for
    n >= 2.

  Raises:
    ValueError: there is no eigenvalue, or one is not positive.

  >>> from gen_optax import problems
  >>> import jax.numpy as jnp
  >>> problem = problems.quadratic((1.0, 10.0))
  >>> print(problem.starts[0], problem.fn(jnp.array(problem.starts[0])))
  (10.0, 1.0) 55.0
  """
  curvature = tuple(float(value) for value in eigenvalues)
  if not curvature or not min(curvature) > 0:
    raise ValueError(
      f"eigenvalues must be positive numbers, at least one; got {eigenvalues}"
    )

  def fn(x):
    return 0.5 * jnp.sum(jnp.asarray(curvature, x.dtype) * x**2)

  start = tuple(max(curvature) / value for value in curvature)
  return Problem(
    name="Quadratic",
    fn=fn,
    minimizer=(0.0,) * len(curvature),
    minimum=0.0,
    starts=(start,),
    box=tuple((-1.2 * x, 1.2 * x) for x in start),
  )
