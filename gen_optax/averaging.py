"""A polynomial average of the parameters, for evaluation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.helpers import trees
from gen_optax.helpers.trees import widen
from gen_optax.oracle.closures import require

# The window of the average grows like t / 10.
DEGREE = 8


class AverageParametersState(NamedTuple):
  """Count, and the average in at least float32."""

  count: jax.Array
  average: optax.Params


def average_parameters() -> optax.GradientTransformationExtraArgs:
  r"""Keeps a polynomial average of the parameters beside the training.

  After step t = 0, 1, 2, ...

  .. math:: \bar w \leftarrow \bar w + \frac{9}{t + 9} (w_{t+1} - \bar w)

  so that step k weighs like k^8: the window is about the last tenth of the run,
  whenever it stops. Evaluating at the average replaces a decaying learning rate
  without knowing the number of steps. It helps a tuned constant rate as much as
  GeN. Training itself is unchanged. This must be the last stage of the chain,
  since it reads the updates as they are applied.

  Returns:
    A transformation that leaves the updates alone; read the average with
    `averaged_parameters(state)`. It takes no forward pass and one buffer of the
    parameters' size, at least float32, sharded as they are; on a mesh it sends
    nothing.

  Raises:
    ValueError: `params` is missing.

  Example:

    >>> import jax.numpy as jnp, optax, gen_optax
    >>> tx = optax.chain(optax.sgd(0.5), gen_optax.average_parameters())
    >>> w = jnp.ones(2)
    >>> _, state = tx.update(w, tx.init(w), w)
    >>> print(gen_optax.averaged_parameters(state))
    [0.5 0.5]

  References:
    Shamir and Zhang, Stochastic gradient descent for non-smooth optimization,
    2013: polynomial-decay averaging.
  """

  def init_fn(params):
    average = trees.copy(widen(params))
    return AverageParametersState(jnp.zeros((), jnp.int32), average)

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    require("average_parameters", params=params)
    new_params = optax.apply_updates(widen(params), updates)

    def mix(average, new):
      if not trees.is_float(new):
        return new
      # Cast before dividing: int32 division is float32 even under x64.
      count = state.count.astype(jnp.finfo(new.dtype).dtype)
      return average + (DEGREE + 1) / (count + DEGREE + 1) * (new - average)

    average = jax.tree.map(mix, state.average, new_params)
    return updates, AverageParametersState(
      trees.increment(state.count), average
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def averaged_parameters(state: optax.OptState) -> optax.Params:
  """The average that `average_parameters` keeps, from any optimizer state.

  Args:
    state: the state of a transformation that holds one `average_parameters`.

  Returns:
    A tree like the parameters, in at least float32.

  Raises:
    KeyError: the state holds none, or several.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> state = gen_optax.average_parameters().init({"w": jnp.ones(2)})
    >>> print(gen_optax.averaged_parameters(state)["w"])
    [1. 1.]
  """
  found = optax.tree.get_all_with_path(state, "AverageParametersState")
  if len(found) != 1:
    raise KeyError(
      f"The state holds {len(found)} parameter averages: chain "
      "average_parameters() last, once."
    )
  return found[0][1].average
