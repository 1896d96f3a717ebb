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

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import gen_optax
from gen_optax.helpers.lazy import run_if
from scripts.bench import psgd_tables, timing
from scripts.bench.psgd_structures import (
  DENSE,
  DENSE_SIZE,
  STRUCTURES,
  TENTH,
  Method,
  Structure,
  our_method,
)
from scripts.common import psgd_peer

SIZES = (10**5, 10**6, 10**7)
RATE = 0.1
WINDOW = 0.02  # seconds that one measurement lasts at least
LAZY = "1 update in 10"
ACTIONS = ("apply", "update + apply", LAZY)


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
    print(psgd_tables.parity_table(parity))
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
    tqdm.write(psgd_tables.time_table(rows) + "\n")
    for n in map(int, args.sizes):
      table = [
        row for structure in chosen for row in measure(structure, n, args, bar)
      ]
      tqdm.write(psgd_tables.time_table(table) + "\n")
      rows += table
  lines = [
    line for target in psgd_tables.TARGETS if (line := target.line(rows))
  ]
  print("\n".join(lines))
  return {"parity": parity, "times": rows}
