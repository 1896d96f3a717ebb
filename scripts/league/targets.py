"""Targets: what tuned optimizers reach on each workload.

Each of AdamW, NadamW, Nesterov's and heavy-ball momentum gets as many
quasi-random trials. The best trial's setting runs again from other seeds; the
median of their best validation losses is the target.
"""

from typing import NamedTuple

import numpy as np

from scripts.common.report import number, table
from scripts.league import trials
from scripts.league.campaign import Campaign, Wanted
from scripts.league.references import REFERENCES
from scripts.league.runner import curve

TRIAL_SEED = 0
FIRST_RERUN_SEED = 1


class Target(NamedTuple):
  """What entrants have to reach, and where it is from.

  Attributes:
    loss: the median of the reruns' best validation losses.
    entrant, setting: who set it.
    steps: its number of steps.
    cost: its work in one step, in passes of `value_and_grad`.
    spread: quartiles of the reruns.
    edge: names of the setting's numbers near an end of their ranges.
  """

  loss: float
  entrant: str
  setting: dict
  steps: int
  cost: float
  spread: tuple[float, float]
  edge: list[str]

  @property
  def work(self) -> float:
    return self.steps * self.cost


def best_loss(record: dict, where: str = "iterate") -> float:
  return float(curve(record, where)[1].min())


def find(campaign: Campaign, name: str, args) -> Target:
  """The target of one workload."""
  family = campaign.families[name]
  best = (float("inf"), None, None)
  for entrant in REFERENCES:
    settings = trials.settings(entrant.space, args.trials)
    runs = campaign.records(
      family,
      family.form,
      entrant,
      [Wanted(setting, TRIAL_SEED, False) for setting in settings],
      "target",
    )
    for setting, run in zip(settings, runs, strict=True):
      best = min(best, (best_loss(run), entrant, setting), key=lambda x: x[0])
  _, entrant, setting = best
  seeds = range(FIRST_RERUN_SEED, FIRST_RERUN_SEED + args.reruns)
  reruns = campaign.records(
    family,
    family.form,
    entrant,
    [Wanted(setting, seed, False) for seed in seeds],
    "rerun",
  )
  low, middle, high = np.percentile(
    [best_loss(r) for r in reruns], (25, 50, 75)
  )
  last = reruns[0]
  return Target(
    loss=float(middle),
    entrant=entrant.name,
    setting=setting,
    steps=last["step"][-1],
    cost=last["clock"][-1] / last["step"][-1],
    spread=(float(low), float(high)),
    edge=trials.at_edge(setting, entrant.space),
  )


def find_all(campaign: Campaign, args) -> dict[str, Target]:
  return {name: find(campaign, name, args) for name in args.workloads}


def show(found: dict[str, Target], args) -> str:
  rows = [
    [
      name,
      target.loss,
      f"{number(target.spread[0])}-{number(target.spread[1])}",
      target.entrant,
      " ".join(f"{k}={number(v)}" for k, v in target.setting.items()),
      ", ".join(target.edge) or "none",
      target.work,
    ]
    for name, target in found.items()
  ]
  headers = ["workload", "target", "quartiles", "set by", "setting"]
  return (
    f"{args.trials} trials of each of {len(REFERENCES)} references (Halton, "
    f"scrambled with seed {trials.SEED}), {args.reruns} reruns of the best\n\n"
    + table([*headers, "near an edge", "work"], rows)
  )
