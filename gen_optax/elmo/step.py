r"""ELMO's step in the coordinates of given eigenvectors.

The paper takes a step for each eigenvector by itself. For a repeated eigenvalue
that depends on the basis of the eigenspace, which the machine's decomposition
chooses. Here eigenvectors whose eigenvalues agree to rounding are one
eigenspace. Its slope is the norm of the gradient's part in it, and the move
goes straight down that part, whatever the basis:

    a = |P g|,  s = minmax_step(a, eigenvalue, L),  move = -(s / a) P g

For simple eigenvalues that is Algorithm 1.
"""

import jax
import jax.numpy as jnp

from gen_optax.elmo.minmax import minmax_step
from gen_optax.helpers import trees
from gen_optax.helpers.rounding import CANCELLED, DECOMPOSED, RECOMPUTED
from gen_optax.oracle import line


def same_space(values: jax.Array, used: jax.Array) -> jax.Array:
  """Which pairs of eigenvalues are equal to rounding, shape (k, k)."""
  size = jnp.abs(jnp.where(used, values, 0)).max(initial=0)
  near = DECOMPOSED * jnp.finfo(values.dtype).eps * size
  equal = jnp.abs(values[:, None] - values) <= near
  return (equal & used[:, None] & used) | jnp.eye(len(values), dtype=bool)


def norm_in_space(same: jax.Array, x: jax.Array) -> jax.Array:
  """The norm of each coordinate's whole eigenspace, shape (k,)."""
  size = jnp.abs(x).max(initial=0)
  unit = x / jnp.where(size > 0, size, 1)
  return size * jnp.sqrt(same.astype(x.dtype) @ unit**2)


def mean_in_space(same: jax.Array, x: jax.Array) -> jax.Array:
  """The mean over the coordinates of each eigenspace, shape (k,)."""
  weight = same.astype(x.dtype)
  # A simple eigenvalue keeps x itself: rounding could cost its sign.
  return jnp.where(same.sum(1) == 1, x, weight @ x / weight.sum(1))


def coordinates(same, slopes, values, lipschitz) -> jax.Array:
  """The minmax move along each eigenvector, shape (k,)."""
  a = norm_in_space(same, slopes)
  down = -slopes / jnp.where(a > 0, a, 1)
  step = jnp.where(a > 0, minmax_step(a, values, lipschitz), 0)
  return jnp.where(slopes == 0, 0, step * down)


def escapes(same, slopes, values, lipschitz, length, used) -> jax.Array:
  """Moves along negative curvature that has no slope, shape (k,), >= 0.

  There the minmax step is 2 |eigenvalue| / L to either side, and the model
  falls by 2 |eigenvalue|^3 / (3 L^2). `length` is the norm of the gradient.
  """
  eps = jnp.finfo(values.dtype).eps
  size = jnp.abs(jnp.where(used, values, 0)).max(initial=0)
  level = norm_in_space(same, slopes) <= CANCELLED * eps * length
  lost = used & level & (values < -DECOMPOSED * eps * size)
  step = minmax_step(jnp.zeros_like(values), values, lipschitz)
  return jnp.where(lost, step / jnp.sqrt(same.sum(1)).astype(step.dtype), 0)


def predicted_change(same, moves, slopes, values, lipschitz) -> jax.Array:
  """The sum of `upper_model` over the eigenspaces; all shapes (k,)."""
  quadratic = jnp.sum(moves * (slopes + values / 2 * moves))
  return quadratic + cubic_change(same, moves, lipschitz)


def cubic_change(same, moves, lipschitz=1.0) -> jax.Array:
  """The part of `predicted_change` that is due to the Lipschitz parameters."""
  return jnp.sum(lipschitz / 6 * norm_in_space(same, moves) * moves**2)


def decrease_ratio(before, after, predicted) -> jax.Array:
  """Actual over predicted decrease, as far as rounding shows it.

  A predicted decrease below rounding counts as reached unless the loss visibly
  rises. A loss that is not finite has the lowest ratio.
  """
  info = jnp.finfo(before.dtype)
  noise = RECOMPUTED * info.eps * jnp.maximum(jnp.abs(before), jnp.abs(after))
  actual = before - after
  visible = predicted > noise
  ratio = actual / jnp.where(visible, predicted, 1)
  ratio = jnp.where(visible, ratio, jnp.where(actual >= -noise, 1, info.min))
  known = jnp.isfinite(after) & ~jnp.isnan(predicted)
  return jnp.where(known, jnp.clip(ratio, info.min, info.max), info.min)


def loss_after(value_fn, params, move) -> jax.Array:
  """The loss at `params + move`."""
  one = jnp.ones((), trees.scalar_dtype(params))
  return line.scalar_loss(value_fn, line.point(params, move, one))
