"""What the curvature of a loss says about the optimizer to use on it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.elmo.estimators import Lipschitz, make_estimator
from gen_optax.elmo.minmax import newton_threshold
from gen_optax.elmo.spectrum import (
  Point,
  extreme_spectrum,
  find_spaces,
  no_spectrum,
)
from gen_optax.helpers.trees import widen
from gen_optax.oracle.closures import check_value_fn
from gen_optax.oracle.line import ValueFn, scalar_loss

# Pairs that hold less of the squared gradient than this decide nothing.
LEAST_SHARE = 0.01


class CurvatureReport(NamedTuple):
  """What `curvature_report` found; arrays have shape (k,).

  Attributes:
    eigenvalues: the largest descending, then the smallest ascending.
    slopes: the gradient along their eigenvectors.
    lipschitz: how fast each eigenvalue changes.
    thresholds: of eq. 8; from these on Newton's step may raise the loss.
    converged: which pairs may be read.
    share: the part of the squared gradient that lies in the converged pairs.
  """

  eigenvalues: jax.Array
  slopes: jax.Array
  lipschitz: jax.Array
  thresholds: jax.Array
  converged: jax.Array
  share: jax.Array

  def convex(self) -> jax.Array:
    """Which of the converged pairs are convex."""
    return self.converged & (self.eigenvalues > 0)

  def second_order_share(self) -> jax.Array:
    """The part of the convex pairs in which Newton's step is safe."""
    convex = self.convex()
    safe = convex & (self.lipschitz < self.thresholds)
    return safe.sum() / jnp.maximum(convex.sum(), 1)

  def favours(self) -> str:
    """The verdict of appendix L's rule, for any share of the pairs.

    Second-order methods are worth their cost where the Lipschitz parameters of
    the convex eigenspaces are below their thresholds.

    Returns:
      "second order" or "first order" where all convex pairs agree, "both" where
      they do not, "neither" where no convex pair has converged.
    """
    if not bool(self.convex().any()):
      return "neither"
    share = float(self.second_order_share())
    if share == 1.0:
      return "second order"
    return "first order" if share == 0.0 else "both"

  def summary(self) -> str:
    """A table of the pairs, and the verdict, as text.

    No verdict is given if the pairs hold less than 1 % of the squared gradient.
    """
    lines = ["  eigenvalue      slope  lipschitz  threshold"]
    rows = zip(*(x.tolist() for x in self[:5]), strict=True)
    for value, slope, lipschitz, threshold, converged in rows:
      known = f"{slope:10.3g} {lipschitz:10.3g} {threshold:10.3g}"
      if not converged:
        known = f"{'-':>10} {lipschitz:10.3g} {'-':>10}  not converged"
      lines.append(f"{value:12.4g} {known}")
    inside = f"{100 * float(self.share):.1f} % of the squared gradient"
    if self.share < LEAST_SHARE:
      lines.append(f"no verdict: only {inside} is in these.")
    else:
      safe = 100 * self.second_order_share()
      lines.append(
        f"{inside} is in these; Newton's step is safe in {safe:.0f} % of the "
        f"convex ones: {self.favours()}."
      )
    return "\n".join(lines)


def curvature_report(
  value_fn: ValueFn,
  params: optax.Params,
  *,
  top: int = 5,
  bottom: int = 5,
  order: int | None = None,
  lipschitz: Lipschitz = "gradient",
) -> CurvatureReport:
  r"""Extreme curvature, how fast it changes, and what follows for a choice.

  .. math:: L_i < 3 \lambda_i^2 / |c_i| \quad (\lambda_i > 0)

  is where Newton's step is certain to lower the loss. By the paper's rule
  second-order methods hold an advantage where the convex eigenspaces have small
  Lipschitz parameters, and first-order ones elsewhere. This reads only the
  extreme pairs, at one point. The gradient's share in them is reported too; if
  it is below a hundredth, as it often is, `summary()` gives no verdict.

  Args:
    value_fn: the loss as a function of the parameters alone.
    params: the point of the report.
    top: how many of the largest eigenvalues.
    bottom: how many of the smallest.
    order: Lanczos products, see `extreme_eigenpairs`.
    lipschitz: an estimator, as in `scale_by_elmo`.

  Returns:
    A `CurvatureReport`: arrays, with `summary()` as text.

  Raises:
    ValueError: `value_fn` is not one finite real scalar, or a count is wrong.

  Cost: `order` Hessian-vector products, the estimator's, by default three for
  each pair, and a compilation in each call.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> loss = gen_optax.problems.rosenbrock().fn
    >>> w = jnp.array([-1.2, 1.0])
    >>> print(gen_optax.curvature_report(loss, w, top=1, bottom=1).favours())
    second order

  References:
    Optimizer selection based on function-proxy proximity, under review: Eq. 8,
    appendix L.
  """
  check_value_fn(value_fn, params)
  params = widen(params)
  estimator = make_estimator(lipschitz)

  @jax.jit
  def find(params):
    loss = lambda p: scalar_loss(value_fn, p)
    point = Point(value_fn, params, *jax.value_and_grad(loss)(params))
    k = min(top + bottom, optax.tree.size(params))
    none = no_spectrum(params, k)
    found = extreme_spectrum(point, top, bottom, order, none)
    spaces = find_spaces(point, found)
    lip, _, _ = estimator.estimate(spaces, estimator.init(params, k))
    square = jnp.maximum(optax.tree.norm(point.gradient, squared=True), 1e-38)
    return CurvatureReport(
      eigenvalues=found.values,
      slopes=spaces.slopes,
      lipschitz=lip,
      thresholds=newton_threshold(spaces.slopes, found.values),
      converged=found.used,
      share=jnp.sum(spaces.slopes**2) / square,
    )

  return find(params)
