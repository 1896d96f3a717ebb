"""The pictures of `digits.py`, from its records."""

import numpy as np

from gen_optax.plotting import COLOURS

STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))
AXES = (
  ("steps", "iterations"),
  ("cost", "work, in gradients"),
  ("seconds", "processor seconds"),
)
POINTS = 300


def draw(path, problem, budget, methods):
  """The lowest loss so far against iterations, work and seconds.

  Args:
    path: of the picture.
    problem: the `Problem`.
    budget: of a run, in gradients.
    methods: name -> records of its seeds.
  """
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, panels = plt.subplots(
    1, 3, figsize=(13.5, 4.6), sharey=True, layout="constrained"
  )
  for panel, (key, label) in zip(panels, AXES, strict=True):
    for (name, runs), colour, style in zip(
      methods.items(), COLOURS, STYLES, strict=False
    ):
      x, loss = median_curve(runs, key)
      panel.plot(
        x,
        loss,
        color=colour,
        ls=style,
        lw=2.4 if name == "ELMO" else 1.5,
        label=name,
        zorder=3 if name == "ELMO" else 2,
      )
    panel.set(xscale="log", yscale="log", xlabel=label)
    panel.grid(color="0.92")
  panels[1].set_xlim(1, budget)
  above = " above its minimum" if problem.lowest else ""
  panels[0].set_ylabel(f"lowest loss so far{above}")
  count = len(next(iter(methods.values())))
  figure.suptitle(
    f"{problem.title}\nmedian of {count} seed{'s' * (count > 1)}, each method "
    "at its best setting",
    fontsize="medium",
  )
  lines, labels = panels[0].get_legend_handles_labels()
  figure.legend(
    lines, labels, loc="outside lower center", ncols=len(labels), frameon=False
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)
  plt.close(figure)


def median_curve(runs, key):
  """The median over runs, each constant between its points."""
  curves = [
    (np.array(run["curve"][key], float), np.array(run["curve"]["loss"], float))
    for run in runs
  ]
  # A logarithmic axis has no place for the start, at zero.
  first = min(x[x > 0][0] for x, _ in curves)
  grid = np.geomspace(first, max(x[-1] for x, _ in curves), POINTS)
  losses = [loss[np.searchsorted(x, grid, "right") - 1] for x, loss in curves]
  # As far as every run goes.
  shared = grid <= min(x[-1] for x, _ in curves) * (1 + 1e-9)
  return grid[shared], np.median(losses, axis=0)[shared]
