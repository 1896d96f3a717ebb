"""The performance profile as a picture."""

from pathlib import Path

import numpy as np

from gen_optax.plotting import COLOURS
from scripts.league import scoring

STYLES = ("-", "--", ":", "-.")


def draw_profile(lines: list[dict], path: Path, most: int = 14) -> Path:
  """rho(tau) of the best rows, in the order of the standings."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
  taus = np.linspace(1, scoring.LARGEST, 601)
  for place, line in enumerate(lines[:most]):
    rho = scoring.profile(list(line["ratios"].values()), taus)
    axes.step(
      taus,
      rho,
      where="post",
      color=COLOURS[place % len(COLOURS)],
      ls=STYLES[place // len(COLOURS)],
      lw=1.6,
      label=f"{line['row'].label}: {line['score']:.3f}",
    )
  axes.set(
    xlabel=r"$\tau$: work over that of the fastest",
    ylabel="share of targets reached",
    xlim=(1, scoring.LARGEST),
    ylim=(0, 1.02),
  )
  figure.legend(loc="outside right upper", frameon=False, fontsize="small")
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=130)
  plt.close(figure)
  return path
