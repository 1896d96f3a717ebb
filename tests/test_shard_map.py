"""Inside `shard_map` each device sees its part of the batch.

A closure that is averaged over the parts trains as one device does; one that is
not is refused while it is traced, by whoever reads it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gen_optax
from scripts.bench import layouts
from scripts.bench.layouts import TRANSFORMS

STEPS = 20
READS_NO_CLOSURE = {
  "psgd_diagonal, whitening",
  "average_parameters",
  "skip_implausible",
}
READERS = [name for name in TRANSFORMS if name not in READS_NO_CLOSURE]
# One of each kind in the quick lane.
QUICK = ("gen_adamw", "psgd_diagonal", "elmo_lanczos", "amos_router")


def on_parts(run, net):
  """`run(params, x, y)` on eight devices, each with its part of the batch."""
  mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
  specs = (P(), P("d"), P("d"))
  mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P())
  return jax.jit(mapped)(net.params, net.x, net.y)


def average(value_fn):
  return gen_optax.average_over(value_fn, "d")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in READERS
  ],
)
def test_an_averaged_closure_equals_one_device(x64, name):
  net = layouts.network(hidden=8)
  tx = TRANSFORMS[name]()

  def run(params, x, y, adapt=average):
    loss = adapt(lambda p: layouts.loss_fn(p, x, y))
    return running.train(tx, loss, params, STEPS)[0]

  alone = run(*net, adapt=lambda value_fn: value_fn)
  np.testing.assert_allclose(
    on_parts(run, net), alone, rtol=0, atol=1e-9 * alone[0]
  )


MORE_READERS = {
  "psgd, differences": lambda: gen_optax.psgd_diagonal(
    pairs="finite_difference"
  ),
  "elmo, no safeguard": lambda: gen_optax.elmo_dense(safeguarded=False),
  **{
    f"track_lipschitz, {name}": functools.partial(
      gen_optax.track_lipschitz, name
    )
    for name in ("third", "gradient", "eigen_arc")
  },
  "amos, labels drawn": lambda: gen_optax.amos_router(
    [optax.sgd(0.1)] * 2, curvature="gauss_newton_bartlett"
  ),
}


@pytest.mark.parametrize("name", [*READERS, *MORE_READERS])
def test_a_closure_that_is_not_averaged_is_refused(name):
  net = layouts.network(hidden=8, dtype=jnp.float32)
  tx = optax.with_extra_args_support((TRANSFORMS | MORE_READERS)[name]())

  def run(params, x, y):
    part = lambda p: layouts.loss_fn(p, x, y)
    # All else is as it should be.
    value, grad = jax.value_and_grad(average(part))(params)
    updates, _ = tx.update(
      *(grad, tx.init(params), params),
      value=value,
      grad=grad,
      value_fn=part,
      logits_fn=lambda p: x @ p["w"],
    )
    return updates

  with pytest.raises(ValueError, match=r"average_over\(value_fn, 'd'\)"):
    on_parts(run, net)


def test_parameters_of_their_own_may_have_a_loss_of_their_own():
  """Replicas side by side, each on its own data."""
  net = layouts.network(hidden=8, dtype=jnp.float32)
  mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))

  def run(factor, x, y):
    params = jax.tree.map(lambda p: p * factor[0], net.params)
    gradient, _ = gen_optax.hvp(
      lambda p: layouts.loss_fn(p, x, y), params, params
    )
    return gradient["b"][None]

  mapped = jax.shard_map(run, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
  gradients = jax.jit(mapped)(jnp.ones(8), net.x, net.y)
  whole = jax.grad(layouts.loss_fn)(net.params, net.x, net.y)["b"]
  np.testing.assert_allclose(gradients.mean(0), whole, rtol=1e-4, atol=1e-6)
  assert jnp.all(gradients[0] != gradients[1])


def test_a_second_axis_that_was_forgotten_is_named():
  net = layouts.network(hidden=8, dtype=jnp.float32)
  axes = ("d", "m")
  mesh = jax.make_mesh((2, 4), axes, axis_types=(AxisType.Auto,) * 2)

  def run(params, x, y):
    part = average(lambda p: layouts.loss_fn(p, x, y))
    return gen_optax.hvp(part, params, params)[1]

  specs = (P(), P(axes), P(axes))
  mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P())
  with pytest.raises(ValueError, match="mapped axis 'm'"):
    jax.jit(mapped)(net.params, net.x, net.y)
