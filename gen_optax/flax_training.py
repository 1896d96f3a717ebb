"""Loss closures from Flax: a linen `TrainState`, and one call for nnx."""

from collections.abc import Callable
from typing import Any

import jax
import optax

try:
  from flax import nnx
  from flax.training import train_state
except ImportError as error:
  raise ImportError(
    'gen_optax.flax_training needs Flax: pip install "gen_optax[flax]".'
  ) from error

from gen_optax.oracle.line import ValueFn, real_scalar


class TrainState(train_state.TrainState):
  """A linen `TrainState` whose `apply_gradients` hands the closure on.

  Optimizers that read the loss need it, since Flax's own drops extra arguments.

  Example:

    >>> import jax, jax.numpy as jnp, gen_optax
    >>> from flax import linen
    >>> from gen_optax.flax_training import TrainState
    >>> model, x = linen.Dense(1), jnp.ones((4, 2))
    >>> state = TrainState.create(
    ...   apply_fn=model.apply, tx=gen_optax.gen_adam(),
    ...   params=model.init(jax.random.key(0), x)["params"])
    >>> @jax.jit
    ... def step(state, x):
    ...   def loss(params):
    ...     return jnp.mean((state.apply_fn({"params": params}, x) - 1.0) ** 2)
    ...   value, grad = jax.value_and_grad(loss)(state.params)
    ...   return state.apply_gradients(
    ...     grads=grad, value=value, value_fn=loss), value
    >>> for _ in range(60):
    ...   state, value = step(state, x)
    >>> bool(value < 0.05)
    True
  """

  def apply_gradients(
    self,
    *,
    grads: optax.Updates,
    value: jax.Array | None = None,
    value_fn: ValueFn | None = None,
    **changes: Any,
  ) -> "TrainState":
    """One step of the optimizer.

    Args:
      grads: the gradient of the loss.
      value: the loss, which saves the optimizer a forward pass.
      value_fn: the loss as a function of the parameters alone, with the batch,
        dropout key and batch statistics of the gradient.
      **changes: other fields to replace, such as new batch statistics.

    Returns:
      The state after the step.
    """
    tx = optax.with_extra_args_support(self.tx)
    extra = dict(value=value, grad=grads, value_fn=value_fn)
    updates, state = tx.update(grads, self.opt_state, self.params, **extra)
    params = optax.apply_updates(self.params, updates)
    return self.replace(
      step=self.step + 1, params=params, opt_state=state, **changes
    )


def value_grad_and_closure(
  loss_fn: Callable[..., jax.Array],
  model: nnx.Module,
  *args: Any,
  wrt: Any = nnx.Param,
) -> tuple[jax.Array, Any, ValueFn]:
  """The loss, its gradient, and the loss as a closure, for an nnx model.

  The model's batch statistics and random streams advance once. The closure
  works on a copy of the model from before, so that every probe sees the dropout
  mask and the statistics that the gradient saw. (A copy from after the forward
  pass would give another mask, without an error.)

  Args:
    loss_fn: `loss_fn(model, *args)` returns the loss, a scalar.
    model: the nnx module, changed in place as a forward pass changes it.
    *args: batch and whatever else the loss takes.
    wrt: which variables are trained; as given to `nnx.Optimizer`.

  Returns:
    `(value, grad, value_fn)`, by one evaluation of value and gradient, for
    `optimizer.update(model, grad, value=value, grad=grad, value_fn=value_fn)`.

  Raises:
    ValueError: `model` is not an nnx module, or the loss is not a scalar.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> from flax import nnx
    >>> from gen_optax.flax_training import value_grad_and_closure
    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, gen_optax.gen_adam(), wrt=nnx.Param)
    >>> loss_fn = lambda model, x: jnp.mean((model(x) - 1.0) ** 2)
    >>> @nnx.jit
    ... def step(model, optimizer, x):
    ...   value, grad, value_fn = value_grad_and_closure(loss_fn, model, x)
    ...   optimizer.update(
    ...     model, grad, value=value, grad=grad, value_fn=value_fn)
    ...   return value
    >>> for _ in range(60):
    ...   value = step(model, optimizer, jnp.ones((4, 2)))
    >>> bool(value < 0.05)
    True
  """
  if not isinstance(model, nnx.Module):
    raise ValueError(
      f"model must be an nnx module, got a {type(model).__name__}; for linen "
      "take gen_optax.flax_training.TrainState."
    )
  graphdef, _, others = nnx.split(model, wrt, ...)
  # Made pure before the forward pass, or variables that the live model still
  # changes would leak its trace into the probes' loop.
  others = nnx.as_pure(others)

  def loss(*args):
    return real_scalar(loss_fn(*args), "loss_fn", "return the loss alone")

  grad_fn = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, wrt))
  value, grad = grad_fn(model, *args)

  def value_fn(params):
    return loss_fn(nnx.merge(graphdef, params, others), *args)

  return value, grad, value_fn
