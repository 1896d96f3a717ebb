"""The pictures of `distribution.py`, drawn from its records."""

import numpy as np

from gen_optax.plotting import COLOURS
from scripts.elmo.lipschitz import stats
from scripts.elmo.lipschitz.stats import ESTIMATES, array

TITLES = {
  "residual": "residual net, images",
  "random labels": "residual net, random labels",
  "noise": "residual net, noise",
  "plain": "plain net, images",
  "autoencoder": "autoencoder",
}
_WINDOW = 7


def new_figure(rows, columns, width=3.6, height=3.1, **options):
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  return plt.subplots(
    *(rows, columns),
    figsize=(width * columns, height * rows),
    layout="constrained",
    squeeze=False,
    **options,
  )


def save(figure, path):
  import matplotlib.pyplot as plt

  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def draw_curves(path, records, groups, steps):
  """A row for each group of cases, a column for each estimate.

  L+ solid, L- dashed: the geometric mean over seeds of a running geometric mean
  over looks, and the seeds' range.
  """
  height = 3.1 if len(groups) > 1 else 3.8
  figure, axes = new_figure(
    *(len(groups), len(ESTIMATES), 3.6, height), sharex=True
  )
  for row, cases in zip(axes, groups, strict=True):
    for panel, (name, label) in zip(row, ESTIMATES.items(), strict=True):
      for case, colour in zip(cases, COLOURS, strict=False):
        for logs, dashes in zip(
          stats.ends(records[case], name), ("-", (0, (4, 2))), strict=True
        ):
          draw_band(panel, logs, steps, color=colour, ls=dashes)
      panel.set(yscale="log", title=label)
      part = max(stats.at_floor(records[c], name)[0] for c in cases)
      if part > 0.5:
        panel.text(
          *(0.97, 0.2, f"L+ at the estimate's floor\nin {100 * part:.0f} %"),
          transform=panel.transAxes,
          ha="right",
        )
    row[0].set_ylabel("Lipschitz parameter")
    entries = [
      *(
        (TITLES[c], {"color": k}) for c, k in zip(cases, COLOURS, strict=False)
      ),
      ("L+, largest eigenvalue", {"color": "0.3"}),
      ("L-, smallest eigenvalue", {"color": "0.3", "ls": (0, (4, 2))}),
    ]
    for entry, style in entries:
      row[0].plot([], [], label=entry, **style)
  for panel in axes[-1]:
    panel.set_xlabel("training step")
  for panel in axes.flat:
    name_ticks(panel.yaxis, *panel.get_ylim())
  handles = {}
  for row in axes:
    lines, labels = row[0].get_legend_handles_labels()
    handles |= dict(zip(labels, lines, strict=True))
  if len(groups) == 1:
    figure.legend(
      handles.values(), handles, loc="outside lower center", ncols=5
    )
  else:
    for row in axes:
      lines, labels = row[0].get_legend_handles_labels()
      row[-1].legend(
        *(lines, labels), loc="center left", bbox_to_anchor=(1, 0.5)
      )
  save(figure, path)


def name_ticks(axis, low, high):
  """Readable ticks on a logarithmic axis of little more than a decade."""
  from matplotlib import ticker

  if high < 100 * low:
    subs = (1, 2, 5) if high < 10 * low else (1, 3)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
  axis.set_minor_formatter(ticker.NullFormatter())


def draw_band(panel, logs, steps, **style):
  smooth = np.stack([running_mean(row) for row in logs])
  at = np.linspace(0, steps, logs.shape[1], endpoint=False)
  middle = stats.mean(smooth, 0)
  panel.plot(at, 10**middle, lw=1.4, **style)
  fine = np.isfinite(smooth).any(0)
  low, high = (f(smooth[:, fine], axis=0) for f in (np.nanmin, np.nanmax))
  panel.fill_between(
    at[fine], 10**low, 10**high, color=style["color"], alpha=0.15, lw=0
  )


def running_mean(row) -> np.ndarray:
  half = min(_WINDOW, len(row)) // 2
  return np.array(
    [stats.mean(row[max(0, k - half) : k + half + 1]) for k in range(len(row))]
  )


def draw_scatter(path, records, names=("gradient", "third")):
  """log L+ against Newton's superiority; a row for each of the estimates.

  Heights are linear between minus and plus the lower quartile of their size.
  """
  figure, axes = new_figure(len(names), len(records), 3.3, 3.0)
  for row, name in zip(axes, names, strict=True):
    for panel, (case, record) in zip(row, records.items(), strict=True):
      plus, _ = stats.ends(record, name)
      saved = array(record, "saved")
      better = saved[..., 0] - saved[..., 1]
      when = np.broadcast_to(np.linspace(0, 1, plus.shape[1]), plus.shape)
      dots = panel.scatter(
        10**plus, better, c=when, s=5, cmap="cividis", lw=0, alpha=0.8
      )
      found = stats.correlate(record, name)
      typical = np.nanquantile(np.abs(better), 0.25)
      panel.set_yscale("symlog", linthresh=10.0 ** np.floor(np.log10(typical)))
      panel.axhline(0, color="0.5", lw=0.8)
      panel.set_xscale("log")
      name_ticks(panel.xaxis, *panel.get_xlim())
      panel.set_title(
        f"{TITLES[case]}\nr = {found.seeds.mean:.2f}, p = "
        f"{found.seeds.p:.1g} over seeds",
        fontsize="medium",
      )
      panel.set_xlabel(f"L+ by {ESTIMATES[name]}")
    row[0].set_ylabel("loss after gradient step\nless after Newton's")
  bar = figure.colorbar(dots, ax=axes, shrink=0.6, aspect=30)
  bar.set_label("part of training done")
  save(figure, path)


def draw_training(path, training, window=15):
  """SGD against SGD with Newton steps in the top eigenspaces."""
  figure, axes = new_figure(1, len(training), 4.2, 3.3)
  for panel, (case, runs) in zip(axes[0], training.items(), strict=True):
    for (name, run), colour in zip(runs.items(), COLOURS, strict=False):
      losses = np.array(run["losses"], float)
      kernel = np.ones(window) / window
      smooth = np.stack([np.convolve(row, kernel, "valid") for row in losses])
      at = np.arange(smooth.shape[1]) + window // 2
      panel.plot(at, np.median(smooth, 0), color=colour, label=name, lw=1.4)
      panel.fill_between(
        at, smooth.min(0), smooth.max(0), color=colour, alpha=0.2, lw=0
      )
    panel.set(yscale="log", title=TITLES[case], xlabel="training step")
    name_ticks(panel.yaxis, *panel.get_ylim())
  axes[0][0].set_ylabel(f"training loss, mean of {window} batches")
  lines, labels = axes[0][0].get_legend_handles_labels()
  figure.legend(lines, labels, loc="outside lower center", ncols=2)
  save(figure, path)
