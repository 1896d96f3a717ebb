"""`scale_by_psgd`: any preconditioner as an optax stage."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax.guards.scale import FAR, Scale, check, new_scale
from gen_optax.helpers import mean, trees
from gen_optax.helpers.checks import (
  check_in,
  check_positive,
  is_known,
  require_leaves,
)
from gen_optax.helpers.lazy import run_if
from gen_optax.helpers.trees import widen
from gen_optax.oracle.closures import require
from gen_optax.psgd import sources
from gen_optax.psgd.preconditioner import Preconditioner, check_kind

Rate = float | Callable[[jax.Array], jax.Array]

# Mixed into the seed, so that no other kind of stage draws the same numbers.
_SALT = 0x9501
_WHITENING_MOMENTUM = 0.9


class PsgdInfo(NamedTuple):
  """What the last step did, for logs: scalars.

  Attributes:
    updated: bool, whether the preconditioner took a step.
    rejected: bool, whether a pair was drawn and not used, since it was zero,
      not finite, or far from the usual size.
    skipped: bool, whether the step was withheld, since the gradient or its
      preconditioned form was not finite, or, with momentum, the gradient was
      far from the usual size.
    norm: of the preconditioned gradient before clipping, in at least float32.
  """

  updated: jax.Array
  rejected: jax.Array
  skipped: jax.Array
  norm: jax.Array


class ScaleByPsgdState(NamedTuple):
  """State of `scale_by_psgd`.

  Attributes:
    count: number of calls, an int32 scalar.
    preconditioner: the state that its constructor names, in at least float32.
    scaled: whether Q has its initial scale, a bool scalar.
    product: the running scale of the products h.
    momentum: the average of gradients in at least float32, a `Mean` of `sum`, a
      tree like the parameters, and `weight`; None without momentum.
    gradient: the running scale of the gradients, for momentum alone.
    info: diagnostics.
  """

  count: jax.Array
  preconditioner: Any
  scaled: jax.Array
  product: Scale
  momentum: Any
  gradient: Scale
  info: PsgdInfo


def scale_by_psgd(
  preconditioner: Preconditioner,
  *,
  precond_learning_rate: Rate = 0.1,
  probability: Rate = 1.0,
  pairs: sources.Pairs = "hvp",
  momentum: float | None = None,
  init_scale: float | None = None,
  clip_norm: float | None = 1.0,
  vector: sources.Vector = "normal",
  seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
  r"""Preconditions by P = Q'Q, fitted online on a Lie group (PSGD).

  .. math::

    P = \arg\min E[h' P h + v' P^{-1} v], \quad h = \hat H v, \;
    v \sim N(0, I) \quad \Rightarrow \quad
    P = (H^2 + E \epsilon \epsilon')^{-1/2}

  where :math:`\hat H` is H with the noise :math:`\epsilon` of the batch. P is
  the inverse of the absolute Hessian, damped where that is noisy. With the
  given probability a call draws v, asks the loss closure for h, and moves Q by
  one gradient step on its group. The result is a preconditioned gradient, not
  negated. A learning rate of order one fits it; `scale_by_gen` finds one.

  Args:
    preconditioner: the structure of Q: `gen_optax.psgd.diagonal()`, `xmat()`,
      `butterfly()`, `blocks(partition)`, `low_rank(rank)`, `dense()`, `kron()`.
    precond_learning_rate: step on the group, in (0, 1), or a schedule of the
      count. A constant leaves errors of several per cent in P where the Hessian
      is indefinite or noisy: decay it where that matters.
    probability: of an update of Q in each call, in [0, 1], or a schedule of the
      count. Other calls draw and evaluate nothing, under `jax.vmap` too.
    pairs: "hvp": exact products. "finite_difference": differences of gradients,
      for losses without forward mode ("can't apply forward-mode", from a
      custom_vjp or a hand-written kernel); needs `grad`. "whitening": the
      gradient for h, without a closure; P tends to (E gg')^{-1/2}, and steps
      have the size of Adam's, so rates differ from the other modes'.
    momentum: decay b of the bias-corrected average b m + (1 - b) g that is
      preconditioned; in [0, 1). None: 0.9 with "whitening", else 0.
    init_scale: Q starts as this multiple of the identity, positive. None: the
      scale that fits the first pair that is finite and not zero.
    clip_norm: the largest norm of the preconditioned gradient, or with
      "whitening" its largest root mean square; positive. None: not clipped.
    vector: the distribution of v, "normal" or the cheaper "rademacher".
    seed: of all random numbers. Give each of several stages its own, and
      vmapped replicas a traced one.

  Under `optax.inject_hyperparams` the numbers, schedules and `seed` may be
  injected.

  Returns:
    A transformation whose `update` takes `value_fn`, the loss as a function of
    the parameters alone (unless "whitening"), and with "finite_difference" also
    `grad`, the raw gradient.

  Raises:
    ValueError: on a wrong configuration, and on a missing argument, with the
      line that fixes the call.

  Cost: an update of Q takes one Hessian-vector product (two to three gradients;
  a second gradient with "finite_difference"; nothing with "whitening"), the
  random numbers and the group step. Every call multiplies by P. State: that of
  the preconditioner, and one copy of the parameters for momentum. On a mesh it
  sends what the product sends, at most 15 scalars for each sharded leaf, and
  what the preconditioner's docstring names. Only `dense`, `kron`, blocks of
  more than four entries and `scope="global"` gather anything.

  Settings of the paper: `normalizer="first"` (and `steps="entry"` for `xmat`),
  `precond_learning_rate=0.01`, learning rate 0.01, and for delayed XOR
  `clip_norm=1.0, init_scale=1.0`, for MNIST `clip_norm=10.0`, for CIFAR
  `clip_norm=None`.

  Example:

    >>> import jax, jax.numpy as jnp, optax, gen_optax
    >>> curvature = jnp.array([1.0, 100.0])
    >>> loss = lambda w: jnp.sum(curvature * (w - 3.0) ** 2)
    >>> tx = optax.chain(
    ...   gen_optax.scale_by_psgd(gen_optax.psgd.diagonal()), optax.scale(-0.5))
    >>> @jax.jit
    ... def step(w, state):
    ...   updates, state = tx.update(
    ...     jax.grad(loss)(w), state, w, value_fn=loss)
    ...   return optax.apply_updates(w, updates), state
    >>> w = jnp.zeros(2)
    >>> state = tx.init(w)
    >>> for _ in range(60):
    ...   w, state = step(w, state)
    >>> print(f"{loss(w):.4f}")
    0.0000

  References:
    Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, 2024,
    with the corrections that the constructors name; Li, Preconditioned
    stochastic gradient descent, 2018.
  """
  if not isinstance(preconditioner, Preconditioner):
    raise ValueError(
      "preconditioner must be a structure of gen_optax.psgd, as built by "
      f"gen_optax.psgd.xmat(), got {preconditioner!r}."
    )
  whitening = pairs == "whitening"
  if momentum is None:
    momentum = _WHITENING_MOMENTUM if whitening else 0.0
  _check(precond_learning_rate, probability, momentum, init_scale, clip_norm)
  check_kind("pairs", pairs, sources.Pairs)
  check_kind("vector", vector, sources.Vector)
  keeps_momentum = not is_known(momentum) or momentum > 0
  # A schedule equals no number.
  always = is_known(probability) and probability == 1

  def init_fn(params):
    require_leaves("scale_by_psgd", params)
    dtype = trees.scalar_dtype(params)
    init_key, _ = _keys(seed)
    q = preconditioner.init(params, init_key)
    if init_scale is not None:
      q = preconditioner.rescale(q, jnp.asarray(init_scale, dtype))
    # Each leaf is an array of its own: a caller may donate the state.
    no = lambda: jnp.zeros((), bool)
    return ScaleByPsgdState(
      count=jnp.zeros((), jnp.int32),
      preconditioner=q,
      scaled=jnp.asarray(init_scale is not None),
      product=new_scale(dtype),
      momentum=mean.no_mean(widen(params), dtype) if keeps_momentum else None,
      gradient=new_scale(dtype),
      info=PsgdInfo(no(), no(), no(), jnp.zeros((), dtype)),
    )

  def update_fn(
    updates, state, params=None, *, value_fn=None, grad=None, **extra_args
  ):
    del extra_args
    if not whitening:
      require("scale_by_psgd", params=params, value_fn=value_fn)
    if pairs == "finite_difference":
      require("scale_by_psgd", grad=grad)
    key = jax.random.fold_in(_keys(seed)[1], state.count)
    coin_key, pair_key, group_key = jax.random.split(key, 3)
    due = jnp.ones((), bool)
    if not always:
      due = jax.random.uniform(coin_key) < _at(probability, state.count)

    def fit(carry):
      # The compiler moves what does not depend on a loop's carry out of the
      # loop, where it runs on every step.
      given = (params, grad, updates, pair_key, group_key, carry.scaled)
      at, gradient, direction, v_key, q_key, scaled = (
        jax.lax.optimization_barrier(given)
      )
      v = sources.draw(v_key, updates, vector)
      h = sources.product(pairs, v, value_fn, at, gradient, direction)
      carry = carry._replace(scaled=scaled)
      return fit_pair(carry, v, h, state.count, q_key)

    no = jnp.zeros((), bool)
    old = _Fit(state.preconditioner, state.scaled, state.product, no)
    fitted = run_if(due, fit, old)
    average, momentum, gradient, healthy = remember(updates, state)
    step = preconditioner.apply(fitted.preconditioner, average)
    step, norm, healthy = limit(step, healthy, state.info.norm.dtype)
    return optax.tree.cast_like(step, updates), ScaleByPsgdState(
      count=trees.increment(state.count),
      preconditioner=fitted.preconditioner,
      scaled=fitted.scaled,
      product=fitted.product,
      momentum=momentum,
      gradient=gradient,
      info=PsgdInfo(fitted.updated, due & ~fitted.updated, ~healthy, norm),
    )

  def fit_pair(carry, v, h, count, key):
    """One step of Q on the pair (v, h), if that is usable."""
    dtype = carry.product.usual.dtype
    size = trees.largest(h, dtype)
    usable, restart, product = check(carry.product, size, FAR, 1 / FAR)
    usable = usable & (size > 0)
    v, h = sources.condition(v, h, size)
    # Q is proportional to |h|^{-1/2}.
    factor = jnp.sqrt(carry.product.usual / jnp.where(size > 0, size, 1))
    if init_scale is None:
      first = usable & ~carry.scaled

      def first_scale(factor):
        # Tied to the carry, or the compiler moves it out of the loop too.
        _, *pair = jax.lax.optimization_barrier((factor, v, h))
        return sources.initial_scale(*pair)

      factor = run_if(first, first_scale, factor)
      restart = restart | first
    rate = jnp.asarray(_at(precond_learning_rate, count), dtype)
    q = carry.preconditioner
    q = run_if(usable & restart, lambda q: preconditioner.rescale(q, factor), q)
    q = run_if(usable, lambda q: preconditioner.update(q, v, h, rate, key), q)
    return _Fit(q, carry.scaled | usable, product, usable)

  def remember(updates, state):
    """The average of gradients, with this one unless it is far from usual."""
    if not keeps_momentum:
      return updates, state.momentum, state.gradient, jnp.ones((), bool)
    old, scale = state.momentum, state.gradient
    decay = jnp.asarray(momentum, scale.usual.dtype)
    size = trees.l1_norm(updates, scale.usual.dtype)
    healthy, restart, scale = check(scale, size, FAR, 1 / FAR)
    new = optax.tree.where(restart, optax.tree.zeros_like(old), old)
    new = optax.tree.where(healthy, mean.include(new, updates, decay), old)
    # One reciprocal; `mean.value` would divide every entry.
    average = trees.scale(new.sum, 1 / jnp.where(new.weight > 0, new.weight, 1))
    return average, new, scale, healthy

  def limit(step, healthy, dtype):
    """The step clipped, or zero where it is withheld."""
    norm = trees.norm(step, dtype)
    healthy = healthy & jnp.isfinite(norm)
    factor = healthy.astype(dtype)
    if clip_norm is not None:
      longest = jnp.asarray(clip_norm, dtype)
      if whitening:
        longest = longest * optax.tree.size(step) ** 0.5
      factor = factor * jnp.minimum(1.0, longest / jnp.where(norm > 0, norm, 1))
    # A step that is neither clipped nor withheld is not written again.
    step = run_if(factor != 1, lambda step: trees.scale(step, factor), step)
    return step, norm, healthy

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Fit(NamedTuple):
  """What a pair changes, as in `ScaleByPsgdState`, and whether it did."""

  preconditioner: Any
  scaled: jax.Array
  product: Scale
  updated: jax.Array


def _keys(seed):
  """The keys of the initial state and of the steps."""
  return jax.random.split(jax.random.fold_in(jax.random.PRNGKey(seed), _SALT))


def _at(rate: Rate, count):
  return rate(count) if callable(rate) else rate


def _check(precond_learning_rate, probability, momentum, init_scale, clip_norm):
  if not callable(precond_learning_rate):
    check_positive(precond_learning_rate=precond_learning_rate)
    check_in("precond_learning_rate", precond_learning_rate, 0, 1)
  if not callable(probability) and is_known(probability):
    if not 0 <= probability <= 1:
      raise ValueError(f"probability must lie in [0, 1], got {probability!r}.")
  check_in("momentum", momentum, 0, 1)
  sizes = {"init_scale": init_scale, "clip_norm": clip_norm}
  check_positive(**{k: size for k, size in sizes.items() if size is not None})
