"""Checks of configurations that may hold traced numbers, and of trees."""

import jax
import jax.numpy as jnp


def is_known(number) -> bool:
  """Whether a number can be checked now: tracers, from injection, pass."""
  return not isinstance(number, jax.core.Tracer)


def require_inexact_leaves(stage: str, tree):
  """Raises `ValueError` for a leaf that cannot be differentiated."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
      raise ValueError(
        f"{stage} takes floating leaves; there is {leaf.dtype} at "
        f"{jax.tree_util.keystr(path)}. Keep it out of the parameters, or give "
        "it to optax.set_to_zero by optax.partition."
      )


def require_real_leaves(stage: str, params):
  """Raises `ValueError` for a leaf that is not real and floating."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(
        f"{stage} preconditions real floating leaves; the parameters have "
        f"{leaf.dtype} at {jax.tree_util.keystr(path)}. Split them by "
        "optax.partition, complex ones by optax.contrib."
        "split_real_and_imaginary."
      )
