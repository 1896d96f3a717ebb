"""PSGD with parameters sharded over four simulated devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from network import FEATURES, TARGETS, initial_params
from running import place_on, train

import gen_optax
from gen_optax import psgd

STRUCTURES = {
  "diagonal": psgd.diagonal,
  "xmat": psgd.xmat,
  "butterfly": psgd.butterfly,
  "neighbours": lambda: psgd.blocks(psgd.neighbours(2)),
  "low rank": lambda: psgd.low_rank(3),
}
structures = pytest.mark.parametrize("name", STRUCTURES)


def contract(x, y, mesh):
  """x @ y; on an Explicit mesh the result says where it lives."""
  explicit = mesh is not None and mesh.are_all_axes_explicit
  out = PartitionSpec() if explicit else None
  return jnp.einsum("ab,bc->ac", x, y, out_sharding=out)


def mesh_loss(params, mesh=None):
  x, y = FEATURES.astype(jnp.float64), TARGETS.astype(jnp.float64)
  hidden = contract(x, params["w"], mesh)
  bias = params["b"]
  if mesh is not None and mesh.are_all_axes_explicit:
    bias = jax.sharding.reshard(bias, PartitionSpec())
  hidden = jnp.tanh(hidden + bias)
  return jnp.mean((contract(hidden, params["v"], mesh) - y) ** 2)


def mesh_optimizer(name):
  stage = gen_optax.scale_by_psgd(STRUCTURES[name](), momentum=0.5)
  return optax.chain(stage, optax.scale(-0.1))


@functools.cache
def on_one_device(name):
  return train(mesh_optimizer(name), mesh_loss, initial_params(jnp.float64), 8)[
    0
  ]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@structures
def test_on_a_mesh_equals_one_device(x64, name, axis_type, axis):
  mesh = jax.make_mesh((4,), ("d",), axis_types=(axis_type,))
  params = initial_params(jnp.float64)
  tx = mesh_optimizer(name)
  with jax.set_mesh(mesh):
    sharded = jax.tree.map(place_on(mesh, axis), params)
    loss = functools.partial(mesh_loss, mesh=mesh)
    on_mesh, _, _ = train(tx, loss, sharded, 8)
  np.testing.assert_allclose(on_mesh, on_one_device(name), rtol=1e-10)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@structures
def test_no_parameter_is_gathered(name, axis_type, axis):
  """The stage alone: what the loss gathers is the loss's own affair."""
  mesh = jax.make_mesh((4,), ("d",), axis_types=(axis_type,))
  tx = optax.chain(
    gen_optax.scale_by_psgd(
      STRUCTURES[name](), pairs="whitening", momentum=0.9
    ),
    optax.scale(-0.1),
  )
  with jax.set_mesh(mesh):
    params = jax.tree.map(place_on(mesh, axis), initial_params())
    state = tx.init(params)
    text = jax.jit(tx.update).lower(params, state, params).compile().as_text()
  assert "all-gather" not in text
  assert "all-reduce" in text
  for leaf, rows in zip(
    jax.tree.leaves(params),
    jax.tree.leaves(state[0].momentum),
    strict=True,
  ):
    assert leaf.sharding.is_equivalent_to(rows.sharding, leaf.ndim)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["xmat", "low rank"])
def test_a_default_step_gathers_no_parameter(name, axis):
  """With the Hessian-vector product of a loss that is local to each device."""
  mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
  loss = lambda p: sum(jnp.sum(jnp.cos(x) * x) for x in jax.tree.leaves(p))
  tx = gen_optax.scale_by_psgd(STRUCTURES[name]())
  params = jax.tree.map(place_on(mesh, axis), initial_params())

  def step(grad, state, params):
    return tx.update(grad, state, params, value_fn=loss)

  lowered = jax.jit(step).lower(params, tx.init(params), params)
  assert "all-gather" not in lowered.compile().as_text()
