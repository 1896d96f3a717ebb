"""`amos_router`: each part of the parameters to the optimizer that suits it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from gen_optax.amos import sources, thresholds
from gen_optax.amos.granularity import make_granularity
from gen_optax.amos.members import States, make_members, named
from gen_optax.guards.scale import FAR, Scale, check, new_scale
from gen_optax.helpers import trees
from gen_optax.helpers.checks import check_in, check_integers, require_leaves
from gen_optax.helpers.lazy import run_if
from gen_optax.helpers.trees import widen
from gen_optax.oracle.closures import require
from gen_optax.oracle.drift import Drift, no_drift, observe

QUANTILES = (0.1, 0.5, 0.9, 0.99)

# Mixed into the seed, so that no other kind of stage draws the same numbers.
_SALT = 0xA305


class AmosInfo(NamedTuple):
  """What the router did, for logs. N optimizers, in their order.

  Attributes:
    fractions: of all parameters with each optimizer, shape (N,).
    leaf_fractions: of each leaf's parameters, shape (leaves, N), in the order
      of `jax.tree.leaves`; one-hot rows where leaves are whole.
    lipschitz_quantiles: of L over the parameters, each counted with its group's
      L, at 10, 50, 90 and 99 %: shape (4,). Zero before the second Hessian.
    refreshed: whether this call was a Hessian time.
    rejected: whether a Hessian time failed, since something was not finite or
      the diagonal was far from its usual size.
    skipped: whether a step was withheld, since the gradient or an optimizer's
      step was not finite.
  """

  fractions: jax.Array
  leaf_fractions: jax.Array
  lipschitz_quantiles: jax.Array
  refreshed: jax.Array
  rejected: jax.Array
  skipped: jax.Array


class AmosRouterState(NamedTuple):
  """State of `amos_router`.

  Attributes:
    count: number of calls, int32.
    pending: whether a Hessian time failed and waits for the next call.
    size: the running scale of the diagonal's largest entry.
    drift: the running average of Lipschitz parameters.
    choice: index of each group's optimizer, int8, a tree like the parameters
      with an array of groups at each leaf.
    optimizers: the states of the optimizers, in their order.
    info: diagnostics.
  """

  count: jax.Array
  pending: jax.Array
  size: Scale
  drift: Drift
  choice: Any
  optimizers: tuple
  info: AmosInfo


def amos_router(
  optimizers: Sequence[optax.GradientTransformation]
  | Mapping[str, optax.GradientTransformation],
  *,
  curvature: str
  | tuple[str, str]
  | Callable[[sources.CurvaturePoint], Any] = "hutchinson",
  samples: int = 1,
  granularity: Any = "tensor_mean",
  threshold: Any = "newton",
  ema: float = 0.9,
  bias_correction: bool = True,
  every: int = 10,
  states: States = "run_all",
  seed: int | jax.Array = 0,
  eps: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  r"""Gives each part of the parameters to the optimizer that suits it (AMOS).

  Every `every`-th call is a Hessian time: the router takes the curvature's
  diagonal h and averages how fast it changes,

  .. math::

    L \leftarrow \alpha L + (1 - \alpha)
      \frac{|h(\theta) - h(\theta')|}{\epsilon + \|\theta - \theta'\|}

  with theta' the point of the last Hessian time, on one batch and with one set
  of probes. (The paper subtracts estimates of different batches and probes, and
  so averages their noise too.) Until the next Hessian time parameters with a
  large L, where curvature is no guide, go to the first optimizers and those
  with a small L to the last. Until the second Hessian time all go to the last,
  as with the paper's L = 0, since there is nothing to compare with.

  `"newton"` gives a group to the first optimizer where Newton's step on it may
  raise the loss (eq. 8): L |g| > 3 h^2. In small networks that rarely holds for
  averages over tensors, and nothing is routed: route elements, or take a
  quantile. A number fits one network and one estimator only.

  Args:
    optimizers: 2 to 127 complete optax optimizers, as a sequence or an ordered
      dict, from the one for the least stable curvature (first order) to the one
      for the most stable (second order).
    curvature: the source of h. "hutchinson": probes through `value_fn`.
      "gauss_newton_bartlett": of a mean cross-entropy, reads `logits_fn`. A
      function from `gen_optax.amos.CurvaturePoint` to a tree like its
      parameters. ("state", field): a field of the last optimizer's state, such
      as Sophia's "nu"; it costs no products, but subtracts old estimates.
    samples: probes of the first two, at least 1. Noise makes both L and h^2 too
      large.
    granularity: what is routed together. "tensor_mean", "tensor_max": a leaf,
      with the mean or the maximum of its L. ("chunk", size): that many
      consecutive entries of a leaf (the last chunk may be shorter). "element":
      each entry. A tree of labels, a prefix of one, or a function from the
      parameters to one, as in `optax.partition`: all leaves of a label.
    threshold: "newton", or ("newton", rate) for a Newton step of that rate:
      L |g| rate^2 > 3 (2 - rate) h^2; for two optimizers. A number, or N - 1
      ascending ones: L above the highest goes to the first optimizer, L up to
      the lowest to the last. ("quantile", q), or N - 1 ascending q in [0, 1]:
      cuts below which that share of the parameters lies. A function from
      `gen_optax.amos.Evidence` to a tree of indices like its `groups`.
    ema: alpha, in [0, 1).
    bias_correction: whether L is divided by the sum of the weights in it.
    every: Hessian times are the calls 0, `every`, 2 `every`, ...
    states: "run_all": every optimizer sees every gradient and the router picks
      from their results, which saves no work and keeps all moments fresh.
      "frozen": only the optimizer that owns a leaf updates it; the others keep
      their states for it. It needs a granularity that does not divide leaves
      and optimizers that treat leaves apart: it refuses global clipping and
      optimizers that read `value_fn`.
    seed: of the probes. Give each of several routers its own, and vmapped
      replicas a traced one.
    eps: the paper's epsilon, at least 0. It is not needed, since a point that
      has not moved is no observation.

  Under `optax.inject_hyperparams` the numbers and `seed` may be injected; name
  `samples`, and a `granularity`, `curvature` or `threshold` that is a function,
  in `static_args`.

  Returns:
    A transformation from gradients to steps that are added. Its `update` takes
    `params`, `value_fn`, the loss as a function of the parameters alone, and
    with "gauss_newton_bartlett" `logits_fn`, the logits as a function of the
    parameters alone. The updates must be the gradient of `value_fn`. Optimizers
    receive every extra argument and, unless the curvature is a field,
    `hessian_diagonal`, the last h. Frozen ones receive `value` and their leaf's
    part of `hessian_diagonal` and `grad`.

  Raises:
    ValueError: on a wrong configuration, on a leaf that is not real, and on a
      missing argument, with the line that fixes the call.

  Cost: two curvature estimates at Hessian times, at the new and the old point:
  2 `samples` Hessian-vector products or gradients; none on other calls, under
  `jax.vmap` too. State: three copies of the parameters (the old point, h, L)
  and the states of all optimizers. Frozen optimizers spare arithmetic and
  memory traffic; the backward pass costs the same. On a mesh it sends what the
  estimates send, and at most 16 scalars for each sharded leaf, 19 with chunks
  and 22 with elements. A leaf that is routed by chunks and sharded other than
  along its first axis alone is gathered at Hessian times, and its choices,
  int8, on every call.

  A gradient that is not finite is withheld from all optimizers; against one
  that is finite and absurd, wrap the router in `gen_optax.skip_implausible`. A
  diagonal that is not finite, or whose largest entry is 1e8 times larger or
  smaller than usual, is refused, and the next call takes another. If that is
  far from usual too, it is used, and L starts anew. The paper's settings are
  `gen_optax.amos.PAPER`.

  Example:

    >>> import jax, jax.numpy as jnp, optax, gen_optax
    >>> loss = lambda w: jnp.sum(w["even"] ** 2) + jnp.sum(w["odd"] ** 4)
    >>> tx = gen_optax.amos_router(
    ...   [optax.sgd(0.01), gen_optax.amos.sophia(0.1)],
    ...   threshold=1.0, every=1)
    >>> @jax.jit
    ... def step(w, state):
    ...   updates, state = tx.update(
    ...     jax.grad(loss)(w), state, w, value_fn=loss)
    ...   return optax.apply_updates(w, updates), state
    >>> w = {"even": jnp.ones(3), "odd": jnp.ones(1)}
    >>> state = tx.init(w)
    >>> for _ in range(2):
    ...   w, state = step(w, state)
    >>> print(state.info.leaf_fractions)  # the third derivative of w^2 is 0
    [[0. 1.]
     [1. 0.]]

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Algorithm 2, eq. 8, appendices K and N.
  """
  names, given = named(optimizers)
  last = len(given) - 1
  source = sources.make_source(curvature, samples)
  groups = make_granularity(granularity)
  choose = thresholds.make_threshold(threshold, len(given))
  _check(ema, bias_correction, every, states, eps)
  members = make_members(
    states, given, names, groups, label=granularity, field=source.field
  )

  def init_fn(params):
    require_leaves("amos_router", params)
    wide = widen(params)
    to_last = lambda group: jnp.full_like(group, last, thresholds.CHOICE)
    choice = jax.tree.map(to_last, groups.mean(optax.tree.zeros_like(wide)))
    dtype = trees.scalar_dtype(params)
    none = jnp.zeros(len(QUANTILES), dtype)
    # An array for each: a donated state must not hold one twice.
    no = lambda: jnp.zeros((), bool)
    shares = groups.shares(wide, choice, len(given), dtype)
    return AmosRouterState(
      count=jnp.zeros((), jnp.int32),
      pending=no(),
      size=new_scale(dtype),
      drift=no_drift(wide, wide),
      choice=choice,
      optimizers=members.init(params),
      info=AmosInfo(*shares, none, no(), no(), no()),
    )

  def update_fn(
    updates,
    state,
    params=None,
    *,
    value_fn: Any = None,
    logits_fn=None,
    **extra_args,
  ):
    require("amos_router", params=params)
    sources.require_arguments(
      source, params=params, value_fn=value_fn, logits_fn=logits_fn
    )
    healthy = trees.is_finite(updates)
    due = state.pending | (state.count % every == 0)
    no = jnp.zeros((), bool)
    info = state.info._replace(refreshed=no, rejected=due & ~healthy)

    def refresh(carry):
      # The compiler moves what does not depend on a loop's carry out of the
      # loop, where it runs on every step.
      at, gradient, count, inner = jax.lax.optimization_barrier(
        (widen(params), widen(updates), state.count, state.optimizers[last])
      )
      key = jax.random.fold_in(jax.random.PRNGKey(seed), _SALT)
      key, rule_key = jax.random.split(jax.random.fold_in(key, count))
      point = sources.CurvaturePoint(at, key, value_fn, logits_fn)
      usable, size, drift = measure(carry.size, carry.drift, point, inner)
      routed = route(carry.info, gradient, drift, rule_key, count)
      kept = (carry.drift, carry.choice, carry.info)
      drift, choice, info = optax.tree.where(usable, (drift, *routed), kept)
      info = info._replace(refreshed=usable, rejected=~usable)
      return _Routing(~usable, size, drift, choice, info)

    routing = _Routing(due, state.size, state.drift, state.choice, info)
    routing = run_if(due & healthy, refresh, routing)
    choice = routing.choice
    handed = {"value_fn": value_fn, "logits_fn": logits_fn}
    extra_args |= {name: fn for name, fn in handed.items() if fn is not None}
    if source.field is None:
      extra_args["hessian_diagonal"] = routing.drift.curvature
    routed, optimizers, finite = members.update(
      updates, state.optimizers, params, choice, healthy, extra_args
    )
    return routed, AmosRouterState(
      count=trees.increment(state.count),
      pending=routing.pending,
      size=routing.size,
      drift=routing.drift,
      choice=choice,
      optimizers=optimizers,
      info=routing.info._replace(skipped=~finite),
    )

  def measure(size, drift, point, inner):
    """Whether the diagonal is usable, its scale, and the drift with it."""
    if source.field is None:
      before, now = sources.at_both(source, drift.params, point)
    else:
      now = sources.read_field(source.field, inner, point.params)
      before = drift.curvature
    new = observe(drift, point.params, now, before, ema, eps)
    dtype = drift.mean.weight.dtype
    finite = trees.is_finite((now, new.mean.sum))
    largest = jnp.where(finite, trees.largest(now, dtype), jnp.inf)
    usable, restart, size = check(size, largest, above=FAR, below=1 / FAR)
    mean = optax.tree.where(restart, optax.tree.zeros_like(new.mean), new.mean)
    return usable, size, new._replace(mean=mean)

  def route(info, gradient, drift, key, count):
    """The choice that the drift asks for, and what to log of it."""
    found = drift.lipschitz(bias_correction)
    evidence = thresholds.Evidence(
      lipschitz=found,
      gradient=gradient,
      diagonal=drift.curvature,
      groups=groups.lipschitz(found),
      sizes=groups.sizes(found),
      key=key,
      count=count,
    )
    weight = drift.mean.weight
    observed = lambda c: jnp.where(weight > 0, c, jnp.full_like(c, last))
    choice = jax.tree.map(observed, choose(evidence, groups))
    shares, by_leaf = groups.shares(found, choice, len(given), weight.dtype)
    cuts = thresholds.quantiles(evidence.groups, evidence.sizes, QUANTILES)
    return choice, info._replace(
      fractions=shares, leaf_fractions=by_leaf, lipschitz_quantiles=cuts
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Routing(NamedTuple):
  """What a Hessian time renews, as in `AmosRouterState`."""

  pending: jax.Array
  size: Scale
  drift: Drift
  choice: Any
  info: AmosInfo


def _check(ema, bias_correction, every, states, eps):
  check_in("ema", ema, 0, 1)
  check_integers(1, every=every)
  check_in("eps", eps, 0, float("inf"))
  if not isinstance(bias_correction, bool):
    raise ValueError(
      f"bias_correction must be True or False, got {bias_correction!r}."
    )
  if states not in get_args(States):
    raise ValueError(
      f"states must be one of {get_args(States)}, got {states!r}."
    )
