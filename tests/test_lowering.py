"""Every transform lowers for TPU and CUDA, on a machine that has neither."""

import jax
import jax.numpy as jnp
import optax
import pytest

import gen_optax
from gen_optax import psgd


def after(stage):
  return optax.chain(optax.scale(-1.0), stage)


psgd_stage = gen_optax.scale_by_psgd
TRANSFORMS = {
  "scale_by_gen": after(gen_optax.scale_by_gen()),
  "scale_by_gen forward": after(gen_optax.scale_by_gen(estimator="forward")),
  "scale_by_gen hvp": after(gen_optax.scale_by_gen(estimator="hvp")),
  "scale_by_gen fit": after(gen_optax.scale_by_gen(estimator="fit")),
  "scale_by_gen_paper": after(gen_optax.scale_by_gen_paper(1e-3)),
  "skip_implausible": gen_optax.skip_implausible(optax.adam(1e-3)),
  "average_parameters": after(gen_optax.average_parameters()),
  **{
    f"gen_{name}": getattr(gen_optax, f"gen_{name}")()
    for name in ("sgd", "momentum", "adam", "adamw", "nadamw", "lion", "muon")
  },
  **{
    f"psgd_{name}": getattr(gen_optax, f"psgd_{name}")()
    for name in ("diagonal", "xmat", "butterfly", "lra", "dense", "kron")
  },
  "psgd neighbours": psgd_stage(psgd.blocks(psgd.neighbours(3))),
  "psgd cyclic": psgd_stage(psgd.blocks(psgd.cyclic(5))),
  "psgd triangular": psgd_stage(psgd.dense(triangular=True)),
  "psgd finite_difference": psgd_stage(
    psgd.diagonal(), pairs="finite_difference"
  ),
  "psgd whitening": psgd_stage(psgd.diagonal(), pairs="whitening"),
  "elmo_dense": gen_optax.elmo_dense(),
  "elmo_lanczos": gen_optax.elmo_lanczos(),
  "elmo adam outside": gen_optax.scale_by_elmo(
    subspace=(2, 1), complement=optax.adam(1e-3), every=3
  ),
  **{
    f"elmo {lipschitz}": gen_optax.scale_by_elmo(lipschitz, every=2)
    for lipschitz in ("drift", "third", "gradient", "eigen_arc")
  },
  "track_lipschitz": gen_optax.track_lipschitz(),
  **{
    f"amos_router {states}": gen_optax.amos_router(
      [optax.sgd(0.1), gen_optax.amos.sophia(1e-3)], states=states
    )
    for states in ("run_all", "frozen")
  },
}


def loss_fn(params):
  hidden = jnp.tanh(params["w"] @ jnp.ones((4, 3)) + params["b"][:, None])
  return jnp.mean(hidden**2)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_lowers_without_a_device(name):
  tx = optax.with_extra_args_support(TRANSFORMS[name])
  params = {"w": jnp.ones((6, 4)), "b": jnp.zeros(6)}

  def step(params, state):
    value, grad = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(
      grad, state, params, value=value, grad=grad, value_fn=loss_fn
    )
    return optax.apply_updates(params, updates), state

  state = jax.eval_shape(tx.init, params)
  text = (
    jax.jit(step)
    .trace(params, state)
    .lower(lowering_platforms=("tpu", "cuda"))
    .as_text()
  )
  # A call into this machine's LAPACK would be of no use there.
  assert "lapack" not in text


def test_every_exported_transform_is_here():
  built = {name.split()[0] for name in TRANSFORMS}
  makers = {
    name
    for name in dir(gen_optax)
    if name.startswith(("scale_by", "gen_", "psgd_", "elmo_", "track_"))
  }
  assert makers - {"scale_by_psgd", "scale_by_elmo"} <= built
