"""The optimizers that the fault campaign strikes, ours and others'."""

import optax

import gen_optax
from gen_optax import amos, psgd
from scripts.common import psgd_peer


def _eps(dtype: str) -> float:
  """optax's own 1e-8 is zero in float16, and Adam divides by it."""
  return 1e-4 if dtype == "float16" else 1e-8


def _adam(dtype: str):
  return optax.adam(0.03, eps=_eps(dtype))


def _pair(dtype: str):
  # At 0.02 Sophia swings: one healthy run in a thousand does not descend.
  return [optax.sgd(0.1), amos.sophia(0.01, eps=_eps(dtype))]


def _gen(dtype: str) -> dict:
  eps = _eps(dtype)
  sgd = gen_optax.gen_sgd
  return {
    "gen_sgd": sgd,
    # At 0.9 one healthy run in a thousand does not descend in 20 steps.
    "gen_momentum": lambda: gen_optax.gen_momentum(momentum=0.8),
    "gen_adam": lambda: gen_optax.gen_adam(eps=eps),
    "gen_adamw": lambda: gen_optax.gen_adamw(eps=eps),
    "gen_lion": gen_optax.gen_lion,
    "generalized_newton(rmsprop)": lambda: gen_optax.generalized_newton(
      optax.rmsprop(1.0, eps=eps)
    ),
    "gen_sgd, fit": lambda: sgd(estimator="fit"),
    "gen_sgd, forward": lambda: sgd(estimator="forward"),
    "gen_sgd, hvp": lambda: sgd(estimator="hvp"),
    "gen_adam, every=4": lambda: gen_optax.gen_adam(eps=eps, every=4),
    "gen_adamw, average": lambda: optax.chain(
      gen_optax.gen_adamw(eps=eps), gen_optax.average_parameters()
    ),
  }


def _psgd() -> dict:
  return {
    "psgd_diagonal": gen_optax.psgd_diagonal,
    "psgd_xmat": gen_optax.psgd_xmat,
    "psgd_butterfly": gen_optax.psgd_butterfly,
    "psgd_lra": lambda: gen_optax.psgd_lra(rank=3),
    "psgd_dense": gen_optax.psgd_dense,
    "psgd_kron": gen_optax.psgd_kron,
    "psgd_xmat, momentum": lambda: gen_optax.psgd_xmat(momentum=0.9),
    "psgd_xmat, whitening": lambda: gen_optax.psgd_xmat(pairs="whitening"),
    "psgd_xmat, finite_difference": lambda: gen_optax.psgd_xmat(
      pairs="finite_difference"
    ),
    "psgd xmat, then GeN": lambda: optax.chain(
      gen_optax.scale_by_psgd(psgd.xmat()),
      optax.scale(-1.0),
      gen_optax.scale_by_gen(),
    ),
  }


def ours(dtype: str = "float32") -> dict:
  """Name to a function that builds it, of all that promise to survive."""
  guard = gen_optax.skip_implausible
  router = gen_optax.amos_router
  return {
    **_gen(dtype),
    **_psgd(),
    "elmo_dense": gen_optax.elmo_dense,
    "elmo_lanczos": lambda: gen_optax.elmo_lanczos(top=2, bottom=1),
    "guard(track_lipschitz, adam)": lambda: guard(
      optax.chain(gen_optax.track_lipschitz(every=3), _adam(dtype))
    ),
    "guard(amos_router)": lambda: guard(router(_pair(dtype), every=3)),
    "guard(amos_router, frozen)": lambda: guard(
      router(_pair(dtype), every=3, states="frozen")
    ),
    "guard(adam, average)": lambda: guard(
      optax.chain(_adam(dtype), gen_optax.average_parameters())
    ),
  }


def limits(dtype: str = "float32") -> dict:
  """Ours without the guard, and the paper's rule, which has none."""
  eps = _eps(dtype)
  return {
    "bare sgd, scale_by_gen": lambda: optax.chain(
      optax.sgd(1.0), gen_optax.scale_by_gen()
    ),
    "bare adam, scale_by_gen": lambda: optax.chain(
      optax.adam(1.0, eps=eps), gen_optax.scale_by_gen()
    ),
    "bare sgd, scale_by_gen_paper": lambda: optax.chain(
      optax.sgd(1.0), gen_optax.scale_by_gen_paper(0.01)
    ),
    "bare track_lipschitz, adam": lambda: optax.chain(
      gen_optax.track_lipschitz(every=3), _adam(dtype)
    ),
    "bare amos_router": lambda: gen_optax.amos_router(_pair(dtype), every=3),
  }


def peers(dtype: str = "float32") -> dict:
  """Others' optimizers under the same faults, with rates that train."""
  search = lambda tx: gen_optax.keep_extra_args(tx, "value", "grad", "value_fn")
  sophia = lambda: gen_optax.rename_extra_args(
    gen_optax.keep_extra_args(
      optax.contrib.sophia(0.01, eps=_eps(dtype)), "obj_fn"
    ),
    obj_fn="value_fn",
  )
  methods = {
    "adam": lambda: _adam(dtype),
    "apply_if_finite(adam)": lambda: optax.apply_if_finite(_adam(dtype), 5),
    "sgd, backtracking": lambda: search(
      optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15))
    ),
    "lbfgs, zoom": lambda: search(optax.lbfgs()),
    "sophia": sophia,
    "prodigy": lambda: optax.contrib.prodigy(1.0, eps=_eps(dtype)),
    "dadapt_adamw": lambda: optax.contrib.dadapt_adamw(1.0, eps=_eps(dtype)),
  }
  if psgd_peer.load():
    for name in ("xmat", "lra"):
      methods[f"psgd_jax {name}"] = lambda name=name: optax.chain(
        gen_optax.keep_extra_args(psgd_peer.transform(name, 1.0)),
        optax.scale(-0.03),
      )
  return methods
