"""`amos_router`: each part of the parameters to the optimizer that suits it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from gen_optax.amos import sources, thresholds
from gen_optax.amos.granularity import make_granularity
from gen_optax.amos.members import frozen, run_all
from gen_optax.helpers import trees
from gen_optax.helpers.checks import is_known, require_leaves
from gen_optax.helpers.lazy import run_if
from gen_optax.helpers.trees import widen
from gen_optax.oracle.closures import require
from gen_optax.oracle.drift import Drift, no_drift, observe

States = Literal["run_all", "frozen"]
QUANTILES = (0.1, 0.5, 0.9, 0.99)
# A diagonal this many times as large as the last is looked at once more.
ABSURD = 1e6

# Mixed into the seed, so that no other kind of stage draws the same numbers.
_SALT = 0xA305


class AmosInfo(NamedTuple):
  """What the router did, for logs. N optimizers, in their order.

  Attributes:
    fractions: of all parameters with each optimizer, shape (N,).
    leaf_fractions: of each leaf's parameters, shape (leaves, N), leaves as
      `jax.tree.leaves` has them. One row is one-hot where leaves are whole.
    lipschitz_quantiles: of L over the parameters, each counted with its group's
      L, at 10, 50, 90 and 99 %: shape (4,). Zero before the second Hessian.
    refreshed: whether this call was a Hessian time.
    rejected: whether it should have been one, and something was not finite, or
      the diagonal a million times as large as the last.
    skipped: whether a step was withheld, because the gradient or what an
      optimizer made of it was not finite.
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
    drift: the running average of Lipschitz parameters.
    choice: index of each group's optimizer, int8, a tree like the parameters
      with an array of groups at each leaf.
    optimizers: the states of the optimizers, in their order.
    info: diagnostics.
  """

  count: jax.Array
  pending: jax.Array
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

  On every `every`-th call, a Hessian time, it takes the curvature's diagonal h
  and averages how fast that changes:

  .. math::

    L \leftarrow \alpha L + (1 - \alpha)
      \frac{|h(\theta) - h(\theta')|}{\epsilon + \|\theta - \theta'\|}

  with theta' the point of the last Hessian time. Where L is large, curvature is
  no guide and the first optimizers get the parameters; where it is small, the
  last. They hold until the next Hessian time. At the first there is nothing to
  compare with, so that up to the second every parameter has the last optimizer,
  as with the paper's L = 0.

  The difference is taken with one batch and one set of probes at both points.
  (The paper subtracts estimates of different batches and probes, whose noise is
  part of what it averages.)

  `"newton"` asks of Newton's step on each group whether it may raise the loss
  (eq. 8): L |g| > 3 h^2. Averaged over tensors that is rarely so in small
  networks, and nothing is routed; elements are, or take a quantile. A number
  fits one network and one estimator only.

  Args:
    optimizers: two or more complete optax optimizers, as a sequence or a dict
      in order: first the one for the least stable curvature (first order), last
      the one for the most stable (second order).
    curvature: the source of h. "hutchinson": probes through `value_fn`.
      "gauss_newton_bartlett": of a mean cross-entropy, reads `logits_fn`. A
      function from `gen_optax.amos.CurvaturePoint` to a tree like its
      parameters. ("state", field): a field of the last optimizer's state, such
      as Sophia's "nu"; no products, and the difference is one of old estimates.
    samples: probes of the first two, at least 1. Their noise makes L too large
      and h^2 as well.
    granularity: what is routed together. "tensor_mean", "tensor_max": a leaf,
      with the mean or the maximum of its L. ("chunk", size): that many
      consecutive entries of a leaf (the last chunk may be shorter). "element":
      each entry. A tree of labels, a prefix of one, or a function from the
      parameters to one, as in `optax.partition`: all leaves of a label.
    threshold: "newton", or ("newton", rate) for a Newton step of that rate:
      L |g| rate^2 > 3 (2 - rate) h^2; for two optimizers. A number, or N - 1
      ascending ones: L above the highest goes to the first optimizer, up to the
      lowest to the last. ("quantile", q), or N - 1 ascending q in [0, 1]: cuts
      below which that share of the parameters lies. A function from
      `gen_optax.amos.Evidence` to a tree of indices like its `groups`.
    ema: alpha, in [0, 1).
    bias_correction: whether L is divided by the sum of the weights in it.
    every: Hessian times are the calls 0, `every`, 2 `every`, ...
    states: "run_all": every optimizer sees every gradient, and what comes out
      is selected. Nothing is saved; moments stay fresh. "frozen": each leaf is
      updated by the optimizer that owns it and by no other, whose states for
      that leaf stay as they were. For granularities that do not divide leaves,
      and optimizers that do not look across them: global clipping and whatever
      reads `value_fn` are refused.
    seed: of the probes. Give each of several routers its own, and vmapped
      replicas a traced one.
    eps: epsilon in the formula above, at least 0. The paper's; not needed,
      since a point that has not moved is no observation.

  Under `optax.inject_hyperparams` the numbers and `seed` may be injected; name
  `samples`, and a `granularity`, `curvature` or `threshold` that is a function,
  in `static_args`.

  Returns:
    A transformation from gradients to steps that are added. Its `update` takes
    `params`, `value_fn`, the loss as a function of the parameters alone, and
    with "gauss_newton_bartlett" `logits_fn`, likewise for the logits. The
    updates must be the gradient of `value_fn`. Optimizers receive every extra
    argument and `hessian_diagonal`, the last h (not with a field as curvature);
    frozen ones only their leaf's part of that and of `grad`, and `value`.

  Raises:
    ValueError: on a wrong configuration, on a leaf that is not real, and on a
      missing argument, with the line that mends the call.

  Cost: at Hessian times two curvature estimates, at the new and the old point:
  2 `samples` Hessian-vector products or gradients; none on other calls, under
  `jax.vmap` too. State: three copies of the parameters (the old point, h, L)
  and the states of all optimizers. Routing spares the arithmetic and the memory
  traffic of optimizers, if frozen, and nothing of the backward pass. On a mesh:
  what the estimates send, and sixteen scalars at most for each sharded leaf, 19
  where chunks and 22 where elements are routed. Chunks run across the axes: a
  leaf that is not sharded along its first axis alone is gathered at Hessian
  times, and its choices, int8, on every call.

  A gradient that is not finite is withheld from all optimizers. For one that is
  finite and absurd, wrap the router in `gen_optax.skip_implausible`. A diagonal
  that is not finite, or a million times as large as the last, is refused, and
  the next call looks again; where the last look was refused, size is no reason.

  The paper's settings: `gen_optax.amos.PAPER`.

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
  names, members = _members(optimizers)
  source = sources.make_source(curvature, samples)
  groups = make_granularity(granularity)
  choose = thresholds.make_threshold(threshold, len(members))
  _check(ema, bias_correction, every, states, eps)
  team = _make_team(states, members, names, groups, granularity, source)
  last = len(members) - 1

  def init_fn(params):
    require_leaves("amos_router", params)
    wide = widen(params)
    choice = jax.tree.map(
      lambda group: jnp.full_like(group, last, dtype=thresholds.CHOICE),
      groups.mean(jax.tree.map(jnp.zeros_like, wide)),
    )
    dtype = trees.scalar_dtype(params)
    none = jnp.zeros(len(QUANTILES), dtype)
    # An array for each: a donated state must not hold one twice.
    no = lambda: jnp.zeros((), bool)
    shares = _shares(wide, choice, groups, len(members), dtype)
    return AmosRouterState(
      count=jnp.zeros((), jnp.int32),
      pending=no(),
      drift=no_drift(wide, wide),
      choice=choice,
      optimizers=team.init(params),
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
    dtype = state.drift.mean.weight.dtype
    healthy = trees.is_finite(updates)
    pending = state.pending | (state.count % every == 0)

    def look(carry):
      drift, choice, info, _ = carry
      # What does not depend on a loop's carry is moved out of the loop by the
      # compiler, to run on every step.
      at, gradient, count, inner = jax.lax.optimization_barrier(
        (widen(params), widen(updates), state.count, state.optimizers[last])
      )
      key = jax.random.fold_in(jax.random.PRNGKey(seed), _SALT)
      key, rule_key = jax.random.split(jax.random.fold_in(key, count))
      if source.field is None:
        point = sources.CurvaturePoint(at, key, value_fn, logits_fn)
        before, now = sources.at_both(source, drift.params, point)
      else:
        now = sources.read_field(source.field, inner, at)
        before = drift.curvature
      new = observe(drift, at, now, before, ema, eps)
      found = new.lipschitz(bias_correction)
      sound = trees.is_finite((now, new.mean.sum))
      usual = trees.largest(drift.curvature, dtype)
      absurd = (usual > 0) & (trees.largest(now, dtype) > ABSURD * usual)
      # Where the last look was refused too, the curvature has changed indeed.
      sound &= ~absurd | state.pending
      new_choice, quantiles = _route(gradient, new, found, rule_key, count)
      shares = _shares(at, new_choice, groups, len(members), dtype)
      new_info = AmosInfo(*shares, quantiles, sound, ~sound, info.skipped)
      old_info = info._replace(rejected=jnp.ones((), bool))
      return trees.select(
        sound,
        (new, new_choice, new_info, jnp.zeros((), bool)),
        (drift, choice, old_info, jnp.ones((), bool)),
      )

    def _route(gradient, drift, found, key, count):
      by_group = groups.lipschitz(found)
      sizes = groups.sizes(found)
      seen = thresholds.Evidence(
        *(found, gradient, drift.curvature, by_group, sizes, key, count)
      )
      choice = choose(seen, groups)
      known = drift.mean.weight > 0
      choice = jax.tree.map(
        lambda c: jnp.where(known, c, jnp.full_like(c, last)), choice
      )
      return choice, thresholds.quantiles(by_group, sizes, QUANTILES)

    no = jnp.zeros((), bool)
    info = state.info._replace(refreshed=no, rejected=pending & ~healthy)
    drift, choice, info, pending = run_if(
      pending & healthy, look, (state.drift, state.choice, info, pending)
    )

    handed = dict(extra_args)
    if value_fn is not None:
      handed["value_fn"] = value_fn
    if logits_fn is not None:
      handed["logits_fn"] = logits_fn
    if source.field is None:
      handed["hessian_diagonal"] = drift.curvature
    routed, after, sound = team.update(
      updates, state.optimizers, params, choice, healthy, handed
    )
    return routed, AmosRouterState(
      count=trees.increment(state.count),
      pending=pending,
      drift=drift,
      choice=choice,
      optimizers=after,
      info=info._replace(skipped=~sound),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _shares(params, choice, groups, count, dtype):
  """Parts of all parameters, and of each leaf's, with each optimizer."""
  rows = []
  owned = jnp.zeros(count, dtype)
  leaves, treedef = jax.tree.flatten(params)
  for leaf, chosen, sizes in zip(
    leaves,
    treedef.flatten_up_to(choice),
    treedef.flatten_up_to(groups.sizes(params)),
    strict=True,
  ):
    mine = [
      jnp.sum(jnp.where(chosen == i, sizes, 0).astype(dtype))
      for i in range(count)
    ]
    rows.append(jnp.stack(mine) / max(leaf.size, 1))
    owned = owned + jnp.stack(mine)
  total = sum(leaf.size for leaf in leaves)
  table = jnp.stack(rows) if rows else jnp.zeros((0, count), dtype)
  return owned / max(total, 1), table


def _members(optimizers):
  """Names for messages, and the optimizers, all taking extra arguments."""
  if isinstance(optimizers, Mapping):
    pairs = list(optimizers.items())
  elif isinstance(optimizers, optax.GradientTransformation):
    pairs = [(0, optimizers)]
  else:
    pairs = list(enumerate(optimizers))
  good = all(isinstance(tx, optax.GradientTransformation) for _, tx in pairs)
  most = thresholds.MOST_OPTIMIZERS
  if not good or not 2 <= len(pairs) <= most:
    raise ValueError(
      f"optimizers must be 2 to {most} optax optimizers, as a sequence or a "
      f"dict in order, got {optimizers!r}."
    )
  names = [f"optimizers[{name!r}]" for name, _ in pairs]
  return names, [optax.with_extra_args_support(tx) for _, tx in pairs]


def _make_team(states, members, names, groups, granularity, source):
  if states == "run_all":
    return run_all(members, groups)
  if not groups.whole_leaves:
    raise ValueError(
      'states="frozen" gives whole leaves to an optimizer; granularity='
      f'{granularity!r} divides them. Use states="run_all".'
    )
  if source.field is not None:
    raise ValueError(
      'states="frozen" leaves the state of an optimizer that does not own a '
      f"leaf: its {source.field!r} is no curvature then. Use "
      'states="run_all" or another curvature.'
    )
  return frozen(members, names)


def _check(ema, bias_correction, every, states, eps):
  if is_known(ema) and not 0 <= ema < 1:
    raise ValueError(f"ema must lie in [0, 1), got {ema!r}.")
  if not isinstance(bias_correction, bool):
    raise ValueError(
      f"bias_correction must be True or False, got {bias_correction!r}."
    )
  if is_known(every) and (every != int(every) or every < 1):
    raise ValueError(f"every must be an integer, at least 1, got {every!r}.")
  if states not in get_args(States):
    raise ValueError(
      f"states must be one of {get_args(States)}, got {states!r}."
    )
  if is_known(eps) and not 0 <= eps < float("inf"):
    raise ValueError(f"eps must be at least 0 and finite, got {eps!r}.")
