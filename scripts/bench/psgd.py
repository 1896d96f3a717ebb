"""What a PSGD step costs beside SGD, Adam, a copy, and psgd_jax.

Vectors and Hessian-vector products are handed over, the same to all: what is
measured is the preconditioner. The parameters are one vector of n float32 (for
kron a matrix), which spares psgd_jax its ravelling.

    apply             P g
    update + apply    a group step on (v, h), then P g: probability 1
    1 update in 10    an update on every tenth call, P g on all: probability 0.1
    whitening, p      the transform, its random numbers and momentum included;
                      at 0.1 the coin is set to every tenth call

"Floats" is what a method must read and write for each parameter, and "copy" an
array copied that moves as many bytes. States are donated, each call is one
compiled program, and a measurement lasts long enough to hold many. All programs
of a row run by turns; a ratio is the median over the rounds of the ratio within
a round. Columns are our time over the other's; psgd_jax's over ours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import gen_optax
from gen_optax import psgd
from gen_optax.helpers.lazy import run_if
from scripts.bench import timing
from scripts.common import psgd_peer, report

SIZES = (10**5, 10**6, 10**7)
DENSE_SIZE = 10**3  # dense Q holds its square
RANK = 10
RATE = 0.1
TENTH = 10  # calls for an update at probability 0.1
WINDOW = 0.02  # seconds that one measurement lasts at least
LAZY = "1 update in 10"
ACTIONS = ("apply", "update + apply", LAZY)


class Method(NamedTuple):
  """`update(state, v, h, rate, key) -> state` and `apply(state, g) -> P g`."""

  state: Any
  update: Callable
  apply: Callable


class Structure(NamedTuple):
  """One preconditioner to measure.

  Attributes:
    name: what the tables call it.
    preconditioner: ours.
    apply_floats: that P g must read and write for each parameter.
    update_floats: likewise of an update.
    shape: n -> the shape of the parameters.
    peer: (shape, key) -> psgd_jax's `Method`, where it has one.
    transform: what psgd_jax calls its transform, where it has one.
    largest: the largest n that is measured.
  """

  name: str
  preconditioner: psgd.Preconditioner
  apply_floats: float
  update_floats: float
  shape: Callable[[int], tuple[int, ...]] = lambda n: (n,)
  peer: Callable[..., Method] | None = None
  transform: str | None = None
  largest: float = np.inf


def peer_xmat(shape, key) -> Method:
  del key
  state = (jnp.ones(shape), jnp.zeros(shape))
  return Method(state, psgd_peer.xmat_update, psgd_peer.xmat_apply)


def peer_lra(shape, key) -> Method:
  (n,) = shape
  u, v = jax.random.normal(key, (2, n, RANK)) / (n * (RANK + 10)) ** 0.5
  state = (u, v, jnp.ones((n, 1)))
  return Method(state, psgd_peer.lra_update, psgd_peer.lra_apply)


def peer_affine(shape, key) -> Method:
  del key
  state = tuple(jnp.eye(m) if m <= KRON_SIZE else jnp.ones(m) for m in shape)
  return Method(state, psgd_peer.affine_update, psgd_peer.affine_apply)


KRON_SIZE = 1024


def square(n: int) -> tuple[int, int]:
  side = round(n**0.5)
  return side, side


# Floats. Pairs: a, b, g, P g; an update reads a, b, v, h and writes a, b, twice
# read where the step is the same for all. Low rank: P g reads U and V twice,
# an update too, and writes one of them; the vectors are read in both passes.
STRUCTURES = (
  Structure("diagonal", psgd.diagonal(), 3, 4),
  Structure("xmat", psgd.xmat(), 4, 6, peer=peer_xmat, transform="xmat"),
  Structure(
    "xmat, global step",
    psgd.xmat("global", steps="entry"),
    4,
    10,
    peer=peer_xmat,
    transform="xmat",
  ),
  Structure("butterfly", psgd.butterfly(), 4, 6),
  Structure(
    f"low rank {RANK}",
    psgd.low_rank(RANK),
    4 * RANK + 5,
    5 * RANK + 7,
    peer=peer_lra,
    transform="lra",
  ),
  Structure("kron", psgd.kron(KRON_SIZE), 2, 2, shape=square, peer=peer_affine),
)
DENSE = Structure("dense", psgd.dense(), 2 * DENSE_SIZE, 5 * DENSE_SIZE)


def our_method(structure: Structure, shape, key) -> Method:
  inner = structure.preconditioner
  state = inner.init(jnp.zeros(shape), key)
  return Method(state, inner.update, inner.apply)


def step_of(method: Method, action: str, lazy: Callable) -> Callable:
  """`step(carry, due, key, v, h, g) -> carry` with carry (state, P g)."""

  def step(carry, due, key, v, h, g):
    state, _ = carry
    update = lambda state: method.update(state, v, h, jnp.float32(RATE), key)
    if action == "update + apply":
      state = update(state)
    elif action != "apply":
      state = lazy(due, update, state)
    return state, method.apply(state, g)

  return step


def cond(due, work, state):
  """How psgd_jax skips an update."""
  return jax.lax.cond(due, work, lambda state: state, state)


def sgd_step(carry, due, key, v, h, g):
  params, out = carry
  return params - RATE * g, out


def adam_step(carry, due, key, v, h, g):
  (params, state), out = carry
  updates, state = ADAM.update(g, state)
  return (optax.apply_updates(params, updates), state), out


ADAM = optax.adam(1e-3)


def baselines(shape) -> dict:
  zeros = jnp.zeros(shape)
  return {
    "sgd": (sgd_step, (zeros, zeros)),
    "adam": (adam_step, ((zeros, ADAM.init(zeros)), zeros)),
  }


def copy_program(size: int, floats: float):
  """A program that reads half of the floats and writes as many."""
  source = jnp.ones(max(1, round(size * floats / 2)))

  # The sign keeps it a copy: XLA hands its own argument back otherwise.
  def step(carry, due, key, source):
    return -source

  return step, source


def calls(window: int) -> list[tuple]:
  """(due, key) of consecutive calls: one in ten is due."""
  keys = jax.random.split(jax.random.PRNGKey(0), window)
  flags = [jnp.array(i % TENTH == 0) for i in range(window)]
  return list(zip(flags, keys, strict=True))


def handed_over(structure: Structure, n: int, action: str, args) -> dict:
  """Times of one action of ours, of its copy, the baselines and the peer."""
  shape = structure.shape(n)
  key = jax.random.PRNGKey(0)
  vectors = tuple(jax.random.normal(jax.random.key(1), (3, *shape)))
  out = jnp.zeros(shape)
  turns = calls(TENTH if action == LAZY else 2)
  programs = baselines(shape)
  ours = our_method(structure, shape, key)
  programs["ours"] = (step_of(ours, action, run_if), (ours.state, out))
  if structure.peer and psgd_peer.load():
    theirs = structure.peer(shape, key)
    programs["psgd_jax"] = (step_of(theirs, action, cond), (theirs.state, out))
  timers = {
    name: timing.calls_timer(step, carry, turns, vectors, WINDOW)
    for name, (step, carry) in programs.items()
  }
  copied, source = copy_program(
    int(np.prod(shape)), floats_of(structure, action)
  )
  timers["copy"] = timing.calls_timer(
    copied, jnp.zeros_like(source), turns, (source,), WINDOW
  )
  return timing.rounds(timers, args.seconds)


def floats_of(structure: Structure, action: str) -> float:
  share = {"apply": 0.0, "update + apply": 1.0}.get(action, 1 / TENTH)
  return structure.apply_floats + share * structure.update_floats


def whitening_step(make: Callable, always: bool) -> Callable:
  """A transform whose coin is set; it draws its own random numbers."""

  def step(carry, due, key, g):
    state, _ = carry
    chance = 1.0 if always else due.astype(jnp.float32)
    updates, state = make(chance).update(g, state)
    return state, updates

  return step


def whitening(structure: Structure, n: int, always: bool, args) -> dict:
  shape = structure.shape(n)
  g = jax.random.normal(jax.random.key(1), shape)
  makes = {
    "ours": lambda chance: gen_optax.scale_by_psgd(
      structure.preconditioner,
      pairs="whitening",
      probability=chance,
      clip_norm=None,
    )
  }
  if structure.transform and psgd_peer.load():
    makes["psgd_jax"] = lambda chance: psgd_peer.transform(
      structure.transform, chance
    )
  timers = {
    name: timing.calls_timer(
      whitening_step(make, always),
      (make(1.0).init(g), g),
      calls(TENTH),
      (g,),
      WINDOW,
    )
    for name, make in makes.items()
  }
  for name, (step, carry) in baselines(shape).items():
    timers[name] = timing.calls_timer(
      step, carry, calls(TENTH), (g, g, g), WINDOW
    )
  return timing.rounds(timers, args.seconds)


def summary(times: dict, size: int) -> dict:
  """Medians of the ratios within the rounds."""
  ours = times["ours"]
  record = {
    "rounds": len(ours),
    "nanoseconds_per_parameter": 1e9 * float(np.median(ours)) / size,
  }
  for name, other in times.items():
    if name != "ours":
      ratio = other / ours if name == "psgd_jax" else ours / other
      record[name] = timing.quartiles(ratio)
  return record


def measure(structure: Structure, n: int, args, bar) -> list[dict]:
  rows = []
  size = int(np.prod(structure.shape(n)))

  def add(action, floats, times):
    head = {"structure": structure.name, "n": size, "action": action}
    rows.append(head | {"floats": floats} | summary(times, size))
    bar.update()

  for action in ACTIONS:
    bar.set_description(f"{n:.0e} {structure.name}: {action}")
    times = handed_over(structure, n, action, args)
    add(action, floats_of(structure, action), times)
  for always in (True, False):
    chance = "1" if always else f"1/{TENTH}"
    bar.set_description(f"{n:.0e} {structure.name}: whitening {chance}")
    times = whitening(structure, n, always, args)
    add(f"whitening, {chance}", None, times)
  return rows


def cell(quartiles) -> str:
  """Median and quartiles."""
  if quartiles is None:
    return "-"
  low, middle, high = (f"{x:.3g}" for x in quartiles)
  return f"{middle} ({low}-{high})"


def time_table(rows: list[dict]) -> str:
  others = ("copy", "sgd", "adam", "psgd_jax")
  cells = [
    [
      f"{row['structure']}: {row['action']}",
      "-" if row["floats"] is None else f"{row['floats']:g}",
      row["nanoseconds_per_parameter"],
      *(cell(row.get(name)) for name in others),
      row["rounds"],
    ]
    for row in rows
  ]
  headers = [
    f"n = {rows[0]['n']:.0e}",
    "floats",
    "ns/param",
    "/ copy",
    "/ SGD",
    "/ Adam",
    "psgd_jax / ours",
    "rounds",
  ]
  return report.table(headers, cells)


def parity_table(rows: list[dict]) -> str:
  cells = [
    [
      row["structure"],
      row["n"],
      row["normalizer"],
      f"{row['state']:.1e}",
      f"{row['product']:.1e}",
    ]
    for row in rows
  ]
  headers = ["one step, ours and psgd_jax's", "n", "normalizer", "Q", "P g"]
  return report.table(headers, cells)


class Target(NamedTuple):
  """A bound on the median of one ratio; `None` for every n."""

  structure: str
  n: int | None
  action: str
  other: str
  bound: float

  def line(self, rows: list[dict]) -> str | None:
    found = [
      row
      for row in rows
      if row["structure"] == self.structure
      and row["action"] == self.action
      and self.other in row
      and (self.n is None or self.n == row["n"])
    ]
    if not found:
      return None
    above = self.other == "psgd_jax"
    worst = (min if above else max)(
      (row[self.other] for row in found), key=lambda quartiles: quartiles[1]
    )
    verdict = self.verdict(worst, above)
    sizes = "every n" if self.n is None else f"n = {self.n:.0e}"
    what = "psgd_jax / ours" if above else f"ours / {self.other}"
    relation = "at least" if above else "at most"
    return (
      f"{verdict} {self.structure}, {self.action}, {sizes}: "
      f"{what} {cell(worst)}, {relation} {self.bound:g}"
    )

  def verdict(self, quartiles, above: bool) -> str:
    """By the median; open where it misses by less than the spread."""
    low, middle, high = quartiles
    if middle >= self.bound if above else middle <= self.bound:
      return "met   "
    near = high >= self.bound if above else low <= self.bound
    return "near  " if near else "MISSED"


TARGETS = (
  Target(f"low rank {RANK}", 10**5, "update + apply", "psgd_jax", 10),
  Target(f"low rank {RANK}", 10**6, "update + apply", "psgd_jax", 3),
  *(
    Target(name, None, action, "psgd_jax", bound)
    for name in ("xmat", "xmat, global step")
    for action, bound in (
      ("update + apply", 1),
      ("apply", 1),
      (f"whitening, 1/{TENTH}", 3),
    )
  ),
  *(
    Target(structure.name, None, "apply", "copy", 2)
    for structure in STRUCTURES
    if structure.name != "kron"  # matrix products, not passes over memory
  ),
)


def add_options(parser):
  parser.add_argument(
    "--sizes", nargs="+", type=float, default=SIZES, help="values of n"
  )
  parser.add_argument(
    "--structures",
    nargs="+",
    default=[structure.name.split(",")[0] for structure in STRUCTURES],
    help="first words of their names",
  )


def check_options(parser, args):
  if args.quick:
    args.sizes = args.sizes[:1]
  names = [structure.name for structure in STRUCTURES]
  for word in args.structures:
    if not any(name.startswith(word) for name in names):
      parser.error(f"--structures: no {word!r} in {names}")


def run(args) -> dict:
  """Measures, prints and returns the records."""
  print(__doc__.split("\n\n", 1)[1])
  parity = psgd_peer.parity(1000) if psgd_peer.load() else []
  if parity:
    print(parity_table(parity))
    print("largest difference over the largest entry, in float64\n")
  else:
    print("psgd_jax is not installed: its columns stay empty\n")
  chosen = [
    structure
    for structure in STRUCTURES
    if structure.name.startswith(tuple(args.structures))
  ]
  rows = []
  actions = len(ACTIONS) + 2
  with tqdm(total=actions * (1 + len(chosen) * len(args.sizes))) as bar:
    rows += measure(DENSE, DENSE_SIZE, args, bar)
    tqdm.write(time_table(rows) + "\n")
    for n in map(int, args.sizes):
      table = [
        row for structure in chosen for row in measure(structure, n, args, bar)
      ]
      tqdm.write(time_table(table) + "\n")
      rows += table
  lines = [line for target in TARGETS if (line := target.line(rows))]
  print("\n".join(lines))
  return {"parity": parity, "times": rows}
