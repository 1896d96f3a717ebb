"""A small network, laid out over eight devices in the ways that people use."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gen_optax
from gen_optax import amos, psgd

DEVICES = 8
ROWS = 64


class Layout(NamedTuple):
  """Where the arrays of `Network` live.

  Attributes:
    mesh: the mesh's shape; its axes are "d" (data) and "m" (model).
    w, b, v: of each parameter.
    split: the axis that the hidden units are split over while they are used; a
      parameter that is sharded otherwise is gathered for each forward pass.
  """

  mesh: tuple[int, ...]
  w: P
  b: P
  v: P
  split: str | None = None

  def make_mesh(self, axis_type: AxisType) -> Mesh:
    names = ("d", "m")[: len(self.mesh)]
    return jax.make_mesh(
      self.mesh, names, axis_types=(axis_type,) * len(self.mesh)
    )


# The batch is sharded over "d" in all of them.
LAYOUTS = {
  "data parallel": Layout((8,), P(), P(), P()),
  "leading axes": Layout((8,), P("d"), P("d"), P("d")),
  "trailing axes": Layout((8,), P(None, "d"), P("d"), P(None, "d")),
  "mixed axes": Layout((8,), P("d"), P(), P(None, "d")),
  "tensor parallel": Layout((2, 4), P(None, "m"), P("m"), P("m"), "m"),
}


class Network(NamedTuple):
  """Two layers that learn to imitate others like them: a full batch."""

  params: Any
  x: jax.Array
  y: jax.Array


def network(inputs=8, hidden=16, outputs=8, dtype=jnp.float64) -> Network:
  keys = jax.random.split(jax.random.key(0), 5)
  normal = lambda key, *shape: jax.random.normal(key, shape, dtype)
  params = {
    "b": jnp.zeros(hidden, dtype),
    "v": normal(keys[0], hidden, outputs) * hidden**-0.5,
    "w": normal(keys[1], inputs, hidden) * inputs**-0.5,
  }
  x = normal(keys[2], ROWS, inputs)
  target = normal(keys[3], inputs, outputs) * inputs**-0.5
  return Network(params, x, jnp.tanh(x @ target))


def place(net: Network, layout: Layout, mesh: Mesh) -> Network:
  put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
  params = {
    name: put(net.params[name], getattr(layout, name)) for name in "bvw"
  }
  return Network(params, put(net.x, P("d")), put(net.y, P("d")))


def loss_fn(params, x, y, layout: Layout | None = None, explicit=False):
  """The mean square error; Explicit meshes are told where products live."""
  place, where = (lambda leaf, spec: leaf), (lambda *spec: None)
  if explicit:
    place, where = jax.sharding.reshard, P
  split = layout.split if layout else None
  w = place(params["w"], P(None, split))
  b = place(params["b"], P(split))
  v = place(params["v"], P(split, None))
  contract = lambda a, b, *spec: jnp.einsum(
    "ab,bc->ac", a, b, out_sharding=where(*spec)
  )
  hidden = jnp.tanh(contract(x, w, "d", split) + b)
  return jnp.mean((contract(hidden, v, "d", None) - y) ** 2)


def train(tx, net: Network, steps: int, layout=None, explicit=False):
  """Losses before each step, parameters and state, all from one scan.

  Returns what `jax.jit` makes of it: to be lowered, or called with `net`.
  """
  tx = optax.with_extra_args_support(tx)

  def run(net):
    def step(carry, _):
      params, state = carry
      value_fn = lambda p: loss_fn(p, net.x, net.y, layout, explicit)
      value, grad = jax.value_and_grad(value_fn)(params)
      updates, state = tx.update(
        grad, state, params, value=value, grad=grad, value_fn=value_fn
      )
      return (optax.apply_updates(params, updates), state), value

    carry = (net.params, tx.init(net.params))
    carry, losses = jax.lax.scan(step, carry, length=steps)
    return losses, *carry

  return jax.jit(run)


def gen(**options) -> Callable:
  return lambda: optax.chain(
    optax.adamw(1.0, weight_decay=1e-3), gen_optax.scale_by_gen(**options)
  )


def psgd_chain(name: str, **options) -> Callable:
  return lambda: getattr(gen_optax, f"psgd_{name}")(momentum=0.5, **options)


def router(**options) -> Callable:
  return lambda: gen_optax.amos_router(
    [optax.sgd(0.1), amos.sophia(0.01)],
    **dict(threshold=("quantile", 0.5), every=4) | options,
  )


# Of ELMO's bases of Lanczos vectors, and of PSGD's low rank.
ORDER, RANK = 8, 4
TRANSFORMS: dict[str, Callable[[], optax.GradientTransformation]] = {
  "gen, known_slope": gen(),
  "gen, fit by vmap": gen(estimator="fit"),
  "gen, fit by map": gen(estimator="fit", evaluate="map"),
  "gen, forward": gen(estimator="forward"),
  "gen, hvp": gen(estimator="hvp"),
  "gen, every 8": gen(every=8, dense_start=0),
  "gen_adamw": lambda: gen_optax.gen_adamw(),
  "scale_by_gen_paper": lambda: optax.chain(
    optax.adam(1.0), gen_optax.scale_by_gen_paper(1e-3)
  ),
  "psgd_diagonal": psgd_chain("diagonal"),
  "psgd_diagonal, whitening": psgd_chain("diagonal", pairs="whitening"),
  "psgd_xmat": psgd_chain("xmat"),
  "psgd_butterfly": psgd_chain("butterfly"),
  "psgd, neighbours": lambda: optax.chain(
    gen_optax.scale_by_psgd(psgd.blocks(psgd.neighbours(2))), optax.scale(-0.1)
  ),
  "psgd_lra": psgd_chain("lra", rank=RANK),
  "psgd_kron": psgd_chain("kron"),
  "psgd_dense": psgd_chain("dense"),
  "elmo_lanczos": lambda: gen_optax.elmo_lanczos(top=2, bottom=1, order=ORDER),
  "elmo_lanczos, adam": lambda: gen_optax.elmo_lanczos(
    top=2,
    bottom=1,
    order=ORDER,
    complement=optax.adam(1e-2),
    lipschitz="gradient",
    every=2,
  ),
  # By default its long steps along nearly flat eigenvectors magnify rounding,
  # to 1e-8 in 20 steps.
  "elmo_dense": lambda: gen_optax.elmo_dense(lipschitz=1.0),
  "track_lipschitz": lambda: optax.chain(
    gen_optax.track_lipschitz("drift", order=ORDER, every=2), optax.sgd(0.1)
  ),
  "amos_router": router(),
  "amos_router, chunks": router(granularity=("chunk", 4)),
  "amos_router, elements": router(granularity="element", threshold="newton"),
  "amos_router, frozen": router(states="frozen"),
  "average_parameters": lambda: optax.chain(
    optax.adam(1e-2), gen_optax.average_parameters()
  ),
  "skip_implausible": lambda: gen_optax.skip_implausible(optax.adam(1e-2)),
}
# They treat the parameters as one vector, on every device.
RAVELLED = ("psgd_dense", "elmo_dense")
