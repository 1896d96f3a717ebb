"""One bad step, thousands of times: nothing of ours is spoiled by it.

The normal run strikes every optimizer with more than a hundred faults in
float32, some in the other precisions; `pytest -m slow tests/
test_fault_campaign.py` is the campaign of `scripts/robustness/faults.py`, 20
faults of each class in each precision.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scripts.robustness import campaign, methods

OURS = list(methods.ours())
NARROW_AND_WIDE = [
  ("gen_sgd", "float64"),
  ("gen_adam", "float16"),
  ("elmo_dense", "float64"),
  ("psgd_xmat", "bfloat16"),
  ("elmo_lanczos", "float16"),
  ("guard(amos_router)", "bfloat16"),
]
UNBOUNDED = ("loss straight, without bound", "loss concave, without bound")
DOWNWARD = ("loss straight, Hv zero", "loss concave", *UNBOUNDED)
TINY = ("gradient times 1e-20", "loss and gradient times 1e-20")
STEEP = ("Hv times 1e20", "loss and gradient times 1e20")
FEW = 10


def is_a_limit(name, kind, step, dtype):
  """What is not promised: the run goes on, but may not be back in 20 steps."""
  # The first step has nothing to be compared with, and goes where the closure
  # says that the loss is low, however far.
  if step == 0 and kind in DOWNWARD and name.startswith("elmo"):
    return True
  # So does GeN, tenfold, while it has few fits to compare with.
  if kind in UNBOUNDED and step < FEW and "gen" in name.lower():
    return True
  # In float32 the squares of a tiny gradient are zero, and it does not count.
  if step == 0 and kind in TINY:
    return dtype == "float64"
  # An exact estimator does not look at the loss: it climbs by ten a step. In
  # float16 Sophia keeps a first curvature that is absurd.
  exact = name in ("gen_sgd, forward", "gen_sgd, hvp")
  sophia = "amos" in name and dtype == "float16"
  return step == 0 and (exact or sophia) and kind in STEEP


NO_GRADIENT = [
  *(f"loss and gradient {bad}" for bad in campaign.BAD),
  *(f"gradient {bad} in one leaf" for bad in campaign.BAD),
]
NO_LOSS = [
  f"loss {bad} {where}"
  for bad in campaign.BAD
  for where in ("at the point", "everywhere")
]
NO_LOSS_AHEAD = [f"loss {bad} downhill" for bad in campaign.BAD]

LOOKS_DOWNHILL = (
  *("gen_sgd", "gen_sgd, fit", "generalized_newton(rmsprop)"),
  "psgd xmat, then GeN",
)


def must_withhold(name, kind, dtype):
  """No stage steps along what is no gradient; who asks the loss, without it."""
  if kind in NO_GRADIENT:
    return True
  asks = name.startswith(("gen", "psgd xmat, then GeN", "elmo"))
  # Moments may point uphill, and exact estimators look at the point alone.
  ahead = name.startswith("elmo") or name in LOOKS_DOWNHILL
  # In float16 a gradient may be too small to tell the closure where ahead is.
  ahead = ahead and dtype != "float16"
  return (asks and kind in NO_LOSS) or (ahead and kind in NO_LOSS_AHEAD)


def check(name, dtype, each, first):
  names, draw = campaign.draws(each, first, seed=1)
  outcome = campaign.run(methods.ours(dtype)[name](), draw, dtype)
  known = [
    is_a_limit(name, kind, step, dtype)
    for kind, step in zip(names, draw.step, strict=True)
  ]
  lost = ~outcome.recovered & ~np.array(known)
  # A step of five usual lengths where the closure fell and the loss does not:
  # one run of ELMO in a hundred is not back after 20 steps. In float16 Adam's
  # loss spikes now and then without a fault.
  downward = np.isin(names, DOWNWARD)
  spikes = dtype == "float16" and name.startswith("gen_adam")
  misled = lost & (downward & name.startswith("elmo") | spikes)
  assert misled.sum() <= max(2, downward.sum() / 50)
  wrong = lost & ~misled
  # Who goes tenfold too far leaves the range of float16.
  range_left = np.array(known) & (dtype == "float16")
  wrong |= ~(outcome.params_finite & outcome.state_finite) & ~range_left
  # In float16 ELMO's last steps round to nothing.
  if not (dtype == "float16" and name.startswith("elmo")):
    wrong |= outcome.silent & np.isin(names, campaign.SPOKEN_OF)
  refused = outcome.withheld & outcome.named
  wrong |= ~refused & [must_withhold(name, kind, dtype) for kind in names]
  lines = [
    (names[k], int(draw.step[k]), *(bool(field[k]) for field in outcome))
    for k in np.flatnonzero(wrong)
  ]
  assert not lines, f"{len(lines)} of {len(names)} (class, step, {lines})"
  return len(names)


@pytest.mark.parametrize("name", OURS)
def test_no_fault_spoils_a_run(name):
  assert check(name, "float32", each=4, first=1) > 150


@pytest.mark.parametrize("name, dtype", NARROW_AND_WIDE)
def test_no_fault_spoils_a_run_in_other_precisions(name, dtype):
  check(name, dtype, each=2, first=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_the_whole_campaign(name):
  dtypes = ("float32", "float64", "bfloat16", "float16")
  count = sum(check(name, dtype, each=20, first=5) for dtype in dtypes)
  assert count > 2000


def test_the_campaign_can_tell():
  """Adam dies of a gradient that is no number; unguarded GeN remembers it."""
  names, draw = campaign.draws(4, 1, seed=1)
  struck, control = np.isin(names, NO_GRADIENT), np.array(names) == "none"
  for build in (
    methods.peers()["adam"],
    methods.limits()["bare adam, scale_by_gen"],
  ):
    lost = ~campaign.run(build(), draw).survived
    assert lost[struck].mean() > 0.5 and not lost[control].any()


@functools.cache
def struck(name):
  """A compiled run under a fault whose numbers are arguments."""
  tx = methods.ours()[name]()
  return jax.jit(lambda draw: campaign.follow(tx, draw, jnp.dtype("float32")))


@pytest.mark.parametrize("name", ["gen_adam", "psgd_xmat"])
@hypothesis.settings(
  max_examples=40, deadline=None, derandomize=True, database=None
)
@hypothesis.given(
  kind=st.sampled_from(campaign.FAULTY),
  step=st.integers(campaign.FIRST_STEP, campaign.LAST_STEP),
  exponent=st.floats(-25, 25),
  leaf=st.integers(0, 3),
  entry=st.integers(0, 11),
  seed=st.integers(0, 2**16),
)
def test_any_fault_at_any_step(name, kind, step, exponent, leaf, entry, seed):
  """A class, and a gradient of any length on top of it."""
  fault = campaign.CLASSES[kind]
  fault = fault._replace(scale=fault.scale * 10.0**exponent)
  draw = campaign.Draw(fault, step, leaf, entry, seed)
  draw = jax.tree.map(
    lambda x: np.asarray(x, np.float32 if isinstance(x, float) else None), draw
  )
  losses, params_finite, state_finite, _, _ = struck(name)(draw)
  assert params_finite.all() and state_finite.all()
  # The guard passes up to twenty times the running size, which remembers longer
  # gradients, and Adam's moments hold that for more than 20 steps.
  passes = 10**0.5 < abs(fault.scale * fault.both) < 1e3
  before = losses[0] if passes else losses[step]
  assert losses[step + campaign.CLEAN + 1] < before


# --- trees and closures that are no optimizer's ------------------------------

FORMS = (
  *("gen_adam", "gen_sgd, fit", "gen_sgd, hvp", "gen_adamw, average"),
  *("psgd_xmat", "elmo_lanczos"),
  *("guard(track_lipschitz, adam)", "guard(amos_router)"),
)
forms = pytest.mark.parametrize("name", FORMS)
ODD_TREE = {
  "number": jnp.ones(()),
  "one": [jnp.ones((1,)), jnp.ones((1, 1))],
  "none": None,
  "no entry": (jnp.ones((0,)), jnp.ones((2, 0, 3))),
  "nothing": {},
  "matrix": jnp.ones((3, 2)),
}


def squares(params):
  leaves = jax.tree.leaves(params)
  return sum(jnp.sum(jnp.real(x * jnp.conj(x))) for x in leaves) + 0.0


def traced(name, params, value_fn=squares):
  """Shapes of updates and state before and after a step, nothing compiled."""
  tx = methods.ours()[name]()

  def step(params):
    state = tx.init(params)
    value, grad = jax.value_and_grad(squares, allow_int=True)(params)
    # An integer's gradient is float0 to jax, and zero to optax.
    grad = jax.tree.map(
      lambda g, p: jnp.zeros_like(p) if g.dtype == jax.dtypes.float0 else g,
      grad,
      params,
    )
    return state, tx.update(
      grad, state, params, value=value, grad=grad, value_fn=value_fn
    )

  return jax.eval_shape(step, params)


# optax's Sophia fails on an empty tree; AMOS is in test_amos_composition.
@pytest.mark.parametrize("name", FORMS[:-1])
@pytest.mark.parametrize("params", [{}, ODD_TREE], ids=["empty", "odd"])
def test_odd_trees_keep_their_types(name, params):
  before, (updates, after) = traced(name, params)
  same = lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype)
  assert jax.tree.all(jax.tree.map(same, updates, params))
  assert jax.tree.all(jax.tree.map(same, before, after))


@forms
@pytest.mark.parametrize(
  "value_fn",
  [lambda p: p["w"], lambda p: squares(p)[None], lambda p: (squares(p), p)],
  ids=["vector", "length one", "aux"],
)
def test_a_closure_that_is_no_scalar_is_refused(name, value_fn):
  with pytest.raises(ValueError, match="scalar"):
    traced(name, {"w": jnp.ones(3)}, value_fn)


@forms
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32])
def test_leaves_that_are_not_real(name, dtype):
  """GeN takes complex ones; all others are refused by dtype and place."""
  params = {"w": jnp.ones(3), "x": jnp.ones(2, dtype)}
  if name.startswith("gen") and dtype == jnp.complex64:
    before, (updates, after) = traced(name, params)
    assert updates["x"].dtype == dtype
    assert jax.tree.map(lambda x: x.dtype, before) == jax.tree.map(
      lambda x: x.dtype, after
    )
    return
  with pytest.raises(ValueError, match=rf"{jnp.dtype(dtype)} at \['x'\]"):
    traced(name, params)
