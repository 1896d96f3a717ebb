"""Every transform on eight simulated devices: the same path, and what it sends.

The quick lane gives each transform one layout, so that every layout meets both
kinds of axes several times; `-m slow` runs the full product.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from gen_optax.oracle.hessian import hvp
from gen_optax.oracle.line import exact_by_forward_mode
from scripts.bench import hlo, layouts
from scripts.bench.layouts import LAYOUTS, TRANSFORMS

STEPS = 20
PLACES = list(itertools.product(LAYOUTS, (AxisType.Auto, AxisType.Explicit)))
LEAVES = 3


class Sends(NamedTuple):
  """What a step asks of the closure, and what the transform sends itself.

  Attributes:
    forward, gradient, line, hvp: evaluations of the closure on a step on which
      everything is due; `line` is slope and curvature by forward mode.
    lazy: whether all but one gradient is due on some steps alone.
    sums: numbers of its own all-reduces for each leaf.
    gathers: numbers of its own all-gathers.
    moves: its own permutations, in parts of the parameters on one device.

  The last three where leaves are sharded. Where they are not it sends nothing.
  """

  forward: int = 0
  gradient: int = 1
  line: int = 0
  hvp: int = 0
  lazy: bool = True
  sums: int = 0
  gathers: int = 0
  moves: int = 0


# All squares of the axes of all leaves: the factors of `psgd.kron`.
FACTORS = 2 * 8**2 + 3 * 16**2
SIZE = 2 * 8 * 16 + 16
LANCZOS = Sends(forward=1, hvp=layouts.ORDER, sums=2 * layouts.ORDER**2)
PSGD = Sends(hvp=1, sums=15)
AMOS = Sends(hvp=2, sums=16)
SENDS = {
  "gen, known_slope": Sends(forward=1, sums=6),
  "gen, fit by vmap": Sends(forward=2, sums=6),
  "gen, fit by map": Sends(forward=2, sums=6),
  "gen, forward": Sends(line=1, forward=1, sums=6),
  "gen, hvp": Sends(gradient=2, hvp=1, forward=1, sums=8),
  "gen, every 8": Sends(forward=1, sums=5),
  "gen_adamw": Sends(forward=1, sums=6),
  "scale_by_gen_paper": Sends(forward=2, lazy=False),
  "psgd_diagonal": PSGD,
  "psgd_diagonal, whitening": PSGD._replace(hvp=0),
  "psgd_xmat": PSGD._replace(moves=9),
  "psgd_butterfly": PSGD._replace(moves=10),
  # Ten exchanges to both sides, of the leaves whose pairs lie apart.
  "psgd, neighbours": PSGD._replace(moves=15),
  "psgd_lra": PSGD._replace(sums=10 * layouts.RANK**2),
  "psgd_kron": PSGD._replace(
    sums=10 + (SIZE + FACTORS) // LEAVES, gathers=FACTORS
  ),
  "psgd_dense": PSGD,
  "elmo_lanczos": LANCZOS._replace(lazy=False, sums=LANCZOS.sums + 4),
  "elmo_lanczos, adam": LANCZOS._replace(hvp=layouts.ORDER + 9),
  "elmo_dense": Sends(forward=1, hvp=136, lazy=False),
  "track_lipschitz": LANCZOS._replace(forward=0),
  "amos_router": AMOS,
  "amos_router, chunks": AMOS._replace(gathers=SIZE, sums=19),
  "amos_router, elements": AMOS._replace(sums=22),
  "amos_router, frozen": AMOS,
  "average_parameters": Sends(),
  "skip_implausible": Sends(sums=1),
}


def test_every_transform_is_held_to_something():
  assert set(SENDS) == set(TRANSFORMS)


def network(name):
  """Small enough for the Hessian's n^2 and 20 eigendecompositions."""
  return layouts.network(hidden=8 if name == "elmo_dense" else 16)


class Run(NamedTuple):
  """What a compiled run of `STEPS` steps left, and its text."""

  losses: Any
  params: Any
  state: Any
  text: str
  start: Any


@functools.cache
def on_one_device(name) -> Run:
  net = network(name)
  run = layouts.train(TRANSFORMS[name](), net, STEPS)
  return Run(*run(net), "", net.params)


@functools.cache
def on_a_mesh(name, layout_name, axis_type) -> Run:
  layout = LAYOUTS[layout_name]
  mesh = layout.make_mesh(axis_type)
  with jax.set_mesh(mesh):
    net = layouts.place(network(name), layout, mesh)
    run = layouts.train(
      TRANSFORMS[name](), net, STEPS, layout, axis_type == AxisType.Explicit
    )
    compiled = run.lower(net).compile()
    return Run(*compiled(net), compiled.as_text(), net.params)


def cases():
  """Each transform at one place in the quick lane, at all others in the slow.

  The places of consecutive transforms differ in layout and in kind of axes.
  """
  for i, name in enumerate(TRANSFORMS):
    for place in PLACES:
      quick = place == PLACES[3 * i % len(PLACES)]
      yield pytest.param(
        name, *place, marks=[] if quick else [pytest.mark.slow]
      )


CASES = list(cases())
everywhere = pytest.mark.parametrize("name, layout, axis_type", CASES)


def assert_same(actual, expected, tolerance=1e-9):
  """Equal to within a part of the largest entry."""
  size = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  close = functools.partial(
    np.testing.assert_allclose, rtol=0, atol=tolerance * size
  )
  jax.tree.map(close, actual, expected)


@everywhere
def test_on_a_mesh_equals_one_device(x64, name, layout, axis_type):
  alone, run = on_one_device(name), on_a_mesh(name, layout, axis_type)
  assert_same(run.losses, alone.losses)
  assert_same(run.params, alone.params)
  assert alone.losses[-1] < 0.9 * alone.losses[0]


@pytest.mark.parametrize(
  "name, layout, axis_type",
  [case for case in CASES if case.values[0] not in layouts.RAVELLED],
)
def test_state_is_sharded_as_the_parameters_are(x64, name, layout, axis_type):
  run = on_a_mesh(name, layout, axis_type)
  part = lambda x: x.sharding.shard_shape(x.shape)[-2:]
  parts = {p.shape: part(p) for p in run.start.values() if p.ndim == 2}
  like = [x for x in jax.tree.leaves(run.state) if x.shape[-2:] in parts]
  assert all(part(x) == parts[x.shape[-2:]] for x in like)
  for name in ("v", "w"):
    assert part(run.params[name]) == parts[run.params[name].shape]


# --- what is sent -------------------------------------------------------------


@functools.cache
def closure_sends(layout_name, axis_type, hidden):
  """What one question to the closure sends, as numbers by kind."""
  layout = LAYOUTS[layout_name]
  mesh = layout.make_mesh(axis_type)
  explicit = axis_type == AxisType.Explicit

  def loss_of(net):
    return lambda p: layouts.loss_fn(p, net.x, net.y, layout, explicit)

  questions = {
    "forward": lambda net, v: loss_of(net)(net.params),
    "gradient": lambda net, v: jax.value_and_grad(loss_of(net))(net.params),
    "line": lambda net, v: exact_by_forward_mode(loss_of(net), net.params, v),
    "hvp": lambda net, v: hvp(loss_of(net), net.params, v)[1],
  }
  with jax.set_mesh(mesh):
    net = layouts.place(layouts.network(hidden=hidden), layout, mesh)
    texts = {
      name: jax.jit(ask).lower(net, net.params).compile().as_text()
      for name, ask in questions.items()
    }
  return {name: numbers(text) for name, text in texts.items()}


def numbers(text, *, lazy=None, steps=1):
  """Numbers that one step sends, by kind; one trip of what is lazy."""
  found = hlo.collectives_of(text, steps)
  return {
    kind: hlo.total(found, lazy=lazy, kind=kind).numbers for kind in hlo.KINDS
  }


@everywhere
def test_what_a_step_sends(x64, name, layout, axis_type):
  """That of the closure, and what the docstrings say beside it."""
  sends, run = SENDS[name], on_a_mesh(name, layout, axis_type)
  asked = closure_sends(layout, axis_type, run.start["b"].size)
  total = {
    kind: sum(getattr(sends, what) * asked[what][kind] for what in asked)
    for kind in hlo.KINDS
  }
  own = dict.fromkeys(hlo.KINDS, 0.0)
  if layout != "data parallel":
    part = sum(
      np.prod(p.sharding.shard_shape(p.shape)) for p in run.start.values()
    )
    own["all-reduce"] = LEAVES * sends.sums
    own["all-gather"] = sends.gathers
    own["collective-permute"] = sends.moves * part
    if name in layouts.RAVELLED:
      size = sum(p.size for p in run.start.values())
      own = dict.fromkeys(own, 6 * size**2)
  sent = numbers(run.text, steps=STEPS)
  for kind in sent:
    assert sent[kind] <= total[kind] + own[kind], (kind, sent, total)
  assert sent["all-reduce"] > 0
  if sends.lazy:
    always = numbers(run.text, lazy=False, steps=STEPS)
    for kind in always:
      limit = asked["gradient"][kind] + own[kind]
      # What does not change from step to step is sent before the first.
      assert always[kind] <= limit, (kind, always, asked["gradient"])


@pytest.mark.parametrize("layout", ["data parallel", "leading axes"])
def test_lazy_gen_sends_an_eighth(x64, layout):
  """Section 4.2 of the paper: the volume beyond the base's goes with 1 / Phi.

  A lazy step sends three scalars for each sharded leaf, and looks at none.
  """
  run = on_a_mesh("gen, every 8", layout, AxisType.Auto)
  closure = closure_sends(layout, AxisType.Auto, 16)
  always = numbers(run.text, lazy=False, steps=STEPS)
  fit = numbers(run.text, lazy=True, steps=STEPS)
  scalars = 3 * LEAVES if layout != "data parallel" else 0
  for kind, base in closure["gradient"].items():
    more = scalars if kind == "all-reduce" else 0
    assert base <= always[kind] <= base + more
    spared = closure["forward"][kind]
    assert spared <= fit[kind] <= spared + more
