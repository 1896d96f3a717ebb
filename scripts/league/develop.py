"""Entrants on the development tasks, beside AdamW at the best of five rates.

What is printed is log(loss / reference), 0 where an entrant does as well as the
reference: for the best loss on the way, and for the one at the end.
"""

import numpy as np

from scripts.common.report import table
from scripts.league.campaign import Campaign, Wanted
from scripts.league.development.families import FAMILIES
from scripts.league.field import ENTRANTS
from scripts.league.references import ADAMW
from scripts.league.runner import curve

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
# A run that fails is as bad as one that ends 20 times above the reference.
MOST = 3.0


def reference(campaign: Campaign, name: str, seeds) -> dict:
  """Mean best loss at each rate, with warm-up and cosine, and the least."""
  family = FAMILIES[name]
  wanted = [
    Wanted(dict(ADAMW.default) | {"rate": rate}, seed, False)
    for rate in RATES
    for seed in seeds
  ]
  runs = campaign.records(family, family.form, ADAMW, wanted, "reference")
  losses = np.array([curve(run, "iterate")[1].min() for run in runs])
  means = losses.reshape(len(RATES), -1).mean(1).tolist()
  by_rate = dict(zip(RATES, means, strict=True))
  rate = min(by_rate, key=by_rate.get)
  return {
    "loss": by_rate[rate],
    "rate": rate,
    "edge": rate in (RATES[0], RATES[-1]),
    "by_rate": by_rate,
  }


def compare(campaign: Campaign, name: str, entrant, seeds, least: float):
  """log(loss / reference) at each reading: (best, end)."""
  family = FAMILIES[name]
  runs = campaign.records(
    family,
    family.form,
    entrant,
    [Wanted(dict(entrant.default), seed, False) for seed in seeds],
    "develop",
  )
  found = {}
  for where in entrant.readings:
    losses = [curve(run, where)[1] for run in runs]
    best = np.mean([x.min() for x in losses])
    end = np.mean([x[-1] for x in losses])
    with np.errstate(divide="ignore", invalid="ignore"):
      found[where] = np.log([best / least, end / least]).tolist()
  return found


def run(campaign: Campaign, args) -> dict:
  """All entrants on all tasks; one task after the other."""
  seeds = range(1, 1 + args.seeds)
  results = {}
  for name in args.tasks:
    least = reference(campaign, name, seeds)
    results[name] = {"reference": least, "entrants": {}}
    for entrant in args.entrants:
      results[name]["entrants"][entrant] = compare(
        campaign, name, ENTRANTS[entrant], seeds, least["loss"]
      )
  return results


def show(results: dict) -> str:
  """One line for each entrant and reading, best / end in each cell."""
  first = next(iter(results.values()))["entrants"]
  rows = []
  for entrant, readings in first.items():
    for where in readings:
      cells = [each["entrants"][entrant][where] for each in results.values()]
      label = entrant + ", avg" * (where == "average")
      means = np.nan_to_num(np.clip(cells, -MOST, MOST), nan=MOST).mean(0)
      rows.append(
        [label, *(f"{best:+.2f}/{end:+.2f}" for best, end in [*cells, means])]
      )
  rates = [
    f"{name} {x['reference']['rate']:g}" + "*" * x["reference"]["edge"]
    for name, x in results.items()
  ]
  return (
    f"AdamW's best rates (* at an end of the five): {', '.join(rates)}\n\n"
    + table(["entrant", *results, "mean"], rows)
  )
