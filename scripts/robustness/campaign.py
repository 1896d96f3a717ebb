"""One bad step in the middle of a run, thousands of times over.

A fault is a row of numbers that bends what an optimizer is shown at one step:
the gradient, the loss that came with it, and the loss closure. All numbers are
traced, so that one compilation for each optimizer and precision serves every
fault: the runs of a campaign are the replicas of one `jax.vmap`.

The problem is a small network that learns to tell two classes apart, from a
start of its own for each fault, on one batch. It can, so that the loss has no
floor: whoever is healthy descends in every stretch of 20 steps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gen_optax

# The step of a later fault is drawn from these.
FIRST_STEP, LAST_STEP = 1, 30
CLEAN = 20
STEPS = LAST_STEP + CLEAN + 1
ROWS, INPUTS, HIDDEN = 24, 3, 4
SOLVED = 1e-6


class Fault(NamedTuple):
  """What happens at one step; the defaults change nothing.

  Attributes:
    factor: multiplies the closure's loss, derivatives included, where it hits.
    hits: which points: 0 the parameters, 1 points on the side the gradient
      falls to, 2 all points.
    both: multiplies gradient, `value` and closure alike.
    scale: multiplies the gradient.
    poison: is added to one entry of the gradient.
    keep: 1, or 0 for a model in place of the closure.
    slope: of the model at the parameters, in gradients.
    bend: its second derivative in every direction, in the gradient's norm.
    floor: 1 for a model that goes down to zero and as far up; 0 for one that
      goes down for ever.
    hidden: is added to the closure's second derivative, in every direction, and
      to nothing else.
  """

  factor: float = 1.0
  hits: int = 2
  both: float = 1.0
  scale: float = 1.0
  poison: float = 0.0
  keep: float = 1.0
  slope: float = 0.0
  bend: float = 0.0
  floor: float = 1.0
  hidden: float = 0.0


BAD = {"NaN": np.nan, "inf": np.inf, "-inf": -np.inf}
CLASSES = {
  "none": Fault(),
  **{f"loss {k} at the point": Fault(factor=x, hits=0) for k, x in BAD.items()},
  **{f"loss {k} downhill": Fault(factor=x, hits=1) for k, x in BAD.items()},
  **{f"loss {k} everywhere": Fault(factor=x) for k, x in BAD.items()},
  **{f"loss and gradient {k}": Fault(both=x) for k, x in BAD.items()},
  **{f"gradient {k} in one leaf": Fault(poison=x) for k, x in BAD.items()},
  "gradient zero": Fault(scale=0.0),
  "gradient times 1e20": Fault(scale=1e20),
  "gradient times 1e-20": Fault(scale=1e-20),
  "gradient uphill": Fault(scale=-1.0),
  "loss and gradient times 1e20": Fault(both=1e20),
  "loss and gradient times 1e-20": Fault(both=1e-20),
  "loss flat": Fault(keep=0.0),
  "loss straight, Hv zero": Fault(keep=0.0, slope=1.0),
  "loss concave": Fault(keep=0.0, slope=1.0, bend=-1.0),
  "loss straight, without bound": Fault(keep=0.0, slope=1.0, floor=0.0),
  "loss concave, without bound": Fault(
    keep=0.0, slope=1.0, bend=-100.0, floor=0.0
  ),
  **{f"Hv {k}": Fault(hidden=x) for k, x in BAD.items()},
  "Hv times 1e20": Fault(hidden=1e20),
}
FAULTY = [name for name in CLASSES if name != "none"]
# Where a stage that withholds a step must say so: not where there is nothing to
# step along, or a step that a narrow float rounds to nothing.
UNSPOKEN = ("gradient zero", "Hv times 1e20")
SPOKEN_OF = [
  name for name in FAULTY if name not in UNSPOKEN and not name.endswith("1e-20")
]


class Draw(NamedTuple):
  """One fault of a campaign: what, when, where, and the run's start."""

  fault: Fault
  step: Any
  leaf: Any
  entry: Any
  seed: Any


def draws(
  each: int, first: int, seed: int, classes: Sequence[str] | None = None
) -> tuple[list[str], Draw]:
  """A campaign: `each` later faults of every class, `first` at the first step.

  Returns:
    The class of every fault, and the faults stacked.
  """
  rng = np.random.default_rng(seed)
  names = [k for k in classes or CLASSES for _ in range(each + first)]
  count = len(names)
  step = rng.integers(FIRST_STEP, LAST_STEP + 1, size=count)
  late = np.arange(count) % (each + first) < each
  rows = np.array([CLASSES[k] for k in names], np.float32)
  draw = Draw(
    fault=Fault(*rows.T),
    step=np.where(late, step, 0),
    leaf=rng.integers(len(jax.tree.leaves(shapes())), size=count),
    entry=rng.integers(2**16, size=count),
    seed=rng.integers(2**16, size=count),
  )
  return names, draw


# --- the problem --------------------------------------------------------------


def shapes():
  """The parameters' shapes: leaves of several sizes, a number among them."""
  return {
    "b": (HIDDEN,),
    "c": (),
    "v": (HIDDEN,),
    "w": (INPUTS, HIDDEN),
  }


def start(seed, dtype):
  keys = jax.random.split(jax.random.key(seed), 2)
  return {
    "b": jnp.zeros(HIDDEN, dtype),
    "c": jnp.zeros((), dtype),
    "v": jax.random.normal(keys[0], (HIDDEN,), dtype) / 2,
    "w": jax.random.normal(keys[1], (INPUTS, HIDDEN), dtype) / 2,
  }


def _batch():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(ROWS, INPUTS))
  hidden = np.tanh(x @ rng.normal(size=(INPUTS, 16)) + rng.normal(size=16))
  return x, np.sign(hidden @ rng.normal(size=16))


X, Y = _batch()


def loss(params):
  """Mean log-loss, in at least float32 whatever the network computes."""
  dtype = params["w"].dtype
  hidden = jnp.tanh(jnp.asarray(X, dtype) @ params["w"] + params["b"])
  out = hidden @ params["v"] + params["c"]
  wide = jnp.promote_types(dtype, jnp.float32)
  return jnp.mean(jax.nn.softplus(-jnp.asarray(Y, wide) * out.astype(wide)))


# --- a fault ------------------------------------------------------------------


@jax.custom_jvp
def _silent(x, c):
  """Zero, with derivative c."""
  return jnp.zeros_like(x * c)


@_silent.defjvp
def _(primals, tangents):
  return _silent(*primals), primals[1] * tangents[0]


@jax.custom_jvp
def _hidden(x, c):
  """Zero, with gradient zero and second derivative c I."""
  return jnp.zeros((), jnp.result_type(x, c))


@_hidden.defjvp
def _(primals, tangents):
  return _hidden(*primals), jnp.sum(_silent(*primals) * tangents[0])


def _dot(a, b):
  return sum(
    jnp.sum(x * y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def bent(fault: Fault, at, value, grad):
  """The closure of the step at parameters `at` under `fault`."""
  steepness = jnp.sqrt(_dot(grad, grad))

  def value_fn(p):
    away = jax.tree.map(lambda x, y: x - y, p, at)
    distance, along = _dot(away, away), _dot(grad, away)
    drop = fault.slope * along + fault.bend * steepness * distance / 2
    # A hyperbolic tangent is straight at zero.
    drop = jnp.where(fault.floor > 0, value * jnp.tanh(drop / value), drop)
    model = value + drop
    seen = jnp.where(fault.keep > 0, loss(p), model)
    seen += sum(_hidden(x, fault.hidden) for x in jax.tree.leaves(away))
    aside = jnp.stack([distance == 0, along < 0, jnp.ones((), bool)])
    hit = aside[fault.hits.astype(int)]
    return seen * jnp.where(hit, fault.factor, 1.0) * fault.both

  return value_fn


def _spoiled(draw: Draw, fault: Fault, grad):
  """The gradient under a fault, in its own precision."""
  leaves, treedef = jax.tree.flatten(grad)
  spoiled = []
  for k, g in enumerate(leaves):
    wide = g.astype(jnp.promote_types(g.dtype, jnp.float32))
    entry = jnp.arange(g.size).reshape(g.shape) == draw.entry % g.size
    poison = jnp.where(entry & (draw.leaf == k), fault.poison, 0.0)
    wide = wide * fault.scale * fault.both + poison
    spoiled.append(wide.astype(g.dtype))
  return jax.tree.unflatten(treedef, spoiled)


# --- a campaign ---------------------------------------------------------------


class Outcome(NamedTuple):
  """What became of each fault, arrays over the faults.

  Attributes:
    recovered: whether 20 clean steps later the loss was lower than before the
      fault, or below `SOLVED`.
    params_finite: whether the parameters were finite throughout.
    state_finite: whether the state was, from the fault on.
    withheld: whether the step at the fault was no step.
    named: whether a stage said that something was wrong at the fault.
  """

  recovered: np.ndarray
  params_finite: np.ndarray
  state_finite: np.ndarray
  withheld: np.ndarray
  named: np.ndarray

  @property
  def kept(self):
    """The run goes on; of others' states no more is asked than that."""
    return self.recovered & self.params_finite

  @property
  def survived(self):
    return self.kept & self.state_finite

  @property
  def silent(self):
    return self.withheld & ~self.named


def is_finite(tree):
  """Whether all numbers are; an `info` may tell of the bad ones it met."""
  found = jnp.ones((), bool)
  for path, leaf in jax.tree.leaves_with_path(tree):
    if "info" in [getattr(key, "name", None) for key in path]:
      continue
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      found &= jnp.isfinite(leaf).all()
  return found


def says(state):
  """Whether a stage reports a step withheld, a pair or a trial refused."""
  said = jnp.zeros((), bool)
  for name, x in gen_optax.metrics(state).items():
    if name.endswith(("/skipped", "/rejected", "/rejections", "/reverted")):
      said |= x > 0
    if name.endswith("/accepted"):
      said |= ~x
  for _, refused in optax.tree.get_all_with_path(state, "refused"):
    said |= refused
  for _, known in optax.tree.get_all_with_path(state, "known"):
    said |= ~known
  return said


def follow(tx, draw: Draw, dtype):
  """One run with one fault: per step loss, finite, withheld, named."""
  tx = optax.with_extra_args_support(tx)
  none = Fault(*(jnp.float32(x) for x in Fault()))

  def body(carry, t):
    params, state = carry
    fault = jax.tree.map(
      lambda x, y: jnp.where(t == draw.step, x, y), draw.fault, none
    )
    value, grad = jax.value_and_grad(loss)(params)
    value_fn = bent(fault, params, value, grad)
    spoiled = _spoiled(draw, fault, grad)
    updates, after = tx.update(
      spoiled,
      state,
      params,
      value=value_fn(params),
      grad=spoiled,
      value_fn=value_fn,
    )
    params = optax.apply_updates(params, updates)
    moved = sum(jnp.sum(u != 0) for u in jax.tree.leaves(updates))
    seen = (value, is_finite(params), is_finite(after), moved == 0, says(after))
    return (params, after), seen

  params = start(draw.seed, dtype)
  return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(STEPS + 1))[1]


def run(tx, draw: Draw, dtype: str = "float32") -> Outcome:
  """All faults of a campaign at once."""
  with jax.enable_x64(dtype == "float64"):
    one = lambda draw: follow(tx, draw, jnp.dtype(dtype))
    seen = jax.jit(jax.vmap(one))(jax.tree.map(jnp.asarray, draw))
    losses, params, state, still, named = map(np.asarray, seen)
  rows, at = np.arange(len(draw.step)), np.asarray(draw.step)
  before, after = losses[rows, at], losses[rows, at + CLEAN + 1]
  # Below this the problem is solved, every row by more than ten nats, and in
  # float16 the gradient vanishes.
  floor = max(SOLVED, float(jnp.finfo(dtype).tiny))
  later = np.arange(losses.shape[1]) >= at[:, None]
  return Outcome(
    recovered=after < np.maximum(before, floor),
    params_finite=params.all(1),
    state_finite=(state | ~later).all(1),
    withheld=still[rows, at],
    named=named[rows, at],
  )
