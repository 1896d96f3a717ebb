"""What the ELMO/AMOS paper claims of L+ and L-, judged by the numbers.

Each claim has a criterion, tried with each estimate of L. It held if all
estimates say so, did not if none does; else it depends on the estimate. An
estimate whose L+ lies at its floor most of the time has no say in what depends
on the size of L+.
"""

from typing import NamedTuple

import numpy as np

from scripts.common.report import number
from scripts.elmo.lipschitz import stats
from scripts.elmo.lipschitz.stats import ESTIMATES, OverSeeds

HELD, FAILED, DEPENDS = "HELD", "DID NOT HOLD", "depends on the estimate"
OPEN = "NOT MEASURABLE"
CLASSIFIERS = ("residual", "random labels", "noise", "plain")


class Claim(NamedTuple):
  """A claim, when it counts as held, what was measured, and the verdict."""

  text: str
  criterion: str
  figures: str
  verdict: str


def judge(text, criterion, found: dict) -> Claim:
  """`found` has for each way of measuring the figure as text and a bool.

  None in place of the bool is no say.
  """
  figures = "; ".join(
    f"{name}: {figure}" for name, (figure, _) in found.items()
  )
  says = [bool(held) for _, held in found.values() if held is not None]
  verdict = HELD if all(says) else DEPENDS if any(says) else FAILED
  verdict = verdict if says else OPEN
  return Claim(text, criterion, figures, verdict)


def factor(decades) -> str:
  """10^decades, as a number or as a power where that is shorter."""
  if not np.isfinite(decades):
    return "undefined"
  if abs(decades) >= 4:
    return f"1e{decades:+.1f}"
  return f"{number(10.0**decades, 2)}x"


def p_value(p) -> str:
  return "p n/a" if not np.isfinite(p) else f"p {number(p, 1)}"


def each_estimate(measure) -> dict:
  """`measure(estimate)` gives (figure, held)."""
  return {label: measure(name) for name, label in ESTIMATES.items()}


def floored(records, estimate) -> float:
  """The largest part of any record's L+ that is at the estimate's floor."""
  return max(stats.at_floor(record, estimate)[0] for record in records)


def where_seen(records, measure):
  """`measure`, but no say for an estimate that sees too little of L+."""

  def say(estimate):
    part = floored(records, estimate)
    if part > 0.5:
      return f"no say, L+ at its floor in {100 * part:.0f} %", None
    return measure(estimate)

  return each_estimate(say)


def all_claims(records: dict, training: dict) -> list[Claim]:
  """`training` has for each task the losses of SGD and of the hybrid."""
  return [
    *of_convex_and_concave(records),
    *of_difficulty(records),
    *of_correlation(records),
    *of_change(records),
    *of_selection(records, training),
  ]


def of_convex_and_concave(records) -> list[Claim]:
  def smaller(name):
    gaps = {case: stats.gap(record, name) for case, record in records.items()}
    low, high = (f(g.mean for g in gaps.values()) for f in (min, max))
    held = all(g.mean > 1 and g.holds(1) for g in gaps.values())
    part, figure = floored(records.values(), name), ""
    if part > 0:
      figure = f", L+ at its floor in up to {100 * part:.0f} %"
    return f"L-/L+ {factor(low)} to {factor(high)}{figure}", held

  def widens(name):
    grown = {case: stats.gap_growth(records[case], name) for case in records}
    low = min(grown[case].mean for case in CLASSIFIERS)
    held = all(grown[case].holds(1) for case in CLASSIFIERS)
    coder = grown["autoencoder"]
    figure = f"at least {factor(low)} in classification, "
    figure += f"{factor(coder.mean)} in the autoencoder"
    return figure, held and not coder.holds(1)

  def varies(name):
    over = [stats.spread(stats.ends(r, name)[0]) for r in records.values()]
    spaces = [stats.spread_over_spaces(r, name) for r in records.values()]
    figure = f"over spaces {factor(min(spaces))} to {factor(max(spaces))}, "
    figure += f"L+ over training {factor(min(over))} to {factor(max(over))}"
    return figure, min(spaces) > 1 and min(over) > 1

  return [
    judge(
      "L+ << L- (section 5)",
      "L-/L+ > 10, p < 0.05, in all five cases",
      each_estimate(smaller),
    ),
    judge(
      "the gap L-/L+ widens over training, except in autoencoders",
      "growth > 1, p < 0.05, in all four classifiers, not in the autoencoder",
      where_seen(records.values(), widens)
      | {"EigenARC without a floor": widens("no_floor")},
    ),
    judge(
      "L varies by orders of magnitude over eigenspaces and over training",
      "both by more than 10 in all five cases (5 to 95 % over training)",
      where_seen(records.values(), varies),
    ),
  ]


def of_difficulty(records) -> list[Claim]:
  def claim(text, more, less, measure=None):
    def compare(name):
      found = stats.contrast(records[more], records[less], name, measure)
      return (
        f"{factor(found.mean)} ({p_value(found.p)})",
        found.mean > 1 and found.holds(1),
      )

    criterion = "at least 10 times, p < 0.05"
    both = records[more], records[less]
    return judge(text, criterion, where_seen(both, compare))

  return [
    claim("L+ of an autoencoder >> of a classifier", "autoencoder", "plain"),
    claim(
      "(ours) the same with the squared error summed over pixels, not averaged",
      *("autoencoder", "plain", stats.of_summed_loss),
    ),
    claim(
      "(ours) the same without units: L+ over eq. 8's threshold",
      *("autoencoder", "plain", stats.threshold_ratio),
    ),
    claim("residual connections reduce L+ about 100x", "plain", "residual"),
    claim("L+ of noise ~100x L+ of images and labels", "noise", "residual"),
    claim(
      "(ours) L+ of random labels on images > with true ones",
      *("random labels", "residual"),
    ),
  ]


def of_correlation(records) -> list[Claim]:
  nets = [records[case] for case in ("residual", "plain")]

  def negative(saved, ranks=False):
    def measure(name):
      found = [stats.correlate(record, name, saved) for record in nets]
      found = [c.spearman if ranks else c.seeds for c in found]
      figure = ", ".join(f"r {r.mean:.2f}" for r in found)
      return figure, all(r.holds(-1) for r in found)

    return where_seen(nets, measure)

  def weaker(name):
    images, noise = (
      stats.correlate(records[case], name).seeds
      for case in ("residual", "noise")
    )
    change = stats.over_seeds(noise.seeds - images.seeds)
    figure = f"r {images.mean:.2f} and {noise.mean:.2f} ({p_value(change.p)})"
    return figure, images.mean < 0 and change.holds(1)

  def beyond(name):
    found = [stats.correlate(record, name) for record in nets]
    figure = ", ".join(f"r {c.partial.mean:.2f}" for c in found)
    return figure, all(c.partial.holds(-1) for c in found)

  images = "r < 0 over seeds, p < 0.05, residual and plain net"
  return [
    judge(
      "the smaller L+, the greater Newton's superiority (appendix E)",
      *(images, negative("saved")),
    ),
    judge(
      "(ours) the same by Spearman's ranks",
      *(images, negative("saved", ranks=True)),
    ),
    judge(
      "(ours) the same with Newton in the top 5 and SGD elsewhere, against SGD",
      *(images, negative("saved_step")),
    ),
    judge(
      "that correlation is negative on images and weaker on noise (Table 1)",
      "r of images < 0, r of noise above it, p < 0.05 over seeds",
      where_seen([records["residual"], records["noise"]], weaker),
    ),
    judge(
      "(ours) L+ says more than the quadratic does",
      "Spearman's r given the eigenvalue, the slope and the superiority on "
      "the quadratic < 0, p < 0.05, residual and plain net",
      where_seen(nets, beyond),
    ),
  ]


def of_change(records) -> list[Claim]:
  def constant(name):
    found = {}
    for case, record in records.items():
      plus, _ = stats.ends(record, name)
      found[case] = stats.spread(plus[:, plus.shape[1] // 2 :])
    low, high = min(found.values()), max(found.values())
    return f"spread {factor(low)} to {factor(high)}", high < 1

  moved = {case: stats.changes(record) for case, record in records.items()}
  steadier = {
    case: (f"{top:.2f} < {bottom:.2f}?", top < bottom)
    for case, (top, bottom) in moved.items()
  }
  shrunk = {}
  for case, record in records.items():
    top, bottom = stats.shrinkage(record)
    figure = f"top {factor(top.mean)}, bottom {factor(bottom.mean)}"
    shrunk[case] = figure, bottom.holds(-1) and abs(top.mean) < 0.5
  taylor = {}
  for case, record in records.items():
    top, bottom = stats.newton_and_best(record)
    figure = f"r {top.mean:.2f} and {bottom.mean:.2f}"
    held = top.mean > 0.7 and abs(bottom.mean) < 0.3
    taylor[case] = figure, held
  claims = [
    judge(
      "L+ is nearly constant after a warm-up (appendices E, L)",
      "5 to 95 % within 10x in the second half of training, all cases",
      where_seen(records.values(), constant),
    ),
    judge(
      "(app. I) the largest eigenvalue moves less than the lowest",
      "its median |change of ln| from look to look is below the other's",
      steadier,
    ),
    judge(
      "(app. I) the lowest eigenvalue shrinks, the largest stays",
      "bottom falls, p < 0.05; top changes by less than 3.2x",
      shrunk,
    ),
    judge(
      "(app. I) Newton's length is the best at the top, unrelated below",
      "r of logs > 0.7 at the top, |r| < 0.3 at the bottom",
      taylor,
    ),
  ]
  return [claims[0], *map(by_case, claims[1:])]


def of_selection(records, training) -> list[Claim]:
  def rule(name):
    share = {
      case: stats.first_order_share(records[case], name).mean
      for case in ("residual", "plain", "autoencoder")
    }
    figure = ", ".join(f"{case} {100 * s:.0f} %" for case, s in share.items())
    held = share["autoencoder"] >= 0.5 > max(share["residual"], share["plain"])
    return figure, held

  gains = {case: gain(runs) for case, runs in training.items()}
  figure = ", ".join(
    f"{case} {factor(g.mean)} ({p_value(g.p)})" for case, g in gains.items()
  )
  helps = {case: g.holds(1) for case, g in gains.items()}
  coder = helps.pop("autoencoder")
  held = all(helps.values()) and not coder
  return [
    judge(
      "eq. 8 sends the autoencoder to first order, the classifiers not",
      "share sent to first order: autoencoder >= 1/2 > both classifiers",
      each_estimate(rule),
    ),
    judge(
      "Newton in the top eigenspaces helps SGD only in classification",
      "loss of SGD over the hybrid's > 1, p < 0.05: there, and not in the "
      "autoencoder",
      {"SGD / hybrid": (figure, held)},
    ),
  ]


def by_case(claim: Claim) -> Claim:
  """The verdict's words where it was cases that were tried, not estimates."""
  if claim.verdict == DEPENDS:
    return claim._replace(verdict="depends on the case")
  return claim


def gain(runs) -> OverSeeds:
  """log10 of SGD's last training loss over the hybrid's, seed by seed."""
  sgd, hybrid = map(stats.last_loss, runs.values())
  return stats.over_seeds(np.log10(sgd / hybrid))
