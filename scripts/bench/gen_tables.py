"""The tables of `gen.py`, and whether its targets are met."""

from scripts.common import report

# The default's work beyond its base step, in forward passes.
MOST_WORK = 1.05
# By every: the least share of its ideal that the fastest evaluation has.
LEAST_OF_IDEAL = {1: 0.90, 8: 0.95}


def ratio(x: float) -> str:
  return f"{x:.3f}"


def cost_table(record: dict) -> str:
  rows = [
    [
      name,
      ratio(row["flops_in_forward"]) + row["note"],
      f"{row['flops_per_parameter']:.1f}" if not row["note"] else "-",
      f"{row['temporary_copies']:+.2f}",
      f"{row['state_copies']:+.2f}",
      row["moved_products"],
    ]
    for name, row in record["candidates"].items()
  ]
  headers = [
    "one compiled fitting step, over base",
    "flops / F",
    "beyond 1 F, per parameter",
    "temporary copies",
    "state copies",
    "products on every step",
  ]
  return report.table(headers, rows)


def time_table(record: dict) -> str:
  rows = [
    [
      row["candidate"],
      row["every"],
      row["evaluations"],
      ratio(row["over_base"][1]),
      f"{row['over_base'][0]:.3f}-{row['over_base'][2]:.3f}",
      row["pairs"],
      ratio(row["relative_speed"]),
      ratio(row["ideal"]),
      ratio(row["of_ideal"]),
      ratio(row["paper_ideal"]),
    ]
    for row in record["times"]
  ]
  headers = [
    "cycles of 8 steps",
    "every",
    "losses",
    "time / base",
    "quartiles",
    "pairs",
    "speed",
    "ideal",
    "of ideal",
    "paper's ideal",
  ]
  return report.table(headers, rows)


def lazy_table(record: dict) -> str:
  rows = [
    [name, ratio(middle), f"{low:.3f}-{high:.3f}"]
    for name, (low, middle, high) in record["lazy"].items()
  ]
  headers = ["a step without a fit", "time / base", "quartiles"]
  return report.table(headers, rows)


def verdicts(record: dict, default: str) -> str:
  """Work, the fastest evaluation's share of the ideal, the paper's ideal."""
  row = record["candidates"][default]
  work, looking = row["flops_in_forward"], row["flops_in_forward_looking"]
  lines = [
    f"{'met   ' if work <= MOST_WORK else 'MISSED'} the default's fitting step "
    f"costs {work:.3f} forward passes, at most {MOST_WORK}; "
    f"{looking:.3f} where it looks"
  ]
  for every, least in LEAST_OF_IDEAL.items():
    rows = [row for row in record["times"] if row["every"] == every]
    if not rows:
      continue
    best = max(rows, key=lambda row: row["of_ideal"])
    word = "met   " if best["of_ideal"] >= least else "MISSED"
    lines.append(
      f"{word} every {every}: {best['candidate']} has {best['of_ideal']:.3f} "
      f"of its ideal, at least {least}"
    )
  for row in record["times"]:
    if row["candidate"] == default and row["every"] == 1:
      ahead = row["relative_speed"] > row["paper_ideal"]
      lines.append(
        f"{'met   ' if ahead else 'MISSED'} every 1: the default at "
        f"{row['relative_speed']:.3f}, the paper's ideal is "
        f"{row['paper_ideal']:.3f}"
      )
  return "\n".join(lines)


def best_lines(record: dict, default: str) -> str:
  """The fastest candidate at each `every` beside the default."""
  lines = []
  for every in sorted({row["every"] for row in record["times"]}):
    speeds = {
      row["candidate"]: row["relative_speed"]
      for row in record["times"]
      if row["every"] == every
    }
    best = max(speeds, key=speeds.get)
    lines.append(
      f"every {every}: fastest is {best} at {speeds[best]:.3f} of the base's "
      f"speed; {default} has {speeds[default]:.3f}"
    )
  return "\n".join(lines)


def describe(record: dict, default: str) -> str:
  def spread(name):
    return report.spread(record[f"{name}_over_base"], digits=3)

  return "\n".join(
    [
      f"\n## {record['title']}: {record['parameters']:,} parameters",
      f"flops: F = {record['forward_flops']:.3g}, "
      f"F + B = {record['gradient_flops_in_forward']:.2f} F, "
      f"base step = {record['base_flops_in_forward']:.2f} F",
      f"temporary memory in parameter copies: "
      f"F {record['forward_temporary_copies']:.1f}, "
      f"F + B {record['gradient_temporary_copies']:.1f}, "
      f"base step {record['base_temporary_copies']:.1f}",
      f"time over the base step ({1e3 * record['base_seconds_per_step']:.2f} "
      f"ms): F {spread('forward')}, F + B {spread('gradient')}\n",
      cost_table(record),
      "* lax.map over two probes, its body counted once: add one F\n",
      time_table(record),
      "losses: closure evaluations at run time in a cycle of 8 steps\n",
      lazy_table(record) + "\n",
      best_lines(record, default),
      verdicts(record, default),
    ]
  )
