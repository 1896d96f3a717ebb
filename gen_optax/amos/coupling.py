"""Whether an optimizer couples leaves, read off its program.

A frozen optimizer is a separate one for each leaf. One that looks across leaves
(clipping by the global norm, a learning rate for the whole) would quietly
become another optimizer, so it is refused.
"""

import jax
import jax.numpy as jnp
import optax

_SHAPE = (3, 2)
# A state must carry what it saw of the other leaf for one step at least.
_STEPS = 3


def require_separable(
  tx: optax.GradientTransformationExtraArgs, name: str
) -> None:
  """Raises `ValueError`, with the reason, unless leaves can be kept apart.

  The update is traced for two leaves, through a few steps, and what the first
  leaf's updates depend on is followed through the program.
  """
  leaf = jax.ShapeDtypeStruct(_SHAPE, jnp.float32)

  def run(mine, other):
    """The updates of one leaf, given all that goes into both."""
    params = [mine["params"], other["params"]]
    extra = {"hessian_diagonal": [mine["diagonal"], other["diagonal"]]}
    state, moves = tx.init(params), []
    for i in range(_STEPS):
      gradient = [mine["gradients"][i], other["gradients"][i]]
      updates, state = tx.update(
        gradient, state, params, value=jnp.ones(()), grad=gradient, **extra
      )
      moves.append(jax.tree.leaves(updates)[0])
    return moves

  inputs = {"params": leaf, "diagonal": leaf, "gradients": [leaf] * _STEPS}
  try:
    closed = jax.make_jaxpr(run)(inputs, inputs)
  except Exception as error:
    raise ValueError(
      f'states="frozen" updates leaf by leaf, and {name} fails on a leaf of '
      f"its own: {error} (There is no value_fn for a single leaf, and no mask "
      'or label tree fits it.) Use states="run_all".'
    ) from error
  count = len(jax.tree.leaves(inputs))
  if any(_depends(closed.jaxpr, [False] * count + [True] * count)):
    raise ValueError(
      f'states="frozen" updates leaf by leaf, and {name} couples leaves: what '
      "it does to one depends on another's gradient, as clipping by the global "
      "norm does. Put such a stage before or behind the router, or use "
      'states="run_all".'
    )


def _depends(jaxpr, marked: list[bool]) -> list[bool]:
  """Which outputs of a jaxpr depend on its marked inputs."""
  known = dict(zip(jaxpr.invars, marked, strict=True))
  look_up = lambda x: not hasattr(x, "val") and known.get(x, False)
  for equation in jaxpr.eqns:
    inputs = [look_up(x) for x in equation.invars]
    outputs = _depends_of(equation, inputs) if any(inputs) else []
    known |= zip(equation.outvars, outputs, strict=False)
  return [look_up(x) for x in jaxpr.outvars]


def _depends_of(equation, inputs: list[bool]) -> list[bool]:
  name, options = equation.primitive.name, equation.params
  everything = [True] * len(equation.outvars)
  if name == "cond":
    if inputs[0]:
      return everything
    branches = [_depends(b.jaxpr, inputs[1:]) for b in options["branches"]]
    return [any(found) for found in zip(*branches, strict=True)]
  if name == "while":
    first, second = options["cond_nconsts"], options["body_nconsts"]
    of_test, rest = inputs[:first], inputs[first:]
    carry = _fixed_point(
      options["body_jaxpr"].jaxpr, rest[:second], rest[second:], []
    )
    test = _depends(options["cond_jaxpr"].jaxpr, of_test + carry)
    return everything if any(test) else carry
  if name == "scan":
    first, second = options["num_consts"], options["num_carry"]
    consts, rest = inputs[:first], inputs[first:]
    body, rows = options["jaxpr"].jaxpr, rest[second:]
    carry = _fixed_point(body, consts, rest[:second], rows)
    return _depends(body, consts + carry + rows)
  # Calls: of jit, of functions with rules of their own, of remat.
  for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    inner = options.get(key)
    inner = getattr(inner, "jaxpr", inner)
    if inner is not None and len(inner.invars) == len(inputs):
      return _depends(inner, inputs)
  return everything


def _fixed_point(body, consts, carry, rows) -> list[bool]:
  """What a loop's carry depends on after any number of trips."""
  while True:
    found = _depends(body, consts + carry + rows)[: len(carry)]
    grown = [a or b for a, b in zip(carry, found, strict=True)]
    if grown == carry:
      return carry
    carry = grown
