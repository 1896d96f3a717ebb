"""How fast curvature changes along a path: the estimate of ELMO and AMOS."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.helpers import trees
from gen_optax.helpers.mean import Mean, include, no_mean, value


class Drift(NamedTuple):
  """A running average of the drift, and where the next secant starts.

  Attributes:
    params: the point of the last Hessian, in at least float32.
    curvature: the curvature there: AMOS' diagonal, a tree like `params`, or
      ELMO's eigenvalues.
    mean: the running average of secants, like `curvature`; its weight is 0
      before the second Hessian.
    started: whether there has been a Hessian.
  """

  params: Any
  curvature: Any
  mean: Mean
  started: jax.Array

  def lipschitz(self, bias_correction: bool = True):
    """The estimates, zero until there have been two Hessians.

    If corrected, they are divided by the sum of the weights, 1 - alpha^k.
    """
    return value(self.mean) if bias_correction else self.mean.sum


def no_drift(params, curvature) -> Drift:
  """Before the first Hessian: wide `params`, and `curvature` for the shapes."""
  return Drift(
    # A copy: the caller may donate state and parameters together.
    params=trees.copy(params),
    curvature=jax.tree.map(jnp.zeros_like, curvature),
    mean=no_mean(curvature, trees.scalar_dtype(params)),
    started=jnp.zeros((), bool),
  )


def observe(drift: Drift, params, now, before, ema, eps=0.0) -> Drift:
  r"""Takes in one Hessian: line 5 of the ELMO paper's Algorithm 2.

  .. math::

    L \leftarrow \alpha L + (1 - \alpha)
      \frac{|h(\theta) - h(\theta')|}{\epsilon + \|\theta - \theta'\|}

  with theta' the point of the Hessian before. (The paper writes t - 1, the step
  before, whenever that was.) The first Hessian is no observation, because there
  is nothing to subtract; nor is one without a step since.

  Args:
    drift: the state.
    params: theta, in at least float32.
    now: h(theta).
    before: h(theta'), taken with the batch and the probes of `now`, or
      `drift.curvature`, which was found there then.
    ema: alpha in [0, 1).
    eps: epsilon_2, at least 0.
  """
  dtype = drift.mean.weight.dtype
  moved = trees.norm(jax.tree.map(jnp.subtract, params, drift.params), dtype)
  observed = drift.started & (moved > 0)
  length = jnp.where(observed, moved + jnp.asarray(eps, dtype), 1)
  secant = jax.tree.map(
    lambda h, h_before: jnp.abs(h - h_before) / length.astype(h.dtype),
    *(now, before),
  )
  new = optax.tree.where(
    observed, include(drift.mean, secant, jnp.asarray(ema, dtype)), drift.mean
  )
  return Drift(params, now, new, started=jnp.ones((), bool))
