"""One setting for each entrant, found on variants of the workloads.

The same quasi-random points for everybody, each run on every variant. A setting
is judged by the mean over variants of log(best validation loss / that of the
best of AdamW's points), within half a unit each: time to a target would say
nothing of the variants that a setting fails on. An entrant that is read at two
places gets a setting for each, from the same runs.
"""

import json
import math
from pathlib import Path

import numpy as np

from scripts.common.report import number, table
from scripts.league import trials
from scripts.league.campaign import Campaign, Wanted
from scripts.league.field import ENTRANTS
from scripts.league.references import ADAMW
from scripts.league.targets import best_loss
from scripts.league.workload import variants

FROZEN = Path(__file__).with_name("frozen.json")
SEED = 0
# No variant can outweigh others.
MOST = 0.5


def losses(campaign: Campaign, names, args) -> dict:
  """Best losses by entrant and reading, shape (settings, variants).

  One variant after the other, since its data and network are shared.
  """
  found = {
    name: {where: [] for where in ENTRANTS[name].readings} for name in names
  }
  for workload in args.workloads:
    family = campaign.families[workload]
    for form in variants(family, args.variants):
      for name in names:
        entrant = ENTRANTS[name]
        settings = trials.settings(entrant.space, args.trials)
        runs = campaign.records(
          family,
          form,
          entrant,
          [Wanted(setting, SEED, True) for setting in settings],
          "calibrate",
        )
        for where, rows in found[name].items():
          rows.append([best_loss(run, where) for run in runs])
  return {
    name: {where: np.array(x).T for where, x in readings.items()}
    for name, readings in found.items()
  }


def regret(found: np.ndarray, best: np.ndarray) -> np.ndarray:
  """Mean log ratio to the reference of each setting."""
  with np.errstate(divide="ignore", invalid="ignore"):
    each = np.log(found / best)
  return np.clip(np.nan_to_num(each, nan=MOST), -MOST, MOST).mean(1)


def calibrate(campaign: Campaign, args) -> dict:
  """For each entrant and reading the best setting and its regret."""
  names = list(dict.fromkeys([ADAMW.name, *args.entrants]))
  found, chosen = losses(campaign, names, args), {}
  best = found[ADAMW.name]["iterate"].min(0)
  for name in args.entrants:
    entrant = ENTRANTS[name]
    settings = trials.settings(entrant.space, args.trials)
    chosen[name] = {}
    for where in entrant.readings:
      scores = regret(found[name][where], best)
      at = int(np.argmin(scores))
      chosen[name][where] = {
        "setting": settings[at],
        "regret": float(scores[at]),
        "edge": trials.at_edge(settings[at], entrant.space),
      }
  return chosen


def freeze(chosen: dict, path: Path):
  """Adds to the file what was chosen; other entrants stay."""
  kept = frozen(path)
  for name, readings in chosen.items():
    kept[name] = {where: x["setting"] for where, x in readings.items()}
  text = json.dumps(dict(sorted(kept.items())), indent=1)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text + "\n")


def frozen(path: Path) -> dict:
  return json.loads(path.read_text()) if path.exists() else {}


def show(chosen: dict, args) -> str:
  rows = []
  for name, readings in chosen.items():
    for where, x in readings.items():
      setting = x["setting"].items()
      rows.append(
        [
          name,
          where,
          f"{x['regret']:+.3f}",
          " ".join(f"{k}={number(v)}" for k, v in setting),
          ", ".join(x["edge"]) or "none",
        ]
      )
  count = len(args.workloads) * args.variants
  headers = ["entrant", "read at", "regret", "setting", "near an edge"]
  return (
    f"{args.trials} settings each (Halton, scrambled with seed {trials.SEED}) "
    f"on {count} variants; regret is the mean of log(loss / best of AdamW's), "
    f"at most {MOST} ({math.exp(MOST):.2f} times) each\n\n"
    + table(headers, rows)
  )
