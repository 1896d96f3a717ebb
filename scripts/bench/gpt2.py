"""GeN on a transformer of GPT-2's size in bfloat16, where an accelerator is.

124 million parameters, texts of 1024. Absolute times, and with `--profile DIR`
a trace for TensorBoard or Perfetto with a breakdown by kind of operation. On a
CPU nothing is run: the steps are lowered for CUDA and TPU, which shows that
they would compile there.
"""

import collections
import gzip
import json
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gen_optax
from scripts.bench import programs, timing
from scripts.common import report

STEPS = 8
MAKES = {
  "Adam": programs.base_optimizer,
  "GeN, every 1": gen_optax.gen_adam,
  "GeN, every 8": lambda: gen_optax.gen_adam(every=8, dense_start=0),
}


def problem(batch_size: int) -> programs.Problem:
  return programs.gpt(
    *(768, 12, 1024, batch_size), dtype=jnp.bfloat16, symbols=50257
  )


def lowered_text(found: programs.Problem, optimizer) -> str:
  """The step for both kinds of accelerator, on a machine that has neither."""
  step = jax.jit(programs.train_step(optimizer, found.loss), donate_argnums=0)
  state = jax.eval_shape(optimizer.init, found.params)
  traced = step.trace((found.params, state), found.batch)
  return traced.lower(lowering_platforms=("cuda", "tpu")).as_text()


def real(found: programs.Problem) -> programs.Problem:
  """The same with numbers: what they are does not matter to the time."""
  keys = iter(jax.random.split(jax.random.key(0), 10**4))
  params = jax.tree.map(
    lambda x: 0.02 * jax.random.normal(next(keys), x.shape, x.dtype),
    found.params,
  )
  batches = jax.tree.map(
    lambda x: jax.random.randint(next(keys), x.shape, 0, 50257), found.batches
  )
  return found._replace(params=params, batches=batches)


def step_timer(found: programs.Problem, optimizer):
  step = jax.jit(programs.train_step(optimizer, found.loss), donate_argnums=0)
  params = timing.copy_of(found.params)
  carry = [(params, optimizer.init(params))]
  batches = [
    jax.tree.map(lambda x, i=i: x[i], found.batches) for i in range(STEPS)
  ]

  def timed() -> float:
    began = time.perf_counter()
    for batch in batches:
      carry[0], value = step(carry[0], batch)
    jax.block_until_ready((carry[0], value))
    return (time.perf_counter() - began) / STEPS

  timed()
  return timed


def breakdown(folder: Path) -> str:
  """Device time by kind of operation, from the newest trace in `folder`."""
  newest = max(folder.rglob("*.trace.json.gz"), key=lambda p: p.stat().st_mtime)
  with gzip.open(newest) as file:
    events = json.load(file)["traceEvents"]
  times, counts = collections.Counter(), collections.Counter()
  for event in events:
    if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
      kind = re.sub(r"[.\d]+$", "", event["name"])
      times[kind] += event["dur"]
      counts[kind] += 1
  rows = [
    [kind, counts[kind], spent / 1e3] for kind, spent in times.most_common(15)
  ]
  return report.table(["operation", "times", "ms in all"], rows)


def run(args) -> dict:
  """Prints and returns the records."""
  found = problem(args.batch_size or 8)
  print(f"\n## {found.title}, bfloat16: {found.size:,} parameters")
  if jax.default_backend() == "cpu":
    for name, make in MAKES.items():
      size = len(lowered_text(found, make()))
      print(f"{name}: lowers for CUDA and TPU, {size:,} characters")
    print("not run: there is no accelerator here")
    return {"title": found.title, "run": False}
  found = real(found)
  timers = {name: step_timer(found, make()) for name, make in MAKES.items()}
  times = timing.rounds(timers, args.seconds * len(timers))
  rows = [
    [name, 1e3 * float(np.median(t)), float(np.median(times["Adam"] / t))]
    for name, t in times.items()
  ]
  print(report.table(["step", "ms", "relative speed"], rows))
  if args.profile:
    for name, timer in timers.items():
      folder = args.profile / re.sub(r"\W+", "_", name)
      with jax.profiler.trace(folder):
        timer()
      print(f"\n{name}, {STEPS} steps: {folder}\n{breakdown(folder)}")
  return {"title": found.title, "run": True, "times": rows}
