"""Does one bad step spoil a run? Faults by the thousand, ours and others'.

A small network is trained 51 steps by every optimizer of this package and by
others. At one of the steps 1 to 30 (or at the first, counted apart) the loss,
its closure, its gradient or its second derivative is faulty: not finite, absurd
in size, uphill, flat, concave. A run has survived if parameters and state stay
finite and the loss 20 clean steps later is below that before the fault, or
below 1e-6. The class "none" is the control: no fault at all.

    python -m scripts.robustness.faults          20 of each, four precisions
    python -m scripts.robustness.faults --quick  4 of each class, float32

Others are asked for finite parameters and a lower loss only. Everything is
deterministic given `--seed`; a run that was cut short goes on where it stopped.
"""

import time
from functools import partial

from scripts.common import xla

xla.compile_fast()  # each program runs once

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from scripts.common import cli, report  # noqa: E402
from scripts.robustness import campaign, methods  # noqa: E402
from scripts.robustness.campaign import SPOKEN_OF  # noqa: E402

GROUPS = {
  "ours": methods.ours,
  "unguarded": methods.limits,
  "others": methods.peers,
}
DTYPES = ("float32", "float64", "bfloat16", "float16")


def strike(group, name, dtype, each, first, seed) -> dict:
  """The counts of one optimizer in one precision, by class."""
  names, draw = campaign.draws(each, first, seed)
  try:
    outcome = campaign.run(GROUPS[group](dtype)[name](), draw, dtype)
  except (TypeError, ValueError) as error:
    return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
  survived = outcome.kept if group == "others" else outcome.survived
  names, late = np.array(names), np.asarray(draw.step) > 0
  counts = {}
  for name in campaign.CLASSES:
    here = names == name
    counts[name] = {
      "faults": int((here & late).sum()),
      "lost": int((here & late & ~survived).sum()),
      "first": int((here & ~late).sum()),
      "first_lost": int((here & ~late & ~survived).sum()),
      "not_finite": int((here & ~outcome.params_finite).sum()),
      "withheld": int((here & outcome.withheld).sum()),
      "named": int((here & outcome.named).sum()),
      "silent": int((here & outcome.silent).sum()),
    }
  return {"classes": counts}


def total(records, field, classes=campaign.FAULTY) -> int:
  """Over the precisions and the classes."""
  found = [r["classes"] for r in records if "classes" in r]
  return sum(counts[name][field] for counts in found for name in classes)


def by_method(group, table) -> str:
  rows = []
  for name, records in table.items():
    sums = [total(records, field) for field in ("faults", "lost", "first_lost")]
    control = [total(records, field, ["none"]) for field in ("lost", "faults")]
    rows.append(
      [
        name,
        *sums[:2],
        f"{sums[2]} of {total(records, 'first')}",
        *(total(records, k) for k in ("not_finite", "withheld")),
        "" if group == "others" else total(records, "silent", SPOKEN_OF),
        f"{control[0]} of {control[1]}",
        sum("error" in record for record in records),
      ]
    )
  headers = ["faults", "lost", "lost at the first step", "not finite"]
  headers += ["withheld", "unsaid", "lost without a fault", "refused dtypes"]
  return report.table([group, *headers], rows)


def share(records, name) -> str:
  """Survivors among later faults of a class, in per cent."""
  count, lost = (total(records, k, [name]) for k in ("faults", "lost"))
  return f"{100 * (count - lost) / count:.3g}" if count else ""


def by_class(tables) -> str:
  others = tables["others"]
  rows = []
  for name in campaign.CLASSES:
    merged = {
      group: [r for records in tables[group].values() for r in records]
      for group in ("ours", "unguarded")
    }
    rows.append(
      [
        name,
        *(share(merged[group], name) for group in ("ours", "unguarded")),
        *(share(records, name) for records in others.values()),
      ]
    )
  return report.table(["survived, %", "ours", "unguarded", *others], rows)


def losses(tables) -> list[str]:
  """Every class that any of ours does not survive whole, by precision."""
  found = []
  for name, records in tables["ours"].items():
    for kind in campaign.CLASSES:
      for field, where in (("lost", ""), ("first_lost", " at the first step")):
        for dtype, record in zip(tables["dtypes"], records, strict=True):
          if lost := total([record], field, [kind]):
            found.append(f"{name}, {dtype}: {kind}{where}: {lost} lost")
  return found


def behind(tables) -> list[str]:
  """Classes that some other survives whole, in a precision, and ours not."""
  found = []
  for kind in campaign.FAULTY:
    for k, dtype in enumerate(tables["dtypes"]):
      whole = [
        name
        for name, records in tables["others"].items()
        if "classes" in records[k]
        and not total(records[k : k + 1], "lost", [kind])
      ]
      for name, records in tables["ours"].items():
        lost = total(records[k : k + 1], "lost", [kind])
        if lost and whole:
          found.append(
            f"{name}, {dtype}: {kind}: {lost} lost; none by {', '.join(whole)}"
          )
  return found


def parse_args():
  parser = cli.parser(__doc__.splitlines()[0], "out")
  parser.add_argument("--seed", type=int, default=0, help="of all faults")
  parser.add_argument("--only", nargs="*", help="names of optimizers")
  return parser.parse_args()


def main():
  args = parse_args()
  began = time.perf_counter()
  each, first, dtypes = (4, 1, DTYPES[:1]) if args.quick else (20, 5, DTYPES)
  settings = dict(each=each, first=first, seed=args.seed, dtypes=dtypes)
  kind = "quick" if args.quick else "full"
  path = args.out / f"faults_{kind}.json"
  results = cli.Results(path, settings | {"dtypes": list(dtypes)})
  per = len(campaign.FAULTY) * (each + first) * len(dtypes)
  print(
    f"{len(campaign.FAULTY)} classes, {each} later faults and {first} at the "
    f"first step in each of {', '.join(dtypes)}: {per} for each optimizer; "
    f"seed {args.seed}"
  )
  tables = {"dtypes": dtypes}
  for group, make in GROUPS.items():
    names = [n for n in make() if not args.only or n in args.only]
    tables[group] = {}
    for name in tqdm(names, desc=group, disable=None):
      one = partial(strike, group, name, each=each, first=first, seed=args.seed)
      tables[group][name] = [
        results.get(f"{name}, {dtype}", partial(one, dtype)) for dtype in dtypes
      ]
    print("\n" + by_method(group, tables[group]))
  print("\n" + by_class(tables))
  for title, lines in (
    ("Not survived by ours", losses(tables)),
    ("Behind others", behind(tables)),
  ):
    print(f"\n{title}: {len(lines) or 'nothing'}", *lines, sep="\n  ")
  seconds = time.perf_counter() - began
  print(f"\n{seconds:.0f} s; records: {path}")


if __name__ == "__main__":
  main()
