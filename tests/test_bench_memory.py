"""What a compiled step holds in memory, by XLA's account of its buffers.

A batch that holds about as much as the parameters do.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import gen_optax
from scripts.bench import memory, programs

GEN = {c.name: c for c in memory.GEN if c.points}


def mlp_loss(params, batch):
  x, y = batch
  *hidden, last = params
  for weights in hidden:
    x = jnp.tanh(x @ weights)
  return jnp.mean((x @ last - y) ** 2)


def mlp() -> programs.Problem:
  widths = [32, 64, 64, 64, 8]
  shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
  params = [shape(n, m) for n, m in zip(widths[:-1], widths[1:], strict=True)]
  batches = (shape(8, 64, 32), shape(8, 64, 8))
  return programs.Problem("MLP", mlp_loss, params, batches)


PROBLEMS = {
  "mlp": mlp,
  "transformer": lambda: programs.gpt(
    width=64, blocks=1, length=16, batch_size=2
  ),
}


@functools.cache
def compiled_base(name):
  problem = PROBLEMS[name]()
  forward = memory.forward_memory(problem)
  return problem, forward, memory.step_memory(problem, optax.adam(1e-3))


@pytest.mark.parametrize(
  "name, candidate",
  [
    *(("mlp", name) for name in GEN),
    ("transformer", "GeN"),
  ],
)
def test_gen_holds_a_point_of_the_line_for_each_probe(name, candidate):
  """Beside them two copies in the state: the last update, and the start."""
  problem, forward, base = compiled_base(name)
  candidate = GEN[candidate]
  held = memory.step_memory(problem, candidate.make())
  most = memory.bound(candidate, forward)
  assert held.temporaries - base.temporaries <= most
  state = 0 if candidate.name == "GeN, no fresh slope" else 2
  assert held.arguments - base.arguments == pytest.approx(state, abs=0.01)


DONATED = {
  "GeN": gen_optax.gen_adam,
  "PSGD": lambda: gen_optax.psgd_xmat(0.1),
  "AMOS": lambda: memory.routed("frozen"),
}


@pytest.mark.parametrize("name", DONATED)
def test_what_is_donated_is_written_in_place(name):
  """Without donation each step holds the parameters and the state twice."""
  problem, tx = mlp(), DONATED[name]()
  state = jax.eval_shape(tx.init, problem.params)
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  size = size / (4 * problem.size)
  for donate, aliased in (((0, 1), 1 + size), ((0,), 1.0)):
    held = memory.step_memory(problem, tx, donate)
    assert held.outputs == pytest.approx(1 + size, abs=0.02)
    assert held.aliased == pytest.approx(aliased, abs=0.02)
