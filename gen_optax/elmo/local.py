"""What one step of ELMO knows: the eigenspaces, and who takes the rest."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.elmo import step
from gen_optax.helpers import trees
from gen_optax.helpers.trees import widen

# What is left of the gradient below this many eps of it is rounding.
_NOTHING_LEFT = 16


class Local(NamedTuple):
  """Everything about this step that the trials do not change.

  Attributes:
    spaces: the eigenspaces.
    same: which coordinates belong to one eigenspace, shape (m, m). m is k, or
      k + 1 where the rest of the space is one more eigenspace.
    slopes, values, lipschitz, used: shape (m,); lipschitz is without sigma.
    rest: the unit vector of the rest, or None.
    other: the step of an optimizer that looks after the rest, or None.
    other_size: its norm.
    other_change: the change of the loss that is predicted for it.
    length: the norm of the gradient.
  """

  spaces: step.Eigenspaces
  same: jax.Array
  slopes: jax.Array
  values: jax.Array
  lipschitz: jax.Array
  used: jax.Array
  rest: Any
  other: Any
  other_size: jax.Array
  other_change: Any
  length: jax.Array

  def move(self, moves, scale):
    """The tree that stands for the coordinates `moves`."""
    k = len(self.spaces.values)
    total = trees.combine(self.spaces.vectors, moves[:k])
    if self.rest is not None:
      total = jax.tree.map(
        lambda t, r: t + moves[k].astype(r.dtype) * r, total, self.rest
      )
    if self.other is not None:
      total = jax.tree.map(
        lambda t, o: t + scale.astype(o.dtype) * o.astype(t.dtype),
        *(total, self.other),
      )
    return total


def find_local(spaces: step.Eigenspaces, lipschitz) -> Local:
  """The step with nobody to look after the rest, as in the dense form."""
  dtype = spaces.values.dtype
  return Local(
    spaces=spaces,
    same=step.same_space(spaces.values, spaces.used),
    slopes=spaces.slopes,
    values=jnp.where(spaces.used, spaces.values, 0),
    lipschitz=lipschitz,
    used=spaces.used,
    rest=None,
    other=None,
    other_size=jnp.zeros((), dtype),
    other_change=None,
    length=trees.norm(spaces.gradient, dtype),
  )


def with_rest(local: Local, bend, lipschitz) -> Local:
  """The rest of the space as one more eigenspace, straight down the slope.

  `bend` stands for its eigenvalue, `lipschitz` is what the oracle says of it.
  """
  dtype = local.values.dtype
  left = _project_out(local.spaces, local.spaces.gradient)
  size = trees.norm(left, dtype)
  nothing = size <= _NOTHING_LEFT * jnp.finfo(dtype).eps * local.length
  unit = jnp.where(nothing, 0, 1 / jnp.where(nothing, 1, size))
  k = len(local.values)
  same = jnp.zeros((k + 1, k + 1), bool).at[:k, :k].set(local.same)
  append = lambda x, last: jnp.append(x, jnp.asarray(last, x.dtype))
  return local._replace(
    same=same.at[k, k].set(True),
    slopes=append(local.slopes, jnp.where(nothing, 0, size)),
    values=append(local.values, bend),
    lipschitz=append(local.lipschitz, lipschitz),
    used=append(local.used, True),
    rest=trees.scale(left, unit),
  )


def with_optimizer(local: Local, bend, optimizer, state, extra_args):
  """The rest left to an optimizer, and its state after its step."""
  spaces, dtype = local.spaces, local.values.dtype
  left = _project_out(spaces, spaces.gradient)
  handed: dict[str, Any] = {
    **extra_args,
    "grad": left,
    "value_fn": spaces.value_fn,
  }
  if spaces.value is not None:
    handed["value"] = spaces.value
  other, after = optimizer.update(left, state, spaces.params, **handed)
  # Momentum remembers eigenvectors of other days.
  other = _project_out(spaces, widen(other))
  size = trees.norm(other, dtype)
  slope = trees.vdot(spaces.gradient, other, dtype)

  def change(scale):
    # The rest bends by at most `bend`.
    return scale * (slope + scale * bend / 2 * size**2)

  return local._replace(
    other=other, other_size=size, other_change=change
  ), after


def _project_out(spaces, tree):
  """`tree` without its part in the eigenspaces that are used."""
  inside = trees.project(spaces.vectors, tree, spaces.values)
  inside = jnp.where(spaces.used, inside, 0)
  return jax.tree.map(
    lambda x, v: x - v.astype(x.dtype),
    tree,
    trees.combine(spaces.vectors, inside),
  )
