"""What a step costs beside simpler ones: work, memory, time, communication.

    python -m scripts.bench memory
    python -m scripts.bench compile
    python -m scripts.bench gen
    python -m scripts.bench psgd
    python -m scripts.bench elmo
    python -m scripts.bench amos
    python -m scripts.bench growth
    python -m scripts.bench all --quick     all of these
    python -m scripts.bench collectives     on eight simulated devices

Each suite is the module of its name.
"""

import argparse
from pathlib import Path

from scripts.bench import (
  amos,
  collectives,
  compile,
  elmo,
  gen,
  growth,
  memory,
  psgd,
)
from scripts.common import report

ON_ONE_DEVICE = {
  "memory": memory,
  "compile": compile,
  "gen": gen,
  "psgd": psgd,
  "elmo": elmo,
  "amos": amos,
  "growth": growth,
}
SUITES = ON_ONE_DEVICE | {"collectives": collectives}


def parse_args():
  parser = argparse.ArgumentParser(
    prog="python -m scripts.bench",
    description=__doc__.splitlines()[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument("suite", choices=[*SUITES, "all"])
  parser.add_argument(
    "--seconds", type=float, default=3.0, help="of runs for each ratio"
  )
  parser.add_argument("--out", type=Path, default=Path("out"))
  parser.add_argument(
    "--quick", action="store_true", help="the smallest problem, few runs"
  )
  for name, suite in SUITES.items():
    suite.add_options(parser.add_argument_group(f"suite {name}"))
  args = parser.parse_args()
  if args.quick:
    args.seconds = 0.3
  for suite in SUITES.values():
    suite.check_options(parser, args)
  return args


def main():
  args = parse_args()
  names = list(ON_ONE_DEVICE) if args.suite == "all" else [args.suite]
  records = {name: SUITES[name].run(args) for name in names}
  path = report.write_json(
    args.out / f"bench_{args.suite}.json",
    {"suites": records},
    settings=vars(args),
    seeds=[0],
  )
  print(f"\nrecord: {path}")


if __name__ == "__main__":
  main()
