"""The tables of `psgd.py`, and whether its targets are met."""

from typing import NamedTuple

from scripts.bench.psgd_structures import RANK, STRUCTURES, TENTH
from scripts.common import report


def cell(quartiles) -> str:
  """Median and quartiles."""
  if quartiles is None:
    return "-"
  low, middle, high = (f"{x:.3g}" for x in quartiles)
  return f"{middle} ({low}-{high})"


def time_table(rows: list[dict]) -> str:
  others = ("copy", "sgd", "adam", "psgd_jax")
  cells = [
    [
      f"{row['structure']}: {row['action']}",
      "-" if row["floats"] is None else f"{row['floats']:g}",
      row["nanoseconds_per_parameter"],
      *(cell(row.get(name)) for name in others),
      row["rounds"],
    ]
    for row in rows
  ]
  headers = [
    f"n = {rows[0]['n']:.0e}",
    "floats",
    "ns/param",
    "/ copy",
    "/ SGD",
    "/ Adam",
    "psgd_jax / ours",
    "rounds",
  ]
  return report.table(headers, cells)


def parity_table(rows: list[dict]) -> str:
  cells = [
    [
      row["structure"],
      row["n"],
      row["normalizer"],
      f"{row['state']:.1e}",
      f"{row['product']:.1e}",
    ]
    for row in rows
  ]
  headers = ["one step, ours and psgd_jax's", "n", "normalizer", "Q", "P g"]
  return report.table(headers, cells)


class Target(NamedTuple):
  """A bound on the median of one ratio; `None` for every n."""

  structure: str
  n: int | None
  action: str
  other: str
  bound: float

  def line(self, rows: list[dict]) -> str | None:
    found = [
      row
      for row in rows
      if row["structure"] == self.structure
      and row["action"] == self.action
      and self.other in row
      and (self.n is None or self.n == row["n"])
    ]
    if not found:
      return None
    above = self.other == "psgd_jax"
    worst = (min if above else max)(
      (row[self.other] for row in found), key=lambda quartiles: quartiles[1]
    )
    verdict = self.verdict(worst, above)
    sizes = "every n" if self.n is None else f"n = {self.n:.0e}"
    what = "psgd_jax / ours" if above else f"ours / {self.other}"
    relation = "at least" if above else "at most"
    return (
      f"{verdict} {self.structure}, {self.action}, {sizes}: "
      f"{what} {cell(worst)}, {relation} {self.bound:g}"
    )

  def verdict(self, quartiles, above: bool) -> str:
    """By the median; open where it misses by less than the spread."""
    low, middle, high = quartiles
    if middle >= self.bound if above else middle <= self.bound:
      return "met   "
    near = high >= self.bound if above else low <= self.bound
    return "near  " if near else "MISSED"


TARGETS = (
  Target(f"low rank {RANK}", 10**5, "update + apply", "psgd_jax", 10),
  Target(f"low rank {RANK}", 10**6, "update + apply", "psgd_jax", 3),
  *(
    Target(name, None, action, "psgd_jax", bound)
    for name in ("xmat", "xmat, global step")
    for action, bound in (
      ("update + apply", 1),
      ("apply", 1),
      (f"whitening, 1/{TENTH}", 3),
    )
  ),
  *(
    Target(structure.name, None, "apply", "copy", 2)
    for structure in STRUCTURES
    if structure.name != "kron"  # matrix products, not passes over memory
  ),
)
