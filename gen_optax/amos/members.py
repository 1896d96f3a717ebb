"""Several optimizers on one tree: each leaf or entry follows one of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.amos.coupling import require_separable
from gen_optax.amos.granularity import Granularity
from gen_optax.amos.thresholds import MOST_OPTIMIZERS
from gen_optax.helpers import trees
from gen_optax.helpers.lazy import run_if

States = Literal["run_all", "frozen"]


class Members(NamedTuple):
  """How optimizers are initialised and updated.

  Attributes:
    init: from the parameters to the states, one for each optimizer.
    update: `(updates, states, params, choice, healthy, extra) -> (updates,
      states, sound)`. Updates are zero and states stay where `healthy` is false
      or the result is not finite.
  """

  init: Callable[[Any], tuple]
  update: Callable[..., tuple[Any, tuple, jax.Array]]


def named(optimizers):
  """Names for messages, and the optimizers, made to take extra arguments."""
  if isinstance(optimizers, Mapping):
    pairs = list(optimizers.items())
  elif isinstance(optimizers, optax.GradientTransformation):
    pairs = [(0, optimizers)]
  else:
    pairs = list(enumerate(optimizers))
  good = all(isinstance(tx, optax.GradientTransformation) for _, tx in pairs)
  if not good or not 2 <= len(pairs) <= MOST_OPTIMIZERS:
    raise ValueError(
      f"optimizers must be 2 to {MOST_OPTIMIZERS} optax optimizers, as a "
      f"sequence or a dict in order, got {optimizers!r}."
    )
  names = [f"optimizers[{name!r}]" for name, _ in pairs]
  return names, [optax.with_extra_args_support(tx) for _, tx in pairs]


def make_members(
  states: States, optimizers, names, groups: Granularity, *, label, field
) -> Members:
  """From what users write, see `amos_router`; raises `ValueError`."""
  if states == "run_all":
    return run_all(optimizers, groups)
  if not groups.whole_leaves:
    raise ValueError(
      'states="frozen" gives whole leaves to an optimizer; granularity='
      f'{label!r} divides them. Use states="run_all".'
    )
  if field is not None:
    raise ValueError(
      'states="frozen" updates an optimizer only on its own leaves; elsewhere '
      f'its {field!r} is no curvature. Use states="run_all" or another '
      "curvature."
    )
  return frozen(optimizers, names)


def run_all(
  optimizers: Sequence[optax.GradientTransformationExtraArgs],
  granularity: Granularity,
) -> Members:
  """Every optimizer sees every gradient; the choice is a select."""

  def init(params):
    return tuple(tx.init(params) for tx in optimizers)

  def update(updates, states, params, choice, healthy, extra):
    pairs = zip(optimizers, states, strict=True)
    out = [tx.update(updates, state, params, **extra) for tx, state in pairs]
    moves, after = zip(*out, strict=True)

    def pick(updates, choice, *moves):
      chosen = granularity.spread(choice, updates)
      out = moves[-1]
      for i, move in enumerate(moves[:-1]):
        out = jnp.where(chosen == i, move, out)
      return out.astype(updates.dtype)

    routed = jax.tree.map(pick, updates, choice, *moves)
    sound = healthy & trees.is_finite(routed)
    routed = optax.tree.where(sound, routed, optax.tree.zeros_like(updates))
    return routed, optax.tree.where(sound, after, states), sound

  return Members(init, update)


def frozen(
  optimizers: Sequence[optax.GradientTransformationExtraArgs],
  names: Sequence[str],
) -> Members:
  """Each leaf runs the optimizer that owns it; the others' states stay.

  Each leaf and optimizer has a loop of at most one trip: it is skipped under
  `jax.vmap` too, and writes a donated state in place.
  """
  for tx, name in zip(optimizers, names, strict=True):
    require_separable(tx, name)

  def init(params):
    # A list: a tree like the parameters, such as nnx's, may keep its leaves in
    # boxes that take arrays only. Without leaves it is the tree itself, which
    # tells `optax.tree.map_params` where parameters are.
    leaves = jax.tree.leaves(params)
    if not leaves:
      return (params,) * len(optimizers)
    return tuple([tx.init(leaf) for leaf in leaves] for tx in optimizers)

  def update(updates, states, params, choice, healthy, extra):
    leaves, treedef = jax.tree.flatten(updates)
    choices = treedef.flatten_up_to(choice)
    params = treedef.flatten_up_to(params)
    of_tree = {
      name: treedef.flatten_up_to(extra[name])
      for name in ("grad", "hessian_diagonal")
      if name in extra
    }
    columns, sound = [list(state) for state in states], healthy
    for i, tx in enumerate(optimizers):
      for k, leaf in enumerate(leaves):
        own = {name: tree[k] for name, tree in of_tree.items()}
        if "value" in extra:
          own["value"] = extra["value"]
        leaves[k], columns[i][k], sound = run_if(
          healthy & (choices[k] == i),
          _step(tx, params[k], own),
          (leaf, columns[i][k], sound),
        )
    routed = treedef.unflatten(leaves)
    routed = optax.tree.where(healthy, routed, optax.tree.zeros_like(updates))
    return routed, tuple(columns) if leaves else states, sound

  return Members(init, update)


def _step(tx, params, extra):
  def work(carry):
    gradient, old, sound = carry
    # The compiler moves what does not depend on the carry out of the loop,
    # where it runs on every step.
    at, given = jax.lax.optimization_barrier((params, extra))
    move, new = tx.update(gradient, old, at, **given)
    ok, none = trees.is_finite(move), jnp.zeros_like(move)
    move, new = optax.tree.where(ok, (move, new), (none, old))
    return move.astype(gradient.dtype), new, sound & ok

  return work
