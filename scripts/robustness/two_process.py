"""Two processes train one network, stop half-way, and go on from a checkpoint.

    python -m scripts.robustness.two_process
    python -m scripts.robustness.two_process --quick

The processes meet over the loopback, each with two simulated devices and half
of every batch of digits. After half of the steps they save parameters and
optimizer state with Orbax and end; two new ones go on from there. At the end
both must hold the parameters of one process on one device that never stopped,
in float64.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gen_optax
from scripts.common import cli, report, tasks

PROCESSES, DEVICES = 2, 2  # devices of each process
BATCH, SEED = 128, 0
TOLERANCE = 1e-9
TIMEOUT = 240  # seconds for both processes of one half

OPTIMIZERS = {
  "GeN-AdamW": lambda: gen_optax.gen_adamw(weight_decay=1e-3),
  "PSGD-XMat": lambda: gen_optax.psgd_xmat(0.03, momentum=0.9),
}
HEADERS = (
  "optimizer",
  "first loss",
  "last loss",
  "between processes",
  "from one process",
  "GeN's rate, from one process",
)


def main():
  args = parse_arguments()
  jax.config.update("jax_enable_x64", True)
  if args.process is not None:
    train_half(args)
    return
  print(
    f"{args.steps} steps on batches of {BATCH}, seed {SEED}; {PROCESSES} "
    f"processes with {DEVICES} devices each"
  )
  with tempfile.TemporaryDirectory() as folder:
    for half in range(2):
      began = time.perf_counter()
      run_processes(args, half, folder)
      print(f"half {half + 1}: {time.perf_counter() - began:.0f} s")
    rows = [compare(name, args.steps, Path(folder)) for name in OPTIMIZERS]
  print(f"\nlargest difference of a parameter\n{report.table(HEADERS, rows)}")
  records = [dict(zip(HEADERS, row, strict=True)) for row in rows]
  path = report.write_json(
    args.out / "two_process.json",
    {"rows": records},
    settings=vars(args),
    seeds=[SEED],
  )
  print(f"\nrecord: {path}")
  differences = np.array([row[3:5] for row in rows])
  if not np.all(differences <= TOLERANCE):
    sys.exit(f"the runs differ by more than {TOLERANCE}")


def parse_arguments():
  parser = cli.parser(__doc__.splitlines()[0], out="out/two_process")
  for name in ("process", "half", "port", "folder"):
    # What a process is told by the one that starts it.
    parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
  args = parser.parse_args()
  args.steps = args.steps or (8 if args.quick else 60)
  return args


# --- the process that starts the others ---------------------------------------


def run_processes(args, half: int, folder: str):
  """Both processes of one half; none is left when this returns or raises."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", __spec__.name, f"--steps={args.steps}"]
  command += [f"--half={half}", f"--port={port}", f"--folder={folder}"]
  # The number of the caller's devices is not theirs. How it compiles is: other
  # settings round the first weights differently.
  flags = os.environ.get("XLA_FLAGS", "").split()
  flags = [flag for flag in flags if "device_count" not in flag]
  environment = os.environ | {"XLA_FLAGS": " ".join(flags)}
  deadline = time.monotonic() + TIMEOUT
  with contextlib.ExitStack() as stack:
    processes = []
    for process in range(PROCESSES):
      log = stack.enter_context(open(f"{folder}/{half}-{process}.log", "w+b"))
      child = subprocess.Popen(
        [*command, f"--process={process}"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
      )
      stack.callback(child.wait)
      stack.callback(child.kill)
      processes.append((child, log))
    while any(child.poll() is None for child, _ in processes):
      failed = any(child.poll() not in (None, 0) for child, _ in processes)
      if failed or time.monotonic() > deadline:
        break
      time.sleep(0.2)
    if any(child.poll() != 0 for child, _ in processes):
      for _, log in processes:
        log.seek(0)
        print(log.read().decode()[-4000:], file=sys.stderr)
      sys.exit(f"half {half + 1} failed, or took more than {TIMEOUT} s")


def compare(name: str, steps: int, folder: Path) -> list:
  """One row of the table: a run that did not stop, against what both left."""
  carry, losses = train(name, None, 0, steps)
  alone = flat_numbers(carry)
  ends = [np.load(folder / f"{name}-{k}.npz") for k in range(PROCESSES)]
  between = np.abs(ends[0]["params"] - ends[1]["params"]).max()
  from_one = max(np.abs(end["params"] - alone["params"]).max() for end in ends)
  rates = [abs(float(end["rate"] - alone["rate"])) for end in ends]
  return [name, losses[0], losses[-1], between, from_one, max(rates)]


# --- what every process does --------------------------------------------------


def train(name: str, mesh, first: int, last: int, carry=None):
  """Steps `first` to `last`; on a mesh with each process's part of a batch."""
  task = tasks.mlp()
  optimizer = OPTIMIZERS[name]()
  loss_fn = lambda p, x, y: task.losses(p, x, y)[0].mean()
  step = gen_optax.make_step(loss_fn, optimizer)
  losses = []
  carry = start(task, optimizer, mesh) if carry is None else carry
  for t in range(first, last):
    rows = np.random.default_rng((SEED, t)).integers(1437, size=BATCH)
    x = np.asarray(task.data.train.x[rows], np.float64)
    y = np.asarray(task.data.train.y[rows])
    *carry, value, _, _ = step(*carry, *(share(a, mesh) for a in (x, y)))
    losses.append(float(value))
  return carry, losses


def start(task, optimizer, mesh):
  """Parameters and state, the same in every process and on every device."""

  def make():
    params = task.init(jax.random.key(SEED))
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    return params, optimizer.init(params)

  sharding = None if mesh is None else NamedSharding(mesh, P())
  return jax.jit(make, out_shardings=sharding)()


def share(rows, mesh):
  """A batch of which this process has read its own part alone."""
  if mesh is None:
    return jnp.asarray(rows)
  part = len(rows) // PROCESSES
  mine = rows[part * jax.process_index() :][:part]
  return jax.make_array_from_process_local_data(
    NamedSharding(mesh, P("d")), mine
  )


def flat_numbers(carry) -> dict:
  params, state = carry
  metrics = gen_optax.metrics(state)
  leaves = [np.asarray(p).ravel() for p in jax.tree.leaves(params)]
  rate = metrics.get("gen/learning_rate", jnp.nan)
  return {"params": np.concatenate(leaves), "rate": np.asarray(rate)}


def train_half(args):
  """In one of the two processes."""
  import orbax.checkpoint as ocp

  jax.config.update("jax_num_cpu_devices", DEVICES)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    f"127.0.0.1:{args.port}",
    PROCESSES,
    int(args.process),
    initialization_timeout=60,
  )
  mesh = jax.make_mesh((jax.device_count(),), ("d",))
  half, folder = int(args.half), Path(args.folder)
  middle = args.steps // 2
  with jax.set_mesh(mesh), ocp.StandardCheckpointer() as checkpointer:
    for name, make in OPTIMIZERS.items():
      if half == 0:
        carry, _ = train(name, mesh, 0, middle)
        checkpointer.save(folder / name, carry)
        checkpointer.wait_until_finished()
      else:
        like = start(tasks.mlp(), make(), mesh)
        carry = checkpointer.restore(folder / name, like)
        carry, _ = train(name, mesh, middle, args.steps, carry)
        file = folder / f"{name}-{jax.process_index()}.npz"
        np.savez(file, **flat_numbers(carry))
  jax.distributed.shutdown()


if __name__ == "__main__":
  main()
