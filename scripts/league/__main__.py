"""A contest of optimizers with nothing to tune, on eleven workloads.

    python -m scripts.league targets --data-dir DATA     what is to be reached
    python -m scripts.league calibrate --data-dir DATA   one setting for each
    python -m scripts.league score --data-dir DATA       the contest
    python -m scripts.league develop                     tasks to choose on
    python -m scripts.league seconds --data-dir DATA     how long runs take
    python -m scripts.league all --data-dir DATA         the first three
    python -m scripts.league all --quick                 the same in ten minutes

Every run is kept in a file under --out, and a command that was cut short goes
on where it stopped. Nothing can be concluded from --quick: it takes two
workloads, a tenth of the steps and two trials.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from scripts.common import xla

# Before jax is imported, which reads the flags.
xla.compile_fast(xla.EMITTERS)

from scripts.league import calibrate, commands, develop  # noqa: E402
from scripts.league.families import FAMILIES  # noqa: E402
from scripts.league.field import ENTRANTS  # noqa: E402

QUICK_WORKLOADS = ("clicks", "gnn")
QUICK_ENTRANTS = ("AdamW", "Schedule-Free AdamW", "Prodigy", "GeN-AdamW/1")


def parse_arguments(arguments=None):
  parser = argparse.ArgumentParser(
    prog="python -m scripts.league",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("command", choices=[*commands.COMMANDS, "all"])
  add("--data-dir", type=Path, default=os.environ.get("GEN_OPTAX_DATA"))
  add("--out", type=Path, default=Path("out/league"))
  add("--workloads", nargs="+", choices=FAMILIES, metavar="NAME")
  add("--entrants", nargs="+", choices=ENTRANTS, metavar="NAME")
  add(
    "--tasks",
    nargs="+",
    choices=develop.FAMILIES,
    default=list(develop.FAMILIES),
    metavar="NAME",
    help="of development",
  )
  add("--trials", type=int, default=32, help="points of each search")
  add("--reruns", type=int, default=10, help="of the best, for a target")
  add("--variants", type=int, default=1, help="of each workload, to calibrate")
  add("--seeds", type=int, default=5, help="of the contest")
  add(
    "--settings",
    nargs="+",
    choices=("frozen", "default"),
    default=("frozen", "default"),
    help="which settings run in the contest",
  )
  add("--freeze", action="store_true", help="keep what calibrate finds")
  add("--frozen", type=Path, default=calibrate.FROZEN, help="where it is kept")
  add("--quick", action="store_true", help="the whole chain in ten minutes")
  args = parser.parse_args(arguments)
  args.step_factor = 1.0
  if args.quick:
    args.step_factor, args.trials, args.reruns, args.seeds = 0.1, 2, 1, 1
    args.workloads = args.workloads or QUICK_WORKLOADS
    args.entrants = args.entrants or QUICK_ENTRANTS
    args.out = args.out / "quick"
    args.freeze, args.frozen = True, args.out / "frozen.json"
  if args.command != "develop":
    args.workloads = list(args.workloads or available(args.data_dir))
  args.entrants = list(args.entrants or ENTRANTS)
  return args


def available(data_dir) -> list[str]:
  """Workloads that can be built; those without their data are named."""
  missing = [
    name
    for name, family in FAMILIES.items()
    if data_dir is None and family.needs_data
  ]
  if missing:
    print(f"left out without --data-dir: {', '.join(missing)}", file=sys.stderr)
  return [name for name in FAMILIES if name not in missing]


def main():
  args = parse_arguments()
  began = time.perf_counter()
  names = commands.CHAIN if args.command == "all" else [args.command]
  for name in names:
    commands.COMMANDS[name](args)
  print(f"\ntime: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
  main()
