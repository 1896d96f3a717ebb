"""Line 5 of Algorithm 2: Lipschitz parameters from how the curvature drifts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.helpers import trees


class Drift(NamedTuple):
  """A running average of the drift, and what the next secant starts from.

  Attributes:
    params: where the Hessian was taken last, in at least float32.
    diagonal: the curvature there.
    average: the running average of secants, a tree like `params`.
    weight: the sum of the weights in it; 0 before the second Hessian.
    seen: whether there has been a Hessian.
  """

  params: Any
  diagonal: Any
  average: Any
  weight: jax.Array
  seen: jax.Array


def no_drift(params) -> Drift:
  """Before the first Hessian; `params` are in at least float32."""
  zeros = jax.tree.map(jnp.zeros_like, params)
  return Drift(
    # A copy: the caller may donate state and parameters together.
    params=jax.tree.map(jnp.copy, params),
    diagonal=zeros,
    average=jax.tree.map(jnp.copy, zeros),
    weight=jnp.zeros((), trees.scalar_dtype(params)),
    seen=jnp.zeros((), bool),
  )


def observe(drift: Drift, params, now, before, ema, eps) -> Drift:
  r"""One Hessian time.

  .. math::

    L \leftarrow \alpha L + (1 - \alpha)
      \frac{|h(\theta) - h(\theta')|}{\epsilon + \|\theta - \theta'\|}

  with theta' the point of the Hessian before. (The paper writes t - 1, the step
  before, whenever the last Hessian was.) The first Hessian is no observation:
  there is nothing to subtract. Nor is one without a step since.

  Args:
    drift: the state.
    params: theta, a tree in at least float32.
    now: h(theta), a tree like `params`.
    before: h(theta'): the curvature at the old point, taken with the batch and
      the probes of `now`; or `drift.diagonal`, what was found there then.
    ema: alpha in [0, 1).
    eps: epsilon_2, at least 0.

  Returns:
    The new state.
  """
  dtype = drift.weight.dtype
  moved = trees.norm(jax.tree.map(jnp.subtract, params, drift.params), dtype)
  observed = drift.seen & (moved > 0)
  length = jnp.where(observed, moved + jnp.asarray(eps, dtype), 1)
  alpha = jnp.asarray(ema, dtype)

  def average(old, h, h_before):
    a, by = alpha.astype(old.dtype), length.astype(old.dtype)
    secant = jnp.abs(h - h_before) / by
    return jnp.where(observed, a * old + (1 - a) * secant, old)

  weight = alpha * drift.weight + (1 - alpha)
  return Drift(
    params=params,
    diagonal=now,
    average=jax.tree.map(average, drift.average, now, before),
    weight=jnp.where(observed, weight, drift.weight),
    seen=jnp.ones((), bool),
  )


def lipschitz(drift: Drift, bias_correction: bool):
  """The estimates: the average, over its weights 1 - alpha^k if corrected.

  Zero until there have been two Hessians.
  """
  if not bias_correction:
    return drift.average
  weight = jnp.where(drift.weight > 0, drift.weight, 1)
  return jax.tree.map(lambda x: x / weight.astype(x.dtype), drift.average)
