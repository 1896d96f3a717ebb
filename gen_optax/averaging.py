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
  without knowing the number of steps. It is for every optimizer: it helps Adam
  at a tuned constant rate, or Prodigy, as much as GeN. Training itself is
  unchanged. This must be the last stage of the chain, since it reads the
  updates as they are applied. GeN's ready-made chains append it:
  `average=True`.

  Returns:
    A transformation that leaves the updates alone; `evaluate_at(state, params)`
    reads the average. It takes no forward pass and one buffer of the
    parameters' size, at least float32, sharded as they are; on a mesh it sends
    nothing.

  Raises:
    ValueError: `params` is missing.

  Example:

    >>> import jax, jax.numpy as jnp, optax, gen_optax
    >>> loss = lambda w, noise=0.0: jnp.sum((w - 3.0 - noise) ** 2)
    >>> tx = optax.chain(
    ...   optax.contrib.prodigy(), gen_optax.average_parameters())
    >>> w = jnp.zeros(2)
    >>> state = tx.init(w)
    >>> @jax.jit
    ... def step(w, state, noise):
    ...   updates, state = tx.update(jax.grad(loss)(w, noise), state, w)
    ...   return optax.apply_updates(w, updates), state
    >>> for noise in jax.random.normal(jax.random.key(0), (200, 2)):
    ...   w, state = step(w, state, noise)
    >>> bool(loss(gen_optax.evaluate_at(state, w)) < loss(w))
    True

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


def evaluate_at(state: optax.OptState, params: optax.Params) -> optax.Params:
  """The parameters to evaluate at: the average, where the state keeps one.

  In this order, wherever in a chain or a wrapper it stands:

  * the average of `average_parameters`,
  * the point of optax's schedule-free optimizers,
  * `params` where the state holds neither.

  So an evaluation need not know the optimizer. Training goes on from `params`.

  Running statistics (BatchNorm's) belong to the iterates that gathered them,
  not to the average. Estimate them anew: send training batches through the
  network in training mode at the average, keep nothing but the new statistics,
  and evaluate with those; at a momentum of 0.99 that takes some hundreds.

  Args:
    state: the optimizer's state.
    params: the parameters that it moves.

  Returns:
    A tree like `params`, dtypes included. Leaves that `optax.masked` or
    `optax.partition` keep from the average are those of `params`. Arrays may be
    the state's own: a step that donates the state deletes them.

  Raises:
    KeyError: the state holds several averages.

  Example:

    >>> import jax.numpy as jnp, optax, gen_optax
    >>> w = jnp.ones(2)
    >>> for tx in gen_optax.gen_adam(average=True), optax.adam(0.1):
    ...   print(gen_optax.evaluate_at(tx.init(w), w))
    [1. 1.]
    [1. 1.]

  References:
    Defazio et al., The road less scheduled, 2024: the schedule-free point.
  """
  if _all(state, "AverageParametersState"):
    return _fill(averaged_parameters(state), params)
  point = params
  # A partition may hold several, of one part each.
  for free in _all(state, "ScheduleFreeState"):
    part = jax.tree.map(
      lambda z, p: z if _is_masked(z) else p, free.z, params, is_leaf=_is_masked
    )
    part = optax.contrib.schedule_free_eval_params(free, part)
    point = _fill(part, point)
  return point


def _all(state, name) -> list:
  """The states of that name within `state`."""
  found = optax.tree.get_all_with_path(state, name)
  return [part for _, part in found]


def _is_masked(node) -> bool:
  return isinstance(node, optax.MaskedNode)


def _fill(part, params):
  """`part` in the dtypes of `params`, which stand where it is masked."""
  pick = lambda x, p: p if _is_masked(x) else x.astype(p.dtype)
  return jax.tree.map(pick, part, params, is_leaf=_is_masked)


def averaged_parameters(state: optax.OptState) -> optax.Params:
  """The average itself: in full precision, or an error where there is none.

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
  found = _all(state, "AverageParametersState")
  if len(found) != 1:
    raise KeyError(
      f"The state holds {len(found)} parameter averages: chain "
      "average_parameters() last, once."
    )
  return found[0].average
