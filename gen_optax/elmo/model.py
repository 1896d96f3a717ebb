"""ELMO's model of the loss around a point, which all trials of a step share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.elmo import step
from gen_optax.elmo.spectrum import Eigenspaces
from gen_optax.helpers import trees
from gen_optax.helpers.rounding import CANCELLED
from gen_optax.helpers.trees import widen


class Model(NamedTuple):
  """Everything about this step that the trials do not change.

  A move is given by its coordinates, shape (m,), and by the factor `scale` on
  the step of the complement's optimizer.

  Attributes:
    spaces: the eigenspaces.
    same: which coordinates belong to one eigenspace, shape (m, m). m is k, or
      k + 1 where the complement is one more eigenspace.
    slopes, values, lipschitz, used: shape (m,); lipschitz is without sigma.
    residual: the unit vector of the gradient in the complement, where that is
      one more eigenspace, else None.
    other: the step of an optimizer in the complement, or None.
    other_length: its norm.
    other_change: the change of the loss that is predicted for it, by scale.
    length: the norm of the gradient.
  """

  spaces: Eigenspaces
  same: jax.Array
  slopes: jax.Array
  values: jax.Array
  lipschitz: jax.Array
  used: jax.Array
  residual: Any
  other: Any
  other_length: jax.Array
  other_change: Callable[[jax.Array], Any]
  length: jax.Array

  def minimum(self, sigma) -> tuple[jax.Array, jax.Array]:
    """The moves to the minimum: downhill, and `step.escapes`."""
    space = (self.same, self.slopes, self.values, self.lipschitz + sigma)
    escape = step.escapes(*space, self.length, self.used)
    return step.coordinates(*space), escape

  def change(self, moves, sigma=0.0) -> jax.Array:
    """The change that is predicted for a move within the eigenspaces."""
    space = (self.slopes, self.values, self.lipschitz + sigma)
    return step.predicted_change(self.same, moves, *space)

  def norm(self, moves, scale) -> jax.Array:
    """The norm of a move."""
    return jnp.sqrt(jnp.sum(moves**2) + (scale * self.other_length) ** 2)

  def move(self, moves, scale):
    """A move as a tree."""
    k = len(self.spaces.values)
    total = trees.combine(self.spaces.vectors, moves[:k])
    if self.residual is not None:
      total = jax.tree.map(
        lambda t, r: t + moves[k].astype(r.dtype) * r, total, self.residual
      )
    if self.other is not None:
      total = jax.tree.map(
        lambda t, o: t + scale.astype(o.dtype) * o.astype(t.dtype),
        *(total, self.other),
      )
    return total

  def loss_after(self, moves, scale) -> jax.Array:
    """The loss after a move."""
    fn, params = self.spaces.value_fn, self.spaces.params
    return step.loss_after(fn, params, self.move(moves, scale))


def make_model(spaces: Eigenspaces, lipschitz) -> Model:
  """The model that leaves the complement alone, as in the dense form."""
  dtype = spaces.values.dtype
  return Model(
    spaces=spaces,
    same=step.same_space(spaces.values, spaces.used),
    slopes=spaces.slopes,
    values=jnp.where(spaces.used, spaces.values, 0),
    lipschitz=lipschitz,
    used=spaces.used,
    residual=None,
    other=None,
    other_length=jnp.zeros((), dtype),
    other_change=lambda scale: 0.0,
    length=trees.norm(spaces.gradient, dtype),
  )


def with_complement(model: Model, bound, lipschitz) -> Model:
  """The complement as one more eigenspace, along the gradient's part in it.

  Its eigenvalue is `bound`, a bound of the |curvature| there.
  """
  dtype = model.values.dtype
  left = _project_out(model.spaces, model.spaces.gradient)
  size = trees.norm(left, dtype)
  nothing = size <= CANCELLED * jnp.finfo(dtype).eps * model.length
  unit = jnp.where(nothing, 0, 1 / jnp.where(nothing, 1, size))
  k = len(model.values)
  same = jnp.zeros((k + 1, k + 1), bool).at[:k, :k].set(model.same)
  append = lambda x, last: jnp.append(x, jnp.asarray(last, x.dtype))
  return model._replace(
    same=same.at[k, k].set(True),
    slopes=append(model.slopes, jnp.where(nothing, 0, size)),
    values=append(model.values, bound),
    lipschitz=append(model.lipschitz, lipschitz),
    used=append(model.used, True),
    residual=trees.scale(left, unit),
  )


def with_optimizer(model: Model, bound, optimizer, state, extra_args):
  """The complement left to an optimizer, and its state after its step."""
  spaces, dtype = model.spaces, model.values.dtype
  left = _project_out(spaces, spaces.gradient)
  handed: dict[str, Any] = dict(extra_args, grad=left, value_fn=spaces.value_fn)
  if spaces.value is not None:
    handed["value"] = spaces.value
  other, after = optimizer.update(left, state, spaces.params, **handed)
  # Momentum remembers the eigenvectors of earlier steps.
  other = _project_out(spaces, widen(other))
  size = trees.norm(other, dtype)
  slope = trees.vdot(spaces.gradient, other, dtype)

  def change(scale):
    return scale * (slope + scale * bound / 2 * size**2)

  found = model._replace(other=other, other_length=size, other_change=change)
  return found, after


def _project_out(spaces, tree):
  """`tree` without its part in the eigenspaces that are used."""
  inside = trees.project(spaces.vectors, tree, spaces.values)
  inside = trees.combine(spaces.vectors, jnp.where(spaces.used, inside, 0))
  return jax.tree.map(lambda x, v: x - v.astype(x.dtype), tree, inside)
