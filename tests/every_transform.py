"""Every transformation of the package, on one small problem whose batch moves.

Options are chosen so that each kind of state is met: lazy steps, averages in
the making, random numbers, nested optimizers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gen_optax
from gen_optax import amos, elmo, psgd

STEPS = 12
_RNG = np.random.default_rng(0)
FEATURES = _RNG.normal(size=(STEPS, 8, 3))
TARGETS = np.tanh(FEATURES @ np.arange(1.0, 4.0) / 3)


def initial_params(dtype=jnp.float32):
  rng = np.random.default_rng(1)
  return {
    "v": jnp.asarray(rng.normal(size=2), dtype),
    "w": jnp.asarray(rng.normal(size=(3, 2)), dtype),
  }


def loss_fn(params, x, y):
  return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


def batch(t, dtype):
  return jnp.asarray(FEATURES, dtype)[t], jnp.asarray(TARGETS, dtype)[t]


def _gen(name, **options):
  return lambda seed: getattr(gen_optax, name)(**options)


def _paper(seed):
  stage = gen_optax.scale_by_gen_paper(0.1, every=2)
  return optax.chain(optax.sgd(1.0), stage)


def _injected(seed):
  make = optax.inject_hyperparams(gen_optax.gen_adam)
  return make(smoothing=0.8)


def _psgd(name, **options):
  make = getattr(gen_optax, f"psgd_{name}")
  return lambda seed: make(0.1, seed=seed, **options)


def _structure(preconditioner):
  return lambda seed: optax.chain(
    gen_optax.scale_by_psgd(preconditioner, seed=seed, init_scale=1.0),
    optax.scale(-0.1),
  )


def _elmo(name, **options):
  return lambda seed: getattr(gen_optax, f"elmo_{name}")(**options)


def _tracked(seed):
  track = gen_optax.track_lipschitz(subspace=(1, 1), every=2)
  return optax.chain(track, optax.adam(0.1))


def _router(states, pair):
  return lambda seed: gen_optax.amos_router(
    pair(), states=states, threshold=("quantile", 0.3), every=2, seed=seed
  )


def _partition(seed):
  groups = {"x": gen_optax.psgd_xmat(0.1, seed=seed), "y": optax.adam(0.1)}
  return gen_optax.with_full_params(
    optax.partition(groups, {"w": "x", "v": "y"})
  )


TRANSFORMS = {
  "gen_sgd": _gen("gen_sgd"),
  "gen_momentum, forward": _gen("gen_momentum", estimator="forward"),
  "gen_adam, every 3": _gen("gen_adam", every=3, dense_start=2),
  "gen_adamw, fit, horizon": _gen(
    "gen_adamw", estimator="fit", fresh_slope=False, horizon=20
  ),
  "gen_lion, hvp": _gen("gen_lion", estimator="hvp"),
  "gen_muon, average": _gen("gen_muon", average=True),
  "gen_adam, injected": _injected,
  "scale_by_gen_paper": _paper,
  "psgd_diagonal": _psgd("diagonal", probability=0.5),
  "psgd_xmat, momentum": _psgd("xmat", momentum=0.9),
  "psgd_xmat, whitening": _psgd("xmat", pairs="whitening"),
  "psgd_butterfly, differences": _psgd("butterfly", pairs="finite_difference"),
  "psgd_lra": _psgd("lra", rank=2, probability=0.5),
  "psgd_dense": _psgd("dense", vector="rademacher"),
  "psgd_kron": _psgd("kron"),
  "scale_by_psgd, cyclic": _structure(psgd.blocks(psgd.cyclic(3))),
  "elmo_dense, injected": lambda seed: optax.inject_hyperparams(
    gen_optax.elmo_dense
  )(initial_sigma=0.5),
  "elmo_dense, eigen_arc": _elmo("dense", lipschitz="eigen_arc"),
  "elmo_lanczos, drift, every 3": _elmo(
    "lanczos", top=2, bottom=1, lipschitz=elmo.drift(0.5), every=3
  ),
  "elmo_lanczos, adam": _elmo(
    "lanczos", top=2, bottom=1, complement=optax.adam(0.1)
  ),
  "track_lipschitz": _tracked,
  "amos, run_all": _router(
    "run_all", lambda: [optax.sgd(0.1), amos.sophia(0.01)]
  ),
  "amos, frozen": _router(
    "frozen", lambda: {"sgd": optax.sgd(0.1), "adam": optax.adam(0.1)}
  ),
  # The chains guard their update by a loop, which is traced in eager calls too.
  "scale_by_gen, average_parameters": lambda seed: optax.chain(
    optax.sgd(1.0, momentum=0.9),
    gen_optax.scale_by_gen(),
    gen_optax.average_parameters(),
  ),
  "skip_implausible": lambda seed: gen_optax.skip_implausible(optax.adam(0.1)),
  "with_full_params": _partition,
  "micro-batches": _gen("gen_adam"),
}
RANDOM = [
  name
  for name in TRANSFORMS
  if ("psgd" in name or "amos" in name) and "whitening" not in name
]


def make_step(name, seed=0):
  """`step((params, state), t)` on batch t."""
  tx = optax.with_extra_args_support(TRANSFORMS[name](seed))
  if name == "micro-batches":
    in_parts = gen_optax.make_step(
      loss_fn, tx, donate=False, micro_batch_size=2, batch_argnums=(1, 2)
    )

  def step(carry, t):
    params, state = carry
    x, y = batch(t, params["w"].dtype)
    if name == "micro-batches":
      return in_parts(params, state, x, y)[:2]
    value_fn = functools.partial(loss_fn, x=x, y=y)
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = tx.update(
      grad, state, params, value=value, grad=grad, value_fn=value_fn
    )
    return optax.apply_updates(params, updates), state

  return step


def start(name, seed=0, dtype=jnp.float32):
  params = initial_params(dtype)
  return params, TRANSFORMS[name](seed).init(params)


def make_run(name):
  """`run(carry, first, stop)`: one compiled loop for all spans of steps.

  The carry is donated.
  """
  step = make_step(name)
  body = lambda t, carry: step(carry, t)
  loop = lambda carry, first, stop: jax.lax.fori_loop(first, stop, body, carry)
  return jax.jit(loop, donate_argnums=0)
