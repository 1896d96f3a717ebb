"""`scale_by_elmo`: the minmax step as an optax stage."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from gen_optax.elmo import step, trials
from gen_optax.elmo.local import find_local, with_optimizer, with_rest
from gen_optax.elmo.oracles import Lipschitz, is_constant, make_oracle
from gen_optax.elmo.spectrum import (
  DENSE_LIMIT,
  Spectrum,
  dense_spectrum,
  extreme_spectrum,
  no_spectrum,
)
from gen_optax.guards import undo
from gen_optax.guards.scale import Scale, new_scale
from gen_optax.helpers import trees
from gen_optax.helpers.checks import is_known, require_leaves, take_optimizer
from gen_optax.helpers.lazy import run_if
from gen_optax.helpers.trees import widen
from gen_optax.oracle import line
from gen_optax.oracle.closures import require, require_scalar
from gen_optax.oracle.lanczos import basis_sizes

SaddleSign = Literal["probe", "positive", "zero"]


class ElmoInfo(NamedTuple):
  """What the last step did, for logs.

  Attributes:
    eigenvalues: those that the step used, shape (k,), in the order of
      `Spectrum`; 0 where a pair has not converged.
    lipschitz: the Lipschitz parameters of the last trial without sigma.
    accepted: whether a step was taken, other than back.
    ratio: actual over predicted decrease of the last trial, 1 where both drown
      in rounding; 0 without the safeguard.
    rejections: trials that failed in this update.
    reverted: whether the loss had risen so far that the last step was undone.
    evaluations: of the loss in this update, the oracle's included, derivatives
      not.
  """

  eigenvalues: jax.Array
  lipschitz: jax.Array
  accepted: jax.Array
  ratio: jax.Array
  rejections: jax.Array
  reverted: jax.Array
  evaluations: jax.Array


class ScaleByElmoState(NamedTuple):
  """State of `scale_by_elmo`.

  Attributes:
    count: number of calls, int32.
    sigma: what is added to every Lipschitz parameter.
    length: running scale of the length of the steps.
    last: a `undo.Last`; None without the safeguard.
    spectrum: the eigenpairs. In the dense form with `every=1` its vectors are
      None.
    known: whether there are eigenpairs.
    lipschitz: what the oracle said at them.
    oracle: the oracle's state.
    complement: the state of the optimizer of the rest.
    info: diagnostics.
  """

  count: jax.Array
  sigma: jax.Array
  length: Scale
  last: Any
  spectrum: Spectrum
  known: jax.Array
  lipschitz: jax.Array
  oracle: Any
  complement: Any
  info: ElmoInfo


def scale_by_elmo(
  lipschitz: Lipschitz = "adaptive",
  *,
  subspace: tuple[int, int] | None = None,
  order: int | None = None,
  complement: optax.GradientTransformation | None = None,
  safeguarded: bool = True,
  initial_sigma: float = 1.0,
  max_rejections: int = 11,
  saddle_sign: SaddleSign = "probe",
  max_step: float | None = None,
  every: int = 1,
) -> optax.GradientTransformationExtraArgs:
  r"""Preconditions by the minmax step in each eigenspace of the Hessian (ELMO).

  Along an eigenvector with slope c, eigenvalue and Lipschitz parameter L the
  loss lies below a cubic, and the step goes to its minimum:

  .. math::

    |x| = \frac{\sqrt{\lambda^2 + 2 L |c|} - \lambda}{L}, \quad
    \Phi g = - \sum_i x_i v_i

  Newton's step where L is small, 2 |eigenvalue| / L and more where the
  curvature is negative. A repeated eigenvalue is one eigenspace, so that the
  step does not depend on its basis. The result is a preconditioned gradient,
  not negated; a rate of 1 fits it, and is what is tried out.

  No oracle knows L over a whole step. So L = oracle + sigma, and each update
  tries its step. Where the loss falls by less than a tenth of what the model
  promises, or the step is five times as long as those before it, sigma is
  raised, two- to eightfold, and the step is tried anew. Above nine tenths sigma
  is halved. After a step is shortened for its length, the next one is not
  limited, because two long ones in a row are believed. If the loss has risen by
  ten times what it usually changes, the update undoes the step that led there,
  once and without a trial. With the default oracle sigma is all there is: an
  adaptive cubic regularisation that treats eigenspaces apart.

  On a ridge or a saddle, where negative curvature has no slope, the step has a
  length and no side: see `saddle_sign`.

  Stands first in a chain: the incoming updates have to be the gradient of
  `value_fn`. Meant for full batches, or large ones: trials fit the batch that
  they see.

  Args:
    lipschitz: "adaptive" (nothing but sigma); a positive number or array of
      shape (k,); a function from `gen_optax.elmo.Eigenspaces` to one; "drift",
      "third", "gradient" or "eigen_arc"; or a `LipschitzOracle` of
      `gen_optax.elmo`, which has their options.
    subspace: None: the exact dense form, for at most 2000 parameters. (top,
      bottom): that many of the largest and smallest eigenvalues, by Lanczos.
    order: products for each Lanczos run, see `extreme_eigenpairs`; a pair whose
      residual exceeds a tenth of its eigenvalue is not used.
    complement: an optimizer for the gradient outside the subspace, for example
      `optax.sgd(0.1)`; its step is projected out of the subspace and shortened
      when trials fail. None: the rest is one more eigenspace, with the largest
      |Ritz value| outside the pairs for its eigenvalue: a step of 1 / that at
      most.
    safeguarded: False takes the first step without a look at the loss. With a
      constant `lipschitz` that is Algorithm 1 to the letter; other oracles then
      have sigma stay as it starts, and still diverge.
    initial_sigma: where sigma starts, positive.
    max_rejections: trials after the first, at least 0. Where all fail the
      update is zero, and sigma has been doubled for each.
    saddle_sign: "probe" tries one side and, where that fails, the other in the
      next trial; without safeguard it evaluates both and takes the lower.
      "positive" takes the side of a fixed noise vector; "zero" stays.
    max_step: the largest norm of a step, positive. None: no limit.
    every: the eigenpairs, and what the oracle says, are computed on every
      `every`-th step.

  Under `optax.inject_hyperparams` name `order` in `static_args`, and a callable
  `lipschitz`; the numbers may be injected.

  Returns:
    A transformation whose `update` takes `value_fn`, the loss as a function of
    the parameters alone, and optionally `value`, which saves one evaluation.

  Raises:
    ValueError: on a wrong configuration, on too many parameters for the dense
      form, on a leaf that is not real, and on a missing argument, with the line
      that mends the call.

  Cost: on every `every`-th step, dense: n Hessian-vector products, one
  eigendecomposition, n^2 numbers; in a subspace `order` products, one after the
  other, and `order` copies of the parameters while they run, of which top +
  bottom are kept; and a copy of where the last step started. On every step one
  evaluation of the loss for each trial.

  On a mesh, in a subspace: what the products and trials send, and nothing else
  where parameters are replicated; where they are sharded, besides, about
  2 `order`^2 numbers for each leaf. The dense form gathers the parameters on
  every device, and the compiler may distribute the n^2 numbers and gather them.

  Example:

    >>> import jax, jax.numpy as jnp, optax, gen_optax
    >>> loss = lambda w: w[0] ** 2 - w[1] ** 2 + w[1] ** 4
    >>> tx = optax.chain(gen_optax.scale_by_elmo(), optax.scale(-1.0))
    >>> @jax.jit
    ... def step(w, state):
    ...   updates, state = tx.update(
    ...     jax.grad(loss)(w), state, w, value_fn=loss)
    ...   return optax.apply_updates(w, updates), state
    >>> w = jnp.array([1.0, 0.0])  # gradient descent stays on the ridge y = 0
    >>> state = tx.init(w)
    >>> for _ in range(8):
    ...   w, state = step(w, state)
    >>> print(f"{loss(w):.4f}")
    -0.2500

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Algorithm 1, eq. 7; the safeguard is that of adaptive cubic regularisation
    (Cartis, Gould and Toint, 2011) with the caps of appendix J.
  """
  oracle = make_oracle(lipschitz)
  fixed = is_constant(lipschitz)
  _check(subspace, order, complement, safeguarded, saddle_sign)
  _check_numbers(initial_sigma, max_rejections, max_step, every)
  dense = subspace is None
  lazy = not is_known(every) or every > 1
  if complement is not None:
    complement = take_optimizer("complement", complement)

  def init_fn(params):
    require_leaves("scale_by_elmo", params)
    if dense:
      params = _one_vector(params)[0]
    params = widen(params)
    k = _pairs(params)
    dtype = trees.scalar_dtype(params)
    spectrum = no_spectrum(params, k)
    if dense and not lazy:
      spectrum = spectrum._replace(vectors=None)
    # Each leaf is an array of its own: a caller may donate the state.
    column, number = lambda: jnp.zeros(k, dtype), lambda: jnp.zeros((), dtype)
    no, zero = lambda: jnp.zeros((), bool), lambda: jnp.zeros((), jnp.int32)
    sigma = 0.0 if fixed and not safeguarded else initial_sigma
    return ScaleByElmoState(
      count=zero(),
      sigma=jnp.array(sigma, dtype),
      length=new_scale(dtype),
      last=undo.no_step(params, dtype) if safeguarded else None,
      spectrum=spectrum,
      known=no(),
      lipschitz=column(),
      oracle=oracle.init(params, k),
      complement=None if complement is None else complement.init(params),
      info=ElmoInfo(
        *(column(), column(), no(), number(), zero(), no(), zero())
      ),
    )

  def _pairs(params) -> int:
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if dense:
      return size
    top, bottom, _ = basis_sizes(*subspace, order, size)
    return top + bottom

  def update_fn(
    updates,
    state,
    params=None,
    *,
    value_fn: Any = None,
    value: Any = None,
    **extra_args,
  ):
    require("scale_by_elmo", params=params, value_fn=value_fn)
    require_scalar("scale_by_elmo", value)
    if not sum(leaf.size for leaf in jax.tree.leaves(updates)):
      return updates, state
    # A loss of narrow parameters is evaluated on another forward path.
    if not trees.is_wide(params):
      value = None
    params, gradient, back = widen(params), widen(updates), lambda tree: tree
    if dense:
      (params, back), (gradient, _) = _one_vector(params), _one_vector(gradient)
      on_tree, value_fn = value_fn, lambda p: on_tree(back(p))
    move, state = _update(gradient, state, params, value_fn, value, extra_args)
    # A preconditioned gradient: the move, negated.
    direction = trees.scale(back(move), -jnp.ones((), state.sigma.dtype))
    return optax.tree.cast_like(direction, updates), state

  def _update(gradient, state, params, value_fn, value, extra_args):
    dtype = state.sigma.dtype
    evaluations = jnp.zeros((), jnp.int32)
    if value is not None:
      value = jnp.asarray(value).astype(dtype)
    elif safeguarded:
      value = line.scalar_loss(value_fn, params).astype(dtype)
      evaluations = evaluations + 1
    healthy = jnp.isfinite(trees.largest(gradient, dtype))
    if safeguarded and value is not None:
      healthy = healthy & jnp.isfinite(value)

    # The eigenpairs, and what the oracle says of them.
    known = (state.spectrum, state.known, state.lipschitz, state.oracle)
    refresh = lambda carry: _refresh(carry, gradient, params, value_fn, value)
    if lazy:
      due = (state.count % every == 0) | ~state.known
      known, spent = run_if(
        due & healthy,
        lambda carry: refresh(carry[0]),
        (known, evaluations * 0),
      )
    else:
      known, spent = refresh(known)
    spectrum, is_complete, lip, oracle_state = known
    healthy = healthy & is_complete
    evaluations = evaluations + spent

    local = find_local(
      step.find_spaces(
        *(value_fn, params, value, gradient),
        *(spectrum.values, spectrum.vectors, spectrum.used),
      ),
      lip,
    )
    after_complement = None
    if complement is not None:
      local, after_complement = with_optimizer(
        local, spectrum.rest, complement, state.complement, extra_args
      )
    elif not dense:
      own = jnp.max(jnp.asarray(lipschitz, dtype)) if fixed else 0
      local = with_rest(local, spectrum.rest, own)
    trial = trials.no_trial(local, state.sigma, evaluations)
    reverted = jnp.zeros((), bool)
    if safeguarded:
      reverted = healthy & undo.is_reverted(state.last, value)
      trial = trials.run(
        *(local, value, trial, healthy & ~reverted, state.length),
        *(saddle_sign, max_step, max_rejections),
      )
    else:
      trial = trials.only(local, trial, healthy, saddle_sign, max_step)
    factor = trial.accepted.astype(dtype)
    move = trees.scale(local.move(trial.moves, trial.scale), factor)
    last = None
    if safeguarded:
      back = jax.tree.map(jnp.subtract, state.last.params, params)
      move = trees.select(reverted, back, move)
      last = undo.remember(state.last, params, value, trial.accepted)
    kept = None
    if complement is not None:
      kept = trees.select(trial.accepted, after_complement, state.complement)
    if dense and not lazy:
      spectrum = spectrum._replace(vectors=None)
    return move, ScaleByElmoState(
      count=trees.increment(state.count),
      sigma=trial.sigma,
      length=trials.learn_length(state.length, local, trial),
      last=last,
      spectrum=spectrum,
      known=is_complete,
      lipschitz=lip,
      oracle=oracle_state,
      complement=kept,
      info=ElmoInfo(
        eigenvalues=jnp.where(spectrum.used, spectrum.values, 0),
        lipschitz=lip,
        accepted=trial.accepted,
        ratio=trial.ratio,
        rejections=trial.rejections,
        reverted=reverted,
        evaluations=trial.evaluations,
      ),
    )

  def _refresh(known, gradient, params, value_fn, value):
    spectrum, _, lip, oracle_state = known
    if lazy:
      # What does not depend on a loop's carry is moved out of the loop by the
      # compiler, to run on every step.
      gradient, params, value, lip = jax.lax.optimization_barrier(
        (gradient, params, value, lip)
      )
    if dense:
      new = dense_spectrum(value_fn, params)
    else:
      new = extreme_spectrum(
        value_fn, params, gradient, *subspace, order, spectrum
      )
    spaces = step.find_spaces(
      value_fn, params, value, gradient, new.values, new.vectors, new.used
    )
    found, new_oracle_state, spent = oracle.estimate(spaces, oracle_state)
    found = jnp.where(jnp.isfinite(found), jnp.maximum(found, 0), 0)
    found = step.mean_in_space(step.same_space(new.values, new.used), found)
    sound = jnp.isfinite(new.values).all() & jnp.isfinite(new.rest)
    if dense and not lazy:
      spectrum = spectrum._replace(vectors=jnp.zeros_like(new.vectors))
    kept = trees.select(
      sound,
      (new, found.astype(lip.dtype), new_oracle_state),
      (spectrum, lip, oracle_state),
    )
    return (kept[0], sound, kept[1], kept[2]), spent

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _one_vector(tree):
  """`trees.one_vector`, for a tree that is small enough."""
  size = sum(leaf.size for leaf in jax.tree.leaves(tree))
  if size > DENSE_LIMIT:
    raise ValueError(
      f"The dense form takes at most {DENSE_LIMIT} parameters, and there are "
      f"{size}: its Hessian would have {size**2:.1e} entries. Give "
      "subspace=(top, bottom), as in elmo_lanczos(top=10, bottom=5)."
    )
  return trees.one_vector(widen(tree))


def _check(subspace, order, complement, safeguarded, saddle_sign):
  if subspace is not None:
    if not isinstance(subspace, tuple) or len(subspace) != 2:
      raise ValueError(
        "subspace must be None or a tuple (top, bottom) of numbers of "
        f"eigenvalues, got {subspace!r}."
      )
    basis_sizes(*subspace, order, 0)
  for name, option in (("order", order), ("complement", complement)):
    if subspace is None and option is not None:
      raise ValueError(f"{name} needs subspace=(top, bottom).")
  if not isinstance(safeguarded, bool):
    raise ValueError(f"safeguarded must be True or False, got {safeguarded!r}.")
  if saddle_sign not in get_args(SaddleSign):
    raise ValueError(
      f"saddle_sign must be one of {get_args(SaddleSign)}, got {saddle_sign!r}."
    )


def _check_numbers(initial_sigma, max_rejections, max_step, every):
  for name, size in (("initial_sigma", initial_sigma), ("max_step", max_step)):
    if size is not None and is_known(size) and not 0 < size < float("inf"):
      raise ValueError(f"{name} must be positive and finite, got {size!r}.")
  for name, count, least in (
    ("max_rejections", max_rejections, 0),
    ("every", every, 1),
  ):
    if is_known(count) and (count != int(count) or count < least):
      raise ValueError(
        f"{name} must be an integer, at least {least}, got {count!r}."
      )
