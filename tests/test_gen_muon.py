"""GeN on Muon and on NAdamW: the ready-made chains, and a network with kernels.

What holds for every chain stands in test_conformance.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running
from flax import linen
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from network import initial_params, loss_fn
from sklearn.datasets import load_digits

import gen_optax

MATRIX = optax.contrib.MuonDimensionNumbers()
KERNEL = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)

# Every option, with a value that is not the default.
OPTIONS = {
  "muon": dict(
    beta=0.8,
    ns_steps=3,
    weight_decay=0.1,
    adam_b1=0.7,
    adam_b2=0.9,
    nesterov=False,
    muon_weight_dimension_numbers={"b": None, "v": None, "w": MATRIX},
    consistent_rms=None,
  ),
  "nadamw": dict(
    b1=0.7,
    b2=0.9,
    eps=1e-3,
    weight_decay=0.1,
    mask={"b": False, "v": True, "w": True},
  ),
}
DEFAULTS = {"muon": dict(consistent_rms=0.2), "nadamw": {}}
BASES = {"muon": optax.contrib.muon, "nadamw": optax.nadamw}


@pytest.mark.parametrize("given", ["nothing", "everything"])
@pytest.mark.parametrize("name", BASES)
def test_the_chain_is_gen_behind_the_optimizer_of_optax(name, given):
  options = OPTIONS[name] if given == "everything" else {}
  ready = getattr(gen_optax, f"gen_{name}")(**options)
  base = BASES[name](1.0, **DEFAULTS[name] | options)
  by_hand = gen_optax.generalized_newton(base)
  left, right = (
    running.train(tx, loss_fn, initial_params(), 12) for tx in (ready, by_hand)
  )
  np.testing.assert_array_equal(left[0], right[0])
  assert left[0][-1] < 0.8 * left[0][0]


def first_update(tx):
  params = initial_params()
  value, grad = jax.value_and_grad(loss_fn)(params)
  updates, _ = jax.jit(
    lambda p: tx.update(grad, tx.init(p), p, value=value, value_fn=loss_fn)
  )(params)
  return updates


def test_nadamw_is_not_adamw():
  ends = [
    running.train(make(), loss_fn, initial_params(), 6)[0][-1]
    for make in (gen_optax.gen_adamw, gen_optax.gen_nadamw)
  ]
  assert ends[0] != ends[1]


@pytest.mark.parametrize("share", [0.2, 0.05])
def test_matrices_move_a_share_of_what_the_rest_moves(share):
  """Adam's first step is the rate in every entry; Muon's a share of it.

  Newton-Schulz brings singular values to between 0.7 and 1.2, not to 1.
  """
  updates = first_update(
    gen_optax.gen_muon(consistent_rms=share, nesterov=False)
  )
  rms = {k: float(jnp.sqrt(jnp.mean(u**2))) for k, u in updates.items()}
  sizes = np.linalg.svd(updates["w"], compute_uv=False)
  assert sizes.min() > 0.5 * sizes.max()
  for name in ("v", "w"):
    assert 0.6 * share < rms[name] / rms["b"] < 1.3 * share


class Convolutions(linen.Module):
  @linen.compact
  def __call__(self, x):
    x = linen.relu(linen.Conv(8, (3, 3), strides=2)(x))
    x = linen.relu(linen.Conv(16, (3, 3), strides=2)(x))
    return linen.Dense(10)(x.reshape(len(x), -1))


def by_axes(params):
  """Kernels with their window and input as rows, dense ones as they are."""
  kinds = {1: None, 2: MATRIX, 4: KERNEL}
  return jax.tree.map(lambda p: kinds[p.ndim], params)


@pytest.mark.parametrize("dimensions", [None, by_axes])
def test_trains_convolutions_and_biases(dimensions):
  digits = load_digits()
  images = jnp.asarray(digits.images[:1024, :, :, None], jnp.float32) / 16
  labels = jnp.asarray(digits.target[:1024])
  model = Convolutions()
  params = model.init(jax.random.key(0), images[:1])
  tx = gen_optax.gen_muon(
    muon_weight_dimension_numbers=dimensions, average=True
  )

  def loss(params, rows):
    logits = model.apply(params, images[rows])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels[rows]
    ).mean()

  def body(carry, key):
    rows = jax.random.choice(key, 896, (64,))
    *carry, value = running.step(tx, lambda p: loss(p, rows), *carry)
    return tuple(carry), value

  keys = jax.random.split(jax.random.key(1), 120)
  carry = (params, tx.init(params))
  (end, state), values = jax.jit(lambda c: jax.lax.scan(body, c, keys))(carry)
  assert jnp.all(jnp.isfinite(values))
  # All leaves moved, and 128 images that no step saw are told apart.
  moved = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), end, params)
  assert not any(jax.tree.leaves(moved))
  held_out = jnp.arange(896, 1024)
  assert loss(params, held_out) > 2
  for at in (end, gen_optax.evaluate_at(state, end)):
    assert loss(at, held_out) < 1.0
  # Muon keeps one moment for what it moves, and none for the rest.
  muon = optax.tree.get(state, "MuonState")
  orders = {leaf.ndim for leaf in jax.tree.leaves(muon.mu)}
  assert orders == ({2} if dimensions is None else {2, 4})


@pytest.mark.parametrize(
  "axis_type, spec",
  [
    (AxisType.Auto, P(None, "d")),
    (AxisType.Auto, P("d")),
    (AxisType.Explicit, P()),
  ],
)
def test_on_a_mesh_equals_one_device(x64, axis_type, spec):
  """Replicated matrices alone on an Explicit mesh: that is optax's."""
  params = initial_params(jnp.float64)
  alone, end, _ = running.train(gen_optax.gen_muon(), loss_fn, params, 8)
  mesh = jax.make_mesh((4,), ("d",), axis_types=(axis_type,))
  with jax.set_mesh(mesh):
    sharded = jax.device_put(
      params,
      {
        "b": NamedSharding(mesh, P()),
        "v": NamedSharding(mesh, P()),
        "w": NamedSharding(mesh, spec),
      },
    )
    losses, found, _ = running.train(gen_optax.gen_muon(), loss_fn, sharded, 8)
  np.testing.assert_allclose(losses, alone, rtol=1e-9)
  kept = NamedSharding(mesh, spec)
  assert found["w"].sharding.is_equivalent_to(kept, 2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), found, end
  )


def test_without_matrices_and_without_anything():
  loss = lambda p: jnp.sum((p["x"] - 3.0) ** 2)
  losses, *_ = running.train(
    gen_optax.gen_muon(), loss, {"x": jnp.zeros(3)}, 40
  )
  assert losses[-1] < 0.05 * losses[0]
  losses, *_ = running.train(gen_optax.gen_muon(), lambda p: 1.0, {}, 2)
  np.testing.assert_array_equal(losses, 1.0)
