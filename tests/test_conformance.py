"""optax's own suite for contributed optimizers, run on our chains.

The suite ships in optax's wheel. It hands the objective only to an optimizer
named "sophia", as `obj_fn`; so ours borrow that name for the length of a check.
"""

import functools
from unittest import mock

import jax
import optax
import pytest

import gen_optax

# The suite is optax's; it is not imported for use.
common = pytest.importorskip("optax.contrib._common_test")

GEN = {
  f"gen_{name}": getattr(gen_optax, f"gen_{name}")
  for name in ("sgd", "momentum", "adam", "adamw", "nadamw", "lion", "muon")
}


def averaged(learning_rate=1e-3):
  return gen_optax.gen_adamw(learning_rate, average=True)


GEN["gen_adamw, average"] = averaged
PSGD = {
  f"psgd_{name}": getattr(gen_optax, f"psgd_{name}")
  for name in ("diagonal", "xmat", "butterfly", "lra", "dense", "kron")
}


def psgd_kron(learning_rate: optax.ScalarOrSchedule = 0.1):
  """Injection makes integers tracers: the size stays at its default."""
  return gen_optax.psgd_kron(learning_rate)


PSGD["psgd_kron"] = psgd_kron


def elmo_lanczos(learning_rate: optax.ScalarOrSchedule = 1.0):
  """The same for the numbers of eigenvalues."""
  return gen_optax.elmo_lanczos(learning_rate)


ELMO = {"elmo_dense": gen_optax.elmo_dense, "elmo_lanczos": elmo_lanczos}
SOPHIA = optax.contrib.sophia


def amos_router(learning_rate: optax.ScalarOrSchedule = 0.01):
  """The router at its defaults, which borrows optax's Sophia by its name."""
  with mock.patch.object(optax.contrib, "sophia", SOPHIA):
    pair = [optax.sgd(learning_rate), gen_optax.amos.sophia(learning_rate)]
  return gen_optax.amos_router(pair)


AMOS = {"amos_router": amos_router}
READY_MADE = GEN | PSGD | ELMO | AMOS

TARGETS = ("parabola", "rosenbrock", "matrix_parabola", "mixed_tensor_target")
AXES = {
  "test_optimizers_accept_extra_args": [{"wrap": True}, {"wrap": False}],
  "test_optimizers": [
    {"target": getattr(common, f"_setup_{name}"), "dtype": "float32"}
    for name in TARGETS
  ],
  "test_optimizers_can_be_wrapped_in_inject_hyperparams": [{}],
  "test_preserve_dtype": [{"dtype": d} for d in ("bfloat16", "float32")],
  "test_gradient_accumulation": [{"dtype": d} for d in ("bfloat16", "float32")],
  "test_state_shape_dtype_shard_stability": [
    {"dtype": jax.numpy.dtype(d)}
    for d in ("float16", "bfloat16", "float32", "float64")
  ],
  "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such": [
    {}
  ],
}
# GeN sets the rate: no schedule is accepted, and none is annotated.
SCHEDULE = (
  "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such"
)
RAW = {
  method.__wrapped__.__name__: method.__wrapped__
  for name, method in vars(common.ContribTest).items()
  if name.startswith("test") and hasattr(method, "__wrapped__")
}


def takes_objective(factory, hand_over_gradient=False, compiled=False):
  """`factory` with the objective under optax's name for it.

  `hand_over_gradient` makes it our own copy of the suite: value and gradient
  are passed as a training step passes them. `compiled` compiles the update
  once, for a check that calls it outside `jax.jit` time and again.
  """

  @functools.wraps(factory)  # keeps the signature that injection inspects
  def wrapped(*args, **kwargs):
    tx = factory(*args, **kwargs)
    compile_once = functools.partial(jax.jit, static_argnames="value_fn")
    run = compile_once(tx.update) if compiled else tx.update

    def update(updates, state, params=None, *, obj_fn=None, **extra_args):
      if hand_over_gradient:
        extra_args.update(value=obj_fn(params), grad=updates)
      return run(updates, state, params, value_fn=obj_fn, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)

  return wrapped


def test_the_suite_holds_the_checks_that_we_run():
  assert set(RAW) == set(AXES)


# PSGD, AMOS and the average read neither value nor gradient, ELMO does not need
# the value.
WAYS = [(name, False) for name in READY_MADE]
WAYS += [(name, True) for name in GEN if name != "gen_adamw, average"]


@pytest.mark.parametrize("check", AXES)
@pytest.mark.parametrize("name, hand_over_gradient", WAYS)
def test_optax_suite(name, check, hand_over_gradient):
  compiled = check == SCHEDULE
  factory = takes_objective(READY_MADE[name], hand_over_gradient, compiled)
  case = common.ContribTest()
  case.setUp()
  ran = []
  for axes in AXES[check]:
    arguments = dict(
      opt_name="sophia", opt_kwargs={}, wrapper_name=None, wrapper_kwargs=None
    )
    with mock.patch.object(common.contrib, "sophia", factory):
      try:
        RAW[check](case, **arguments, **axes)
        ran.append(axes)
      except common.absltest.unittest.SkipTest:
        assert check == SCHEDULE
  skipped = check == SCHEDULE and name in GEN
  assert ran == ([] if skipped else AXES[check])


def test_a_schedule_for_the_rate_is_refused():
  # The one check above that optax skips for us, because of this.
  schedule = optax.constant_schedule(1e-3)
  for factory in GEN.values():
    with pytest.raises(ValueError, match="learning_rate.*schedule.*horizon"):
      factory(learning_rate=schedule)
