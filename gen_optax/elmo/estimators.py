"""The Lipschitz estimators by name."""

from collections.abc import Callable
from typing import Literal

from jax.typing import ArrayLike

from gen_optax.elmo.eigen_arc import eigen_arc
from gen_optax.elmo.lipschitz import (
  LipschitzEstimator,
  adaptive,
  constant,
  drift,
  eigenvalue_gradient,
  from_function,
  third_derivative,
)
from gen_optax.elmo.spectrum import Eigenspaces

Name = Literal["adaptive", "drift", "third", "gradient", "eigen_arc"]
Lipschitz = (
  Name | ArrayLike | Callable[[Eigenspaces], ArrayLike] | LipschitzEstimator
)

_BY_NAME = {
  "adaptive": adaptive,
  "drift": drift,
  "third": third_derivative,
  "gradient": eigenvalue_gradient,
  "eigen_arc": eigen_arc,
}


def make_estimator(lipschitz: Lipschitz) -> LipschitzEstimator:
  """The estimator that a `lipschitz` argument stands for."""
  if isinstance(lipschitz, LipschitzEstimator):
    return lipschitz
  if isinstance(lipschitz, str):
    if lipschitz not in _BY_NAME:
      raise ValueError(
        f"lipschitz must be one of {tuple(_BY_NAME)}, a positive number or "
        f"array, a function or a LipschitzEstimator, got {lipschitz!r}."
      )
    return _BY_NAME[lipschitz]()
  if callable(lipschitz):
    return from_function(lipschitz)
  return constant(lipschitz)


def is_constant(lipschitz: Lipschitz) -> bool:
  """Whether the argument is a number or an array."""
  named = isinstance(lipschitz, str | LipschitzEstimator)
  return not named and not callable(lipschitz)
