"""The oracles by name."""

from collections.abc import Callable
from typing import Literal

from jax.typing import ArrayLike

from gen_optax.elmo import lipschitz as oracles
from gen_optax.elmo.eigen_arc import eigen_arc
from gen_optax.elmo.step import Eigenspaces

Name = Literal["adaptive", "drift", "third", "gradient", "eigen_arc"]
Lipschitz = (
  Name
  | ArrayLike
  | Callable[[Eigenspaces], ArrayLike]
  | oracles.LipschitzOracle
)

_BY_NAME = {
  "adaptive": oracles.adaptive,
  "drift": oracles.drift,
  "third": oracles.third_derivative,
  "gradient": oracles.eigenvalue_gradient,
  "eigen_arc": eigen_arc,
}


def make_oracle(lipschitz: Lipschitz) -> oracles.LipschitzOracle:
  """The oracle that a `lipschitz` argument stands for."""
  if isinstance(lipschitz, oracles.LipschitzOracle):
    return lipschitz
  if isinstance(lipschitz, str):
    if lipschitz not in _BY_NAME:
      raise ValueError(
        f"lipschitz must be one of {tuple(_BY_NAME)}, a positive number or "
        f"array, a function or a LipschitzOracle, got {lipschitz!r}."
      )
    return _BY_NAME[lipschitz]()
  if callable(lipschitz):
    return oracles.from_function(lipschitz)
  return oracles.constant(lipschitz)


def is_constant(lipschitz: Lipschitz) -> bool:
  """Whether the argument is a number or an array."""
  named = isinstance(lipschitz, str | oracles.LipschitzOracle)
  return not named and not callable(lipschitz)
