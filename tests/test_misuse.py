"""A wrong call is an error that names the argument and says what it takes.

Tables of calls, and of what the message says; numbers that are wrong only when
the program runs are in the `*_faults` files.

All in one file, because a wrong call is looked up by its kind: options, trees,
arguments of `update`, functions, training.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gen_optax
from gen_optax import amos, elmo, psgd
from gen_optax.elmo.estimators import make_estimator
from gen_optax.gen.fit import check_probes

NAN, INF = float("nan"), float("inf")
SCHEDULE = optax.cosine_decay_schedule(0.1, 10)
PAIR = [optax.sgd(0.1), optax.sgd(0.1)]
PARAMS = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}


def loss_fn(params):
  return sum(jnp.sum((leaf - 3.0) ** 2) for leaf in jax.tree.leaves(params))


def refused(call, *said, error=ValueError):
  with pytest.raises(error) as caught:
    call()
  for words in said:
    assert words in str(caught.value), str(caught.value)


# --- options, when a transformation is built: it is named, and what it got ----

GEN = {
  "learning_rate": [-0.1, 0.0, NAN, INF],
  "probes": [(), (1.0, 1.0), (-1, 1, 1.0), (0.0,), (0.0, 0), (NAN, 1), (INF,)],
  "degree": [1, 3, 5],
  "every": [0, -3, 2.5],
  "smoothing": [1.0, -0.1],
  "estimator": ["guess"],
  "evaluate": ["loop"],
  "horizon": [0, -5],
}
STAGES = {
  "gen": (functools.partial(gen_optax.scale_by_gen, estimator="fit"), GEN),
  "gen, dense_start": (gen_optax.scale_by_gen, {"dense_start": [-1]}),
  "gen, exact": (
    functools.partial(gen_optax.scale_by_gen, estimator="hvp"),
    {"probes": [(), (0.0,), (np.nan,)]},
  ),
  "gen paper": (
    lambda **options: gen_optax.scale_by_gen_paper(
      **{"learning_rate": 0.1} | options
    ),
    GEN,
  ),
  "psgd": (
    functools.partial(gen_optax.scale_by_psgd, psgd.diagonal()),
    {
      "precond_learning_rate": [0.0, 1.0, -0.1],
      "probability": [-0.1, 1.1],
      "pairs": ["hessian", None],
      "momentum": [1.0, -0.1],
      "init_scale": [0.0, -1.0, INF, NAN],
      "clip_norm": [0.0, -1.0],
      "vector": ["uniform"],
    },
  ),
  "psgd structure": (
    gen_optax.scale_by_psgd,
    {"preconditioner": ["xmat", psgd.xmat]},
  ),
  "low_rank": (
    psgd.low_rank,
    {"rank": [-1, 1.5], "normalizer": ["2nd", None]},
  ),
  "kron": (psgd.kron, {"max_size": [-1, 1.5, "all"], "normalizer": ["third"]}),
  "dense": (psgd.dense, {"normalizer": [None]}),
  "xmat": (psgd.xmat, {"scope": ["tree"], "steps": ["leaf"]}),
  "cyclic": (psgd.cyclic, {"size": [0]}),
  "neighbours": (psgd.neighbours, {"size": [2.0]}),
  "elmo": (
    gen_optax.scale_by_elmo,
    {
      "subspace": [3, (1,), [1, 2]],
      "safeguarded": [None, 1],
      "initial_sigma": [0.0, -1.0, INF, NAN],
      "max_rejections": [-1, 1.5],
      "saddle_sign": ["negative", None],
      "max_step": [0.0, -1.0],
      "every": [0, 2.5],
      "lipschitz": ["exact", -1.0, 0.0, NAN],
    },
  ),
  "track_lipschitz": (
    gen_optax.track_lipschitz,
    {"subspace": [3], "every": [0, 1.5]},
  ),
  "drift": (elmo.drift, {"decay": [1.0]}),
  "constant": (elmo.constant, {"lipschitz": [0.0, [1.0, NAN]]}),
  "eigen_arc": (
    elmo.eigen_arc,
    {
      "initial": [0.0],
      "accept": [0.95],
      "factor": [1.0],
      "max_raises": [-1],
      "floor": [-1.0],
    },
  ),
  "estimator": (make_estimator, {"lipschitz": ["hessian"]}),
  "amos": (
    lambda **options: gen_optax.amos_router(**{"optimizers": PAIR} | options),
    {
      "curvature": ["exact", ("state", 3), ("field", "nu"), None],
      "samples": [0, -1, 1.5],
      "granularity": [
        *("tensor", ("chunk", 0), ("chunk", 2.5), ("chunk",), None, {}),
      ],
      "threshold": [
        *("eq8", -1.0, NAN, None, (1.0, 2.0), (), True),
        *(("quantile", 1.5), ("quantile", -0.1), ("quantile",)),
        *(("newton", 0.0), ("newton", 2.0), ("newton",)),
        *(("quantile", (0.1, 0.2)), ("quantile", "half")),
      ],
      "ema": [1.0, -0.1, NAN],
      "bias_correction": [None, 1],
      "every": [0, 2.5],
      "states": ["thawed", None],
      "eps": [-1e-9, INF, NAN],
      "optimizers": [
        *(optax.sgd(0.1), PAIR[:1], {}, [PAIR[0], 0.1], PAIR[:1] * 128),
        [optax.sgd, optax.adam],
      ],
    },
  ),
  "sophia": (amos.sophia, {"learning_rate": [-0.1]}),
}
DOORS = {
  name: getattr(gen_optax, name)
  for name in (
    *("gen_sgd", "gen_momentum", "gen_adam", "gen_adamw", "gen_nadamw"),
    *("gen_lion", "gen_muon"),
    *("psgd_diagonal", "psgd_xmat", "psgd_butterfly", "psgd_lra"),
    *("psgd_dense", "psgd_kron", "elmo_dense", "elmo_lanczos"),
  )
}
DOORS["generalized_newton"] = functools.partial(
  gen_optax.generalized_newton, optax.sgd(1.0)
)
for _door, _build in DOORS.items():
  _options = {"learning_rate": [-1.0, NAN]}
  if _door.startswith("psgd"):
    _options |= {"weight_decay": [-1e-4], "momentum": [2.0]}
  STAGES[_door] = _build, _options


@pytest.mark.parametrize(
  "stage, name, value",
  [
    (stage, name, value)
    for stage, (_, options) in STAGES.items()
    for name, values in options.items()
    for value in values
  ],
)
def test_a_wrong_option_is_named(stage, name, value):
  got = repr(value) if isinstance(value, str | int | float) else ""
  # Sequences that are cut up on the way say which part is wrong.
  refused(lambda: STAGES[stage][0](**{name: value}), name, got)


@pytest.mark.parametrize(
  "build",
  [gen_optax.scale_by_gen, gen_optax.scale_by_gen_paper]
  + [door for name, door in DOORS.items() if name.startswith("gen")],
)
def test_a_schedule_for_a_rate_that_gen_sets_is_pointed_to_horizon(build):
  refused(lambda: build(learning_rate=SCHEDULE), "learning_rate", "horizon=")
  refused(lambda: build(learning_rate="0.1"), "learning_rate")


def test_a_schedule_inside_the_optimizer_is_seen():
  """In `init`, by its state; under wrappers too."""
  for base in (
    optax.adam(SCHEDULE),
    optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(SCHEDULE)),
    optax.masked(optax.adamw(SCHEDULE), {"a": True, "b": True}),
  ):
    tx = gen_optax.generalized_newton(base)
    refused(lambda tx=tx: tx.init(PARAMS), "optimizer", "schedule", "horizon=")
  gen_optax.generalized_newton(optax.adam(1.0), horizon=SCHEDULE).init(PARAMS)


def test_a_constant_rate_inside_the_optimizer_does_no_harm(x64):
  """It cannot be seen, and need not: GeN's rate takes it back."""
  ends = []
  for rate in (1.0, 0.25):
    tx = gen_optax.generalized_newton(optax.sgd(rate, momentum=0.9))
    w = jnp.array([1.0, 2.0])
    loss = lambda w: jnp.sum(jnp.array([1.0, 3.0]) * (w - 3.0) ** 2)
    state = tx.init(w)
    for _ in range(6):
      updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      w = optax.apply_updates(w, updates)
    ends.append(w)
  np.testing.assert_allclose(*ends, rtol=1e-2)


# What several options say together.
TOGETHER = [
  (lambda: gen_optax.gen_sgd(degree=3), "degree=3", "add probes"),
  (lambda: gen_optax.gen_sgd(degree=4, probes=(-1, 1)), "degree=4", "lower"),
  (lambda: check_probes((1.0, -1.0), 4, False), "degree=4", "add probes"),
  (lambda: check_probes((1.0,), 2, False), "degree=2", "add probes"),
  (lambda: psgd.orbits(), "generator"),
  (lambda: gen_optax.scale_by_elmo(order=5), "order", "subspace="),
  (
    lambda: gen_optax.scale_by_elmo(complement=optax.sgd(0.1)),
    *("complement", "subspace="),
  ),
  (
    lambda: gen_optax.elmo_lanczos(complement=optax.sgd),
    *("complement", "optax.adam(1.0)"),
  ),
  (
    lambda: gen_optax.amos_router(PAIR + PAIR[:1], threshold="newton"),
    *("threshold", "2 ascending"),
  ),
  (lambda: gen_optax.generalized_newton(optax.adam), "optimizer", "adam(1.0)"),
  (lambda: gen_optax.skip_implausible(optax.adam), "inner", "adam(1.0)"),
  (lambda: gen_optax.with_full_params(optax.adam), "inner", "adam(1.0)"),
  (lambda: gen_optax.keep_extra_args(optax.adam, "grad"), "tx", "adam(1.0)"),
  (lambda: gen_optax.rename_extra_args(1.0, obj_fn="x"), "tx", "adam(1.0)"),
]
for _wrong in (1.0, (1.0,), (2.0, 1.0), (1.0, 2.0, 3.0)):
  TOGETHER.append(
    (
      lambda cuts=_wrong: gen_optax.amos_router(
        PAIR + PAIR[:1], threshold=cuts
      ),
      *("threshold", "2 ascending"),
    )
  )
for _options, *_said in (
  (dict(top=-1, bottom=1), "top"),
  (dict(top=1, bottom=1.5), "bottom"),
  (dict(top=0, bottom=0), "top and bottom"),
  (dict(top=3, bottom=2, order=4), "order", "at least top + bottom = 5"),
  (dict(top=3, bottom=2, order=10.0), "order", "integer"),
):
  _build = functools.partial(
    gen_optax.extreme_eigenpairs, lambda v: v, jnp.zeros(9), **_options
  )
  TOGETHER += [
    (_build, *_said),
    (functools.partial(gen_optax.elmo_lanczos, **_options), *_said),
  ]


@pytest.mark.parametrize("wrong, said", [(f, said) for f, *said in TOGETHER])
def test_options_that_do_not_go_together(wrong, said):
  refused(wrong, *said)


@pytest.mark.parametrize(
  "probes, degree, known",
  [((1.0,), 2, True), ((-1, 1), 2, False), ((1, 2), 3, True)],
)
def test_enough_probes_pass(probes, degree, known):
  assert check_probes(probes, degree, known) == probes


def test_a_rank_beyond_the_size_and_as_many_cuts_as_needed_pass():
  for rank in (0, 99):
    gen_optax.psgd_lra(rank=rank).init(PARAMS)
  for right in ((1.0, 2.0), [0, 1], np.array([1.0, 1.0])):
    gen_optax.amos_router(PAIR + PAIR[:1], threshold=right)


# --- trees, when the state is made --------------------------------------------


@pytest.mark.parametrize(
  "dtype, remedy",
  [(jnp.complex64, "split_real_and_imaginary"), (jnp.int32, "optax.partition")],
)
@pytest.mark.parametrize(
  "tx, stage",
  [
    (gen_optax.psgd_diagonal(), "scale_by_psgd"),
    (gen_optax.elmo_dense(), "scale_by_elmo"),
    (gen_optax.elmo_lanczos(), "scale_by_elmo"),
    (gen_optax.track_lipschitz(), "track_lipschitz"),
    (gen_optax.amos_router(PAIR), "amos_router"),
  ],
)
def test_leaves_that_are_not_real_are_refused(tx, stage, dtype, remedy):
  params = {"x": jnp.zeros(2, dtype)}
  refused(lambda: tx.init(params), stage, "['x']", remedy)


@pytest.mark.parametrize(
  "generator", [[1, 0, 2], [0, 0, 1, 2], lambda n: [0] * n]
)
def test_a_generator_that_does_not_fit_is_refused(generator):
  tx = gen_optax.scale_by_psgd(psgd.blocks(psgd.orbits(generator)))
  refused(lambda: tx.init(jnp.zeros(4)), "permutation of the 4 entries")


def test_no_average_or_several():
  average = gen_optax.average_parameters()
  for stages, count in ((optax.sgd(0.1),), 0), ((average, average), 2):
    state = optax.chain(*stages).init(PARAMS)
    refused(
      functools.partial(gen_optax.averaged_parameters, state),
      *(f"{count} parameter averages", "average_parameters()"),
      error=KeyError,
    )
  refused(
    lambda: gen_optax.evaluate_at(state, PARAMS),
    *("2 parameter averages", "last, once"),
    error=KeyError,
  )


# --- the arguments of `update` ------------------------------------------------


def call(tx, **changes):
  """Traced, not run; an argument of None is left out."""
  grad = jax.grad(loss_fn)(PARAMS)
  arguments = dict(
    params=PARAMS, value=loss_fn(PARAMS), grad=grad, value_fn=loss_fn
  )
  arguments = {k: v for k, v in (arguments | changes).items() if v is not None}
  updates = jax.tree.map(jnp.negative, grad)
  return jax.eval_shape(
    lambda: tx.update(updates, tx.init(PARAMS), **arguments)[0]
  )


READERS = {
  "scale_by_gen": gen_optax.scale_by_gen(),
  "fit": gen_optax.scale_by_gen(
    estimator="fit", fresh_slope=False, evaluate="map"
  ),
  "forward": gen_optax.scale_by_gen(estimator="forward"),
  "hvp": gen_optax.scale_by_gen(estimator="hvp"),
  "scale_by_gen_paper": gen_optax.scale_by_gen_paper(0.1),
  "gen_adam": gen_optax.gen_adam(),
  "psgd_diagonal": gen_optax.psgd_diagonal(),
  "differences": gen_optax.psgd_diagonal(pairs="finite_difference"),
  "elmo_dense": gen_optax.elmo_dense(),
  "elmo_lanczos": gen_optax.elmo_lanczos(top=1, bottom=1),
  "track_lipschitz": gen_optax.track_lipschitz(subspace=(1, 1)),
  "amos_router": gen_optax.amos_router(PAIR),
}
readers = pytest.mark.parametrize("tx", READERS.values(), ids=READERS)


@readers
def test_a_missing_argument_is_named_with_the_call_that_mends_it(tx):
  refused(lambda: call(tx, params=None), "params", "tx.update(updates")
  refused(lambda: call(tx, value_fn=None), "value_fn", "value_fn=value_fn)")
  refused(lambda: call(tx, value_fn=3.0), "value_fn", "a function")


NO_LOSSES = {
  "a vector": lambda p: p["a"],
  "length one": lambda p: loss_fn(p)[None],
  "a pair": lambda p: (loss_fn(p), p),
  "a tree": lambda p: {"loss": loss_fn(p)},
  "an integer": lambda p: loss_fn(p).astype(int),
  "nothing": lambda p: None,
}


@readers
@pytest.mark.parametrize("what", NO_LOSSES)
def test_a_loss_that_is_no_scalar(tx, what):
  said = "value_fn must return one real scalar", "jnp.mean", "loss_fn(p)[0]"
  refused(lambda: call(tx, value_fn=NO_LOSSES[what]), *said)


@pytest.mark.parametrize(
  "name",
  [*("scale_by_gen", "scale_by_gen_paper", "elmo_dense", "elmo_lanczos")],
)
def test_losses_of_each_example_for_a_value(name):
  changes = dict(value=jnp.ones(8))
  refused(lambda: call(READERS[name], **changes), "value=", "(8,)", "mean")


MASKS = {
  "masked": lambda tx: optax.masked(tx, {"a": True, "b": False}),
  "partition": lambda tx: optax.partition(
    {"x": tx, "y": optax.sgd(0.1)}, {"a": "x", "b": "y"}
  ),
}


@readers
@pytest.mark.parametrize("mask", MASKS)
def test_a_stage_that_sees_a_part_needs_the_wrapper(tx, mask):
  """Though this loss, a sum over what there is, could be evaluated."""
  alone = MASKS[mask](tx)
  refused(lambda: call(alone, grad=None), "value_fn", "with_full_params(")
  inside = MASKS[mask](gen_optax.with_full_params(tx))
  refused(lambda: call(inside, grad=None), "value_fn", "with_full_params(")


def test_a_stage_that_sees_a_part_passes_with_the_wrapper():
  for name in ("fit", "psgd_diagonal", "elmo_dense", "amos_router"):
    for mask in MASKS.values():
      whole = gen_optax.with_full_params(mask(READERS[name]))
      call(whole, grad=None, value=None)


@pytest.mark.parametrize(
  "tx",
  [
    *(gen_optax.scale_by_gen(estimator=e) for e in ("fit", "hvp", "forward")),
    gen_optax.scale_by_gen(fresh_slope=False),
  ],
)
def test_the_gradient_is_needed_unless_both_are_given_up(tx):
  refused(
    lambda: call(tx, grad=None),
    *("grad=", 'estimator="fit"', "fresh_slope=False"),
  )
  call(READERS["fit"], grad=None)


def test_the_updates_are_never_taken_for_the_gradient():
  """Paper rule with a known slope: nothing else can give it."""
  tx = gen_optax.scale_by_gen_paper(0.1, estimator="known_slope", probes=(1.0,))
  refused(lambda: call(tx, grad=None), "grad=")
  refused(lambda: call(READERS["differences"], grad=None), "needs grad")
  tx = gen_optax.scale_by_psgd(psgd.diagonal(), pairs="whitening")
  call(tx, grad=None, value_fn=None, params=None)


def test_what_else_a_stage_needs():
  refused(
    lambda: call(gen_optax.average_parameters(), params=None),
    *("average_parameters needs params", "third argument"),
  )
  refused(
    lambda: call(gen_optax.with_full_params(optax.sgd(0.1)), value_fn=None),
    *("with_full_params needs value_fn", "value_fn="),
  )
  tx = gen_optax.amos_router(PAIR, curvature="gauss_newton_bartlett")
  refused(lambda: call(tx), "needs logits_fn", "logits_fn=logits_fn")
  refused(
    lambda: call(gen_optax.amos.sophia(0.1)),
    *("needs hessian_diagonal", "amos_router"),
  )


@pytest.mark.parametrize(
  "options, said",
  [
    (dict(curvature=lambda at: at.params["a"]), "curvature must have the tree"),
    (
      dict(curvature=lambda at: jax.tree.map(jnp.sum, at.params)),
      "curvature must have the tree",
    ),
    (dict(granularity={"a": 1}), "granularity must be a tree of labels"),
    (dict(threshold=lambda seen: 1), "threshold must return a tree of indices"),
  ],
)
def test_wrong_trees_are_named(options, said):
  refused(lambda: call(gen_optax.amos_router(PAIR, **options)), said)


def test_lipschitz_parameters_that_do_not_fit_the_eigenspaces():
  tx = gen_optax.elmo_lanczos(top=1, bottom=1, lipschitz=np.ones(3))
  refused(lambda: call(tx), "lipschitz", "shape (2,)", "(3,)")


# --- functions ----------------------------------------------------------------

CALLS = itertools.count()
VECTOR = jnp.ones(2)
FUNCTIONS = [
  (lambda: gen_optax.check_value_fn(lambda w: w, VECTOR), "value_fn", "scalar"),
  (lambda: gen_optax.check_value_fn(None, VECTOR), "value_fn", "function"),
  (
    lambda: gen_optax.check_value_fn(lambda w: jnp.nan * w.sum(), VECTOR),
    *("value_fn", "finite"),
  ),
  (
    lambda: gen_optax.check_value_fn(loss_fn, VECTOR, 5.0),
    *("value_fn", "value is 5.0", "same batch"),
  ),
  (
    lambda: gen_optax.check_value_fn(lambda w: w.sum() + next(CALLS), VECTOR),
    *("value_fn", "one random key"),
  ),
  (
    lambda: gen_optax.hutchinson_diagonal(
      loss_fn, VECTOR, jax.random.key(0), samples=0
    ),
    "samples",
  ),
  (
    lambda: gen_optax.gauss_newton_bartlett_diagonal(
      lambda w: w.sum(), VECTOR, jax.random.key(0)
    ),
    "logits_fn must return logits",
  ),
]


@pytest.mark.parametrize("wrong, said", [(f, said) for f, *said in FUNCTIONS])
def test_a_wrong_argument_of_a_function_is_named(wrong, said):
  refused(wrong, *said)


def test_check_value_fn_passes_a_right_one():
  gen_optax.check_value_fn(loss_fn, PARAMS, loss_fn(PARAMS))


# --- training -----------------------------------------------------------------


def step(loss=loss_fn, optimizer=PAIR[0], args=(), **options):
  """Traces one step."""
  built = gen_optax.make_step(loss, optimizer, **options)
  return jax.eval_shape(built, PARAMS, PAIR[0].init(PARAMS), *args)


BATCHED = functools.partial(
  step, lambda p, x: loss_fn(p) * x.mean(), args=(jnp.ones(8),)
)
STEPS = [
  (lambda: step(lambda p: (loss_fn(p), 1)), "loss_fn", "has_aux=True"),
  (lambda: step(lambda p: p["a"]), "loss_fn", "jnp.mean"),
  (lambda: step(has_aux=True), "loss_fn", "(loss, aux)"),
  (lambda: step(lambda p: (p["a"], 1), has_aux=True), "loss_fn", "jnp.mean"),
  (lambda: step(optimizer=optax.sgd), "optimizer", "adam(1.0)"),
  (lambda: step(PAIR[0], loss_fn), "optimizer", "adam(1.0)"),
  (lambda: BATCHED(micro_batch_size=3), "8", "micro", "divisible"),
  (lambda: BATCHED(micro_batch_size=0), "micro_batch_size", "positive"),
  (lambda: BATCHED(micro_batch_size=-2), "micro_batch_size", "positive"),
  (lambda: BATCHED(batch_argnums=(0, 1)), "batch_argnums", "from 1 on"),
  (lambda: BATCHED(batch_argnums=-1), "batch_argnums", "from 1 on"),
]


@pytest.mark.parametrize("wrong, said", [(f, said) for f, *said in STEPS])
def test_a_wrong_step_is_named(wrong, said):
  refused(wrong, *said)


def test_flax():
  from flax import linen, nnx

  from gen_optax import flax_training

  state = flax_training.TrainState.create(
    apply_fn=None, params=PARAMS, tx=gen_optax.gen_sgd()
  )
  refused(
    lambda: state.apply_gradients(grads=PARAMS), "value_fn", "value_fn=value_fn"
  )
  ask = flax_training.value_grad_and_closure
  model, x = nnx.Linear(2, 1, rngs=nnx.Rngs(0)), jnp.ones((4, 2))
  refused(
    lambda: ask(lambda m, x: (m(x).mean(), x), model, x),
    *("loss_fn must return one real scalar", "jnp.mean"),
  )
  refused(
    lambda: ask(lambda m, x: m(x).mean(), linen.Dense(1), x),
    *("model must be an nnx module", "TrainState"),
  )
