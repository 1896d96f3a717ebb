"""From the groups' Lipschitz parameters to the optimizer of each group.

Optimizer 0 is for the least stable curvature. The last has every group where
L = 0, and so all of them until there is an observation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.amos.granularity import Granularity
from gen_optax.helpers import trees
from gen_optax.helpers.checks import is_known

# Enough for as many optimizers as anyone would combine.
CHOICE = jnp.int8
MOST_OPTIMIZERS = 127


class Evidence(NamedTuple):
  """What a threshold can read.

  Attributes:
    lipschitz: L of each parameter.
    gradient: the gradient, a tree like it.
    diagonal: the curvature h.
    groups: L of each group.
    sizes: the number of parameters of each group.
    key: a random key, a new one at each Hessian time.
    count: the number of calls before this one.
  """

  lipschitz: Any
  gradient: Any
  diagonal: Any
  groups: Any
  sizes: Any
  key: jax.Array
  count: jax.Array


def make_threshold(threshold, count: int):
  """From what users write, see `amos_router`; raises `ValueError`.

  Returns:
    `choose(evidence, granularity)`: a tree of indices below `count`, like the
    groups.
  """
  if callable(threshold):
    return lambda seen, granularity: _indices(threshold(seen), seen, count)
  rate = newton_rate(threshold)
  if rate is not None:
    if count != 2:
      raise ValueError(
        'threshold="newton" decides between two optimizers, got '
        f"{count}: give {count - 1} ascending cuts or quantiles."
      )
    return lambda seen, granularity: newton(seen, granularity, rate)
  if isinstance(threshold, tuple) and threshold[:1] == ("quantile",):
    shares = _numbers(threshold[1:], count, "quantile", 0, 1)
    return lambda seen, granularity: by_cuts(
      seen.groups, quantiles(seen.groups, seen.sizes, shares)
    )
  cuts = _numbers((threshold,), count, "cut", 0, float("inf"))
  return lambda seen, granularity: by_cuts(seen.groups, cuts)


def _indices(chosen, evidence: Evidence, count: int):
  """What a function chose, in range; an error if it does not fit the groups."""
  got, groups = map(jax.tree.structure, (chosen, evidence.groups))
  if got != groups:
    raise ValueError(
      f"threshold must return a tree of indices like the groups, {groups}; got "
      f"{got}."
    )

  def fit(chosen, group):
    chosen = jnp.clip(chosen, 0, count - 1)
    return jnp.broadcast_to(chosen, group.shape).astype(CHOICE)

  return jax.tree.map(fit, chosen, evidence.groups)


def newton_rate(threshold):
  """The rate of Newton's step in "newton" or ("newton", rate), else None."""
  if isinstance(threshold, str) and threshold == "newton":
    return 1.0
  if not (isinstance(threshold, tuple) and threshold[:1] == ("newton",)):
    return None
  rate = threshold[1] if len(threshold) == 2 else None
  if rate is None or (is_known(rate) and not 0 < rate < 2):
    raise ValueError(
      'threshold=("newton", rate) takes the rate of the damped Newton step, in '
      f"(0, 2), got {threshold!r}."
    )
  return rate


def by_cuts(groups, cuts):
  """Index N - 1 minus the number of cuts that L exceeds."""

  def choose(x):
    above = jnp.zeros_like(x, CHOICE)
    for cut in cuts:
      above = above + (x > cut.astype(x.dtype)).astype(CHOICE)
    return (len(cuts) - above).astype(CHOICE)

  return jax.tree.map(choose, groups)


def newton(evidence: Evidence, granularity: Granularity, rate):
  r"""Eq. 8 without a division, for a Newton step of any rate.

  .. math:: a^2 L |g| > 3 (2 - a) h^2

  Where this holds, the step a g / h may raise the loss; the paper has a = 1.
  The second optimizer keeps parameters with g = 0, since there is no step; the
  first gets those with h = 0, since Newton's step is infinite. Over a group
  both sides are averaged; with maxima the largest L multiplies the mean of |g|.
  """
  # Both sides scale as the square of the loss, which must not overflow.
  dtype = trees.scalar_dtype(evidence.diagonal)
  size = trees.largest(evidence.diagonal, dtype)
  size = jnp.where(size > 0, size, trees.largest(evidence.gradient, dtype))
  unit = 1 / jnp.where(size > 0, size, 1)
  rate = jnp.asarray(rate, dtype)

  def scaled(tree):
    return jax.tree.map(lambda x: jnp.abs(x) * unit.astype(x.dtype), tree)

  lip, size_of_g = scaled(evidence.lipschitz), scaled(evidence.gradient)
  if granularity.by_maximum:
    largest = granularity.largest(lip)
    risk = jax.tree.map(jnp.multiply, largest, granularity.mean(size_of_g))
  else:
    risk = granularity.mean(jax.tree.map(jnp.multiply, lip, size_of_g))
  squares = jax.tree.map(jnp.square, scaled(evidence.diagonal))

  def choose(risk, square):
    a = rate.astype(risk.dtype)
    first = a**2 * risk > 3 * (2 - a) * square
    return jnp.where(first, 0, 1).astype(CHOICE)

  return jax.tree.map(choose, risk, granularity.mean(squares))


def quantiles(groups, sizes, shares) -> jax.Array:
  """The smallest L with at least each of `shares` of all parameters below it.

  "Below" counts ties. It bisects on the bits of L, which are ordered as the
  numbers are, since no L is negative. Each step only counts, so that nothing is
  sorted, concatenated or gathered.

  Args:
    groups: L of each group, at least 0.
    sizes: the number of parameters of each group.
    shares: shape (k,), in [0, 1].

  Returns:
    Shape (k,); 0 where there are no parameters.

  Example:

    >>> import jax.numpy as jnp
    >>> from gen_optax import amos
    >>> groups, sizes = jnp.array([3.0, 1.0]), jnp.array([6, 4])
    >>> print(amos.quantiles(groups, sizes, (0.2, 0.5)))
    [1. 3.]
  """
  dtype = trees.scalar_dtype(groups)
  bits = jnp.dtype(f"int{8 * dtype.itemsize}")
  shares = jnp.stack([jnp.asarray(share, dtype) for share in shares])
  infinity = jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, dtype), bits)

  pairs = [
    (x.astype(dtype), jnp.broadcast_to(size, x.shape).astype(dtype))
    for x, size in zip(*map(jax.tree.leaves, (groups, sizes)), strict=True)
  ]
  total = sum((weight.sum() for _, weight in pairs), jnp.zeros((), dtype))

  def share_below(cuts):
    below = jnp.zeros_like(shares)
    for x, weight in pairs:
      beneath = x[None] <= cuts.reshape(-1, *[1] * x.ndim)
      counted = jnp.where(beneath, weight[None], 0)
      below = below + counted.sum(tuple(range(1, x.ndim + 1)))
    return below / jnp.maximum(total, 1)

  def halve(ends):
    low, high = ends
    middle = low + (high - low) // 2
    enough = share_below(jax.lax.bitcast_convert_type(middle, dtype)) >= shares
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  low = jnp.zeros(len(shares), bits)
  ends = (low, jnp.full_like(low, infinity))
  _, ends = jax.lax.while_loop(lambda e: jnp.any(e[0] < e[1]), halve, ends)
  return jnp.where(total > 0, jax.lax.bitcast_convert_type(ends, dtype), 0)


def _numbers(given, count: int, what: str, low, high) -> list[jax.Array]:
  """N - 1 ascending numbers from a number or a sequence of them."""
  numbers = given[0] if len(given) == 1 and given[0] is not None else ()
  if not isinstance(numbers, Sequence):
    numbers = [numbers] if jnp.ndim(numbers) == 0 else list(numbers)
  known = [x for x in numbers if is_known(x)]
  right = len(numbers) == count - 1 and all(
    not isinstance(x, (str, bool)) and low <= x <= high for x in known
  )
  if not right or sorted(known) != known:
    wanted = "a number" if count == 2 else f"{count - 1} ascending numbers"
    raise ValueError(
      f"threshold: {count} optimizers take {wanted} in [{low}, {high}] as "
      f"{what}{'s' if count > 2 else ''}, got {given!r}."
    )
  return [jnp.asarray(x) for x in numbers]
