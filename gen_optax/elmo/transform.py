"""`scale_by_elmo`: the minmax step as an optax stage."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from gen_optax.elmo import trials
from gen_optax.elmo.curvature import remembered
from gen_optax.elmo.estimators import Lipschitz, is_constant, make_estimator
from gen_optax.elmo.model import make_model, with_complement, with_optimizer
from gen_optax.elmo.spectrum import (
  DENSE_LIMIT,
  Point,
  Spectrum,
  check_subspace,
  find_spaces,
)
from gen_optax.guards import undo
from gen_optax.helpers import trees
from gen_optax.helpers.checks import (
  check_integers,
  check_positive,
  require_leaves,
  take_optimizer,
)
from gen_optax.helpers.trees import widen
from gen_optax.oracle import line
from gen_optax.oracle.closures import require, require_scalar

SaddleSign = Literal["probe", "positive", "zero"]


class ElmoInfo(NamedTuple):
  """What the last step did, for logs.

  Attributes:
    eigenvalues: those that the step used, shape (k,), in the order of
      `Spectrum`; 0 where a pair has not converged.
    lipschitz: the Lipschitz parameters without sigma.
    accepted: whether a step was taken, other than a step back.
    ratio: actual over predicted decrease of the last trial, 1 where both are
      below rounding; 0 without the safeguard.
    rejections: trials that failed in this update.
    reverted: whether the loss had risen so far that the last step was undone.
    evaluations: of the loss in this update, with the estimator's, without
      derivatives.
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
    length: the usual length of a step; zero where that is not known.
    last: an `undo.Last`; None without the safeguard.
    spectrum: the eigenpairs. The dense form with `every=1` keeps no vectors.
    known: whether there are eigenpairs.
    lipschitz: what the estimator said at them.
    estimator: the estimator's state.
    complement: the state of the complement's optimizer.
    info: diagnostics.
  """

  count: jax.Array
  sigma: jax.Array
  length: jax.Array
  last: Any
  spectrum: Spectrum
  known: jax.Array
  lipschitz: jax.Array
  estimator: Any
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

  That is Newton's step where L is small, and at least 2 |eigenvalue| / L where
  the curvature is negative. A repeated eigenvalue is one eigenspace, so that
  the step does not depend on its basis. The result is a preconditioned
  gradient, not negated, for a rate of 1, which the trials test.

  No estimate of L holds over a whole step. So L is the estimate + sigma, and
  each update tries its step. If the loss falls by less than a tenth of what the
  model promises, or the step is five times as long as those before it, sigma is
  raised two- to eightfold and the step tried anew. Above nine tenths sigma is
  halved. After a step that was shortened for its length the next one is not
  limited: two long ones in a row are believed. If the loss has risen by ten
  times its usual change, the update undoes the step that led there, once and
  without a trial. By default the estimate is 0, which makes this an adaptive
  cubic regularisation that treats eigenspaces apart.

  It goes first in a chain, because the updates must be the gradient of
  `value_fn`, and suits full or large batches, because trials fit the batch that
  they see.

  Args:
    lipschitz: "adaptive" (only sigma), "drift", "third", "gradient" or
      "eigen_arc"; a `LipschitzEstimator` of `gen_optax.elmo`, which has their
      options; a positive number or array of shape (k,); or a function from
      `gen_optax.elmo.Eigenspaces` to one.
    subspace: None: the exact dense form, for at most 2000 parameters. (top,
      bottom): that many of the largest and smallest eigenvalues, by Lanczos.
    order: products for each Lanczos run, see `extreme_eigenpairs`; a pair whose
      residual exceeds a tenth of its eigenvalue is not used.
    complement: an optimizer for the gradient outside the subspace, for example
      `optax.sgd(0.1)`; its step is projected out of the subspace and shortened
      when trials fail. None: one more eigenspace, with the largest |Ritz value|
      outside the pairs as eigenvalue: a step of at most 1 / that.
    safeguarded: False takes the first step without a trial. With a constant
      `lipschitz` that is Algorithm 1 to the letter; with other estimators sigma
      stays as it starts, and they still diverge.
    initial_sigma: where sigma starts, positive.
    max_rejections: trials after the first, at least 0. If all fail, the update
      is zero, and sigma doubles for each.
    saddle_sign: the side of the step on a ridge or a saddle, where negative
      curvature has no slope. "probe" tries one side and, if that fails, the
      other in the next trial; without safeguard it evaluates both and takes the
      lower. "positive" takes the side of a fixed noise vector; "zero" makes no
      such move.
    max_step: the largest norm of a step, positive. None: no limit.
    every: steps from one computation of eigenpairs and estimates to the next.

  Under `optax.inject_hyperparams` name `order` in `static_args`, and a callable
  `lipschitz`; the numbers may be injected.

  Returns:
    A transformation whose `update` takes `value_fn`, the loss as a function of
    the parameters alone, and optionally `value`, which saves one evaluation.

  Raises:
    ValueError: on a wrong configuration, on too many parameters for the dense
      form, on a leaf that is not real, and on a missing argument, with the line
      that fixes the call.

  Cost: one evaluation of the loss for each trial, and a copy of where the last
  step started. On every `every`-th step also, in the dense form, n
  Hessian-vector products, one eigendecomposition and n^2 numbers; in a subspace
  `order` products, one after the other, and `order` copies of the parameters
  while they run, of which top + bottom are kept.

  On a mesh a subspace sends what the products and trials send, and about
  2 `order`^2 numbers for each sharded leaf. The dense form gathers the
  parameters on every device, and the compiler may distribute the n^2 numbers
  and gather them.

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
  fixed = is_constant(lipschitz)
  _check(subspace, order, complement, safeguarded, saddle_sign)
  check_positive(initial_sigma=initial_sigma)
  if max_step is not None:
    check_positive(max_step=max_step)
  check_integers(0, max_rejections=max_rejections)
  check_integers(1, every=every)
  dense = subspace is None
  init_curvature, find_curvature, stored = remembered(
    make_estimator(lipschitz), subspace, order, every
  )
  settings = trials.Settings(saddle_sign, max_step, max_rejections)
  if complement is not None:
    complement = take_optimizer("complement", complement)

  def init_fn(params):
    require_leaves("scale_by_elmo", params)
    if dense:
      params = _one_vector(params)[0]
    params = widen(params)
    curvature = init_curvature(params)
    dtype = trees.scalar_dtype(params)
    # Each leaf has its own array, because a caller may donate the state.
    column = lambda: jnp.zeros_like(curvature.lipschitz)
    no, zero = lambda: jnp.zeros((), bool), lambda: jnp.zeros((), jnp.int32)
    sigma = 0.0 if fixed and not safeguarded else initial_sigma
    return ScaleByElmoState(
      count=zero(),
      sigma=jnp.array(sigma, dtype),
      length=jnp.zeros((), dtype),
      last=undo.no_step(params, dtype) if safeguarded else None,
      **curvature._asdict(),
      complement=None if complement is None else complement.init(params),
      info=ElmoInfo(
        *(column(), column(), no(), jnp.zeros((), dtype)),
        *(zero(), no(), zero()),
      ),
    )

  def update_fn(
    updates, state, params=None, *, value_fn: Any = None, value=None, **extra
  ):
    require("scale_by_elmo", params=params, value_fn=value_fn)
    require_scalar("scale_by_elmo", value)
    if not optax.tree.size(updates):
      return updates, state
    # Trials widen the parameters, and `value` is of another forward path.
    if not trees.is_wide(params):
      value = None
    params, gradient, back = widen(params), widen(updates), lambda tree: tree
    if dense:
      (params, back), (gradient, _) = _one_vector(params), _one_vector(gradient)
      on_tree, value_fn = value_fn, lambda p: on_tree(back(p))
    point = Point(value_fn, params, value, gradient)
    move, state = _update(point, state, extra)
    # A preconditioned gradient: the move, negated.
    direction = trees.scale(back(move), -jnp.ones((), state.sigma.dtype))
    return optax.tree.cast_like(direction, updates), state

  def _update(point, state, extra):
    point, spent = _with_value(point, state.sigma.dtype)
    healthy = _is_finite(point, state.sigma.dtype)
    curvature, more = find_curvature(state, point, healthy)
    healthy = healthy & curvature.known
    # The eigenpairs may be old; the slopes are of this gradient.
    spaces = find_spaces(point, curvature.spectrum)
    model, after = _model(spaces, curvature, state, extra)
    start = trials.no_trial(model, state.sigma, spent + more)
    if not safeguarded:
      trial = trials.unsafeguarded(model, start, healthy, settings)
      reverted, move = jnp.zeros((), bool), _move(model, trial)
      last = None
    else:
      reverted = healthy & undo.is_reverted(state.last, point.value)
      trial = trials.safeguarded(
        model, start, healthy & ~reverted, state.length, settings
      )
      back = jax.tree.map(jnp.subtract, state.last.params, point.params)
      move = optax.tree.where(reverted, back, _move(model, trial))
      at = point.params, point.value
      last = undo.remember(state.last, *at, trial.accepted)
    return move, ScaleByElmoState(
      count=trees.increment(state.count),
      sigma=trial.sigma,
      length=trials.learn_length(state.length, model, trial),
      last=last,
      **stored(curvature)._asdict(),
      complement=optax.tree.where(trial.accepted, after, state.complement),
      info=ElmoInfo(
        eigenvalues=jnp.where(spaces.used, spaces.values, 0),
        lipschitz=curvature.lipschitz,
        accepted=trial.accepted,
        ratio=trial.ratio,
        rejections=trial.rejections,
        reverted=reverted,
        evaluations=trial.evaluations,
      ),
    )

  def _with_value(point, dtype):
    """The point with the loss there, if that is read, and evaluations."""
    value, evaluations = point.value, jnp.zeros((), jnp.int32)
    if value is None and safeguarded:
      value = line.scalar_loss(point.value_fn, point.params)
      evaluations = evaluations + 1
    if value is not None:
      value = jnp.asarray(value).astype(dtype)
    return point._replace(value=value), evaluations

  def _is_finite(point, dtype):
    finite = jnp.isfinite(trees.largest(point.gradient, dtype))
    if safeguarded:
      finite = finite & jnp.isfinite(point.value)
    return finite

  def _model(spaces, curvature, state, extra):
    """The model, and the state of the complement's optimizer after it."""
    model = make_model(spaces, curvature.lipschitz)
    bound = curvature.spectrum.complement_bound
    if complement is not None:
      return with_optimizer(model, bound, complement, state.complement, extra)
    if not dense:
      own = jnp.max(jnp.asarray(lipschitz, bound.dtype)) if fixed else 0
      model = with_complement(model, bound, own)
    return model, None

  def _move(model, trial):
    move = model.move(trial.moves, trial.scale)
    return trees.scale(move, trial.accepted.astype(trial.sigma.dtype))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _one_vector(tree):
  """`trees.one_vector`, for a tree that is small enough."""
  size = optax.tree.size(tree)
  if size > DENSE_LIMIT:
    raise ValueError(
      f"The dense form takes at most {DENSE_LIMIT} parameters, and there are "
      f"{size}: its Hessian would have {size**2:.1e} entries. Give "
      "subspace=(top, bottom), as in elmo_lanczos(top=10, bottom=5)."
    )
  return trees.one_vector(widen(tree))


def _check(subspace, order, complement, safeguarded, saddle_sign):
  if subspace is not None:
    check_subspace(subspace, order)
  elif order is not None or complement is not None:
    raise ValueError("order and complement need subspace=(top, bottom).")
  if not isinstance(safeguarded, bool):
    raise ValueError(f"safeguarded must be True or False, got {safeguarded!r}.")
  if saddle_sign not in get_args(SaddleSign):
    raise ValueError(
      f"saddle_sign must be one of {get_args(SaddleSign)}, got {saddle_sign!r}."
    )
