"""The contract of the loss closure, and adapters to it.

Every stage reads `value_fn`, the loss as a function of the parameters alone,
closed over the batch and the random key of this step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.helpers.checks import take_optimizer
from gen_optax.helpers.rounding import RECOMPILED
from gen_optax.oracle.line import ValueFn, scalar_loss

_CALL = (
  "tx.update(updates, state, params, value=value, grad=grad, value_fn=value_fn)"
)
_REMEDY = {
  "params": "the parameters as third argument",
  "grad": "the raw gradient as grad=",
  "value_fn": (
    "the loss as value_fn=, a function of the parameters alone that closes "
    "over this step's batch and random key"
  ),
}


def require(stage: str, **arguments):
  """Raises `ValueError` for the first of `arguments` that cannot be used."""
  for name, argument in arguments.items():
    if argument is None or name == "value_fn" and not callable(argument):
      got = "" if argument is None else f", got {argument!r}"
      raise ValueError(
        f"{stage} needs {name}{got}: pass {_REMEDY[name]}, as in {_CALL}."
      )
  if "value_fn" in arguments and _is_masked(arguments.get("params")):
    if not isinstance(arguments["value_fn"], _OnFullParams):
      raise ValueError(
        f"{stage} sees a part of the parameters, inside optax.masked or "
        "optax.partition, where value_fn is another loss, or none. Wrap the "
        "whole: gen_optax.with_full_params(optax.partition(...))."
      )


def require_scalar(stage: str, value):
  """Raises `ValueError` for a `value` that is neither one number nor None."""
  if value is not None and jnp.shape(value) != ():
    raise ValueError(
      f"{stage} takes the loss, one number, as value=; it got shape "
      f"{jnp.shape(value)}: pass its mean."
    )


def check_value_fn(
  value_fn: ValueFn, params: optax.Params, value: jax.Array | None = None
) -> None:
  """Checks a loss closure before the first step, outside `jax.jit`.

  It compares two calls. A closure that draws a fresh dropout mask, reads
  another batch, or lacks a regulariser of the trained loss gives differences
  along the line that are not the loss's own, and a fit to them is noise.

  Args:
    value_fn: the loss as a function of the parameters alone.
    params: the parameters.
    value: the loss at `params` as the training step computed it.

  Returns:
    None. Costs two forward passes.

  Raises:
    ValueError: `value_fn` is not callable, does not return one real scalar, is
      not finite, differs at all between two calls, or differs from `value` by
      more than 300 eps of the larger one; eps is that of the narrowest of loss
      and parameters, and at least 1e-7.

  Example:

    >>> import jax.numpy as jnp
    >>> from gen_optax import check_value_fn
    >>> check_value_fn(lambda w: jnp.sum(w**2), jnp.ones(3), value=3.0)
  """
  if not callable(value_fn):
    raise ValueError(
      f"value_fn must be a function of the parameters, got {value_fn!r}."
    )
  first, second = (scalar_loss(value_fn, params) for _ in range(2))
  if not jnp.isfinite(first):
    raise ValueError(f"value_fn(params) is {first}, not a finite loss.")
  if first != second:
    raise ValueError(
      f"value_fn returned {first} and then {second} for the same parameters: "
      "close over one batch and one random key per step."
    )
  if value is None:
    return
  eps = max(float(jnp.finfo(jnp.result_type(value, jnp.float32)).eps), 1e-7)
  lowest = optax.tree.dtype(params, "lowest")
  if lowest is not None and jnp.issubdtype(lowest, jnp.floating):
    eps = max(eps, float(jnp.finfo(lowest).eps))
  if not abs(first - value) <= RECOMPILED * eps * max(abs(first), abs(value)):
    raise ValueError(
      f"value_fn(params) is {first}, but value is {value}: both must be the "
      "same loss on the same batch with the same random key and the same "
      "regularisers."
    )


def with_full_params(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Lets a stage inside `optax.masked` or `optax.partition` call `value_fn`.

  Such a stage sees `optax.MaskedNode` in place of other groups' leaves, so the
  closure fails on its parameters or quietly computes another loss. The wrapper
  fills the other groups in, frozen at their current values. That suits the
  curvature of one block. A step size fitted that way ignores that the groups
  move together: put `scale_by_gen` outside.

  The wrapper goes around the partition, because `optax.partition` masks
  `params` before a stage inside sees them.

  Args:
    inner: a transformation with closure-reading stages in `masked`,
      `partition` or `selective_transform`.

  Returns:
    The same transformation, whose `update` needs `params` and `value_fn`.

  Raises:
    ValueError: `params` or `value_fn` is missing.

  Example:

    >>> import jax, jax.numpy as jnp, optax, gen_optax
    >>> groups = {"x": optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(
    ...   estimator="fit", fresh_slope=False)), "y": optax.sgd(0.1)}
    >>> tx = gen_optax.with_full_params(
    ...   optax.partition(groups, {"w": "x", "b": "y"}))
    >>> loss = lambda p: jnp.sum((p["w"] + p["b"] - 1.0) ** 2)
    >>> params = {"w": jnp.zeros(2), "b": jnp.zeros(2)}
    >>> updates, _ = tx.update(
    ...   jax.grad(loss)(params), tx.init(params), params, value_fn=loss)
    >>> print(updates["w"])
    [1. 1.]
  """
  inner = take_optimizer("inner", inner)

  def update_fn(
    updates, state, params=None, *, value_fn: Any = None, **extra_args
  ):
    require("with_full_params", params=params, value_fn=value_fn)
    extra_args["value_fn"] = _OnFullParams(value_fn, params)
    return inner.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(inner.init, update_fn)


class _OnFullParams(NamedTuple):
  """A closure that fills the leaves of other groups in."""

  value_fn: ValueFn
  full: Any

  def __call__(self, masked):
    fill = lambda m, f: f if _is_mask(m) else m
    whole = jax.tree.map(fill, masked, self.full, is_leaf=_is_mask)
    return self.value_fn(whole)


def _is_mask(node) -> bool:
  return isinstance(node, optax.MaskedNode)


def _is_masked(params) -> bool:
  return any(map(_is_mask, jax.tree.leaves(params, is_leaf=_is_mask)))


def keep_extra_args(
  tx: optax.GradientTransformation, *names: str
) -> optax.GradientTransformationExtraArgs:
  """Hands only the named extra arguments on to `tx`.

  So optax's line searches, which raise on arguments that they do not read, can
  be in one chain with stages that read others.

  Args:
    tx: the transformation to shield.
    names: the extra arguments that it reads.

  Returns:
    `tx`, which ignores all other extra arguments.

  Raises:
    Nothing; `tx` raises where an argument that it needs is missing.

  Example:

    >>> import optax, gen_optax
    >>> search = gen_optax.keep_extra_args(
    ...   optax.scale_by_backtracking_linesearch(10),
    ...   "value", "grad", "value_fn")
  """
  tx = take_optimizer("tx", tx)

  def update_fn(updates, state, params=None, **extra_args):
    kept = {name: x for name, x in extra_args.items() if name in names}
    return tx.update(updates, state, params, **kept)

  return optax.GradientTransformationExtraArgs(tx.init, update_fn)


def rename_extra_args(
  tx: optax.GradientTransformation, **names: str
) -> optax.GradientTransformationExtraArgs:
  """Hands extra arguments on to `tx` under the names that it reads.

  Args:
    tx: a transformation that reads other names than this package, for example
      `optax.contrib.sophia`, which calls the loss `obj_fn`.
    names: `its_name="our_name"` for each argument.

  Returns:
    `tx`, which takes our names beside its own.

  Raises:
    Nothing; `tx` raises where an argument that it needs is missing.

  Example:

    >>> import optax, gen_optax
    >>> tx = gen_optax.rename_extra_args(
    ...   optax.contrib.sophia(1e-3), obj_fn="value_fn")
  """
  tx = take_optimizer("tx", tx)

  def update_fn(updates, state, params=None, **extra_args):
    for theirs, ours in names.items():
      if ours in extra_args:
        extra_args.setdefault(theirs, extra_args[ours])
    return tx.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(tx.init, update_fn)


def average_over(value_fn: ValueFn, axis_name: str) -> ValueFn:
  """The closure averaged over a mapped axis, for `shard_map` and `pmap`.

  Each device sees its part of the batch, so with a closure that is not averaged
  the devices diverge. Inside `shard_map` a stage that reads such a closure
  raises `ValueError` while it is traced, because jax's types show it. They do
  not with `check_vma=False`, under `pmap`, or if each device has its own copy
  of the parameters.

  The parameters must be whole on every device, because the transforms would see
  only a part of sharded ones. Shard those under `jax.jit`, without an adapter.

  Args:
    value_fn: the loss of this device's part of the batch.
    axis_name: the mapped axis, or a tuple of axes.

  Returns:
    A closure that gives every device the same loss, at the cost of one
    all-reduce of a scalar for each evaluation.

  Raises:
    NameError: when called outside a map over `axis_name`.

  Example:

    >>> import jax, jax.numpy as jnp
    >>> from gen_optax import average_over
    >>> jax.vmap(
    ...   lambda x: average_over(lambda w: w * x, "data")(2.0),
    ...   axis_name="data")(jnp.array([1.0, 3.0]))
    Array([4., 4.], dtype=float32)
  """
  return lambda params: jax.lax.pmean(value_fn(params), axis_name)
