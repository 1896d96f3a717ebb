"""The tables of `distribution.py`."""

import textwrap

import numpy as np

from scripts.common.report import number, table
from scripts.elmo.lipschitz import stats
from scripts.elmo.lipschitz.claims import factor, p_value
from scripts.elmo.lipschitz.stats import ESTIMATES, array

FLOORS_SHOWN = (-20, -15, -10, -5)


def show(records, training, control):
  for title, headers, rows in (
    runs(records),
    sizes(records),
    floors(records),
    without_floor(records),
    contrasts(records),
    correlations(records, "saved"),
    correlations(records, "saved_step"),
    rule(records),
    appendix_i(records),
    hybrid(training),
  ):
    print(f"\n{title}\n")
    print(table(headers, rows))
  for name, (plus, minus) in control.items():
    print(
      f"\nControl, a cubic with L+ = L- = 1 exactly: {ESTIMATES[name]} says "
      f"L+ = {number(plus)}, L- = {number(minus)}.",
      end="",
    )
  print()


def show_claims(claims):
  print("\nClaims of the paper\n")
  for count, claim in enumerate(claims, 1):
    print(f"{count:2}. {claim.verdict}: {claim.text}")
    for line in (f"Held if: {claim.criterion}.", f"{claim.figures}."):
      print(textwrap.indent(textwrap.fill(line, 74), "      "))


def with_range(x: stats.OverSeeds, form=number) -> str:
  fine = x.seeds[np.isfinite(x.seeds)]
  if not len(fine):
    return "undefined"
  return f"{form(x.mean)} [{form(fine.min())}, {form(fine.max())}]"


def as_power(decades) -> str:
  return number(10.0**decades, 2)


def percent(share) -> str:
  return "-" if not np.isfinite(share) else f"{100 * share:.0f} %"


def runs(records):
  rows = []
  for case, record in records.items():
    loss, fine = array(record, "loss").mean(-1), stats.sound(record)
    rows.append(
      [
        case,
        number(record["rate"]),
        float(loss[:, 0].mean()),
        float(loss[:, -1].mean()),
        float(np.median(array(record, "values")[..., 0])),
        float(np.median(array(record, "values")[..., -1])),
        percent(stats.mean(array(record, "share"))),
        percent(1 - fine[..., [0, -1]].mean()),
      ]
    )
  headers = ["case", "rate", "first loss", "last loss", "median top"]
  headers += ["median bottom", "|g|^2 in top 5", "pairs left out"]
  return "The runs: training loss and extreme eigenvalues", headers, rows


def sizes(records):
  rows = []
  for case, record in records.items():
    for name, label in ESTIMATES.items():
      plus, minus = (
        stats.over_seeds(stats.mean(x, 1)) for x in stats.ends(record, name)
      )
      grown = stats.gap_growth(record, name)
      rows.append(
        [
          *(case, label, with_range(plus, as_power)),
          with_range(minus, as_power),
          with_range(stats.gap(record, name), as_power),
          f"{factor(grown.mean)} ({p_value(grown.p)})",
          " / ".join(map(percent, stats.at_floor(record, name)))
          if name in stats.FLOORS
          else "-",
        ]
      )
  headers = ["case", "estimate", "L+", "L-", "L-/L+", "its growth"]
  headers += ["at floor, + / -"]
  title = "L+ and L-: geometric means over looks; by how much L-/L+ grows from "
  title += "first to last look\n(line through the logs); how often the "
  title += "estimate is the lowest number that it can give"
  return title, headers, rows


def floors(records):
  rows = [
    [case]
    + [as_power(stats.gap_from_floor(record, e)) for e in FLOORS_SHOWN]
    + [percent(stats.at_floor(record, "validated")[0])]
    for case, record in records.items()
  ]
  headers = ["case", *(f"floor 2^{e}" for e in FLOORS_SHOWN)]
  title = "L-/L+ of the validated L by the floor that it is given: what "
  title += "changes with it is no property\nof the loss"
  return title, [*headers, "L+ at 2^-20"], rows


def without_floor(records):
  rows = []
  for case, record in records.items():
    sides = stats.ends(record, "no_floor")
    looks = sides[0].shape[1]
    at = (0, looks // 4, looks // 2, looks - 1)
    rows.append(
      [case]
      + [f"1e{stats.mean(sides[0][:, k]):+.0f}" for k in at]
      + [as_power(stats.mean(sides[1][:, k])) for k in (0, looks - 1)]
    )
  headers = ["case", "L+ at first look", "after 1/4", "after 1/2", "at last"]
  title = "EigenARC with appendix J's caps and no floor: each failed trial "
  title += "lowers L+ again, as it never matters"
  return title, [*headers, "L- at first look", "at last"], rows


CONTRASTS = (
  ("random labels / true ones", "random labels", "residual"),
  ("noise / images", "noise", "residual"),
  ("plain / residual", "plain", "residual"),
  ("autoencoder / plain classifier", "autoencoder", "plain"),
)


def contrasts(records):
  rows = []
  for label, more, less in CONTRASTS:
    for unit, measure in (
      ("L+", None),
      ("of threshold", stats.threshold_ratio),
    ):
      found = [
        stats.contrast(records[more], records[less], name, measure)
        for name in ESTIMATES
      ]
      rows.append(
        [label, unit]
        + [f"{with_range(x, as_power)} {p_value(x.p)}" for x in found]
      )
  title = "L+ of one case over another's, seed by seed; and the same for L+ "
  title += "over eq. 8's threshold, which\ndoes not change with the unit of "
  title += "loss or parameters"
  return title, ["cases", "what", *ESTIMATES.values()], rows


def correlations(records, saved):
  rows = []
  for case, record in records.items():
    for name, label in ESTIMATES.items():
      found = stats.correlate(record, name, saved)
      rows.append(
        [
          *(case, label, number(found.pooled, 2), number(found.pooled_p, 1)),
          f"{with_range(found.seeds, lambda r: number(r, 2))}",
          number(found.seeds.p, 1),
          "{} of {}, {}".format(*found.negative, number(found.sign_p, 1)),
          number(found.logs.mean, 2),
          number(found.spearman.mean, 2),
          f"{number(found.partial.mean, 2)} ({p_value(found.partial.p)})",
          percent(found.positive),
        ]
      )
  headers = ["case", "estimate", "r pooled", "p as if independent"]
  headers += ["r by seed", "p over seeds", "r < 0, sign test", "r of logs"]
  headers += ["Spearman", "Spearman | quadratic", "Newton better"]
  title = "log L+ against Newton's superiority: Pearson's r, all looks and "
  title += "seed by seed.\nLast but one: by ranks, given the eigenvalue, the "
  title += "slope and the superiority on the quadratic.\n"
  if saved == "saved":
    title += "Both steps along the largest eigenvalue's vector only"
  else:
    title += (
      "Whole steps: SGD's, and with Newton's along the 5 largest; L+ the "
    )
    title += "largest of theirs"
  return title, headers, rows


def rule(records):
  rows = []
  for case, record in records.items():
    shares = [stats.first_order_share(record, name) for name in ESTIMATES]
    newton = array(record, "saved")[..., 0]
    top = array(record, "saved_top")[..., 0]
    rows.append(
      [case]
      + [with_range(x, percent) for x in shares]
      + [percent(np.mean(newton <= 0)), percent(np.mean(top <= 0))]
    )
  headers = ["case", *ESTIMATES.values(), "Newton raised f, top"]
  headers += ["Newton raised f, top 5"]
  title = "Eq. 8: the part of convex eigenspaces (5 largest; largest alone for "
  title += "the last three estimates) that it\nsends to first order, and how "
  title += "often Newton's step did raise the loss"
  return title, headers, rows


def appendix_i(records):
  rows = []
  for case, record in records.items():
    moved, grown = stats.changes(record), stats.shrinkage(record)
    best = stats.newton_and_best(record)
    rows.append(
      [case, *(f"{100 * m:.0f} %" for m in moved)]
      + [f"{factor(g.mean)} ({p_value(g.p)})" for g in grown]
      + [with_range(b, lambda r: number(r, 2)) for b in best]
    )
  headers = ["case", "top moves", "bottom moves", "top grows", "bottom grows"]
  headers += ["Newton and best, top", "and bottom"]
  title = "Appendix I: median change of the extreme eigenvalues between looks, "
  title += "their growth over training,\nand Pearson's r of the logs of "
  title += "|c / eigenvalue| and of the best step along the eigenvector"
  return title, headers, rows


def hybrid(training):
  rows = []
  for case, by_name in training.items():
    for name, run in by_name.items():
      last = stats.last_loss(run)
      rows.append(
        [
          *(case, name, number(run["rate"])),
          *(str(len(run["rates"])), f"{last.mean():.4f}"),
          f"[{last.min():.4f}, {last.max():.4f}]",
        ]
      )
  headers = ["case", "method", "rate", "trials", "last loss"]
  title = "Appendix L: Newton's steps in the 5 largest eigenspaces, refreshed "
  title += "every 10 steps with 20 products\nand damped by 0.1; training loss "
  title += "of the last tenth"
  return title, [*headers, "seeds"], rows
