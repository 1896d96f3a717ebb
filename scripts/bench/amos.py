"""What a routed step costs beside its optimizers: time and work, as ratios.

SGD and Sophia are routed by hand between Hessian times, where a step costs what
the optimizers cost: all leaves with SGD, every second, all with Sophia.

    run_all   both optimizers see every gradient, and a select picks
    frozen    each leaf runs its owner alone

A "step" is a training step with its gradient; an "update" is the optimizer
alone, on arrays of float32. Eight steps are one program, a scan, so that
handing over arrays is not in the figures. All programs of a table run by turns,
with donated states; a ratio is the median over the rounds of the ratio within a
round, with its quartiles. XLA counts loops that are skipped like loops that
run, so operations are its count of a step put together from the router's parts
that run between Hessian times with this routing: the optimizers' work, checks
for bad numbers and selects. "Hessian time" is a step at which the curvature is
taken at two points, by one probe; of its loops each is counted once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import gen_optax
from gen_optax import amos
from gen_optax.amos import members
from gen_optax.amos.granularity import make_granularity
from gen_optax.helpers import trees
from scripts.bench import timing
from scripts.common import report, tasks

RATE = 1e-4
WINDOW = 0.05  # seconds that one measurement lasts at least
CYCLE = 8  # steps in one program
NEVER = 10**6  # calls from one Hessian time to the next
# Index of the optimizer that has the k-th leaf.
OWNERS = {
  "all first": lambda k: 0,
  "mixed": lambda k: k % 2,
  "all second": lambda k: 1,
}
LEAVES, LEAF_SIZE = 12, 10**5
BOUND = 1.1


class Program(NamedTuple):
  """A step `(params, state), every, batch -> (params, state)`, and its start.

  `every` is handed over: between Hessian times and at them it is one program.
  """

  name: str
  step: Callable
  state: Any
  counted: Callable  # as `step`, between Hessian times and for this routing
  every: int = NEVER


def first():
  return optax.sgd(RATE)


def second():
  """Sophia, which between Hessian times asks nothing."""
  return amos.sophia(RATE, update_interval=NEVER)


def router(states: str, every=NEVER):
  pair = [first(), second()]
  return gen_optax.amos_router(pair, states=states, every=every)


def routed_by_hand(tx, params, routing: str):
  """A state between Hessian times whose leaves are routed as told."""
  state = tx.init(params)
  choices, treedef = jax.tree.flatten(state.choice)
  owner = OWNERS[routing]
  choices = [jnp.full_like(c, owner(k)) for k, c in enumerate(choices)]
  return state._replace(
    count=jnp.ones((), jnp.int32), choice=treedef.unflatten(choices)
  )


def programs(problem) -> list[Program]:
  """The optimizers alone and every routing of both kinds."""
  found = []

  def add_alone(name, tx, state):
    step = problem.step(lambda every: tx)
    found.append(Program(name, step, state, step))

  add_alone("SGD alone", first(), first().init(problem.params))
  sophia = with_diagonal(second(), problem.params)
  state = sophia.init(problem.params)
  head = state[0]._replace(count=jnp.ones((), jnp.int32))
  add_alone("Sophia alone", sophia, (head, *state[1:]))
  for states in ("run_all", "frozen"):
    step = problem.step(lambda every, states=states: router(states, every))
    for routing in OWNERS:
      state = routed_by_hand(router(states), problem.params, routing)
      counted = problem.step(lambda every, s=states, r=routing: what_runs(s, r))
      found.append(Program(f"{states}, {routing}", step, state, counted))
    if problem.loss is not None:
      name = f"{states}, Hessian time"
      found.append(Program(name, step, state, step, every=1))
  return found


def what_runs(states: str, routing: str):
  """The router between Hessian times, without the loops that it skips there.

  It hands the gradient to `run_all` or to `frozen`. A `frozen` of one optimizer
  and of its own leaves has the loops that make a trip, and no others.
  """
  optimizers = [first(), second()]

  def shared(updates, state, params, healthy, extra):
    team = members.run_all(optimizers, make_granularity("tensor_mean"))
    return team.update(
      updates, state.optimizers, params, state.choice, healthy, extra
    )

  def owned(updates, state, params, healthy, extra):
    leaves, treedef = jax.tree.flatten(updates)
    at = treedef.flatten_up_to(params)
    diagonal = treedef.flatten_up_to(extra["hessian_diagonal"])
    states, sound = [list(own) for own in state.optimizers], healthy
    for i, tx in enumerate(optimizers):
      mine = [k for k in range(len(leaves)) if OWNERS[routing](k) == i]
      if not mine:
        continue
      pick = lambda items, mine=mine: [items[k] for k in mine]
      none = [jnp.zeros((), jnp.int8) for _ in mine]
      moves, (after,), ok = members.frozen([tx], ["its owner"]).update(
        *(pick(leaves), (pick(states[i]),), pick(at), none, healthy),
        {"hessian_diagonal": pick(diagonal)},
      )
      for k, move, new in zip(mine, moves, after, strict=True):
        leaves[k], states[i][k] = move, new
      sound &= ok
    return treedef.unflatten(leaves), tuple(states), sound

  def update(updates, state, params=None, **extra):
    extra["hessian_diagonal"] = state.drift.diagonal
    healthy = trees.is_finite(updates)
    route = {"run_all": shared, "frozen": owned}[states]
    routed, after, sound = route(updates, state, params, healthy, extra)
    return routed, state._replace(
      count=trees.increment(state.count),
      optimizers=after,
      info=state.info._replace(skipped=~sound),
    )

  return optax.GradientTransformationExtraArgs(router(states).init, update)


def with_diagonal(tx, diagonal):
  """`tx` with a diagonal that it does not read between Hessian times."""

  def update(updates, state, params=None, **extra_args):
    del extra_args
    return tx.update(updates, state, params, hessian_diagonal=diagonal)

  return optax.GradientTransformationExtraArgs(tx.init, update)


class Problem(NamedTuple):
  """What is stepped: `loss(params, batch)`, or None for the update alone."""

  title: str
  params: Any
  batch: Any
  loss: Callable | None

  def step(self, make: Callable) -> Callable:
    """The step of `make(every)`."""

    def step(carry, every, batch):
      params, state = carry
      tx = optax.with_extra_args_support(make(every))
      if self.loss is None:
        # Never called: there is no Hessian time.
        value_fn, grad = lambda p: jnp.zeros(()), batch
      else:
        value_fn = lambda p: self.loss(p, batch)
        grad = jax.grad(value_fn)(params)
      updates, state = tx.update(grad, state, params, value_fn=value_fn)
      return optax.apply_updates(params, updates), state

    return step


def transformer() -> Problem:
  task = tasks.transformer()
  rows = np.arange(task.batch_size)
  train = task.data.train
  params = task.init(jax.random.key(0))
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  return Problem(
    f"step, {task.title}: {size} parameters",
    params,
    (train.x[rows], train.y[rows]),
    lambda params, batch: task.losses(params, *batch)[0].mean(),
  )


def arrays() -> Problem:
  keys = jax.random.split(jax.random.key(0), 2 * LEAVES)
  make = lambda keys: [jax.random.normal(key, (LEAF_SIZE,)) for key in keys]
  return Problem(
    f"update, {LEAVES} arrays of {LEAF_SIZE:.0e}",
    make(keys[:LEAVES]),
    make(keys[LEAVES:]),
    None,
  )


def operations(program: Program, problem: Problem) -> float:
  """XLA's count; of a Hessian time, which is a loop of one trip, as it is."""
  carry = (problem.params, program.state)
  step = jax.jit(program.counted).lower(carry, 1, problem.batch).compile()
  return step.cost_analysis()["flops"]


@functools.cache
def cycle_of(step: Callable) -> Callable:
  """`CYCLE` steps as one program, the same object for the same step."""

  def cycle(carry, every, batch):
    one = lambda carry, _: (step(carry, every, batch), None)
    return jax.lax.scan(one, carry, length=CYCLE)[0]

  return cycle


def measure(problem: Problem, args, bar) -> list[dict]:
  found = programs(problem)
  timers, counts = {}, {}
  for program in found:
    bar.set_description(f"{problem.title.split(',')[0]}: {program.name}")
    counts[program.name] = operations(program, problem)
    timers[program.name] = timing.calls_timer(
      cycle_of(program.step),
      (problem.params, program.state),
      [(jnp.int32(program.every),)],
      (problem.batch,),
      WINDOW,
    )
    bar.update()
  times = timing.rounds(timers, args.seconds * len(found))
  return [
    {
      "problem": problem.title,
      "program": name,
      "rounds": len(times[name]),
      "milliseconds": 1e3 * float(np.median(times[name])) / CYCLE,
      "over_first": timing.quartiles(times[name] / times["SGD alone"]),
      "over_second": timing.quartiles(times[name] / times["Sophia alone"]),
      "operations_over_first": counts[name] / counts["SGD alone"],
      "extra_operations_per_parameter": (counts[name] - counts["SGD alone"])
      / sum(leaf.size for leaf in jax.tree.leaves(problem.params)),
    }
    for name in timers
  ]


def table(rows: list[dict]) -> str:
  cell = lambda q: f"{q[1]:.3f} ({q[0]:.3f}-{q[2]:.3f})"
  return report.table(
    [
      rows[0]["problem"],
      "ms",
      "/ SGD",
      "/ Sophia",
      "operations / SGD",
      "more per parameter",
      "rounds",
    ],
    [
      [
        row["program"],
        row["milliseconds"],
        cell(row["over_first"]),
        cell(row["over_second"]),
        f"{row['operations_over_first']:.3f}",
        f"{row['extra_operations_per_parameter']:.2f}",
        row["rounds"],
      ]
      for row in rows
    ],
  )


def verdict(rows: list[dict]) -> str:
  (row,) = (row for row in rows if row["program"] == "frozen, all first")
  low, middle, high = row["over_first"]
  word = "met   " if middle <= BOUND else "MISSED"
  if middle > BOUND >= low:
    word = "near  "
  return (
    f"{word} {row['problem'].split(',')[0]}: frozen, all first over SGD alone "
    f"{middle:.3f} ({low:.3f}-{high:.3f}), at most {BOUND}"
  )


def add_options(parser):
  parser.add_argument(
    "--amos-problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS)
  )


def check_options(parser, args):
  del parser, args


PROBLEMS = {"transformer": transformer, "arrays": arrays}


def run(args) -> dict:
  """Measures, prints and returns the records."""
  print(__doc__.split("\n\n", 1)[1])
  rows, verdicts = [], []
  problems = [PROBLEMS[name]() for name in args.amos_problems]
  with tqdm(total=sum(len(programs(problem)) for problem in problems)) as bar:
    for problem in problems:
      found = measure(problem, args, bar)
      tqdm.write(table(found) + "\n")
      verdicts.append(verdict(found))
      rows += found
  print("\n".join(verdicts))
  return {"times": rows}
