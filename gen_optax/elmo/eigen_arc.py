"""EigenARC: Lipschitz parameters by trial steps, one for each eigenspace."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_optax.elmo import step
from gen_optax.elmo.lipschitz import LipschitzEstimator
from gen_optax.elmo.spectrum import Eigenspaces
from gen_optax.helpers import trees
from gen_optax.helpers.checks import check_integers, check_positive, is_known
from gen_optax.oracle import line


class EigenArcState(NamedTuple):
  """State of `eigen_arc`.

  Attributes:
    lipschitz: shape (k,), by the rank of the eigenvalue.
  """

  lipschitz: jax.Array


def eigen_arc(
  initial: float = 1.0,
  *,
  accept: float = 0.1,
  relax: float = 0.9,
  factor: float = 2.0,
  max_raises: int = 30,
  max_reductions: int = 30,
  floor: float = 1e-8,
) -> LipschitzEstimator:
  r"""The smallest Lipschitz parameters whose step keeps its promise.

  With :math:`\rho(L)` the actual over the predicted decrease of the minmax step
  with parameters L:

  .. math::

    \rho > \eta_2: &\quad L \leftarrow L / \gamma \\
    \rho < \eta_1: &\quad L \leftarrow \gamma L
      \text{ until } \rho(L) \ge \eta_1, \text{ then for each } i: \;
      L_i \leftarrow L_i / \gamma \text{ while } \rho(L) \ge \eta_1

  This corrects Algorithm 3. There L never rises, because line 8 raises it while
  the ratio is *above* the bar, under a condition that it is below; and lines 12
  to 15 lower for ever an L without effect, that of an eigenspace without slope.
  Here such an L stays, a reduction is tested before it is kept, and both loops
  have caps. At a critical point the ratio 0 / 0 counts as 1.

  Use it along any optimizer's path by `track_lipschitz`, and in ELMO by
  `lipschitz="eigen_arc"`. It finds the parameter that a trial cannot refute, on
  powers of the factor. That is often the floor in a convex eigenspace, where
  the quadratic term decides.

  Args:
    initial: where every L starts, positive.
    accept: the bar :math:`\eta_1` in (0, 1).
    relax: the bar :math:`\eta_2` in [accept, 1).
    factor: :math:`\gamma` > 1. (Appendix J's "gamma1 = gamma2 = 2" divides by
      the second.)
    max_raises: cap of the first loop, at least 0.
    max_reductions: cap of the second, for each eigenspace, at least 0.
    floor: the smallest L, positive.

  Returns:
    A `LipschitzEstimator`. A call costs one evaluation of the loss, and one
    more for each raise and reduction that it tries.

  Raises:
    ValueError: a number is out of its range.

  Example:

    >>> import gen_optax
    >>> from gen_optax import elmo
    >>> tx = gen_optax.elmo_dense(lipschitz=elmo.eigen_arc(initial=10.0))

  References:
    Optimizer selection based on function-proxy proximity, under review:
    Algorithm 3, appendix J.
  """
  check_positive(initial=initial, floor=floor)
  if is_known(accept) and is_known(relax) and not 0 < accept <= relax < 1:
    raise ValueError(
      f"0 < accept <= relax < 1 must hold, got {accept!r} and {relax!r}."
    )
  if is_known(factor) and not 1 < factor < float("inf"):
    raise ValueError(f"factor must be above 1 and finite, got {factor!r}.")
  check_integers(0, max_raises=max_raises, max_reductions=max_reductions)

  def init(params, k):
    return EigenArcState(jnp.full(k, initial, trees.scalar_dtype(params)))

  def estimate(spaces, state):
    before = spaces.value
    count = jnp.ones((), jnp.int32)
    if before is None:
      before = line.scalar_loss(spaces.value_fn, spaces.params)
      count = count + 1
    assess, matters = _assessment(spaces, before)
    start = state.lipschitz
    ratio = assess(start)
    fails = ~(ratio >= accept)
    raised, count = _raise(assess, start, fails, count)
    lowered, count = _lower(assess, matters, raised, fails, count)
    relaxed = jnp.maximum(start / factor, floor)
    found = jnp.where(fails, lowered, jnp.where(ratio > relax, relaxed, start))
    return found, EigenArcState(found), count

  def _raise(assess, lip, pending, count):
    def wanted(carry):
      _, pending, tries, _ = carry
      return pending & (tries < max_raises)

    def body(carry):
      lip, _, tries, count = carry
      lip = factor * lip
      return lip, ~(assess(lip) >= accept), tries + 1, count + 1

    carry = (lip, pending, jnp.zeros((), jnp.int32), count)
    lip, _, _, count = jax.lax.while_loop(wanted, body, carry)
    return lip, count

  def _lower(assess, matters, lip, pending, count):
    def body(carry):
      i, tries, lip, count = carry
      trial = lip.at[i].divide(factor)
      worth = matters[i] & (trial[i] >= floor) & (tries < max_reductions)
      # A loop of at most one trip: no evaluation for what is not worth it.
      kept, spent = jax.lax.while_loop(
        lambda c: worth & (c[1] == 0),
        lambda c: (assess(trial) >= accept, c[1] + 1),
        (jnp.zeros((), bool), jnp.zeros((), jnp.int32)),
      )
      lip = jnp.where(kept, trial, lip)
      i, tries = jnp.where(kept, i, i + 1), jnp.where(kept, tries + 1, 0)
      return i, tries, lip, count + spent

    wanted = lambda carry: pending & (carry[0] < len(lip))
    zero = jnp.zeros((), jnp.int32)
    carry = (zero, zero, lip, count)
    _, _, lip, count = jax.lax.while_loop(wanted, body, carry)
    return lip, count

  return LipschitzEstimator(init, estimate)


def _assessment(spaces: Eigenspaces, before):
  """The ratio as a function of L, and which entries of L it depends on."""
  slopes, values, used = spaces.slopes, spaces.values, spaces.used
  same = step.same_space(values, used)
  length = trees.norm(spaces.gradient, values.dtype)

  def assess(lipschitz):
    lip = step.mean_in_space(same, lipschitz)
    moves = step.coordinates(same, slopes, values, lip)
    moves += step.escapes(same, slopes, values, lip, length, used)
    predicted = -step.predicted_change(same, moves, slopes, values, lip)
    move = trees.combine(spaces.vectors, moves)
    after = step.loss_after(spaces.value_fn, spaces.params, move)
    return step.decrease_ratio(before, after, predicted)

  matters = used & ((step.norm_in_space(same, slopes) > 0) | (values < 0))
  return assess, matters
