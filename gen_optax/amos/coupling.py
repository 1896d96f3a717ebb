"""Whether an optimizer couples leaves.

A frozen optimizer is a separate one for each leaf. One that looks across leaves
(clipping by the global norm, a learning rate for the whole) would quietly
become another optimizer, so it is refused.
"""

import jax
import jax.numpy as jnp
import optax

# Optimizers treat vectors and matrices apart.
_SHAPES = ((3, 2), (3,))


# A loop that is run trip by trip would show its first trips only.
@jax.disable_jit(False)
def require_separable(
  tx: optax.GradientTransformationExtraArgs, name: str
) -> None:
  """Raises `ValueError`, with the reason, unless leaves can be kept apart.

  Two leaves are updated, and all that goes into one of them is mapped by
  `jax.vmap`. What depends on it, be it through a comparison, a branch or a
  state, comes out mapped, and is refused where no mapped axis is expected.
  Nothing is computed: the update is traced, in a loop for any number of steps,
  since a state may carry for long what it saw.
  """

  def run(gradients, params, diagonals):
    extra = dict(grad=gradients, hessian_diagonal=diagonals)

    def step(state, value):
      updates, state = tx.update(gradients, state, params, value=value, **extra)
      return state, updates

    return jax.lax.scan(step, tx.init(params), jnp.ones(2))[1]

  def trace(shape, axes):
    mapped = run if axes is None else jax.vmap(run, (axes,) * 3, axes)
    leading = [() if axis is None else (1,) for axis in axes or (None, None)]
    leaves = [jax.ShapeDtypeStruct(n + shape, jnp.float32) for n in leading]
    jax.eval_shape(mapped, leaves, leaves, leaves)

  def refuse(why, error):
    raise ValueError(
      f'states="frozen" updates leaf by leaf, and {name} {why} Use '
      'states="run_all".'
    ) from error

  for shape in _SHAPES:
    try:
      trace(shape, None)
    except Exception as error:
      refuse(
        f"fails on a leaf of its own: {error} (There is no value_fn for a "
        "single leaf, and no mask or label tree fits it.)",
        error,
      )
    try:
      trace(shape, [0, 0])
    except Exception as error:
      refuse(f"cannot be checked by jax.vmap: {error}", error)
    try:
      trace(shape, [0, None])
      trace(shape, [None, 0])
    except ValueError as error:
      refuse(
        "couples leaves: what it does to one depends on another's gradient, as "
        "clipping by the global norm does. Put such a stage before or after "
        "the router.",
        error,
      )
