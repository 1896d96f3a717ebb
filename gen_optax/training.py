"""A training step from a loss function, in plain JAX."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import optax

from gen_optax.helpers.checks import take_optimizer
from gen_optax.oracle.line import real_scalar


class StepResult(NamedTuple):
  """What a training step returns.

  Attributes:
    params: the parameters after the step.
    opt_state: the optimizer's state after the step.
    value: the loss before the step.
    aux: the loss function's second output; None without `has_aux`.
    metrics: what the optimizer's stages report, flat, ready for a logger.
  """

  params: optax.Params
  opt_state: optax.OptState
  value: jax.Array
  aux: Any
  metrics: dict[str, jax.Array]


def make_step(
  loss_fn: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  *,
  has_aux: bool = False,
  donate: bool = True,
  micro_batch_size: int | None = None,
  batch_argnums: int | Sequence[int] = 1,
) -> Callable[..., StepResult]:
  """Builds a jitted step that hands the optimizer the loss as a closure.

  The step computes value and gradient once, closes the loss over its arguments
  (batch, dropout key, model state), and calls

      optimizer.update(grad, opt_state, params,
                       value=value, grad=grad, value_fn=value_fn)

  Args:
    loss_fn: `loss_fn(params, *args)` returns the loss, a scalar, or with
      `has_aux` a pair of it and anything else (new batch statistics, logits).
      Random keys must be among `args`: one key for the step and all its probes.
    optimizer: any optax transformation, whether or not it reads the closure.
    has_aux: whether `loss_fn` returns a pair.
    donate: whether the step may overwrite the parameters and the state that it
      is given. Keep only the returned ones.
    micro_batch_size: the number of examples in each part of the batch, which it
      must divide. The parts run one after the other, so only one part's
      activations are held. The loss, its gradient, what every probe and product
      sees, and aux, which must hold floats, are means over the parts. (The
      closure of `optax.MultiSteps` sees the last part alone.)
    batch_argnums: which arguments of `loss_fn` are cut into parts along the
      leading axes of their arrays; `params` is number 0. The others (a key, a
      model's state) go to each part as they are.

  Returns:
    `step(params, opt_state, *args) -> StepResult`, at the cost of the optimizer
    and one evaluation of value and gradient. With parts, a Hessian-vector
    product evaluates the loss once more, so as not to keep activations.

  Raises:
    ValueError: `optimizer` is not one, or `batch_argnums` names the parameters.
      In the step: `micro_batch_size` does not divide the batch, or `loss_fn`
      does not return a scalar (with `has_aux`: in a pair).

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> loss_fn = lambda w, x: jnp.mean((x @ w - 1.0) ** 2)
    >>> tx, w, x = gen_optax.gen_momentum(), jnp.zeros(2), jnp.eye(2)
    >>> step, state = gen_optax.make_step(loss_fn, tx), tx.init(w)
    >>> for _ in range(50):
    ...   w, state, value, _, metrics = step(w, state, x)
    >>> bool(value < 0.01), sorted(metrics)[3]
    (True, 'gen/optimum')
  """
  optimizer = take_optimizer("optimizer", optimizer)
  loss_fn = _checked(loss_fn, has_aux)
  in_parts = _by_parts(micro_batch_size, batch_argnums)
  value_and_grad = in_parts(jax.value_and_grad(loss_fn, has_aux=has_aux))
  loss_alone = lambda *args: loss_fn(*args)[0] if has_aux else loss_fn(*args)
  if micro_batch_size is not None:
    # Differentiating the sum over parts keeps no part's activations.
    loss_alone = in_parts(jax.checkpoint(loss_alone))

  def step(params, opt_state, *args):
    found, grad = value_and_grad(params, *args)
    value, aux = found if has_aux else (found, None)
    value_fn = lambda p: loss_alone(p, *args)
    updates, opt_state = optimizer.update(
      grad, opt_state, params, value=value, grad=grad, value_fn=value_fn
    )
    params = optax.apply_updates(params, updates)
    return StepResult(params, opt_state, value, aux, metrics(opt_state))

  return jax.jit(step, donate_argnums=(0, 1) if donate else ())


def _checked(loss_fn, has_aux: bool):
  """`loss_fn`, with an error that says what it should have returned."""

  def checked(*args):
    out = loss_fn(*args)
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
      raise ValueError(
        "loss_fn must return a pair (loss, aux) with has_aux=True; it returned "
        f"{out!r}."
      )
    loss = out[0] if has_aux else out
    real_scalar(loss, "loss_fn", "pass has_aux=True if it returns a pair")
    return out

  return checked


def _by_parts(size: int | None, argnums: int | Sequence[int]) -> Callable:
  """Turns a function into its mean over parts of its arguments."""
  argnums = (argnums,) if isinstance(argnums, int) else tuple(argnums)
  if min(argnums, default=0) < 1:
    raise ValueError(
      "batch_argnums counts the arguments of loss_fn after the parameters, "
      f"from 1 on, got {argnums}."
    )
  if size is not None and (size != int(size) or size < 1):
    raise ValueError(
      f"micro_batch_size must be a positive integer or None, got {size!r}."
    )
  mean = optax.microbatching.AccumulationType.MEAN
  return lambda fn: optax.microbatching.microbatch(fn, argnums, size, mean)


def metrics(opt_state: optax.OptState) -> dict[str, jax.Array]:
  """What the stages of a chain report, as a flat dict of numbers.

  Each state that holds an `info` gives the fields of it and its `learning_rate`
  under a prefix made of its name: `ScaleByGenState` reports as
  `gen/learning_rate`, `gen/slope`, ..., and a second one as `gen_2/...`.

  Args:
    opt_state: any optimizer state.

  Returns:
    Name to number, in the order of the chain, or to an array where a stage
    reports several (the eigenvalues of ELMO, the shares of AMOS).

  Raises:
    AttributeError: a state's `info` is not a named tuple.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> state = gen_optax.gen_adam().init(jnp.zeros(3))
    >>> print(gen_optax.metrics(state)["gen/learning_rate"])
    0.001
  """
  flat, count = {}, {}
  for state in _reporting(opt_state):
    name = re.sub(r"^ScaleBy|State$", "", type(state).__name__)
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    count[name] = count.get(name, 0) + 1
    prefix = name if count[name] == 1 else f"{name}_{count[name]}"
    if hasattr(state, "learning_rate"):
      flat[f"{prefix}/learning_rate"] = state.learning_rate
    for field, entry in state.info._asdict().items():
      flat[f"{prefix}/{field}"] = entry
  return flat


def _reporting(state) -> Iterator[Any]:
  """The states within `state` that hold an `info`, in order."""
  if isinstance(state, tuple) and hasattr(state, "info"):
    yield state
  if isinstance(state, dict):
    state = tuple(state.values())
  if isinstance(state, (tuple, list)):
    for part in state:
      yield from _reporting(part)
