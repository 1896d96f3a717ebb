"""What a loss closure can be asked about the line through the parameters.

Everything here is a function of the step size s along a fixed direction u,

    phi(s) = value_fn(params + s u),

so a positive s moves the way that the optimizer's update points.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.helpers import trees

ValueFn = Callable[[optax.Params], jax.Array]
Evaluate = Literal["vmap", "map"]


class Slope(NamedTuple):
  """phi(0), phi'(0) and phi''(0)."""

  value: jax.Array
  first: jax.Array
  second: jax.Array


def point(params, direction, step):
  """`params + step * direction`, at least float32 in every leaf.

  Below float32 a probe is rounded back onto the parameters, and a fit reads
  rounding: in bfloat16 a step of relative size 1e-3 vanishes.
  """

  def leaf_point(p, u):
    if not trees.is_float(p):
      return p
    wide = trees.at_least_float32(p.dtype)
    s = jnp.asarray(step).astype(jnp.finfo(wide).dtype)
    return p.astype(wide) + s * u.astype(wide)

  return jax.tree.map(leaf_point, params, direction)


def stands_at_zero(value, params) -> bool:
  """Whether `value` can stand for the loss at zero on the probed line.

  Parameters below float32 are probed in float32, where the loss at zero differs
  from `value` by as much as along the line: reusing `value` gave eta* = 1.03
  where the truth was 7.18.
  """
  return value is not None and trees.is_wide(params)


def scalar_loss(value_fn: ValueFn, params) -> jax.Array:
  """The loss in at least float32, or an error that says what it must be."""
  loss = _loss(value_fn, params)
  return loss.astype(trees.at_least_float32(loss.dtype))


def _loss(value_fn: ValueFn, params) -> jax.Array:
  """`value_fn(params)`, or an error that says how to make it a scalar."""
  loss = real_scalar(
    value_fn(params),
    "value_fn",
    "drop auxiliary output: value_fn=lambda p: loss_fn(p)[0]",
  )
  check_averaged("value_fn", loss, params)
  return loss


def real_scalar(loss, name: str, for_pairs: str) -> jax.Array:
  """The loss that `name` returned, or an error with the advice `for_pairs`."""
  if isinstance(loss, (int, float)):
    return jnp.asarray(loss, jnp.float32)
  shape = getattr(loss, "shape", None)
  if shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
    got = jax.tree.map(
      lambda x: jax.typeof(x) if hasattr(x, "dtype") else type(x), loss
    )
    raise ValueError(
      f"{name} must return one real scalar, the loss; it returned {got}. "
      f"Reduce it with jnp.mean, and {for_pairs}."
    )
  return loss


def check_averaged(name: str, result: jax.Array, params):
  """Raises where devices with the same parameters get different results.

  Inside `shard_map` that is the loss of a part of the batch. Devices that
  follow it diverge, and derivatives with respect to shared parameters are
  silently summed over the devices.
  """
  own = set(_varies_over(result))
  for leaf in jax.tree.leaves(params):
    own -= _varies_over(leaf)
  if own:
    axes = ", ".join(repr(axis) for axis in sorted(own))
    raise ValueError(
      f"{name} differs between devices of the mapped axis {axes}, and the "
      "parameters do not: average it over the batch's parts, as in "
      f"value_fn=gen_optax.average_over(value_fn, {axes})."
    )


def _varies_over(x) -> frozenset:
  """The axes of a `shard_map` over which an array differs, by its type."""
  kind = jax.typeof(x)
  # jax renamed the attribute.
  return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying


def losses(
  value_fn: ValueFn,
  params: optax.Params,
  direction: optax.Updates,
  steps: jax.Array,
  evaluate: Evaluate = "vmap",
) -> jax.Array:
  """The losses phi(s) at each of `steps`.

  Args:
    value_fn: the loss as a function of the parameters alone.
    params: the point where the line starts.
    direction: the direction u, a tree like `params`.
    steps: step sizes, shape (k,).
    evaluate: "vmap" evaluates all points at once, in batched matrix products,
      and holds k perturbed copies of the parameters and k sets of activations.
      "map" evaluates one after the other and holds one copy.

  Returns:
    Losses in at least float32, shape (k,). Costs k forward passes.

  Raises:
    ValueError: the loss is narrower. Its three digits hide most of the
      curvature between two points.
  """

  def at(step):
    loss = _loss(value_fn, point(params, direction, step))
    if jnp.finfo(loss.dtype).bits < 32:
      raise ValueError(
        f"value_fn returned a loss in {loss.dtype}, whose rounding hides its "
        "curvature from a fit: compute it from logits in float32, as in "
        'logits.astype("float32"), or take estimator="hvp" or "forward".'
      )
    return loss

  if steps.shape[0] == 1:
    return at(steps[0])[None]
  return jax.vmap(at)(steps) if evaluate == "vmap" else jax.lax.map(at, steps)


def exact_by_forward_mode(
  value_fn: ValueFn, params: optax.Params, direction: optax.Updates
) -> Slope:
  """phi(0), phi'(0), phi''(0) by forward mode inside forward mode.

  Nothing is subtracted, so it is exact where a fit drowns in rounding. No
  activation is kept. Costs 3 to 4 forward passes, and twice the memory of one.
  """

  phi = lambda step: scalar_loss(value_fn, point(params, direction, step))

  def value_and_slope(step):
    return jax.jvp(phi, (step,), (jnp.ones_like(step),))

  zero = jnp.zeros((), trees.scalar_dtype(params))
  (value, first), (_, second) = jax.jvp(
    value_and_slope, (zero,), (jnp.ones_like(zero),)
  )
  return Slope(value, first, second)


def third_derivative(
  value_fn: ValueFn, params: optax.Params, direction: optax.Updates
) -> jax.Array:
  r"""The third derivative of the loss along a direction, D3f[u, u, u].

  .. math:: \phi'''(0), \quad \phi(s) = L(w + s u)

  By forward mode three times over: nothing is subtracted, and no activation is
  kept. It is zero where the loss is even along u, as on a symmetric saddle, and
  almost everywhere for a network of ReLUs alone.

  Args:
    value_fn: the loss as a function of the parameters alone.
    params: the point w.
    direction: u, a tree like `params`; the result grows with its cube.

  Returns:
    A scalar in at least float32. Costs about six to eight forward passes, and
    four times the memory of one.

  Raises:
    ValueError: `value_fn` does not return one real scalar.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> loss = lambda w: jnp.sum(w**3)
    >>> print(gen_optax.third_derivative(loss, jnp.ones(2), jnp.ones(2)))
    12.0
  """

  phi = lambda step: scalar_loss(value_fn, point(params, direction, step))

  def derivative(fn):
    return lambda step: jax.jvp(fn, (step,), (jnp.ones_like(step),))[1]

  zero = jnp.zeros((), trees.scalar_dtype(params))
  return derivative(derivative(derivative(phi)))(zero)
