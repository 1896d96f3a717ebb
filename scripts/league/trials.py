"""Quasi-random settings: the same number of trials for everybody."""

from collections.abc import Mapping

from scripts.league.entrant import Range

SEED = 7


def settings(
  space: Mapping[str, Range], count: int, seed: int = SEED
) -> list[dict]:
  """`count` points of a scrambled Halton sequence in a box."""
  from scipy.stats import qmc

  shares = qmc.Halton(len(space), rng=seed).random(count)
  return [
    {
      name: float(f"{span.at(share):.4g}")
      for (name, span), share in zip(space.items(), row, strict=True)
    }
    for row in shares
  ]


def at_edge(setting: Mapping, space: Mapping[str, Range]) -> list[str]:
  """Names whose value lies in an outer tenth of its range."""
  shares = {name: space[name].share_of(x) for name, x in setting.items()}
  return [name for name, share in shares.items() if not 0.1 <= share <= 0.9]
