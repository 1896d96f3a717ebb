"""Checks of configurations that may hold traced numbers, and of trees."""

import jax
import jax.numpy as jnp
import optax


def is_known(number) -> bool:
  """Whether a number can be checked now; tracers, from injection, cannot."""
  return not isinstance(number, jax.core.Tracer)


def take_optimizer(
  name: str, optimizer
) -> optax.GradientTransformationExtraArgs:
  """`optimizer`, taking extra arguments, or `ValueError` if it is not one."""
  if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
    raise ValueError(
      f"{name} must be an optax optimizer, as built by optax.adam(1.0), got "
      f"{optimizer!r}."
    )
  return optax.with_extra_args_support(optimizer)


def check_in(name: str, number, low: float, high: float):
  """Raises `ValueError` unless low <= number < high."""
  inside = lambda x: low <= x < high
  _check(name, number, inside, f"lie in [{low}, {high})")


def check_positive(**numbers):
  """Raises `ValueError` for the first that is not, or is infinite."""
  for name, number in numbers.items():
    _check(
      name, number, lambda x: 0 < x < float("inf"), "be positive and finite"
    )


def check_integers(least: int, **counts):
  """Raises `ValueError` for the first that is no integer, or too small."""
  whole = lambda x: x == int(x) and x >= least
  for name, count in counts.items():
    _check(name, count, whole, f"be an integer, at least {least}")


def check_not_negative(**numbers):
  """Raises `ValueError` for the first negative number; schedules pass."""
  for name, number in numbers.items():
    if not callable(number):
      _check(name, number, lambda x: x >= 0, "be at least 0 or a schedule")


def _check(name: str, number, is_right, wanted: str):
  """Tracers pass; what is no number, or several, is not right."""
  try:
    right = not is_known(number) or bool(is_right(number))
  except (OverflowError, TypeError, ValueError):
    right = False
  if not right:
    raise ValueError(f"{name} must {wanted}, got {number!r}.")


def require_leaves(stage: str, tree, kind=jnp.floating):
  """Raises `ValueError` for a leaf whose dtype is not of `kind`."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if not jnp.issubdtype(leaf.dtype, kind):
      remedy = "give it to optax.set_to_zero by optax.partition"
      if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        remedy = "split it by optax.contrib.split_real_and_imaginary"
      raise ValueError(
        f"{stage} takes {kind.__name__} leaves; there is {leaf.dtype} at "
        f"{jax.tree_util.keystr(path)}: {remedy}."
      )
