"""Statistics of `distribution.py`: from records to numbers.

A record holds arrays of shape (seeds, looks, ...), as `lab.measure`
makes them. Looks of one run are not independent; seeds are. So what a table
calls p without more is a test over seeds, of one number each.
"""

import warnings
from typing import NamedTuple

import numpy as np
import scipy.stats

from gen_optax import elmo
from scripts.elmo.lipschitz import lab
from scripts.elmo.lipschitz.lab import EXPONENTS, TOP

ESTIMATES = {
  "third": "|D3f[v,v,v]|",
  "gradient": "|D3f[v,v,.]|",
  "remainder": "remainder",
  "validated": "validated",
  "eigen_arc": "EigenARC",
}
# The lowest numbers that the estimates by trial steps can give.
FLOORS = {"validated": 2.0 ** EXPONENTS[0], "eigen_arc": 1e-8}
# A pair whose residual is above this part of its eigenvalue is not looked at.
_CONVERGED = 0.05


def array(record, name) -> np.ndarray:
  return np.array(record[name], float)


def sound(record) -> np.ndarray:
  """Which ends may be read: convex or concave as meant, and converged."""
  values, residuals = array(record, "values"), array(record, "residuals")
  converged = residuals <= _CONVERGED * np.abs(values)
  side = np.ones(TOP + 1)
  side[-1] = -1
  return converged & (values * side > 0)


def ends(record, estimate) -> tuple[np.ndarray, np.ndarray]:
  """log10 of L+ and of L-, shape (seeds, looks); NaN where not sound."""
  found, fine = array(record, estimate), sound(record)
  with np.errstate(divide="ignore", invalid="ignore"):
    logs = np.log10(np.maximum(found, 1e-300))
  plus = np.where(fine[..., 0], logs[..., 0], np.nan)
  minus = np.where(fine[..., -1], logs[..., -1], np.nan)
  return plus, minus


def at_floor(record, estimate) -> tuple[float, float]:
  """The parts of L+ and of L- that are the estimate's lowest number."""
  if estimate not in FLOORS:
    return 0.0, 0.0
  # EigenARC halves, and stops short of its floor.
  lowest = np.log10(2 * FLOORS[estimate]) - 1e-6
  return tuple(
    float(np.mean(side[np.isfinite(side)] <= lowest))
    for side in ends(record, estimate)
  )


def mean(x, axis=None):
  """The mean of what is not NaN; NaN where nothing is left."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)
    return np.nanmean(x, axis)


class OverSeeds(NamedTuple):
  """One number for each seed, their mean, and the p of mean 0 (t-test)."""

  seeds: np.ndarray
  mean: float
  p: float

  def holds(self, sign: float) -> bool:
    """Whether the mean has this sign with p < 0.05."""
    return bool(self.mean * sign > 0 and self.p < 0.05)


def over_seeds(numbers) -> OverSeeds:
  numbers = np.asarray(numbers, float)
  finite = numbers[np.isfinite(numbers)]
  p = np.nan
  if len(finite) > 1 and np.ptp(finite) > 0:
    p = float(scipy.stats.ttest_1samp(finite, 0.0).pvalue)
  return OverSeeds(numbers, float(mean(numbers)), p)


def gap(record, estimate) -> OverSeeds:
  """The mean of log10(L- / L+) of each seed."""
  plus, minus = ends(record, estimate)
  return over_seeds(mean(minus - plus, 1))


def growth(x) -> OverSeeds:
  """By how much x, shape (seeds, looks), grows from first to last look.

  A least-squares line for each seed.
  """

  def one(row):
    at, fine = np.linspace(0, 1, len(row)), np.isfinite(row)
    if fine.sum() < 3:
      return np.nan
    return np.polyfit(at[fine], row[fine], 1)[0]

  return over_seeds([one(row) for row in x])


def gap_growth(record, estimate) -> OverSeeds:
  """Decades by which L- / L+ grows over the training."""
  plus, minus = ends(record, estimate)
  return growth(minus - plus)


def gap_from_floor(record, exponent) -> float:
  """The gap that the validated L would show with a floor of 2^exponent."""
  floor = exponent * np.log10(2)
  plus, minus = (np.maximum(x, floor) for x in ends(record, "validated"))
  return float(mean(minus - plus))


def spread(x) -> float:
  """Decades between the 5 and the 95 % quantile, the mean over seeds."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)
    low, high = np.nanquantile(x, [0.05, 0.95], axis=1)
  return float(mean(high - low))


def spread_over_spaces(record, estimate) -> float:
  """Decades between the largest and smallest L of a look, the median."""
  with np.errstate(divide="ignore"):
    logs = np.log10(np.maximum(array(record, estimate), 1e-12))
  return float(np.nanmedian(logs.max(-1) - logs.min(-1)))


def of_summed_loss(record, estimate) -> np.ndarray:
  """log10 of L+ of the loss summed over what the autoencoder averages over.

  At the same parameters that is so many times as much.
  """
  return ends(record, estimate)[0] + np.log10(record["averaged_over"])


def threshold_ratio(record, estimate) -> np.ndarray:
  """log10 of L+ over eq. 8's threshold, which has no unit; (seeds, looks)."""
  plus, _ = ends(record, estimate)
  slope, curvature = (array(record, x)[..., 0] for x in ("slopes", "values"))
  return plus - np.log10(np.asarray(elmo.newton_threshold(slope, curvature)))


def first_order_share(record, estimate) -> OverSeeds:
  """The part of convex eigenspaces with L at or above eq. 8's threshold.

  Of the TOP largest where the estimate has them, else of the largest alone.
  """
  found = array(record, estimate)
  count = TOP if found.shape[-1] > 2 else 1
  slopes, values = (array(record, x)[..., :count] for x in ("slopes", "values"))
  limit = np.asarray(elmo.newton_threshold(slopes, values))
  over = (found[..., :count] >= limit).astype(float)
  over[~sound(record)[..., :count]] = np.nan
  return over_seeds(mean(over, (1, 2)))


def last_loss(run) -> np.ndarray:
  """The mean loss of the last tenth of steps, one for each seed."""
  return lab.last_loss(array(run, "losses"))


# --- contrasts of two cases ---------------------------------------------------


def contrast(more, less, estimate, measure=None) -> OverSeeds:
  """The mean of log10 L+ in one record less that in another, seed by seed."""
  measure = measure or (lambda record, name: ends(record, name)[0])
  return over_seeds(
    mean(measure(more, estimate), 1) - mean(measure(less, estimate), 1)
  )


# --- correlation --------------------------------------------------------------


class Correlation(NamedTuple):
  """How L+ goes with Newton's superiority.

  Attributes:
    pooled: Pearson's r of log L+ and the superiority over all looks.
    pooled_p: its p as if looks were independent.
    seeds: the same r, seed by seed, through Fisher's z; and its test.
    negative: how many of how many seeds have r < 0.
    sign_p: the p of that, two-sided.
    spearman: the mean over seeds of Spearman's.
    partial: the mean over seeds of Spearman's with the ranks of the eigenvalue,
      of the slope's size and of the superiority on the quadratic, which these
      two make, regressed out of both; and its test.
    logs: Pearson's r of log L+ and log superiority where that is positive.
    positive: how often it is.
  """

  pooled: float
  pooled_p: float
  seeds: OverSeeds
  negative: tuple
  sign_p: float
  spearman: OverSeeds
  partial: OverSeeds
  logs: OverSeeds
  positive: float


def pearson(x, y) -> float:
  """Pearson's r of the pairs that are finite; NaN where one is constant."""
  fine = np.isfinite(x) & np.isfinite(y)
  x, y = x[fine], y[fine]
  if len(x) < 4 or np.ptp(x) < 1e-12 or np.ptp(y) == 0:
    return np.nan
  return float(np.corrcoef(x, y)[0, 1])


def ranks(x) -> np.ndarray:
  """Ranks with NaN left in place."""
  return scipy.stats.rankdata(x, nan_policy="omit")


def partial_spearman(x, y, given) -> float:
  """Spearman's r of what ranks of `given` leave unexplained in x and y."""
  fine = np.isfinite(x) & np.isfinite(y) & np.isfinite(given).all(0)
  if fine.sum() < 8 or np.ptp(x[fine]) < 1e-12:
    return np.nan
  columns = [np.ones(fine.sum()), *(ranks(g[fine]) for g in given)]
  design = np.stack(columns, 1)

  def left(z):
    z = ranks(z[fine])
    return z - design @ np.linalg.lstsq(design, z, rcond=None)[0]

  return pearson(left(x), left(y))


def correlate(record, estimate, saved="saved") -> Correlation:
  """L+ against the superiority along the largest eigenvalue's vector.

  For "saved_step" that of a whole step, with Newton's part along the TOP
  largest, and L+ is the largest of theirs where the estimate has them.
  """
  plus, _ = ends(record, estimate)
  fine = np.isfinite(plus)
  found = array(record, estimate)[..., :TOP]
  if saved != "saved" and found.shape[-1] == TOP:
    plus = np.where(fine, np.log10(np.maximum(found, 1e-12).max(-1)), np.nan)
  better = np.subtract(*np.moveaxis(array(record, saved), -1, 0))
  with np.errstate(divide="ignore", invalid="ignore"):
    log_better = np.where(better > 0, np.log10(np.abs(better)), np.nan)
  slopes = np.abs(array(record, "slopes")[..., 0])
  values = array(record, "values")[..., 0]
  # What the quadratic alone promises Newton more than gradient descent.
  promise = (slopes * (1 - record["rate"] * values)) ** 2 / (2 * values)
  r = np.array(list(map(pearson, plus, better)))
  known = r[np.isfinite(r)]
  z = over_seeds(np.arctanh(np.clip(r, -0.999999, 0.999999)))
  negative = int((known < 0).sum())
  fine &= np.isfinite(better)
  pooled = pearson(plus[fine], better[fine])
  return Correlation(
    pooled=pooled,
    pooled_p=float(scipy.stats.pearsonr(plus[fine], better[fine]).pvalue)
    if np.isfinite(pooled)
    else np.nan,
    seeds=z._replace(seeds=r, mean=float(np.tanh(z.mean))),
    negative=(negative, len(known)),
    sign_p=float(scipy.stats.binomtest(negative, len(known)).pvalue)
    if len(known)
    else np.nan,
    spearman=over_seeds(
      [pearson(ranks(x), ranks(y)) for x, y in zip(plus, better, strict=True)]
    ),
    partial=over_seeds(
      [
        partial_spearman(x, y, np.stack(given))
        for x, y, *given in zip(
          *(plus, better, values, slopes, promise), strict=True
        )
      ]
    ),
    logs=over_seeds(list(map(pearson, plus, log_better))),
    positive=float(np.mean(better[fine] > 0)),
  )


# --- appendix I ---------------------------------------------------------------


def changes(record) -> tuple[float, float]:
  """The median |change of ln eigenvalue| between looks: top and bottom."""
  values, fine = array(record, "values"), sound(record)
  found = []
  for end in (0, -1):
    logs = np.where(fine[..., end], np.log(np.abs(values[..., end])), np.nan)
    found.append(float(np.nanmedian(np.abs(np.diff(logs, axis=1)))))
  return tuple(found)


def shrinkage(record) -> tuple[OverSeeds, OverSeeds]:
  """Decades by which the extreme eigenvalues grow over training."""
  values, fine = array(record, "values"), sound(record)
  return tuple(
    growth(np.where(fine[..., e], np.log10(np.abs(values[..., e])), np.nan))
    for e in (0, -1)
  )


def newton_and_best(record) -> tuple[OverSeeds, OverSeeds]:
  """Pearson's r of log best step and log |c / eigenvalue|, at both ends."""
  best, fine = array(record, "best_length"), sound(record)
  values, slopes = array(record, "values"), array(record, "slopes")
  found = []
  for end in (0, -1):
    newton = np.log(np.abs(slopes[..., end] / values[..., end]))
    newton = np.where(fine[..., end], newton, np.nan)
    rows = zip(np.log(best[..., end]), newton, strict=True)
    found.append(over_seeds([pearson(*row) for row in rows]))
  return tuple(found)
