"""What the commands do: run what is missing, print, keep."""

import time

import jax
import numpy as np

from scripts.common import report
from scripts.league import (
  calibrate,
  contest,
  develop,
  pictures,
  store,
  targets,
  trials,
)
from scripts.league.campaign import Campaign, Wanted
from scripts.league.families import FAMILIES
from scripts.league.references import ADAMW


def campaign_of(args) -> Campaign:
  return Campaign(
    FAMILIES, args.data_dir, args.out / "runs.jsonl", args.step_factor
  )


def keep(args, name: str, seeds, payload: dict):
  """Prints where what was found is kept, and of which commit."""
  seeds = {"trials": trials.SEED, **seeds}
  path = report.write_json(
    args.out / f"{name}.json",
    {"commit": store.commit(), "seed_of": seeds, **payload},
    settings=vars(args),
  )
  print(f"\ncommit {store.commit()}; seeds: {seeds}\nrecord: {path}")


def run_targets(args):
  found = targets.find_all(campaign_of(args), args)
  print(f"\nTargets: {targets.show(found, args)}")
  last = targets.FIRST_RERUN_SEED + args.reruns - 1
  seeds = {
    "search": targets.TRIAL_SEED,
    "reruns": f"{targets.FIRST_RERUN_SEED}-{last}",
  }
  keep(args, "targets", seeds, {"targets": _plain(found)})


def run_calibrate(args):
  chosen = calibrate.calibrate(campaign_of(args), args)
  print(f"\nOne setting each: {calibrate.show(chosen, args)}")
  if args.freeze:
    calibrate.freeze(chosen, args.frozen)
    print(f"\nfrozen: {args.frozen}")
  keep(args, "calibrate", {"runs": calibrate.SEED}, {"chosen": chosen})


def run_score(args):
  campaign = campaign_of(args)
  found = targets.find_all(campaign, args)
  results = contest.run(campaign, found, args)
  lines = contest.standings(results)
  print(f"\nTargets: {targets.show(found, args)}")
  print(f"\nThe contest, {args.seeds} seeds:\n\n{contest.show(lines, results)}")
  picture = pictures.draw_profile(lines, args.out / "profile.png")
  print(f"\npicture: {picture}")
  last = contest.FIRST_SEED + args.seeds - 1
  payload = {
    "targets": _plain(found),
    "standings": [{**line, "row": line["row"].label} for line in lines],
    "results": {
      name: {row.label: x for row, x in each.items()}
      for name, each in results.items()
    },
    "frozen": calibrate.frozen(args.frozen),
  }
  keep(args, "score", {"runs": f"{contest.FIRST_SEED}-{last}"}, payload)


def run_seconds(args):
  """AdamW at its default rate on each workload, once."""
  campaign, rows = campaign_of(args), []
  for name in args.workloads:
    family = FAMILIES[name]
    began = time.perf_counter(), time.process_time()
    (record,) = campaign.records(
      family, family.form, ADAMW, [Wanted(ADAMW.default, 0, False)], "seconds"
    )
    losses = np.array(record["iterate"])[:, 0]
    ground = campaign.ground(family, family.form)
    size = sum(x.size for x in jax.tree.leaves(ground.shapes[0]))
    rows.append(
      [
        name,
        family.title,
        size,
        family.form.steps,
        f"{ground.unit / 1e6:.0f}",
        record["clock"][-1] / record["step"][-1],
        record["seconds"],
        record["evaluating"],
        f"{time.perf_counter() - began[0]:.0f}",
        f"{time.process_time() - began[1]:.0f}",
        f"{losses[0]:.3f} -> {losses.min():.3f}",
      ]
    )
  headers = ["workload", "what", "weights", "steps", "Mflops", "work a step"]
  headers += ["training s", "evaluating s", "wall s", "cpu s", "loss"]
  print(report.table(headers, rows))


def run_develop(args):
  path = args.out / "develop.jsonl"
  campaign = Campaign(develop.FAMILIES, args.data_dir, path, args.step_factor)
  results = develop.run(campaign, args)
  print(f"\nlog(loss / tuned AdamW's), best / end:\n\n{develop.show(results)}")
  keep(args, "develop", {"runs": f"1-{args.seeds}"}, {"results": results})


def _plain(found) -> dict:
  return {name: target._asdict() for name, target in found.items()}


CHAIN = ("targets", "calibrate", "score")
COMMANDS = {
  "targets": run_targets,
  "calibrate": run_calibrate,
  "score": run_score,
  "develop": run_develop,
  "seconds": run_seconds,
}
