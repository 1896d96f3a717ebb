"""One trace serves a whole training, whatever the batches hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import step
from test_lowering import TRANSFORMS

STEPS = 1000
# One of each kind of state and of loop; their options change neither.
NAMES = (
  "gen_adam",
  "scale_by_gen forward",
  "scale_by_gen_paper",
  "average_parameters",
  "psgd_xmat",
  "psgd_lra",
  "psgd_kron",
  "psgd whitening",
  "elmo_dense",
  "elmo_lanczos",
  "track_lipschitz",
  "amos_router run_all",
  "amos_router frozen",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_steps_are_one_trace(name):
  tx, traces = TRANSFORMS[name], []

  @jax.jit
  def train_step(params, state, batch):
    traces.append(1)
    loss = lambda p: jnp.mean((p["w"] @ batch - p["b"]) ** 2)
    return step(tx, loss, params, state)[:2]

  params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(2)}
  state = tx.init(params)
  batches = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
  for t in range(STEPS):
    params, state = train_step(params, state, batches[t % 10])
  assert len(traces) == 1
