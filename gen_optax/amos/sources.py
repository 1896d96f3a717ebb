"""Where the diagonal of the curvature comes from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from gen_optax.helpers.checks import check_integers
from gen_optax.helpers.trees import widen
from gen_optax.oracle import diagonal
from gen_optax.oracle.closures import require

NAMES = ("hutchinson", "gauss_newton_bartlett")


class CurvaturePoint(NamedTuple):
  """Where a source of curvature is evaluated.

  Attributes:
    params: the parameters, in at least float32.
    key: a random key, the same at both points of one Hessian time. Draw from it
      alone, or the difference is the noise of two draws.
    value_fn: the loss as a function of the parameters alone.
    logits_fn: the logits of this step's batch as a function of the parameters,
      or None if `update` got none.
  """

  params: Any
  key: jax.Array
  value_fn: Callable[[Any], jax.Array]
  logits_fn: Any


class Source(NamedTuple):
  """A source of curvature.

  Attributes:
    at: from a `CurvaturePoint` to a tree like its parameters; None for a field.
    field: the name of a field in the last optimizer's state; None otherwise.
    needs: names of the arguments of `update` that it reads.
  """

  at: Any
  field: str | None = None
  needs: tuple[str, ...] = ("value_fn",)


def make_source(curvature, samples: int) -> Source:
  """From what users write, see `amos_router`; raises `ValueError`."""
  check_integers(1, samples=samples)
  if isinstance(curvature, str) and curvature in NAMES:
    estimate = getattr(diagonal, f"{curvature}_diagonal")
    reads = "value_fn" if curvature == "hutchinson" else "logits_fn"
    at = lambda p: estimate(getattr(p, reads), p.params, p.key, samples)
    return Source(at, needs=(reads,))
  if callable(curvature):
    return Source(lambda point: _like(curvature(point), point.params))
  if isinstance(curvature, tuple) and len(curvature) == 2:
    if curvature[0] == "state" and isinstance(curvature[1], str):
      return Source(None, curvature[1], ())
  raise ValueError(
    f'curvature must be one of {NAMES}, ("state", field), or a function from '
    f"a gen_optax.amos.CurvaturePoint to a tree; got {curvature!r}."
  )


def at_both(source: Source, before, point: CurvaturePoint):
  """The curvature at `before` and at `point`, with one key, compiled once."""

  def turn(carry, _):
    here, there, _, last = carry
    found = source.at(point._replace(params=here))
    return (there, here, last, found), None

  blank = optax.tree.zeros_like(point.params)
  carry = (before, point.params, blank, blank)
  return jax.lax.scan(turn, carry, length=2)[0][2:]


def require_arguments(source: Source, **arguments):
  """Raises `ValueError` for what the source reads and did not get."""
  if "logits_fn" in source.needs and arguments["logits_fn"] is None:
    raise ValueError(
      'amos_router with curvature="gauss_newton_bartlett" needs logits_fn: '
      "pass the logits of this step's batch as a function of the parameters "
      "alone, as in tx.update(updates, state, params, value_fn=value_fn, "
      "logits_fn=logits_fn)."
    )
  if "value_fn" in source.needs:
    read = {name: arguments[name] for name in ("params", "value_fn")}
    require("amos_router", **read)


def read_field(field: str, state, params):
  """The one tree of that name in an optimizer's state, widened."""
  found = optax.tree.get_all_with_path(state, field)
  if len(found) != 1:
    raise ValueError(
      f'curvature=("state", {field!r}) must name one field of the last '
      f"optimizer's state, found {len(found)}."
    )
  return widen(_like(found[0][1], params))


def _like(tree, params):
  """`tree`, or an error if it is not shaped like the parameters."""
  (found, kind), (wanted, like) = map(jax.tree.flatten, (tree, params))
  shapes = lambda leaves: [jax.numpy.shape(x) for x in leaves]
  if kind != like or shapes(found) != shapes(wanted):
    raise ValueError(
      "curvature must have the tree and the shapes of the parameters, "
      f"{jax.tree.map(lambda p: p.shape, params)}; got "
      f"{jax.tree.map(jax.numpy.shape, tree)}."
    )
  return jax.tree.map(lambda x, p: x.astype(p.dtype), tree, params)
