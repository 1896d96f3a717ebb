"""The contest: every entrant on every workload, scored at its targets.

Each entrant is read at its own iterate and, unless it has an average of its
own, at the polynomial average, each with its frozen setting and with its raw
default. All of these together are the field that r = t / min t is taken over.
"""

from typing import NamedTuple

import numpy as np

from scripts.common.report import number, table
from scripts.league import calibrate, scoring
from scripts.league.campaign import Campaign, Wanted
from scripts.league.entrant import Entrant
from scripts.league.field import ENTRANTS
from scripts.league.runner import curve

FIRST_SEED = 100


class Row(NamedTuple):
  """One line of the table: an entrant, a setting, a place to read it at."""

  entrant: str
  settings: str  # "frozen" or "default"
  where: str

  @property
  def label(self) -> str:
    mark = {"iterate": "", "average": ", avg"}[self.where]
    return self.entrant + mark + " (raw)" * (self.settings == "default")


def rows_of(names, kinds, path) -> dict[Row, tuple[Entrant, dict]]:
  """Who runs, with which setting; nobody runs frozen without a setting."""
  frozen, rows = calibrate.frozen(path), {}
  for name in names:
    entrant = ENTRANTS[name]
    for kind in kinds:
      for where in entrant.readings:
        setting = entrant.default
        if kind == "frozen":
          setting = frozen.get(name, {}).get(where)
        if setting is not None:
          rows[Row(name, kind, where)] = entrant, dict(setting)
  return rows


def run(campaign: Campaign, found_targets, args) -> dict:
  """Runs what is missing; results by workload and row."""
  rows, results = rows_of(args.entrants, args.settings, args.frozen), {}
  seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
  for name, target in found_targets.items():
    family = campaign.families[name]
    results[name] = {}
    for row, (entrant, setting) in rows.items():
      runs = campaign.records(
        family,
        family.form,
        entrant,
        [Wanted(setting, seed, True) for seed in seeds],
        "score",
      )
      results[name][row] = judge(runs, row.where, target)
  return results


def judge(runs: list[dict], where: str, target) -> dict:
  """What the seeds of one row gave on one workload."""
  times, best, ends = [], [], []
  for record in runs:
    clock, losses = curve(record, where)
    times.append(scoring.time_to(clock, losses, target.loss))
    best.append(losses.min() / target.loss)
    ends.append(losses[-1] > losses[0])
  steps = runs[0]["step"][-1]
  return {
    "time": float(np.median(times)),
    "times": times,
    "best": float(np.median(best)),
    "above_start": int(sum(ends)),
    "runs": len(runs),
    "cost": runs[0]["clock"][-1] / steps,
    "steps": steps,
    "seconds_per_step": float(np.median([r["seconds"] for r in runs])) / steps,
  }


def standings(results: dict) -> list[dict]:
  """A line for each row, the best score first."""
  workloads = list(results)
  rows = list(results[workloads[0]])
  times = {row: [results[w][row]["time"] for w in workloads] for row in rows}
  ratios = scoring.ratios(times)
  lines = []
  for row in rows:
    each = [results[w][row] for w in workloads]
    lines.append(
      {
        "row": row,
        "score": scoring.score(ratios[row]),
        "reached": int(np.isfinite(times[row]).sum()),
        "speed": scoring.speed(ratios[row]),
        "worst": max(x["best"] for x in each),
        "above_start": sum(x["above_start"] for x in each),
        "runs": sum(x["runs"] for x in each),
        "cost": float(np.mean([x["cost"] for x in each])),
        "ratios": dict(zip(workloads, ratios[row].tolist(), strict=True)),
      }
    )
  return sorted(lines, key=lambda line: (-line["score"], -line["speed"]))


def show(lines: list[dict], results: dict) -> str:
  """The standings, and each workload's ratios."""
  workloads = list(results)
  summary = [
    [
      line["row"].label,
      f"{line['score']:.3f}",
      f"{line['reached']} of {len(workloads)}",
      f"{line['speed']:.2f}",
      line["worst"],
      f"{line['above_start']} of {line['runs']}",
      line["cost"],
    ]
    for line in lines
  ]
  each = [
    [line["row"].label]
    + [
      f"{number(line['ratios'][w])} ({number(results[w][line['row']]['best'])})"
      for w in workloads
    ]
    for line in lines
  ]
  headers = ["entrant", "score", "targets", "speed", "worst loss / target"]
  return "\n\n".join(
    [
      "Decided by work: flops of whole updates over those of one "
      "value_and_grad. Speed is the geometric mean of 1 / r, at least 1/4.",
      table([*headers, "above start", "work a step"], summary),
      "r = t / min t, and in brackets the best loss over the target:",
      table(["entrant", *workloads], each),
      "Steps and seconds of training, for comparison:",
      steps_table(lines, results),
    ]
  )


def steps_table(lines, results) -> str:
  rows = []
  for line in lines:
    cells = []
    for each in results.values():
      x = each[line["row"]]
      steps = x["time"] / x["cost"]
      seconds = steps * x["seconds_per_step"]
      reached = np.isfinite(steps)
      cells.append(f"{steps:.0f} ({seconds:.1f})" if reached else "-")
    rows.append([line["row"].label, *cells])
  return table(["entrant", *results], rows)
