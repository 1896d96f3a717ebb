"""The pictures of `mnist_lenet.py`, drawn from its records."""

import numpy as np

from gen_optax.plotting import COLOURS
from scripts.psgd.annealed import RECIPES

SHOWN = ("momentum", "adam", "diagonal", "diagonal-own", "xmat")
SHOWN += ("lra5", "kron")
ORDERS = ("lra0", "lra1", "lra2", "lra5", "lra10")
COLOUR_OF = dict(zip(SHOWN, COLOURS, strict=False))


class canvas:
  """`panels` axes side by side, saved to `path` at the end."""

  def __init__(self, path, panels):
    self.path, self.panels = path, panels

  def __enter__(self):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    self.figure, axes = plt.subplots(
      1,
      self.panels,
      figsize=(5.2 * self.panels + 1.2 * (self.panels == 1), 4),
      layout="constrained",
      squeeze=False,
    )
    return axes[0]

  def __exit__(self, kind, *_):
    import matplotlib.pyplot as plt

    if kind is None:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self.figure.savefig(self.path, dpi=110)
    plt.close(self.figure)


def draw(axes, records):
  """Training loss, test error by order, validation accuracy by rate."""
  curves, orders, rates = axes
  shown = [name for name in SHOWN if name in records] or list(records)[:7]
  for name, spare in zip(shown, COLOURS, strict=False):
    runs, search, _ = records[name]
    colour = COLOUR_OF.get(name, spare)
    style = {"color": colour, "label": RECIPES[name].label}
    loss = smooth(np.array([run["curve"] for run in runs], float))
    curves.plot(np.median(loss, 0), lw=1.4, **style)
    accuracy = [float(score[0]) for score in search["scores"]]
    relative = np.array(search["rates"]) / search["best_rate"]
    rates.plot(relative, accuracy, marker="o", ms=3, **style)
  curves.set(yscale="log", xlabel="step")
  curves.set(ylabel="training loss, mean of 25 batches")
  curves.legend(frameon=False, fontsize="small")
  best = max(
    float(score[0]) for name in shown for score in records[name][1]["scores"]
  )
  rates.set(xscale="log", xlim=(0.08, 12), ylim=(best - 10, best + 1))
  rates.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
  rates.tick_params(which="minor", labelbottom=False)
  rates.set(xlabel="rate / best rate", ylabel="validation accuracy, %")
  rates.set_title("every rate tried")
  curves.set_title("median of seeds")
  draw_orders(orders, records)


def draw_orders(panel, records):
  """Figure 3: test error of low rank by its order; others as lines."""
  present = [name for name in ORDERS if name in records]
  for at, name in enumerate(present):
    errors = errors_of(records[name][0])
    panel.plot([at] * len(errors), errors, "o", ms=3, color="0.6")
    panel.plot(at, np.mean(errors), "_", ms=22, mew=2, color=COLOUR_OF["lra5"])
  for name in ("momentum", "adam", "xmat", "kron"):
    if name in records:
      error = np.mean(errors_of(records[name][0]))
      style = {"color": COLOUR_OF[name], "label": RECIPES[name].label}
      panel.axhline(error, lw=1, ls="--", **style)
  panel.set_xticks(range(len(present)), [name[3:] for name in present])
  panel.set(xlabel="order of low rank", ylabel="test error, %")
  panel.set_title("low rank: seeds and mean")
  # Room for the legend above the highest line.
  low, high = panel.get_ylim()
  panel.set_ylim(low, high + 0.3 * (high - low))
  panel.legend(frameon=False, fontsize="small", loc="upper right")


def errors_of(runs):
  return [100 - float(run["test"]["accuracy"]) for run in runs]


def smooth(curves, window=25):
  window = min(window, curves.shape[1] // 2)
  sums = np.cumsum(np.pad(curves, ((0, 0), (1, 0))), axis=1)
  return (sums[:, window:] - sums[:, :-window]) / window


def draw_accuracy(axes, records, mark=None):
  """Test accuracy on the way: the mean over seeds, and all seeds' range."""
  (panel,) = axes
  later = []
  for (name, runs), colour in zip(records.items(), COLOURS, strict=False):
    label = RECIPES[name].label if name in RECIPES else name
    history = np.array([run["history"] for run in runs], float)
    steps, accuracy = history[0, :, 0], history[:, :, 1]
    panel.plot(steps, accuracy.mean(0), color=colour, label=label, lw=1.6)
    panel.fill_between(
      steps, accuracy.min(0), accuracy.max(0), color=colour, alpha=0.2, lw=0
    )
    later.append(accuracy[:, max(1, len(steps) // 3) :])
  if mark is not None:
    panel.axvline(mark, color="0.5", lw=1, ls=":")
  # The climb from chance would squeeze all that differs later.
  low, high = np.min(later), np.max(later)
  panel.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
  panel.set(xlabel="step", ylabel="test accuracy, %")
  panel.legend(frameon=False, fontsize="small", loc="lower right")


def draw_statistics(axes, records):
  """Distributions over training examples, all seeds together."""
  pooled = {
    (name, key): np.concatenate([np.array(run[key], float) for run in runs])
    for name, runs in records.items()
    for key in ("entropy", "margin", "events")
  }
  entropy, margin, events = axes
  logs = {n: np.log10(pooled[n, "entropy"] + 1e-12) for n in records}
  lowest = min(np.percentile(x, 0.1) for x in logs.values())
  gaps = {n: np.sort(1 - pooled[n, "margin"]) for n in records}
  smallest = min(np.percentile(x, 0.1) for x in gaps.values())
  most = int(max(pooled[n, "events"].max() for n in records))
  for (name, log), colour in zip(logs.items(), COLOURS, strict=False):
    style = {"color": colour, "label": RECIPES[name].label, "lw": 1.6}
    entropy.hist(log, np.linspace(lowest, 0.5, 50), histtype="step", **style)
    share = np.arange(1, len(log) + 1) / len(log)
    margin.plot(gaps[name], share, **style)
    counts = np.bincount(pooled[name, "events"].astype(int), minlength=most + 1)
    events.plot(counts / counts.sum(), marker="o", ms=3, **style)
  entropy.set(xlabel="log10 of entropy (nats)", ylabel="training examples")
  margin.set(xscale="log", xlim=(max(smallest, 1e-12), 2))
  margin.set(xlabel="1 - margin", ylabel="share of examples below")
  events.set(yscale="log", xlabel="times forgotten", ylabel="share of examples")
  events.xaxis.get_major_locator().set_params(integer=True)
  events.legend(frameon=False, fontsize="small")
