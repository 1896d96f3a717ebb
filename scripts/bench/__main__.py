"""What a step costs beside simpler ones: work, memory, time, communication.

    python scripts/bench.py memory
    python scripts/bench.py compile
    python scripts/bench.py gen
    python scripts/bench.py psgd
    python scripts/bench.py elmo
    python scripts/bench.py amos
    python scripts/bench.py growth
    python scripts/bench.py all --quick     all of these
    python scripts/bench.py collectives     on eight simulated devices

Each suite is a module, `common/<suite>_costs.py`.
"""

import argparse
from pathlib import Path

from scripts.bench import amos as amos_costs
from scripts.bench import collectives as collective_costs
from scripts.bench import compile as compile_costs
from scripts.bench import elmo as elmo_costs
from scripts.bench import gen as gen_costs
from scripts.bench import growth as growth_costs
from scripts.bench import memory as memory_costs
from scripts.bench import psgd as psgd_costs
from scripts.common import report

ON_ONE_DEVICE = {
  "memory": memory_costs,
  "compile": compile_costs,
  "gen": gen_costs,
  "psgd": psgd_costs,
  "elmo": elmo_costs,
  "amos": amos_costs,
  "growth": growth_costs,
}
SUITES = ON_ONE_DEVICE | {"collectives": collective_costs}


def parse_args():
  parser = argparse.ArgumentParser(
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
